"""From a source to sharded global batches, by Grain.

The global batch at step s depends on (seed, s) alone: position p of the endless, shuffled stream is example
`p mod n` of a permutation drawn for (seed, epoch), with random numbers of its own for (seed, p). Batch s is positions
s B to (s+1) B - 1. Hosts, devices and workers only decide who reads which of them, so a run can be resumed at any step
on any of these, and nothing of the pipeline has to be saved.

Worker processes are spawned: they import the main script again, which must therefore guard its start with
`if __name__ == '__main__':`.
"""

import dataclasses
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np

from vit_jax import compose
from vit_jax.arrays import Batch
from vit_jax.data import transforms
from vit_jax.data.substitute import Load, LoadEval, Substituted

# Smaller arrays leave a worker through its pipe, which takes half the time of a segment of shared memory each.
MIN_SHARED_BYTES = 2**20


class Batches:
  """Sharded global batches, made by a thread that stays `prefetch` of them ahead; an iterator.

  Close it, or use it in a `with` statement: its thread and its worker processes end there.

  Attributes:
    wait_seconds: how long `next` has waited for data; set it to 0 to start anew.
    bad: a `Substituted` with `count`, `drawn` and the first `names` of the examples that did not decode. It counts the
      batches handed out, on this host.
  """

  def __init__(
    self,
    batches: Any,
    *,
    sharding: jax.sharding.NamedSharding,
    batch_size: int,
    num_workers: int,
    prefetch: int,
    bad: Substituted,
  ):
    """Starts reading.

    Args:
      batches: a finite `grain.MapDataset` of this host's rows of every batch.
      sharding: splits axis 0 of every array.
      batch_size: of the global batch.
      num_workers: worker processes; with 0 the thread does the work.
      prefetch: batches ready on the devices, at least 1.
      bad: where to count the examples that did not decode.
    """
    if prefetch < 1 or num_workers < 0:
      raise ValueError(f'prefetch={prefetch} is below 1 or num_workers={num_workers} below 0')
    self.wait_seconds = 0.0
    self.bad = bad
    self._ended = False
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._slots = threading.Semaphore(prefetch)
    self._stop = threading.Event()
    # The thread must not hold `self`, so that an iterator that is dropped without `close` is collected and closed.
    self._thread = threading.Thread(
      target=_produce,
      args=(batches, num_workers, sharding, batch_size, self._queue, self._slots, self._stop),
      name='vit_jax-data',
      daemon=True,
    )
    self._thread.start()
    self._close = weakref.finalize(self, _shut_down, self._thread, self._slots, self._stop)

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    if not self._close.alive:
      raise ValueError('this pipeline is closed; make a new one with start_step where it ended')
    if self._ended:
      raise StopIteration
    start = time.perf_counter()
    item = self._queue.get()
    self.wait_seconds += time.perf_counter() - start
    self._slots.release()
    if isinstance(item, BaseException):
      self._ended = True
      self.close()
      raise item
    if item is None:
      self._ended = True
      raise StopIteration
    batch, bad = item
    self.bad.add(bad)
    return batch

  def close(self) -> None:
    """Ends the thread and the worker processes; waits for the batch that they are at."""
    self._close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc) -> None:
    self.close()


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
      host: the transforms of `data/transforms.py`, such as 'decode | random_resized_crop(32) | flip'.
      batch_size: of the global batch, over all hosts.
      seed: of the order and of the transforms.
      sharding: splits axis 0 and no other, such as P(('data', 'fsdp')).
      start_step: the first step.
      stop_step: one past the last step; None never ends.
      num_workers: worker processes on this host.
      prefetch: batches ready on the devices.
      max_bad_share: examples that do not decode are replaced up to this share (see `Substituted`), then an error.

    Raises:
      ValueError: an empty source, unknown transforms, a batch that the devices do not divide; from `next`, data that
        cannot be batched, or too many examples that do not decode.
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
      bad=Substituted(source, len(source) * len(rows) / batch_size, max_bad_share),
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

  The last batch is filled up by repeating the last example, so that all have one shape; `_mask` is False there, and where
  another example stands for one that does not decode. The arguments are those of `TrainPipeline`.
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
    bad=Substituted(source, len(source) * len(rows) / batch_size, max_bad_share),
  )


def check_batch_size(batch_size: int, sharding: jax.sharding.NamedSharding) -> None:
  """Raises ValueError, with the nearest sizes that would do, if the devices do not divide `batch_size`."""
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
    f'batch_size {batch_size} is not a multiple of the {shards} parts that the mesh ({mesh}) splits it into; '
    f'choose {sizes}'
  )


def host_rows(
  sharding: jax.sharding.NamedSharding, batch_size: int, devices: Iterable[jax.Device] | None = None
) -> np.ndarray:
  """The rows of a global batch that `devices` (default: this process's) hold, ascending, [rows] int64.

  They need not be contiguous, and two processes can share some. The order is the one in which
  `jax.make_array_from_process_local_data` takes them: that of the global index.
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


def _produce(batches, num_workers, sharding, batch_size, out, slots, stop) -> None:
  """The thread: reads, moves to the devices, and puts (batch, bad), at last None or an exception."""
  iterator = None
  try:
    iterator = iter(_to_iter(batches, num_workers))
    while True:
      slots.acquire()
      rows = None if stop.is_set() else next(iterator, None)
      if rows is None:
        break
      bad = np.array(rows.pop('_bad'))
      out.put(({k: _to_device(k, v, sharding, batch_size) for k, v in rows.items()}, bad))
    out.put(None)
  except BaseException as e:
    out.put(e)
  finally:
    if iterator is not None:
      _close_iterator(iterator)


def _to_iter(batches, num_workers):
  """A Grain iterator; the order is that of `batches` whatever the number of workers."""
  import grain
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # in notebooks and tests; Grain's workers need it
  dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  if num_workers:
    shared = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, shared)
    options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
    dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
  return dataset


def _start_worker(index: int, count: int) -> None:
  """Runs in a new worker process: it takes no device, ignores Ctrl-C, and ends when its parent has died."""
  del index, count
  import multiprocessing
  import signal

  os.environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_platforms', 'cpu')  # Grain has imported JAX by now; this keeps it off the accelerator.
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _to_device(key: str, rows: np.ndarray, sharding, batch_size: int) -> jax.Array:
  """This host's rows, in the order of `host_rows`, as its part of a global array."""
  dtype = jax.dtypes.canonicalize_dtype(rows.dtype)
  if dtype != rows.dtype:
    if dtype == np.int32 and (rows.min() < -(2**31) or rows.max() >= 2**31):
      raise ValueError(f'{key!r} holds {rows.max()}, which int32 does not; number the examples anew')
    rows = rows.astype(dtype)
  if type(rows) is not np.ndarray and sharding.mesh.devices.flat[0].platform == 'cpu':
    rows = np.array(rows)  # On the CPU the result may be a view, and would hold the worker's shared memory.
  shape = (batch_size, *rows.shape[1:])
  return jax.make_array_from_process_local_data(sharding, rows, shape)


def _close_iterator(iterator) -> None:
  # Grain's interleaving starts all workers at once but closes only those that it has read from; its state names all.
  try:
    iterator.get_state()
  finally:
    iterator.close()


def _shut_down(thread, slots, stop) -> None:
  stop.set()
  slots.release()
  thread.join()
