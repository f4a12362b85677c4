"""A few labels: so many examples of every class of a source, or a share of each class."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_jax.data.substitute import BadExample, name


class Subset:
  """Some examples of each class of a source, as a source: ids and order are those of the source.

  Which ones depends on the seed and the ids alone: the examples of a class are put in the order of
  the SHA-256 of '<seed>:<id>', and the first ones are taken. So with one seed, 1 of each class is
  among the 5, and the 5 are among the 20; and two runs that differ elsewhere have the same.

  Attributes:
    positions: [n] int64, where the examples stand in the source, ascending.
    labels: [n] int32.
    ids: [n] int64.
    classes: the source's names, also of classes without an example; () where it has none.
    num_classes: the source's.
    subset: the source's (see `data/test_sets.py`), or None.
  """

  def __init__(
    self, source: Any, per_class: int | None = None, share: float | None = None, seed: int = 0
  ):
    """Draws the examples.

    Labels and ids are the source's attributes `labels` and `ids`, [len(source)] each, where it has
    both (`data.emoji.Emoji`, another `Subset`). Else every example is read once, as the source
    reads it: `data.folder.Folder` opens all files, though it decodes none. Examples that the source
    finds broken (`BadExample`) are left out.

    Args:
      source: random access, with one label an example.
      per_class: examples of each class; a class that has fewer gives all; or
      share: of each class, in (0, 1], rounded, at least one example.
      seed: any integer.

    Raises:
      ValueError: both or neither of `per_class` and `share`, one out of range, a label that is not
        one class number, or `labels` and `ids` that are not those of all examples.
    """
    if (per_class is None) == (share is None):
      raise ValueError("a subset has so many 'per_class' or a 'share': give one of the two")
    if per_class is not None and not (isinstance(per_class, int) and per_class >= 1):
      raise ValueError(f'per_class {per_class!r} is not a whole number of at least 1')
    if share is not None and not 0 < share <= 1:
      raise ValueError(f'share {share!r} is not above 0 and at most 1')
    positions, labels, ids = _read(source)
    ranked: dict[int, list[int]] = {}
    for k in sorted(range(len(ids)), key=lambda k: _digest(seed, ids[k])):
      ranked.setdefault(int(labels[k]), []).append(k)
    chosen = []
    for members in ranked.values():
      chosen += members[: per_class or max(1, round(share * len(members)))]
    chosen = np.sort(np.array(chosen, np.int64))
    self.source = source
    self.positions, self.labels, self.ids = positions[chosen], labels[chosen], ids[chosen]
    self.classes = tuple(getattr(source, 'classes', ()))
    self.num_classes = getattr(source, 'num_classes', len(self.classes))
    self.subset = getattr(source, 'subset', None)

  def __len__(self) -> int:
    return len(self.positions)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.source[self._position(i)]

  def name(self, i: int) -> str:
    """The source's name for the example."""
    return name(self.source, self._position(i))

  def _position(self, i: int) -> int:
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    return int(self.positions[i])


def _digest(seed: int, number: int) -> bytes:
  return hashlib.sha256(f'{seed}:{int(number)}'.encode()).digest()


def _read(source: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Positions, labels and ids of the examples of a source that are not broken, [m] each."""
  pairs = _read_each(source)
  if hasattr(source, 'labels') and hasattr(source, 'ids'):
    sizes = len(source), len(source.labels), len(source.ids)
    if len(set(sizes)) > 1:
      raise ValueError('the source has {} examples, but {} labels and {} ids'.format(*sizes))
    pairs = zip(source.labels, source.ids, strict=True)
  read = [(i, _class_number(source, i, p[0]), p[1]) for i, p in enumerate(pairs) if p is not None]
  positions, labels, ids = np.array(read, np.int64).reshape(-1, 3).T
  return positions, labels.astype(np.int32), ids


def _read_each(source: Any) -> Iterator[tuple[Any, Any] | None]:
  """The label and the id of each example; None of a broken one."""
  for i in range(len(source)):
    try:
      example = source[i]
    except BadExample:
      yield None
    else:
      yield example.get('label'), example['id']


def _class_number(source: Any, i: int, label: Any) -> int:
  array = np.asarray(label)
  if array.ndim or array.dtype.kind not in 'iu' or array < 0:
    shown = f'a label of shape {list(array.shape)}' if array.ndim else f'the label {label!r}'
    raise ValueError(f'{name(source, i)!r} has {shown}; a subset needs one class number an example')
  return int(array)
