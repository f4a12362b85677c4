"""Rules for parameters by regular expressions on their names, and a table of what each one got."""

import difflib
import itertools
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vit_jax import sharding, tables


class Row(NamedTuple):
  """What one parameter got; `decay` is a coefficient, it and `multiplier` are 0 where frozen."""

  name: str
  shape: tuple[int, ...]
  size: int
  multiplier: float
  decay: float
  frozen: bool


def name(path: Any) -> str:
  """`encoder/block_0/mlp/fc_1/kernel`, from a path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def match(field: str, patterns: Any, names: Sequence[str]) -> dict[str, int]:
  """Maps each name that any of the patterns matches to the index of the first that does.

  Args:
    field: where the patterns stand, for messages.
    patterns: regular expressions, each for a whole name.
    names: the parameters' names.

  Raises:
    ValueError: no tuple of strings, no regular expression, or one that matches nothing.
  """
  if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
    raise ValueError(f"{field} must be patterns, ('encoder/.*',), got {patterns!r}")
  first: dict[str, int] = {}
  for i, pattern in enumerate(patterns):
    try:
      matches = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as e:
      raise ValueError(f'{field}: {pattern!r} is no regular expression: {e}') from None
    if not matches:
      words = re.sub(r'[^\w/]', '', pattern)
      near = difflib.get_close_matches(words, names, n=5, cutoff=0.0)
      raise ValueError(
        f'{field}: {pattern!r} matches none of {len(names)} parameters; the closest are '
        + ', '.join(map(repr, near))
      )
    for name in matches:
      first.setdefault(name, i)
  return first


def values(
  field: str, rules: Any, names: Sequence[str], *, default: float, positive: bool = False
) -> dict[str, float]:
  """The value of each name under `rules`: that of the first pattern that matches it.

  Args:
    field: where the rules stand, for messages.
    rules: pairs of a pattern and a number >= 0, or > 0 if `positive`.
    names: the parameters' names.
    default: the value where no pattern matches.
    positive: whether a value of 0 is refused.

  Raises:
    ValueError: no pairs, a value out of its range, what `match` raises, or a pattern other than
      '.*' that decides nothing, since those before it match all that it does.
  """
  pairs = isinstance(rules, list | tuple) and all(
    isinstance(rule, list | tuple) and len(rule) == 2 and isinstance(rule[0], str) for rule in rules
  )
  if not pairs:
    raise ValueError(f"{field} must be rules, (('.*/kernel', 1.0),), got {rules!r}")
  for pattern, value in rules:
    check_number(f'{field} of {pattern!r}', value, positive=positive)
  first = match(field, [pattern for pattern, _ in rules], names)
  for i, (pattern, _) in enumerate(rules):
    if i not in first.values() and pattern != '.*':
      raise ValueError(
        f'{field}: {pattern!r} decides nothing, since the first match counts and the patterns'
        ' before it match all that it does'
      )
  return {name: float(rules[first[name]][1]) if name in first else default for name in names}


def describe(table: Sequence[Row], params: Mapping[str, Any] | None = None) -> str:
  """The table as aligned text with totals; alike blocks are one line, `block_{0..11}/mlp/bias`.

  Args:
    table: the parameters.
    params: by their names, arrays or shapes with shardings: what each axis is split over is said
      then, and what a device holds. None for a device alone.
  """
  held = {
    name: (sharding.splits(x.sharding, x.ndim), sharding.bytes_per_device(x))
    for name, x in (params or {}).items()
  }
  # There is little room beside the shardings, and it says the same almost always.
  rated = not held or any(row.multiplier != 1 for row in table)
  head = ('multiplier', 'decay') if rated else ('decay',)
  lines = [('parameter', 'shape', 'size', *head, *(('sharding', 'a device') if held else ()))]
  for name, count, row in _collapse(table, held):
    shape = 'x'.join(map(str, row.shape)) or 'scalar'
    size = f'{row.size:,}' if count == 1 else f'{count} x {row.size:,}'
    rules = ('frozen', '') if row.frozen else (f'{row.multiplier:g}', f'{row.decay:g}')
    split, own = held.get(row.name, ('', 0))
    more = (split, tables.memory(count * own)) if held else ()
    lines.append((name, shape, size, *(rules if rated else rules[1:]), *more))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    '  '.join(
      [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
    )
    for line in lines
  ]
  for title, frozen in (('trainable', False), ('frozen', True)):
    sizes = [row.size for row in table if row.frozen == frozen]
    text.append(f'{title}: {sum(sizes):,} in {len(sizes)} arrays')
  return '\n'.join(line.rstrip() for line in text)


def _collapse(table: Sequence[Row], held: Mapping[str, Any]) -> list[tuple[str, int, Row]]:
  """Merges rows that differ in the numbers of their names only: [(name, count, one of them)]."""
  groups: dict[Any, tuple[Row, set[tuple[tuple[int, ...], ...]]]] = {}
  for row in table:
    key = re.sub(r'_\d+(?=/|$)', '_{}', row.name), row[1:], held.get(row.name)
    numbers_ = tuple((int(n),) for n in re.findall(r'_(\d+)(?=/|$)', row.name))
    groups.setdefault(key, (row, set()))[1].add(numbers_)
  merged = []
  for (name, *_), (row, boxes) in groups.items():
    for axis in range(name.count('{}')):
      lines: dict[Any, list[int]] = {}
      for box in boxes:
        lines.setdefault((box[:axis], box[axis + 1 :]), []).extend(box[axis])
      boxes = {(*a, tuple(sorted(ns)), *b) for (a, b), ns in lines.items()}
    for box in sorted(boxes):
      merged.append((name.format(*map(_range, box)), math.prod(map(len, box)), row))
  return merged


def _range(ns: tuple[int, ...]) -> str:
  """`7`, `{0..11}` or `{0..3,8}`."""
  runs = itertools.groupby(enumerate(ns), lambda item: item[1] - item[0])
  ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
  text = ','.join(str(a) if a == b else f'{a}..{b}' for a, b in ends)
  return text if len(ns) == 1 else '{' + text + '}'


def check_number(what: str, value: Any, *, positive: bool = False) -> None:
  """Raises a ValueError unless `value` is a finite number >= 0, or > 0 if `positive`."""
  good = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value < math.inf
  if not good or (positive and value == 0):
    raise ValueError(f'{what} must be a number {">" if positive else ">="} 0, got {value!r}')
