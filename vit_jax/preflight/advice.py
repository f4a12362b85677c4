"""What would fit: the largest batch, and other ways to run the same config, each compiled."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections

from vit_jax import sharding
from vit_jax.build import resolve
from vit_jax.models.stack import REMAT
from vit_jax.preflight.compiling import Outcome

COMPILES = 6  # at most, to find the largest batch

# From a config to what compiling it shows.
Measure = Callable[[ml_collections.ConfigDict], Outcome]


class Choice(NamedTuple):
  """Another way to run a config: what it changes, for people, and the config itself."""

  label: str
  config: ml_collections.ConfigDict


class Found(NamedTuple):
  """The largest batch that fits, as far as it was looked for.

  Attributes:
    fits: the largest batch that was seen to fit; 0 for none.
    too_large: the smallest that was seen not to; None for none.
    compiles: programs compiled for it.
  """

  fits: int
  too_large: int | None
  compiles: int


def choices(config: ml_collections.ConfigDict) -> Iterator[Choice]:
  """Ways to run `config` in less memory: the same training, at some cost in time.

  Some cannot be: a batch may not divide, or its examples may be compared with each other.
  """
  for policy in REMAT:
    if policy != 'none':
      changed = _copy(config)
      encoders = [e for e in _encoders(changed.objective) if e.get('remat') != policy]
      for encoder in encoders:
        encoder.remat = policy
      if encoders:
        yield Choice(f'remat={policy!r}', changed)
  mesh = {axis: size for axis, size in (config.get('mesh') or {}).items() if size is not None}
  split = {**mesh, 'data': 1, 'fsdp': -1}
  word = config.get('sharding') or 'fsdp'
  if (word, mesh.get('data', 1), mesh.get('fsdp', 1)) != ('fsdp', 1, -1):
    changed = _copy(config)
    changed.mesh, changed.sharding = split, 'fsdp'
    yield Choice("sharding='fsdp', mesh.data=1, mesh.fsdp=-1", changed)
  if word != 'zero1':
    changed = _copy(config)
    changed.sharding = 'zero1'
    yield Choice("sharding='zero1'", changed)
  parts = 4 * (config.get('accumulate') or 1)
  changed = _copy(config)
  changed.accumulate = parts
  yield Choice(f'accumulate={parts}', changed)
  changed = _copy(config)
  if _chunk(changed.objective, 4):
    yield Choice('models.chunked.Chunked(chunks=4) around the encoders', changed)


def largest_batch(
  config: ml_collections.ConfigDict,
  measure: Measure,
  first: Outcome,
  step: int,
  fixed: int,
  progress: Callable[[str], None],
) -> Found:
  """Looks for the largest batch whose step fits, with few compiles.

  Memory grows about linearly with the batch, so each guess is where the line through the last two
  programs meets the limit, down to a round number: XLA takes long to lay out others.

  Args:
    config: the config; its own batch has been compiled.
    measure: compiles another.
    first: what that has shown.
    step: batches are multiples of this.
    fixed: bytes that a device needs whatever the batch.
    progress: told of each compile.
  """
  own = config.batch_size // step
  fits, too_large = (own, None) if first.fits else (0, own)
  points = [(0, fixed), (own, first.needed or 2 * first.limit)]
  compiles = 0
  while compiles < COMPILES and (too_large is None or too_large - fits > max(1, fits // 16)):
    guess = _guess(points, first.limit, fits, too_large)
    if too_large is not None and guess >= too_large:
      break
    progress(f'compiling a batch of {guess * step:,} ...')
    outcome = measure(_with(config, batch_size=guess * step))
    compiles += 1
    points.append((guess, outcome.needed or 2 * first.limit))
    fits, too_large = (guess, too_large) if outcome.fits else (fits, guess)
  return Found(fits * step, too_large and too_large * step, compiles)


def batch_step(config: ml_collections.ConfigDict, mesh: Any) -> int:
  """What a batch must be a multiple of: the devices it is split over, and its parts there."""
  chunks = [group.chunks for group in _groups(config.objective) if group.get('chunks')]
  return sharding.batch_shards(mesh) * math.lcm(config.get('accumulate') or 1, *chunks)


def _guess(points: list[tuple[int, int]], limit: int, fits: int, too_large: int | None) -> int:
  (x0, y0), (x1, y1) = points[-2:]
  slope = (y1 - y0) / (x1 - x0)
  guess = math.floor(x1 + (limit - y1) / slope) if slope > 0 else 2 * x1
  if too_large is None:
    guess = min(max(guess, fits + 1), 8 * fits)
  elif not fits < guess < too_large:  # The line leads out of what is still open.
    guess = (fits + too_large) // 2
  grain = 1 << max(0, guess.bit_length() - 5)
  guess -= guess % grain
  return guess if guess > fits else fits + grain


def _copy(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(config.to_dict())


def _with(config: ml_collections.ConfigDict, **fields: Any) -> ml_collections.ConfigDict:
  changed = _copy(config)
  changed.update(fields)
  return changed


def _groups(config: Any) -> Iterator[ml_collections.ConfigDict]:
  """Everything in an objective that is built, itself first."""
  if isinstance(config, ml_collections.ConfigDict):
    if config.get('type'):
      yield config
    for value in config.values():
      yield from _groups(value)


def _fields(group: ml_collections.ConfigDict) -> dict[str, Any]:
  return getattr(resolve(group.type), '__dataclass_fields__', {})


def _encoders(objective: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
  """The parts of an objective that can compute activations again."""
  return [group for group in _groups(objective) if 'remat' in _fields(group)]


def _chunk(objective: ml_collections.ConfigDict, chunks: int) -> bool:
  """Puts `Chunked` around the encoders of an objective that compares examples; says if it did."""
  if not getattr(resolve(objective.type), 'couples_batch', False):
    return False
  chunked = False
  for name, value in objective.items():
    group = isinstance(value, ml_collections.ConfigDict) and value.get('type')
    if group and 'remat' in _fields(value):
      objective[name] = dict(type='models.chunked.Chunked', chunks=chunks, encoder=value.to_dict())
      chunked = True
  return chunked
