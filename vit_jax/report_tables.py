"""The tables of a run's report, as HTML: results, classes, parameters, the config."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from vit_jax.preflight import summary
from vit_jax.tables import Grid, format_column, number, split


def result_table(grid: Grid) -> str:
  """A row per source; the columns are metrics, under their evals."""
  evals = list(dict.fromkeys(name for name, _ in grid.columns))
  first = {next(c for c in grid.columns if c[0] == name) for name in evals}
  css = [' class="first"' if c in first else '' for c in grid.columns]
  spans = ''.join(
    f'<th class="first" colspan="{sum(e == name for e, _ in grid.columns)}">{escape(name)}</th>'
    for name in evals
  )
  heads = ''.join(
    f'<th{c}>{escape(words(metric))}</th>' for c, (_, metric) in zip(css, grid.columns, strict=True)
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


def class_tables(numbers: Mapping[str, float]) -> str:
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


def parameter_tables(parameters: Any) -> str:
  """What parameters.json holds: sizes by part of the model, and every array folded away."""
  rows = parameter_rows(parameters)
  total = sum(row.get('size', 0) for row in rows)
  if not total:
    return ''
  frozen = sum(row.get('size', 0) for row in rows if row.get('frozen'))
  parts: dict[str, int] = {}  # encoder/block_0, head: their sizes.
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
  return f'<td>{escape(f"{value:,}" if isinstance(value, int) else one_line(value))}</td>'


def preflight_tables(found: Any) -> str:
  """What preflight.json holds: whether the step fits, what it needs and how it may be run."""
  if not isinstance(found, dict) or 'fits' not in found:
    return ''
  lines = summary.headline(found).splitlines()
  parts = ['<h2>Preflight</h2>', *(f'<p>{escape(line)}</p>' for line in lines)]
  for title, header, rows, note in summary.sections(found):
    head = ''.join(f'<th>{escape(name)}</th>' for name in header)
    body = ''.join(
      f'<tr><th scope="row">{escape(first)}</th>'
      + ''.join(f'<td>{escape(cell)}</td>' for cell in cells)
      + '</tr>'
      for first, *cells in rows
    )
    parts.append(
      f'<h3>{escape(title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
      f'<tbody>{body}</tbody></table></div>'
    )
    parts += [f'<p class="soft small">{escape(line)}</p>' for line in note.splitlines()]
  return ''.join(parts)


def config_tree(config: Any) -> str:
  """The whole config, as fields that can be folded."""
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


def parameter_rows(parameters: Any) -> list[dict[str, Any]]:
  """The rows of parameters.json: a list, or an object that holds it beside totals."""
  if isinstance(parameters, dict):
    parameters = next((v for v in parameters.values() if isinstance(v, list)), [])
  return [r for r in parameters or [] if isinstance(r, dict) and 'name' in r]


def words(name: str) -> str:
  """A name for people: 'grad_norm' is 'grad norm'."""
  return name.replace('_', ' ')


def one_line(value: Any) -> str:
  """A value of run.json or parameters.json in one line."""
  if isinstance(value, str):
    return value
  if isinstance(value, float):
    return number(value)
  if isinstance(value, list):
    return ', '.join(map(one_line, value))
  if isinstance(value, dict):
    return ', '.join(f'{k} {one_line(v)}' for k, v in value.items())
  return '' if value is None else str(value)
