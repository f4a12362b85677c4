"""Host batches to sharded global arrays, ahead of the step that needs them."""

import multiprocessing
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np

from vit_jax.arrays import Batch
from vit_jax.data.substitute import Substituted

# Smaller arrays leave a worker through its pipe: half the time of a segment of shared memory each.
MIN_SHARED_BYTES = 2**20


class Batches:
  """Sharded global batches, made by a thread that stays `prefetch` of them ahead; an iterator.

  Close it, or use it in a `with` statement: its thread and its worker processes end there.

  Attributes:
    wait_seconds: how long `next` has waited for data; set it to 0 to start anew.
    bad: a `Substituted`, the `count` and the first `names` of the examples that did not decode in
      the batches handed out, on this host.
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
    # The thread does not hold `self`: dropped without `close`, it is collected and closed.
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


def _produce(batches, num_workers, sharding, batch_size, out, slots, stop) -> None:
  """The thread: reads, moves to devices, puts (batch, bad), and at last None or an exception."""
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
      iterator.close()


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
  """Runs in a new worker: it takes no device, ignores signals to all, and ends with its parent."""
  del index, count
  os.environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_platforms', 'cpu')  # It has been imported by now, but has no device yet.
  for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C; a cluster's notice to a whole job.
    signal.signal(number, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _to_device(key: str, rows: np.ndarray, sharding, batch_size: int) -> jax.Array:
  """This host's rows, in the order of `host_rows`, as its part of a global array."""
  dtype = jax.dtypes.canonicalize_dtype(rows.dtype)
  if dtype != rows.dtype:
    if dtype.kind in 'iu' and not np.array_equal(rows, rows.astype(dtype)):
      message = f'{key!r} holds {rows.max()}, too large for {dtype}; number the examples anew'
      raise ValueError(message)
    rows = rows.astype(dtype)
  if type(rows) is not np.ndarray and sharding.mesh.devices.flat[0].platform == 'cpu':
    rows = np.array(rows)  # On the CPU the result may be a view, and hold the shared memory.
  shape = (batch_size, *rows.shape[1:])
  return jax.make_array_from_process_local_data(sharding, rows, shape)


def _shut_down(thread, slots, stop) -> None:
  stop.set()
  slots.release()
  if thread is not threading.current_thread():  # The garbage collector runs in any thread.
    thread.join()
