"""Examples that do not decode: named, counted, and replaced so that no position moves.

`Load` runs inside the worker processes and carries out what it replaced in the example itself
(`_bad`), so there is no state across processes; `Substituted` keeps the count in the main process.
Nothing here imports JAX.
"""

import dataclasses
import math
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

  It takes one message: an exception whose `__init__` takes two arguments does not survive the way
  out of a worker.
  """


@dataclasses.dataclass(frozen=True)
class Load:
  """Reads example i of a source and transforms it; after a `BadExample`, the next one.

  The call returns the example with `_bad`, int64: -1, or the index i that was replaced. Every other
  exception (a missing file, a transform that does not fit the image) propagates: it is a mistake
  and not a broken example.
  """

  source: Any
  transforms: Sequence[Transform] = ()

  def __call__(self, i: int, rng: np.random.Generator) -> Example:
    """Raises ValueError where none of the next `MAX_TRIES` examples decodes."""
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
  """Reads example i for evaluation, with `_mask`.

  It is False on padding, where i >= n repeats the last example and `_bad` is -2, and on what was
  replaced.
  """

  load: Load

  def __call__(self, i: int, rng: np.random.Generator) -> Example:
    """As `Load`, for any i."""
    n = len(self.load.source)
    example = self.load(min(i, n - 1), rng)
    if i >= n:
      example['_bad'] = np.int64(-2)  # The last example is counted at its own position.
    example['_mask'] = np.bool_(example['_bad'] == -1)
    return example


@dataclasses.dataclass
class Substituted:
  """What was replaced since the pipeline started, on this host.

  The limit is `max_share` of the examples of all epochs begun, each counted in full: one bad
  example in the first batch is no reason to stop a run over a million, and a share of exactly
  `max_share` never is. Where other hosts read the rest of an epoch, chance decides who meets the
  bad ones, and 3 standard deviations are granted on top.

  Attributes:
    epoch: examples of one epoch that fall to this host.
    max_share: in [0, 1].
    offset: examples of the first epoch that fell to this host before it started.
    count: examples that were replaced, counted anew each time they are drawn.
    drawn: examples read in all.
    names: the first few different ones.
  """

  source: Any = dataclasses.field(repr=False)
  epoch: float
  max_share: float
  offset: float = 0
  count: int = 0
  drawn: int = 0
  names: list[str] = dataclasses.field(default_factory=list)
  _seen: set[int] = dataclasses.field(default_factory=set, repr=False)

  def add(self, bad: np.ndarray) -> None:
    """Counts the `_bad` of one batch, [b] int64; -1 is a good example, -2 is padding.

    Raises:
      ValueError: more than the stated share was replaced.
    """
    self.drawn += int(np.sum(bad > -2))
    for i in bad[bad >= 0].tolist():
      self.count += 1
      if i in self._seen:
        continue
      self._seen.add(i)
      label = name(self.source, i)
      logging.warning('%s does not decode; another example takes its place', label)
      if len(self.names) < MAX_NAMES:
        self.names.append(label)
    if self.count > self._limit():
      names = ', '.join(map(repr, self.names))
      raise ValueError(
        f'{self.count} of the {self.drawn} examples read do not decode, too many for '
        f'max_bad_share={self.max_share:g} of {len(self.source)}; the first are {names}: '
        'repair or remove them, or raise max_bad_share'
      )

  def _limit(self) -> float:
    limit = self.max_share * self.epoch * math.ceil((self.offset + self.drawn) / self.epoch)
    return limit if self.epoch == len(self.source) else limit + 3 * math.sqrt(limit)


def name(source: Any, i: int) -> str:
  """What to call example i in a message: `source.name(i)` where there is one."""
  return str(source.name(i)) if hasattr(source, 'name') else f'example {i}'
