"""Parts of a data set by name: `train`, `train[:99%]`, `train[10%:20%]`, `train[-100:]+test`.

The syntax and the rounding are TFDS's (tensorflow.org/datasets/splits), for every source. An
example keeps one number, its id, whatever part is read: the splits are numbered one after the
other, `train` first.
"""

import itertools
import operator
import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.choices import check_choice

_PART = re.compile(r'(?P<name>[\w-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')


class Part(NamedTuple):
  """The examples `start` to `stop` (exclusive) of the split `name`; 0 <= start < stop <= size."""

  name: str
  start: int
  stop: int


class Place(NamedTuple):
  """Where an example stands: at `index` of the split `name`, and at `id` of the whole data set."""

  name: str
  index: int
  id: int


class Selection:
  """The chosen examples in order: `selection[i]` is the `Place` of example `i`."""

  def __init__(self, spec: str, sizes: Mapping[str, int]):
    """Reads a split.

    Args:
      spec: names of splits, each with an optional slice, joined by `+`; `all` is every split.
      sizes: how many examples each split has.

    Raises:
      ValueError: `spec` cannot be read, names no split of `sizes`, or chooses no example, or one
        twice.
    """
    order = sorted(sizes, key=lambda name: name != 'train')  # stable: the others stay in order
    starts = itertools.accumulate([sizes[name] for name in order], initial=0)
    self.offsets = dict(zip(order, starts, strict=False))
    self.parts = _parts(spec, {name: sizes[name] for name in order})
    self._ends = list(itertools.accumulate(part.stop - part.start for part in self.parts))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, i: int) -> Place:
    i = operator.index(i)
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    for part, end in zip(self.parts, self._ends, strict=True):
      if i < end:
        index = part.stop - (end - i)
        return Place(part.name, index, self.offsets[part.name] + index)
    raise AssertionError


def _parts(spec: str, sizes: Mapping[str, int]) -> tuple[Part, ...]:
  parts = []
  for text in '+'.join(sizes).split('+') if spec == 'all' else spec.split('+'):
    match = _PART.fullmatch(text.strip())
    if not match:
      raise ValueError(
        f"cannot read the split {spec!r}; write 'train', 'train[:99%]', 'train[100:200]' or "
        "'train+test'"
      )
    name = match['name']
    check_choice('split', name, sizes)
    start = _position(match['start'] or '0', sizes[name], spec)
    stop = _position(match['stop'] or '100%', sizes[name], spec)
    if start >= stop:
      raise ValueError(f'split {spec!r} is empty: {name!r} has {sizes[name]} examples')
    parts.append(Part(name, start, stop))
  for a, b in itertools.pairwise(sorted(parts)):
    if a.name == b.name and b.start < a.stop:
      raise ValueError(f'split {spec!r} chooses examples of {a.name!r} twice')
  return tuple(parts)


def _position(text: str, size: int, spec: str) -> int:
  """Position in a split of `size`: `10`, `-10` (from the end), `10%`, `-10%`."""
  if text.endswith('%'):
    # A hundredth of the split, rounded as TFDS rounds it (its rounding='closest').
    position = round(int(text[:-1]) * size / 100)
  else:
    position = int(text)
  if abs(position) > size:
    raise ValueError(f'split {spec!r} is out of range: there are {size} examples')
  return position + size if position < 0 else position
