"""Examples that cannot be decoded: named, counted, and replaced so that no position of the data moves.

`Load` runs inside the worker processes and carries out what it replaced in the example itself (`_bad`), so there is no
state across processes; `Substituted` keeps the count in the main process. Nothing here imports JAX.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

MAX_TRIES = 100  # neighbours that are tried before a run of bad examples is an error
MAX_NAMES = 5  # names that are kept for messages

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


class BadExample(ValueError):  # noqa: N818  (it names a kind of data, and is always handled)
  """An example whose data are broken: raised by `decode`, or by a source that decodes itself.

  It takes one message: an exception whose `__init__` takes two arguments does not survive the way out of a worker.
  """


@dataclasses.dataclass(frozen=True)
class Load:
  """Reads example i of a source and transforms it; if it is a `BadExample`, the next one that is not.

  The call returns the example with `_bad`, int64: -1, or the index i that was replaced. Every other exception (a
  missing file, a transform that does not fit the image) propagates: it is a mistake and not a broken example.
  """

  source: Any
  transforms: Sequence[Transform] = ()

  def __call__(self, i: int, rng: np.random.Generator) -> Example:
    n = len(self.source)
    for k in range(min(n, MAX_TRIES)):
      try:
        example = dict(self.source[(i + k) % n])
        for transform in self.transforms:
          example = transform(example, rng)
      except BadExample as e:
        reason = str(e)
        continue
      example['_bad'] = np.int64(-1 if k == 0 else i)
      return example
    raise ValueError(
      f'{name(self.source, i)!r} and the {k} examples after it do not decode ({reason}); '
      'check that the files are complete and that they are images'
    )


@dataclasses.dataclass(frozen=True)
class LoadEval:
  """Reads example i for evaluation, with `_mask`: False on padding (i >= n repeats the last) and on what was replaced."""

  load: Load

  def __call__(self, i: int, rng: np.random.Generator) -> Example:
    n = len(self.load.source)
    example = self.load(min(i, n - 1), rng)
    if i >= n:
      example['_bad'] = np.int64(-1)  # the last example is counted at its own position
    example['_mask'] = np.bool_(i < n and example['_bad'] < 0)
    return example


@dataclasses.dataclass
class Substituted:
  """What was replaced since the pipeline started, on this host.

  The limit: replaced examples are at most `max_share` of all examples read, where the first epoch counts in full (one
  bad example in the very first batch is no reason to stop a run over a million).

  Attributes:
    epoch: examples of one epoch that fall to this host.
    max_share: in [0, 1].
    count: examples that were replaced, counted anew each time they are drawn.
    drawn: examples read in all.
    names: the first few different ones.
  """

  source: Any = dataclasses.field(repr=False)
  epoch: float
  max_share: float
  count: int = 0
  drawn: int = 0
  names: list[str] = dataclasses.field(default_factory=list)
  _seen: set[int] = dataclasses.field(default_factory=set, repr=False)

  def add(self, bad: np.ndarray) -> None:
    """Counts the `_bad` of one batch, [b] int64.

    Raises:
      ValueError: more than the stated share was replaced.
    """
    self.drawn += len(bad)
    for i in bad[bad >= 0].tolist():
      self.count += 1
      if i in self._seen:
        continue
      self._seen.add(i)
      label = name(self.source, i)
      logging.warning('%s does not decode; another example takes its place', label)
      if len(self.names) < MAX_NAMES:
        self.names.append(label)
    if self.count > self.max_share * max(self.drawn, self.epoch):
      names = ', '.join(map(repr, self.names))
      raise ValueError(
        f'{self.count} of {self.drawn} examples do not decode, more than max_bad_share={self.max_share:g} of an epoch '
        f'of {self.epoch:g}; the first are {names}: repair or remove them, or raise max_bad_share'
      )


def name(source: Any, i: int) -> str:
  """What to call example i in a message: `source.name(i)` where there is one."""
  return str(source.name(i)) if hasattr(source, 'name') else f'example {i}'
