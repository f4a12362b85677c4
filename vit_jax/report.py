"""The report of a run: one self-contained `report.html`, made of what the run left behind."""

import base64
import importlib.resources
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vit_jax import curves, metrics
from vit_jax.console import clock
from vit_jax.report_tables import (
  class_tables,
  config_tree,
  one_line,
  parameter_rows,
  parameter_tables,
  preflight_tables,
  result_table,
  words,
)
from vit_jax.tables import BASELINES, final_table, format_column, grids, number, split

__all__ = ['final_table', 'write_report']

FILE = 'report.html'
PREFLIGHT = 'preflight.json'  # what `vit_jax preflight --workdir` leaves
NO_CURVE = tuple(f'_{name}' for name in (*BASELINES, 'chance'))  # they do not change
TITLES = {
  'loss': 'Loss',
  'accuracy': 'Accuracy',
  'top5': 'Top-5 accuracy',
  'learning_rate': 'Learning rate',
  'grad_norm': 'Norm of the gradient',
  'images_per_second': 'Throughput, images a second',
  'data_wait': 'Share of time spent waiting for data',
}
CAPTIONS = {  # By the last word of a picture's name.
  'filters': 'What the layer that sees the pixels looks for.',
  'distances': 'How far each attention head looks, by depth.',
  'positions': "How similar each patch's position embedding is to those of all others (cosine).",
  'rollout': (
    'Where the model looks: attention rolled out from the output back to the patches of test '
    'images (arXiv:2005.00928).'
  ),
  'calibration': 'How often answers are right, by how sure the model is (arXiv:1706.04599).',
  'confusion': 'What was taken for what: true classes by row, predictions by column.',
  'mistakes': 'The mistakes that the model is surest of.',
}
EXPLANATIONS = {  # By metric, of numbers that are shown beside pictures.
  'mask_share': '{:.1%} of the attention falls on the drawing, by rollout.',
  'mask_area': 'The drawing covers {:.1%} of the image, which is what even attention would give.',
  'untrained_mask_share': 'With random parameters the model gives it {:.1%}.',
}


def write_report(workdir: str | Path) -> Path:
  """Writes `workdir/report.html` from what is there, and says in it what is missing.

  It reads `config.json`, `run.json`, `parameters.json`, `metrics.jsonl`, `pictures/` and, where it
  is there, `preflight.json`.

  Returns:
    The file's path; it holds everything it shows and refers to no other file.

  Raises:
    ValueError: `workdir` is no run's folder, or its metrics are damaged.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise ValueError(f'{str(workdir)!r} is no run: there is no such folder')
  if not any((workdir / name).is_file() for name in ('config.json', metrics.FILE, PREFLIGHT)):
    raise ValueError(f'{str(workdir)!r} is no run: it holds neither config.json nor {metrics.FILE}')
  missing: list[str] = []
  config = _read_json(workdir, 'config.json', missing) or {}
  run = _read_json(workdir, 'run.json', missing) or {}
  parameters = _read_json(workdir, 'parameters.json', missing)
  preflight = _read_json(workdir, PREFLIGHT, missing) if (workdir / PREFLIGHT).is_file() else None
  rows = metrics.read(workdir) if (workdir / metrics.FILE).is_file() else []
  pictures = sorted((workdir / 'pictures').rglob('*.png'))
  pictures = [p for p in pictures if not p.name.startswith('.')]
  if not rows:
    missing.append(f'No numbers: {metrics.FILE} is not there or empty.')
  last, steps = rows[-1]['step'] if rows else 0, run.get('steps')
  known = bool(rows) and isinstance(steps, int)
  if not pictures and not (known and last >= steps):  # A whole run may draw none.
    missing.append('No pictures: the evaluations that draw them have not run.')
  if known and last < steps:
    missing.append(f'The last numbers are of step {last:,} of {steps:,}.')
  final: dict[str, float] = {}  # Each metric at the last step that has it.
  for row in rows:
    final.update(row)
  numbers = {name: value for name, value in final.items() if name != 'step'}
  body = [
    _head(workdir.resolve().name, config, run, parameters, last),
    _missing(missing),
    _results(numbers, {p.relative_to(workdir / 'pictures').parts[0] for p in pictures}),
    class_tables(numbers),
    _curves(rows),
    _pictures(workdir / 'pictures', pictures, numbers),
    parameter_tables(parameters),
    preflight_tables(preflight),
    config_tree(config),
  ]
  path = workdir / FILE
  page = _page(workdir.resolve().name, '\n'.join(part for part in body if part))
  metrics.write_atomically(path, page.encode())
  return path


def _read_json(workdir: Path, name: str, missing: list[str]) -> Any:
  """What `name` holds, or None and a note in `missing` why not."""
  try:
    return json.loads((workdir / name).read_text(encoding='utf-8'))
  except FileNotFoundError:
    missing.append(f'No {name}.')
  except ValueError:
    missing.append(f'{name} cannot be read.')
  return None


def _page(title: str, body: str) -> str:
  here = importlib.resources.files('vit_jax')
  css, script = (here.joinpath(f'report.{k}').read_text(encoding='utf-8') for k in ('css', 'js'))
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n'
    f'</main>\n<script>\n{script}</script>\n</body>\n</html>\n'
  )


def _head(name: str, config: Any, run: Mapping[str, Any], parameters: Any, last: int) -> str:
  size = run.get('parameters') or sum(row.get('size', 0) for row in parameter_rows(parameters))
  seconds = run.get('seconds')
  facts = {
    'steps': f'{last:,}',
    'time': clock(seconds) if seconds else None,
    'parameters': f'{size:,}' if isinstance(size, int) and size else None,
  }
  known = ('command', 'versions', 'seconds', 'parameters', 'steps', 'classes')
  facts |= {
    k: f'{v:,}' if isinstance(v, int) else one_line(v) for k, v in run.items() if k not in known
  }
  items = ''.join(
    f'<div><dt>{escape(words(k))}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items() if v
  )
  parts = [f'<header><h1>{escape(name)}</h1>']
  what = [_get(config, *path) for path in (('objective', 'type'), ('data', 'source', 'type'))]
  if any(what):
    parts.append(f'<p class="soft">{escape(" on ".join(str(w) for w in what if w))}</p>')
  if items:
    parts.append(f'<dl class="facts">{items}</dl>')
  if run.get('command'):
    parts.append(f'<code class="command">{escape(_command(run["command"]))}</code>')
  if isinstance(run.get('versions'), dict):
    versions = ' · '.join(f'{k} {v}' for k, v in run['versions'].items())
    parts.append(f'<p class="soft small">{escape(versions)}</p>')
  return ''.join(parts) + '</header>'


def _missing(missing: Sequence[str]) -> str:
  if not missing:
    return ''
  items = ''.join(f'<li>{escape(text)}</li>' for text in missing)
  return f'<div class="note">This report is not complete.<ul>{items}</ul></div>'


def _results(numbers: Mapping[str, float], pictured: set[str]) -> str:
  """The final tables; numbers that a picture will explain stand beside it."""
  found, rest = grids(numbers)
  parts = [result_table(grid) for grid in found]
  names = [n for n in rest if split(n).eval in pictured and split(n).metric in EXPLANATIONS]
  rest = {name: value for name, value in rest.items() if name not in names}
  if rest:
    body = ''.join(
      f'<tr><th scope="row">{escape(name)}</th><td>{number(value)}</td></tr>'
      for name, value in rest.items()
    )
    parts.append(f'<div class="scroll"><table><tbody>{body}</tbody></table></div>')
  return '<h2>Results</h2>' + ''.join(parts) if parts else ''


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
  """A chart for every metric: one curve an eval and source that was measured more than once.

  What was measured once stands in the table of results, as baselines do.
  """
  series: dict[str, dict[str, list[tuple[float, float]]]] = {}  # By metric, by eval and source.
  for row in rows:
    for name, value in row.items():
      n = split(name)
      if name != 'step' and not n.label and not n.metric.endswith(NO_CURVE):
        label = ' '.join(part for part in (n.eval, n.source) if part) or n.metric
        series.setdefault(n.metric, {}).setdefault(label, []).append((row['step'], value))
  series = {
    metric: {label: points for label, points in curve.items() if len(points) > 1}
    for metric, curve in series.items()
  }
  series = {m: curve for m, curve in series.items() if _worth_drawing(curve)}
  labels = dict.fromkeys(['train', *(label for curve in series.values() for label in curve)])
  styles = {label: i for i, label in enumerate(labels)}
  order = {metric: i for i, metric in enumerate(('loss', 'accuracy'))}
  order |= {metric: 100 + i for i, metric in enumerate(list(TITLES)[3:])}
  charts = [
    curves.chart(
      TITLES.get(metric, words(metric)),
      series[metric],
      styles,
      from_zero='loss' not in metric and all(y >= 0 for c in series[metric].values() for _, y in c),
    )
    for metric in sorted(series, key=lambda metric: order.get(metric, 50))
  ]
  return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if charts else ''


def _worth_drawing(curve: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
  """Some curve, and no count that never changes, such as the number of examples."""
  values = {value for points in curve.values() for _, value in points}
  fixed = all(len({v for _, v in points}) == 1 for points in curve.values())
  counts = fixed and all(v > 1 and float(v).is_integer() for v in values)
  return bool(curve) and not counts


def _pictures(folder: Path, paths: Sequence[Path], numbers: Mapping[str, float]) -> str:
  """All pictures by eval, each beside the numbers that belong to it."""
  kinds = {kind: i for i, kind in enumerate(CAPTIONS)}
  # In the order in which the evals reported, then by the name before the kind of picture.
  evals: dict[str, list[Path]] = {split(name).eval: [] for name in numbers}
  for path in paths:
    parts = path.relative_to(folder).with_suffix('').parts
    evals.setdefault(parts[0] if len(parts) > 1 else '', []).append(path)
  out = []
  for name, own in evals.items():
    if not own:
      continue
    own = sorted(own, key=lambda path: (path.parent, kinds.get(_kind(path), 99), path))
    out.append(f'<h3>{escape(words(name))}</h3>' if name else '')
    out.append(_sentences(name, numbers))
    out.append('<div class="pictures">')
    out += [_picture(folder, path, name, numbers) for path in own]
    out.append('</div>')
  return '<h2>Pictures</h2>' + ''.join(out) if out else ''


def _kind(path: Path) -> str:
  """The last word of a picture's name: 'confusion' of `test/google_confusion.png`."""
  return path.stem.rsplit('_', 1)[-1]


def _sentences(name: str, numbers: Mapping[str, float]) -> str:
  """The numbers of an eval without sources, with what they mean where that is known."""
  _, rest = grids({k: v for k, v in numbers.items() if split(k).eval == name})
  facts = []
  for metric, value in ((split(k).metric, v) for k, v in rest.items()):
    sentence = EXPLANATIONS.get(metric, f'{words(metric)} {{:.3f}}.'.capitalize())
    facts.append(sentence.format(value))
  return f'<p>{escape(" ".join(facts))}</p>' if facts else ''


def _picture(folder: Path, path: Path, name: str, numbers: Mapping[str, float]) -> str:
  data = path.read_bytes()
  title = path.relative_to(folder).with_suffix('').as_posix()
  short = title.removeprefix(f'{name}/')
  kind = _kind(path)
  parts = [f'<b>{escape(words(short))}</b>']
  if kind in CAPTIONS:
    parts.append(escape(CAPTIONS[kind]))
  source = short[: -len(kind)].rstrip('_/')
  own = {n.metric: v for k, v in numbers.items() if (n := split(k))[:2] == (name, source)}
  if source and own:
    own = {m: v for m, v in own.items() if m != 'class'}
    facts = ', '.join(f'{words(m)} {format_column([v])[0]}' for m, v in own.items())
    parts.append(escape(facts[:1].upper() + facts[1:] + '.') if facts else '')
  size = tiny = style = ''
  if data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) >= 24:
    width, height = struct.unpack('>II', data[16:24])
    scale = max(1, 160 // max(width, height, 1))
    size = f' width="{width * scale}" height="{height * scale}"'
    style = f' style="width:{width * scale + 2}px"'  # Captions wrap where the picture ends.
    tiny = ' class="tiny"' if scale > 1 else ''
  source = base64.b64encode(data).decode()
  return (
    f'<figure class="picture"{style}><img{tiny}{size} alt="{escape(title)}" '
    f'src="data:image/png;base64,{source}"><figcaption>{" ".join(parts)}</figcaption></figure>'
  )


def _get(tree: Any, *path: str) -> Any:
  for key in path:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _command(command: str | Iterable[str]) -> str:
  return command if isinstance(command, str) else ' '.join(command)
