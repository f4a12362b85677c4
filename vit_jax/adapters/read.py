"""Reads a checkpoint's arrays into a model's variables, one after another, and says what it did."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.adapters.layout import TOWERS, Layout
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.resize import resize_patches, resize_positions
from vit_jax.adapters.tensors import Tensors
from vit_jax.arrays import Array
from vit_jax.choices import listed

POSITIONS = 'pos_embedding'
_BLOCK = re.compile(r'(?<=/)block_(\d+)(?=/)')


@dataclasses.dataclass
class Report:
  """What became of a checkpoint's arrays, and of a model's; nothing is left out.

  Attributes:
    origin: the file, its format, and how many numbers were read.
    loaded: variables whose values are the file's, with their sizes.
    resized: variables interpolated from the file's, and how.
    initialised: variables that the file has too, and that were not taken: a new head.
    missing: variables that the file has not.
    unused: the file's arrays that the model has no place for.
  """

  origin: str
  loaded: dict[str, int] = dataclasses.field(default_factory=dict)
  resized: dict[str, str] = dataclasses.field(default_factory=dict)
  initialised: list[str] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)
  unused: list[str] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    total = sum(size for name, size in self.loaded.items() if name.startswith('params/'))
    lines = [f'{self.origin}: {total:,} parameters in {len(self.loaded)} arrays loaded']
    lines += [f'  resized: {name} {how}' for name, how in self.resized.items()]
    for title in ('initialised', 'missing', 'unused'):
      names = getattr(self, title)
      if names:
        lines.append(f'  {title}: {_collapsed(names)}')
    return '\n'.join(lines)


def read_variables(
  tensors: Tensors,
  layout: Layout,
  native: Mapping[str, tuple[int, ...]],
  targets: Mapping[str, Any],
  *,
  grid: tuple[int, int] | None = None,
  leave: Callable[[str], bool] = lambda name: False,
  rename: Callable[[str], str] = lambda name: name,
) -> tuple[dict[str, Array], Report]:
  """Reads what a model takes of a checkpoint.

  A rule's arrays are on their devices before the next is read, so that the host holds one at a time
  beside them; of blocks that the model has stacked, one kind.

  Args:
    tensors: the file's arrays.
    layout: what they are.
    native: shapes of the variables of `layout.objective`.
    targets: by name, what has the `shape`, `dtype` and `sharding` (None: the default device) that
      each variable is to have. Blocks may be stacked, as `blocks`.
    grid: of the model's positions, where they are not a square.
    leave: whether a variable stays as it was initialised, whatever the file has.
    rename: from the layout's name of a variable to that in `targets`.

  Returns:
    Arrays by name, of those of `targets` that were read, and the report.

  Raises:
    ValueError: an array is missing, damaged, or of another shape; names file and array.
  """
  report = Report(f'{tensors.path} ({layout.format})')
  arrays: dict[str, Array] = {}
  used = set()
  stacks: dict[str, _Stack] = {}
  for rule in _by_kind(layout.rules):
    used.update(rule.theirs)
    if not rule.ours:  # What a file says of itself, or weights that nobody asked for.
      continue
    wanted = [_target(rename(name), targets) for name in rule.ours]
    if all(target is None for target in wanted):
      report.unused += rule.theirs
      continue
    left = [leave(name) for name, _ in filter(None, wanted)]
    if all(left):
      report.initialised += [name for name, _ in filter(None, wanted)]
      continue
    values = _read(tensors, rule, [native[name] for name in rule.ours])
    for name, target, value in zip(rule.ours, wanted, values, strict=True):
      if target is None or leave(target[0]):
        continue
      goal, block = target
      like = targets[goal]
      shape = tuple(like.shape if block is None else like.shape[1:])
      value, how = _fit(name, value, shape, layout, grid, tensors.path, rule)
      if how:
        report.resized[goal] = how
      report.loaded[goal] = math.prod(like.shape)
      if block is None:
        arrays[goal] = _place(value, like)
        continue
      if goal not in stacks:
        stacks[goal] = _Stack(like)
      if stacks[goal].put(block, value):
        arrays[goal] = _place(stacks.pop(goal).array, like)
    del values, value
  if stacks:
    name, stack = next(iter(stacks.items()))
    raise ValueError(
      f'{tensors.path} has {len(stack.blocks)} blocks of {name!r} and the model '
      f'{targets[name].shape[0]}'
    )
  known = set(report.loaded) | set(report.initialised)
  report.missing = [name for name in targets if name not in known]
  report.unused += [name for name in tensors if name not in used]
  return arrays, report


class _Stack:
  """The rows of one array of the model's, a block each, that have come so far."""

  def __init__(self, like: Any):
    self.array = np.empty(like.shape, like.dtype)
    self.blocks: set[int] = set()

  def put(self, block: int, row: np.ndarray) -> bool:
    """Takes a row; whether all are there."""
    self.blocks.add(block)
    self.array[block] = row
    return len(self.blocks) == len(self.array)


def stacked_name(name: str) -> str:
  """What a variable of one block is called where blocks are stacked; other names stay."""
  return _BLOCK.sub('blocks', name)


def _by_kind(rules: Sequence[Rule]) -> list[Rule]:
  """Rules of one part in all blocks side by side, so that a stack of them is soon complete."""
  return sorted(rules, key=lambda rule: stacked_name((rule.ours or rule.theirs)[0]))


def _target(name: str, targets: Mapping[str, Any]) -> tuple[str, int | None] | None:
  """The variable, and the row of it, that one of the layout's goes to; None for none."""
  if name in targets:
    return name, None
  match = _BLOCK.search(name)
  stacked = stacked_name(name)
  if not match or stacked not in targets or int(match[1]) >= targets[stacked].shape[0]:
    return None
  return stacked, int(match[1])


def _read(tensors: Tensors, rule: Rule, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
  for name in rule.theirs:
    if name not in tensors:
      raise ValueError(f'{tensors.path} has no {name!r}, which its format has')
  arrays = [tensors[name] for name in rule.theirs]
  try:
    return rule.read(arrays, shapes)
  except ValueError as e:
    raise ValueError(f'{listed(rule.theirs)} in {tensors.path}: {e}') from None


def _fit(
  name: str,
  value: np.ndarray,
  shape: tuple[int, ...],
  layout: Layout,
  grid: tuple[int, int] | None,
  path: str,
  rule: Rule,
) -> tuple[np.ndarray, str]:
  """The array in the shape that is wanted, and how it came to it; '' where it had it."""
  encoder = layout.encoder
  positions = name.endswith(tuple(f'{tower}/{POSITIONS}' for tower in TOWERS))
  # Grids of 2x8 and 4x4 have as many positions.
  if value.shape == shape and not (positions and grid and tuple(grid) != tuple(encoder['grid'])):
    return value, ''
  if positions and value.shape[-1] == shape[-1]:
    old = tuple(encoder['grid'])
    prefix = value.shape[1] - math.prod(old)
    side = math.isqrt(shape[1] - prefix)
    new = tuple(grid) if grid else (side, side)
    if prefix + math.prod(new) == shape[1]:
      method = encoder.get('position_resize', 'bicubic')
      value = resize_positions(value, old, new, prefix=prefix, method=method)
      return value, f'from a grid of {old[0]}x{old[1]} to {new[0]}x{new[1]} ({method})'
  patches = name.endswith(tuple(f'{tower}/embedding/kernel' for tower in TOWERS))
  if patches and value.shape[2:] == shape[2:]:
    old = 'x'.join(map(str, value.shape[:2]))
    return resize_patches(value, shape[:2]), f'from patches of {old} to {shape[0]}x{shape[1]}'
  raise ValueError(
    f'{listed(rule.theirs)} in {path} makes {name!r} {list(value.shape)}, and the model has '
    f'{list(shape)}'
  )


def _place(value: np.ndarray, like: Any) -> Array:
  """On the devices of `like`, each with its own part only, in its dtype."""
  value = value.astype(like.dtype, copy=False)
  sharding = getattr(like, 'sharding', None)
  if sharding is None:
    return jax.device_put(value)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _collapsed(names: Sequence[str], limit: int = 8) -> str:
  """Names for a line: `block_*/mlp/bias (12)` for some that differ in numbers only.

  Where that leaves too many, `opt/... (39)` stands for all that begin with it.
  """
  for depth in (None, 2, 1):
    groups: dict[str, list[str]] = {}
    for name in names:
      groups.setdefault(_pattern(name, depth), []).append(name)
    if len(groups) <= limit:
      break
  rows = [
    group[0] if len(group) == 1 else f'{pattern} ({len(group)})'
    for pattern, group in groups.items()
  ]
  more = f' and {len(rows) - limit} more' if len(rows) > limit else ''
  return ', '.join(rows[:limit]) + more


def _pattern(name: str, depth: int | None) -> str:
  """The name without its numbers, or its first parts alone."""
  if depth is None:
    return re.sub(r'\d+', '*', name)
  start = re.match(rf'(?:[^/.]+[/.]){{1,{depth}}}(?=.)', name)
  return f'{start[0]}...' if start else name
