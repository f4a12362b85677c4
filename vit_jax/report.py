"""The report of a run: one self-contained `report.html`, made of what the run left behind."""

import base64
import importlib.resources
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vit_jax import curves, metrics, tables
from vit_jax.tables import Grid, final_table, format_column, grids, number, split

__all__ = ['final_table', 'write_report']

FILE = 'report.html'
TITLES = {
  'loss': 'Loss',
  'accuracy': 'Accuracy',
  'learning_rate': 'Learning rate',
  'grad_norm': 'Norm of the gradient',
  'images_per_second': 'Throughput, images a second',
  'data_wait': 'Share of time spent waiting for data',
}
CAPTIONS = {  # By the last word of a picture's name.
  'filters': 'What the patch embedding looks for.',
  'distances': 'How far each attention head looks, by depth.',
  'positions': "How similar each patch's position embedding is to those of all others (cosine).",
  'rollout': (
    'Where the model looks: attention rolled out from the output back to the patches of test '
    'images (arXiv:2005.00928).'
  ),
  'confusion': 'What was taken for what: true classes by row, predictions by column.',
  'mistakes': 'The mistakes that the model is surest of.',
}
EXPLANATIONS = {  # By metric, of numbers that are shown beside pictures.
  'mask_share': 'of the attention falls on what is drawn, by rollout',
  'mask_area': 'of the picture is drawn on: what attention spread evenly would reach',
  'untrained_mask_share': 'was the share of the same model before training',
}


def write_report(workdir: str | Path) -> Path:
  """Writes `workdir/report.html` from what is there, and says in it what is missing.

  It reads `config.json`, `run.json`, `parameters.json`, `metrics.jsonl` and `pictures/`.

  Returns:
    The file's path; it holds everything it shows and refers to no other file.

  Raises:
    ValueError: `workdir` is no run's folder, or its metrics are damaged.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise ValueError(f'{str(workdir)!r} is no run: there is no such folder')
  if not any((workdir / name).is_file() for name in ('config.json', metrics.FILE)):
    raise ValueError(f'{str(workdir)!r} is no run: it holds neither config.json nor {metrics.FILE}')
  missing: list[str] = []
  config = _read_json(workdir, 'config.json', missing) or {}
  run = _read_json(workdir, 'run.json', missing) or {}
  parameters = _read_json(workdir, 'parameters.json', missing)
  rows = metrics.read(workdir) if (workdir / metrics.FILE).is_file() else []
  pictures = sorted((workdir / 'pictures').rglob('*.png'))
  pictures = [p for p in pictures if not p.name.startswith('.')]
  if not rows:
    missing.append(f'No numbers: {metrics.FILE} is not there or empty.')
  if not pictures:
    missing.append('No pictures: the evaluations that draw them have not run.')
  if run and 'seconds' not in run:
    missing.append('No end: the run was stopped, or is still training.')
  final: dict[str, float] = {}  # Each metric at the last step that has it.
  for row in rows:
    final.update(row)
  numbers = {name: value for name, value in final.items() if name != 'step'}
  last = rows[-1]['step'] if rows else None
  body = [
    _head(workdir.resolve().name, config, run, parameters, last),
    _missing(missing),
    _results(numbers, {p.relative_to(workdir / 'pictures').parts[0] for p in pictures}),
    _classes(numbers),
    _curves(rows),
    _pictures(workdir / 'pictures', pictures, numbers),
    _parameters(parameters),
    _config(config),
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


def _head(name: str, config: Any, run: Mapping[str, Any], parameters: Any, last: Any) -> str:
  size = run.get('parameters') or sum(row.get('size', 0) for row in _rows(parameters))
  seconds = run.get('seconds')
  facts = {
    'steps': None if last is None else f'{last:,}',
    'time': None if seconds is None else metrics.clock(seconds),
    'parameters': f'{size:,}' if isinstance(size, int) and size else None,
  }
  known = ('command', 'versions', 'seconds', 'parameters')
  facts |= {k: _plain(v) for k, v in run.items() if k not in known}
  items = ''.join(
    f'<div><dt>{escape(_words(k))}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items() if v
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
  """The final tables, and the evals without sources that no picture will show."""
  found, rest = grids(numbers)
  parts = [_grid(grid) for grid in found]
  rest = {name: value for name, value in rest.items() if split(name).eval not in pictured}
  if rest:
    body = ''.join(
      f'<tr><th scope="row">{escape(name)}</th><td>{number(value)}</td></tr>'
      for name, value in rest.items()
    )
    parts.append(f'<div class="scroll"><table><tbody>{body}</tbody></table></div>')
  return '<h2>Results</h2>' + ''.join(parts) if parts else ''


def _grid(grid: Grid) -> str:
  evals = list(dict.fromkeys(name for name, _ in grid.columns))
  first = {next(c for c in grid.columns if c[0] == name) for name in evals}
  css = [' class="first"' if c in first else '' for c in grid.columns]
  spans = ''.join(
    f'<th class="first" colspan="{sum(e == name for e, _ in grid.columns)}">{escape(name)}</th>'
    for name in evals
  )
  heads = ''.join(
    f'<th{c}>{escape(_words(metric))}</th>'
    for c, (_, metric) in zip(css, grid.columns, strict=True)
  )
  columns = [format_column([grid.values.get((s, c)) for s in grid.sources]) for c in grid.columns]
  body = ''
  for source, cells in zip(grid.sources, zip(*columns, strict=True), strict=True):
    cells = ''.join(f'<td{c}>{cell}</td>' for c, cell in zip(css, cells, strict=True))
    body += f'<tr><th scope="row">{escape(source or "all")}</th>{cells}</tr>'
  return (
    f'<div class="scroll"><table><thead><tr><th></th>{spans}</tr><tr><th></th>{heads}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _classes(numbers: Mapping[str, float]) -> str:
  """Per-class results: a table an eval, classes by sources, with bars for shares."""
  cells = {(n.eval, n.source, n.label): v for k, v in numbers.items() if (n := split(k)).label}
  parts = []
  for name in dict.fromkeys(e for e, _, _ in cells):
    sources = list(dict.fromkeys(s for e, s, _ in cells if e == name))
    labels = list(dict.fromkeys(c for e, _, c in cells if e == name))
    labels.sort(key=lambda c, e=name, s=sources[0]: -cells.get((e, s, c), -1.0))
    heads = ''.join(f'<th class="left">{escape(s or "all")}</th>' for s in sources)
    body = ''.join(
      f'<tr><th scope="row">{escape(c)}</th>'
      + ''.join(_bar(cells.get((name, s, c))) for s in sources)
      + '</tr>'
      for c in labels
    )
    table = (
      f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
      f'<tbody>{body}</tbody></table></div>'
    )
    summary = f'{escape(name)}: {len(labels)} classes'
    is_open = ' open' if len(labels) <= 25 else ''
    parts.append(f'<details{is_open}><summary>{summary}</summary>{table}</details>')
  return '<h2>By class</h2>' + ''.join(parts) if parts else ''


def _bar(value: float | None) -> str:
  if value is None or not 0 <= value <= 1:
    return f'<td class="left">{number(value)}</td>'
  return f'<td class="bar left" style="--share:{value:.1%}">{number(value)}</td>'


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
  """A chart for every metric that was measured more than once: one curve an eval and source."""
  series: dict[str, dict[str, list[tuple[float, float]]]] = {}  # By metric, by eval and source.
  for row in rows:
    for name, value in row.items():
      n = split(name)
      if name != 'step' and not n.label:
        label = ' '.join(part for part in (n.eval, n.source) if part) or n.metric
        series.setdefault(n.metric, {}).setdefault(label, []).append((row['step'], value))
  series = {m: curve for m, curve in series.items() if _worth_drawing(curve)}
  labels = dict.fromkeys(['train', *(label for curve in series.values() for label in curve)])
  styles = {label: i for i, label in enumerate(labels)}
  order = {metric: i for i, metric in enumerate(('loss', 'accuracy'))}
  order |= {metric: 100 + i for i, metric in enumerate(list(TITLES)[2:])}
  charts = [
    curves.chart(
      TITLES.get(metric, _words(metric)),
      series[metric],
      styles,
      from_zero='loss' not in metric and all(y >= 0 for c in series[metric].values() for _, y in c),
    )
    for metric in sorted(series, key=lambda metric: order.get(metric, 50))
  ]
  return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if charts else ''


def _worth_drawing(curve: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
  """More than one point, and no count that never changes, such as the number of examples."""
  values = {value for points in curve.values() for _, value in points}
  fixed = all(len({v for _, v in points}) == 1 for points in curve.values())
  counts = fixed and all(v > 1 and float(v).is_integer() for v in values)
  return not counts and any(len(points) > 1 for points in curve.values())


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
    out.append(f'<h3>{escape(_words(name))}</h3>' if name else '')
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
    meaning = EXPLANATIONS.get(metric)
    text = f'{value:.1%} {meaning}' if meaning else f'{_words(metric)} {number(value)}'
    facts.append(text)
  return f'<p>{escape("; ".join(facts))}.</p>' if facts else ''


def _picture(folder: Path, path: Path, name: str, numbers: Mapping[str, float]) -> str:
  data = path.read_bytes()
  title = path.relative_to(folder).with_suffix('').as_posix()
  short = title.removeprefix(f'{name}/')
  kind = _kind(path)
  parts = [f'<b>{escape(_words(short))}</b>']
  if kind in CAPTIONS:
    parts.append(escape(CAPTIONS[kind]))
  source = short[: -len(kind)].rstrip('_/')
  own = {n.metric: v for k, v in numbers.items() if (n := split(k))[:2] == (name, source)}
  if source and own:
    own = {m: v for m, v in own.items() if m != 'class'}
    parts.append(escape(', '.join(f'{_words(m)} {format_column([v])[0]}' for m, v in own.items())))
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


def _parameters(parameters: Any) -> str:
  rows = _rows(parameters)
  total = sum(row.get('size', 0) for row in rows)
  if not total:
    return ''
  frozen = sum(row.get('size', 0) for row in rows if row.get('frozen'))
  parts: dict[str, int] = {}
  for row in rows:
    part = '/'.join(str(row['name']).split('/')[:-1][:2]) or str(row['name'])
    parts[part] = parts.get(part, 0) + row.get('size', 0)
  summary = ''.join(
    f'<tr><th scope="row">{escape(part)}</th><td>{size:,}</td>'
    f'<td class="bar left" style="--share:{size / total:.1%}">{size / total:.1%}</td></tr>'
    for part, size in parts.items()
  )
  keys = ['name', 'shape', 'size', 'multiplier', 'decay']
  head = ''.join(f'<th{" class=left" * (k == "name")}>{k}</th>' for k in keys)
  every = ''.join(f'<tr>{"".join(_cell(k, row) for k in keys)}</tr>' for row in rows)
  text = f'{total:,} parameters in {len(rows):,} arrays'
  text += f'; {frozen:,} of them frozen.' if frozen else ', all of them trained.'
  return (
    f'<h2>Parameters</h2><p>{text}</p><div class="scroll"><table><tbody>{summary}</tbody></table>'
    f'</div><details><summary>Every array</summary><div class="scroll"><table><thead><tr>{head}'
    f'</tr></thead><tbody>{every}</tbody></table></div></details>'
  )


def _cell(key: str, row: Mapping[str, Any]) -> str:
  value = row.get(key)
  if key == 'name':
    return f'<th scope="row"><code>{escape(str(value))}</code></th>'
  if key == 'multiplier' and row.get('frozen'):
    return '<td>frozen</td>'
  if isinstance(value, list | tuple):
    return f'<td>{escape(" x ".join(map(str, value)) or "scalar")}</td>'
  return f'<td>{escape(f"{value:,}" if isinstance(value, int) else _plain(value))}</td>'


def _config(config: Any) -> str:
  if not isinstance(config, dict) or not config:
    return ''
  tree = ''.join(_node(k, v) for k, v in config.items())
  return f'<h2>Config</h2><div class="config">{tree}</div>'


def _node(key: str, value: Any) -> str:
  """One field of the config; those with fields of their own can be folded."""
  name = f'<span class="key-name">{escape(str(key))}</span>'
  if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
    value = {str(i): v for i, v in enumerate(value)}
  if not isinstance(value, dict) or not value:
    return f'<div>{name}<code>{escape(json.dumps(value, ensure_ascii=False))}</code></div>'
  kind = value.get('type')
  title = f' <span class="soft">{escape(str(kind))}</span>' if kind else ''
  inner = ''.join(_node(k, v) for k, v in value.items())
  return f'<details open><summary>{name}{title}</summary>{inner}</details>'


def _rows(parameters: Any) -> list[dict[str, Any]]:
  """The rows of parameters.json: a list, or an object that holds it beside totals."""
  if isinstance(parameters, dict):
    parameters = next((v for v in parameters.values() if isinstance(v, list)), [])
  return [r for r in parameters or [] if isinstance(r, dict) and 'name' in r]


def _get(tree: Any, *path: str) -> Any:
  for key in path:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _command(command: str | Iterable[str]) -> str:
  return command if isinstance(command, str) else ' '.join(command)


def _plain(value: Any) -> str:
  """A value of run.json or parameters.json in one line."""
  if isinstance(value, str):
    return value
  if isinstance(value, float):
    return tables.number(value)
  if isinstance(value, list):
    return ', '.join(map(_plain, value))
  if isinstance(value, dict):
    return ', '.join(f'{k} {_plain(v)}' for k, v in value.items())
  return '' if value is None else str(value)
