"""From a source to sharded global batches, by Grain.

The global batch at step s depends on (seed, s) alone: position p of the endless, shuffled stream is
example `p mod n` of a permutation drawn for (seed, epoch), with random numbers of its own for
(seed, p). Batch s is positions s B to (s+1) B - 1. Hosts, devices and workers only decide who reads
which of them, so a run can be resumed at any step on any of these, and nothing of the pipeline has
to be saved.

Worker processes are spawned: they import the main script again, which must therefore guard its
start with `if __name__ == '__main__':`.
"""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import compose
from vit_jax.data import transforms
from vit_jax.data.prefetch import Batches
from vit_jax.data.substitute import Load, LoadEval, Substituted


class TrainPipeline(Batches):
  """Endless sharded global batches; batch s is a function of (seed, s) alone."""

  def __init__(
    self,
    source: Any,
    *,
    host: str,
    batch_size: int,
    seed: int,
    sharding: jax.sharding.NamedSharding,
    start_step: int = 0,
    stop_step: int | None = None,
    num_workers: int = 0,
    prefetch: int = 2,
    max_bad_share: float = 0.01,
  ):
    """Starts reading at `start_step`.

    Args:
      source: random access, `len(source)` and `source[i] -> dict`; pickled for the workers.
      host: transforms of `data/transforms.py`, such as 'decode | random_resized_crop(32) | flip'.
      batch_size: of the global batch, over all hosts.
      seed: of the order and of the transforms.
      sharding: splits axis 0 and no other, such as P(('data', 'fsdp')).
      start_step: the first step.
      stop_step: one past the last step; None never ends.
      num_workers: worker processes on this host.
      prefetch: batches ready on the devices.
      max_bad_share: up to this share, examples that do not decode are replaced (see
        `Substituted`); beyond it they are an error.

    Raises:
      ValueError: an empty source, unknown transforms, a batch that the devices do not divide; from
        `next`, data that cannot be batched, or too many examples that do not decode.
    """
    import grain

    _check_source(source)
    check_batch_size(batch_size, sharding)
    order_seed, transform_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    load = Load(source, compose.build(host, transforms))
    examples = (
      grain.MapDataset.range(len(source))
      .shuffle(seed=order_seed)
      .repeat(None)
      .random_map(load, seed=transform_seed)
    )
    rows = host_rows(sharding, batch_size)
    steps = sys.maxsize // batch_size if stop_step is None else stop_step
    if not 0 <= start_step <= steps:
      raise ValueError(f'start_step={start_step} is not in 0 to stop_step={stop_step}')
    super().__init__(
      grain.MapDataset.source(HostBatches(examples, rows, batch_size, steps))[start_step:],
      sharding=sharding,
      batch_size=batch_size,
      num_workers=num_workers,
      prefetch=prefetch,
      bad=_substituted(source, rows, batch_size, max_bad_share, start_step),
    )


def eval_batches(
  source: Any,
  *,
  host: str,
  batch_size: int,
  sharding: jax.sharding.NamedSharding,
  num_workers: int = 0,
  prefetch: int = 2,
  max_bad_share: float = 0.01,
) -> Batches:
  """Every example of `source` once, in order: finite, with `_mask`, [B] bool.

  The last batch is filled up by repeating the last example, so that all have one shape; `_mask` is
  False there, and where another example stands for one that does not decode. The arguments are
  those of `TrainPipeline`.
  """
  import grain

  _check_source(source)
  check_batch_size(batch_size, sharding)
  load = LoadEval(Load(source, compose.build(host, transforms)))
  steps = -(-len(source) // batch_size)
  examples = grain.MapDataset.range(steps * batch_size).random_map(load, seed=0)
  rows = host_rows(sharding, batch_size)
  return Batches(
    grain.MapDataset.source(HostBatches(examples, rows, batch_size, steps)),
    sharding=sharding,
    batch_size=batch_size,
    num_workers=num_workers,
    prefetch=prefetch,
    bad=_substituted(source, rows, batch_size, max_bad_share),
  )


def check_batch_size(batch_size: int, sharding: jax.sharding.NamedSharding) -> None:
  """Raises ValueError, with the nearest sizes, if the devices do not divide `batch_size`."""
  axes, *rest = (*sharding.spec, None)
  if any(rest):
    raise ValueError(f'{sharding.spec} splits more than the batch; choose a spec of axis 0 only')
  axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
  shards = int(np.prod([sharding.mesh.shape[a] for a in axes]))
  if batch_size > 0 and batch_size % shards == 0:
    return
  below = max(batch_size // shards, 0) * shards
  sizes = ' or '.join(str(b) for b in (below, below + shards) if b)
  mesh = ', '.join(f'{a}={sharding.mesh.shape[a]}' for a in axes)
  raise ValueError(
    f'batch_size {batch_size} is not a multiple of the {shards} parts that the mesh ({mesh}) '
    f'splits it into; choose {sizes}'
  )


def host_rows(
  sharding: jax.sharding.NamedSharding, batch_size: int, devices: Iterable[jax.Device] | None = None
) -> np.ndarray:
  """The rows of a global batch that `devices` hold (by default this process's), [rows] int64.

  They are ascending, need not be contiguous, and two processes can share some. The order is the one
  in which `jax.make_array_from_process_local_data` takes them: that of the global index.
  """
  indices: Mapping[jax.Device, Any] = sharding.devices_indices_map((batch_size,))
  devices = sharding.addressable_devices if devices is None else devices
  rows = {i for d in devices for i in range(*indices[d][0].indices(batch_size))}
  return np.array(sorted(rows), np.int64)


@dataclasses.dataclass(frozen=True)
class HostBatches:
  """A source of one host's rows of each global batch: no other row is read.

  Attributes:
    examples: random access to the global stream of examples, lazily.
    rows: [rows] ints in [0, batch_size).
    batch_size: of the global batch.
    steps: the number of batches.
  """

  examples: Any
  rows: np.ndarray
  batch_size: int
  steps: int

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    first = int(step) * self.batch_size
    examples = [self.examples[first + row] for row in self.rows.tolist()]
    return {key: _stack(key, [e[key] for e in examples]) for key in examples[0]}


def _stack(key: str, values: list[Any]) -> np.ndarray:
  """[rows, ...] from one field of the examples."""
  if isinstance(values[0], (str, bytes)):
    hint = "start `host` with 'decode'" if key == 'image' else 'leave it out in the source'
    raise ValueError(f'{key!r} is {type(values[0]).__name__}, which no device holds; {hint}')
  try:
    return np.stack(values)
  except ValueError:
    shapes = sorted({np.shape(v) for v in values})
    raise ValueError(
      f'{key!r} has {len(shapes)} shapes in one batch, {shapes[0]} and {shapes[-1]} among them; '
      'bring it to one size, with a crop or resize at the end of `host`'
    ) from None


def _check_source(source: Any) -> None:
  if len(source) == 0:
    raise ValueError(f'{source!r} has no examples; choose another split or path')


def _substituted(source, rows, batch_size, max_share, start_step=0) -> Substituted:
  epoch = len(source) * len(rows) / batch_size
  return Substituted(source, epoch, max_share, offset=start_step * len(rows) % epoch)
