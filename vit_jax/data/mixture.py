"""Several sources as one, in stated proportions."""

import fractions
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.choices import check_choice, listed
from vit_jax.data.substitute import Load, name

LABELS = ('same', 'offset', 'name')


class Mixture:
  """Examples of several sources: exactly `weights` of them in every epoch.

  A position always means the same example. Positions are in blocks, source after source (the train
  pipeline shuffles them all). A block of n walks evenly over its source: its j-th is the example
  `j * len(source) // n`. So where fewer are needed than there are, those left out are spread over
  the whole source, and stay out; where more are, all are repeated equally often, give or take once.
  An id is `id * K + k`, for source k of K: unique, and the same in every split and proportion.
  """

  def __init__(
    self,
    sources: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    size: int | None = None,
    repeat: bool = False,
    labels: str = 'same',
  ):
    """Chooses the examples.

    Args:
      sources: by name; a config gives dict(a=dict(type='data.folder.Folder', ...), b=...).
      weights: positive, any sum, by the same names; None is the sources' sizes: all of each, once.
      size: examples in an epoch. None is as many as there are without repeating one; with
        `repeat`, as few as have every example of every source.
      repeat: whether examples may be repeated, to keep the proportions.
      labels: 'same' wants the same classes in all sources; 'offset' keeps the classes apart, as
        'source/class'; 'name' takes classes of one name to be one class.

    Raises:
      ValueError: weights that are not of these sources, a size that needs repeating, a source that
        gets no example, sources with other fields, or other classes with `labels='same'`.
    """
    if not sources:
      raise ValueError('a mixture needs at least one source; sources is empty')
    check_choice('labels', labels, LABELS)
    self._names, self._sources = tuple(sources), tuple(sources.values())
    self._sizes = [len(source) for source in self._sources]
    self.counts = dict(zip(self._names, self._count(weights, size, repeat), strict=True))
    self._ends = np.cumsum(list(self.counts.values()))
    self._check_fields()
    self._labels, self.classes = self._classes(labels)
    self.num_classes = len(self.classes)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    k, index = self.place(i)
    example = dict(self._sources[k][index])
    example['id'] = np.int64(int(example['id']) * len(self._sources) + k)
    if 'label' in example and self._labels[k] is not None:
      example['label'] = self._labels[k][example['label']]
    return example

  def place(self, i: int) -> tuple[int, int]:
    """Where position i is read: the number of the source, and the position in it."""
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    k = int(np.searchsorted(self._ends, i, side='right'))
    count = self.counts[self._names[k]]
    j = int(i) - (int(self._ends[k]) - count)
    return k, j * self._sizes[k] // count

  def name(self, i: int) -> str:
    """The source's name, and its own for the example: 'photos: /data/cat/7.jpg'."""
    k, index = self.place(i)
    return f'{self._names[k]}: {name(self._sources[k], index)}'

  def _count(self, weights, size, repeat) -> list[int]:
    """How many examples each source gives."""
    if empty := [n for n, s in zip(self._names, self._sizes, strict=True) if not s]:
      raise ValueError(f'sources {listed(empty)} have no examples; choose another split or path')
    weights = dict(zip(self._names, self._sizes, strict=True)) if weights is None else weights
    if set(weights) != set(self._names) or not all(0 < w < float('inf') for w in weights.values()):
      raise ValueError(
        f'weights {dict(weights)} are not one positive number for each of {listed(self._names)}'
      )
    # As they are written: the float 0.7 is a little less than 7/10.
    exact = [fractions.Fraction(str(weights[n])) for n in self._names]
    shares = [weight / sum(exact) for weight in exact]
    sizes = [n / share for n, share in zip(self._sizes, shares, strict=True)]
    if size is None:
      size = -(-max(sizes) // 1) if repeat else min(sizes) // 1
    counts = _round([size * share for share in shares])
    for source, count, there in zip(self._names, counts, self._sizes, strict=True):
      if count == 0:
        raise ValueError(
          f'{source!r} gets none of the {size} examples; choose a larger size or weight'
          + ('' if repeat else ', or repeat=True')
        )
      if count > there and not repeat:
        raise ValueError(
          f'size {size} needs {count} examples of {source!r}, which has {there}; choose at most '
          f'{min(sizes) // 1}, or repeat=True'
        )
    return counts

  def _check_fields(self) -> None:
    examples = [Load(source)(0, np.random.default_rng(0)) for source in self._sources]
    fields = [sorted(example.keys() - {'_bad'}) for example in examples]
    for source, found in zip(self._names, fields, strict=True):
      if found != fields[0]:
        raise ValueError(
          f'{self._names[0]!r} has the fields {listed(fields[0])}, {source!r} has {listed(found)}; '
          'choose sources or keys that have the same'
        )

  def _classes(self, labels: str) -> tuple[list[np.ndarray | None], tuple[str, ...]]:
    """For each source the new number of each of its classes; the classes' names."""
    classes = [tuple(getattr(source, 'classes', ())) for source in self._sources]
    if labels == 'same':
      for source, own in zip(self._names, classes, strict=True):
        if own != classes[0]:
          raise ValueError(
            f'{self._names[0]!r} has the classes {listed(classes[0])}, {source!r} has '
            f"{listed(own)}; choose labels='offset' to keep them apart, or labels='name' to match "
            'them by name'
          )
      return [None] * len(classes), classes[0]
    if bare := [n for n, own in zip(self._names, classes, strict=True) if not own]:
      raise ValueError(f'labels={labels!r} needs names of the classes, which {listed(bare)} lack')
    if labels == 'offset':
      pairs = zip(self._names, classes, strict=True)
      joined = [[f'{source}/{c}' for c in own] for source, own in pairs]
    else:
      joined = classes
    union = {c: None for own in joined for c in own}
    numbers = {c: k for k, c in enumerate(union)}
    return [np.array([numbers[c] for c in own], np.int32) for own in joined], tuple(union)


def _round(shares: list[fractions.Fraction]) -> list[int]:
  """Whole numbers with the same sum, an integer: the largest remainders are rounded up."""
  floors = [int(share // 1) for share in shares]
  by_remainder = sorted(range(len(shares)), key=lambda k: floors[k] - shares[k])
  for k in by_remainder[: int(sum(shares)) - sum(floors)]:
    floors[k] += 1
  return floors
