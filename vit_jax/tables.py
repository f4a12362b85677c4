"""Metrics by name, and the tables made of them.

A name is `<eval>/<metric>`, `<eval>/<source>/<metric>` or `<eval>/<source>/class/<class>`:
`train/loss`, `test/google/accuracy`, `test/google/class/Food & Drink`. Where parameters are
averaged over the steps, `test_ema/google/accuracy` is that of the average.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# What an evaluator of features has beside a metric: `accuracy_random` is a random encoder's.
BASELINES = ('random', 'pixels')
TRAINED = 'trained'  # the column of the model itself


class Name(NamedTuple):
  """The parts of a metric's name; `source` and `label` (a class) may be empty."""

  eval: str
  source: str
  metric: str
  label: str = ''


class Grid(NamedTuple):
  """Evals over the same sources: `values[source, (eval, metric)]`.

  Of an eval with baselines, such as `knn`, the rows are its metrics by source, 'google accuracy',
  and the columns whose they are: `values['google accuracy', ('knn', 'pixels')]`.
  """

  sources: list[str]
  columns: list[tuple[str, str]]
  values: dict[tuple[str, tuple[str, str]], float]


def memory(size: float) -> str:
  """A number of bytes to read: '512 B', '1.5 kB', '14.2 MB', '3.1 GB'."""
  if size < 1000:
    return f'{size:.0f} B'
  unit = next(n for n in (3, 6, 9) if size < 10 ** (n + 3) or n == 9)
  return f'{size / 10**unit:,.1f} {"kMG"[unit // 3 - 1]}B'


def split(name: str) -> Name:
  """'test/google/class/Food & Drink' is Name('test', 'google', 'class', 'Food & Drink')."""
  head, *rest = name.split('/')
  if 'class' in rest[:-1]:
    at = rest.index('class')
    return Name(head, '/'.join(rest[:at]), 'class', '/'.join(rest[at + 1 :]))
  return Name(head, '/'.join(rest[:-1]), rest[-1]) if rest else Name('', '', head)


def grids(values: Mapping[str, float]) -> tuple[list[Grid], dict[str, float]]:
  """Groups final metrics into tables of sources by eval and metric; evals without sources remain.

  Training's own metrics and those of single classes are left out. Evals that share a source share
  a table; one with baselines has its own.
  """
  names = {name: split(name) for name in values}
  names = {k: n for k, n in names.items() if not n.label and n.eval != 'train' and k != 'step'}
  compared = [e for e in dict.fromkeys(n.eval for n in names.values()) if _baselines(names, e)]
  against = [_against(names, values, name) for name in compared]
  names = {k: n for k, n in names.items() if n.eval not in compared}
  sources: dict[str, list[str]] = {}
  for n in names.values():
    sources.setdefault(n.eval, []).append(n.source)
  groups: list[tuple[list[str], set[str]]] = []  # Evals, and their sources.
  for name, own in sources.items():
    own = set(own) - {''}
    together = next((g for g in groups if g[1] & own), None)
    if together:
      together[0].append(name)
      together[1].update(own)
    elif own:
      groups.append(([name], own))
  found = []
  for evals, _ in groups:
    members = [(n, values[k]) for k, n in names.items() if n.eval in evals]
    cells = {(n.source, (n.eval, n.metric)): v for n, v in members}
    columns = list(dict.fromkeys(c for _, c in cells))
    columns.sort(key=lambda c: evals.index(c[0]))
    found.append(Grid(list(dict.fromkeys(s for s, _ in cells)), columns, cells))
  rest = {k: values[k] for k, n in names.items() if not set(sources[n.eval]) - {''}}
  return found + against, rest


def _baselines(names: Mapping[str, Name], eval_name: str) -> list[str]:
  """Those of `BASELINES` that an eval has beside its own metrics."""
  own = {(n.source, n.metric) for n in names.values() if n.eval == eval_name}
  return [b for b in BASELINES if any((s, f'{m}_{b}') in own for s, m in own)]


def _against(names: Mapping[str, Name], values: Mapping[str, float], eval_name: str) -> Grid:
  """An eval's metrics by source, and beside each those of its baselines."""
  baselines = _baselines(names, eval_name)
  rows, cells = [], {}
  for key, n in names.items():
    if n.eval != eval_name:
      continue
    whose = next((b for b in baselines if n.metric.endswith(f'_{b}')), TRAINED)
    row = f'{n.source} {n.metric.removesuffix(f"_{whose}")}'.strip()
    rows.append(row)
    cells[row, (eval_name, whose)] = values[key]
  return Grid(list(dict.fromkeys(rows)), [(eval_name, w) for w in (TRAINED, *baselines)], cells)


def final_table(values: Mapping[str, float]) -> str:
  """The plain-text table of final metrics: a row per source, a column per eval and metric."""
  found, rest = grids(values)
  parts = []
  for grid in found:
    columns = [format_column([grid.values.get((s, c)) for s in grid.sources]) for c in grid.columns]
    labels = [source or 'all' for source in grid.sources]
    header = ['', *(f'{e} {m}'.replace('_', ' ') for e, m in grid.columns)]
    parts.append(table(list(zip(labels, *columns, strict=True)), header))
  if rest:
    parts.append(table([(name, number(v)) for name, v in rest.items()], ('', 'value')))
  return '\n\n'.join(parts)


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
  """Aligned plain text: first column to the left, others to the right; None is an empty cell."""
  cells = [[c if isinstance(c, str) else number(c) for c in row] for row in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(
      c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
    )
    for r in cells
  ]
  return '\n'.join(s.rstrip() for s in (lines[0], '-' * len(lines[0]), *lines[1:]))


def format_column(values: Sequence[float | None]) -> list[str]:
  """The cells of one table column; a column of whole numbers, some above 1, is shown as counts."""
  known = [v for v in values if v is not None]
  counts = all(float(v).is_integer() for v in known) and any(abs(v) > 1 for v in known)
  return ['' if v is None else f'{v:,.0f}' if counts else number(v) for v in values]


def number(value: float | None) -> str:
  """A number for people: '1,234', '0.612', '3e-05'."""
  if value is None or isinstance(value, bool):
    return '' if value is None else str(value)
  if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
    return f'{value:,.0f}'
  return f'{value:.3f}' if value == 0 or not abs(value) < 0.01 else f'{value:.3g}'


def scalar(value: Any) -> int | float:
  """A Python number from a number or an array of one, which is fetched from its device."""
  if isinstance(value, int | float):
    return value
  return np.asarray(value).item()
