"""ArrayRecord files of a source: what decides the bytes of each, and how it is written, or not."""

import contextlib
import dataclasses
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data import records
from vit_jax.data.decode import decode_image
from vit_jax.data.substitute import BadExample, name

# One record a chunk, as random access wants. Images are compressed already; and what no compressor
# has made is the same bytes with every version of it.
OPTIONS = 'group_size:1,uncompressed'
TELL_SECONDS = 0.2
MISTAKES = (ValueError, OSError, ArithmeticError, ImportError)  # the user's: without a traceback

LeftOut = dict[str, str]  # name and reason
Tell = Callable[[int, list[LeftOut]], None]  # positions done, and left out, since the last call


@dataclasses.dataclass(frozen=True)
class Job:
  """What decides the bytes of the shards: shard k is a fixed range of the source's examples.

  Attributes:
    source: random access; pickled for the workers.
    spec: the source as plain data, for the index: tells one job from another.
    folder: where the files go.
    split: the name of the split that is written.
    num_shards: the number of files.
  """

  source: Any = dataclasses.field(repr=False)
  spec: Any
  folder: pathlib.Path
  split: str
  num_shards: int

  @property
  def parts(self) -> pathlib.Path:
    """The folder of the entries of the shards that are finished, until the index has them."""
    return self.folder / f'.prepare-{self.split}'

  def entry(self, k: int) -> pathlib.Path:
    """The file of the entry of shard k."""
    return self.parts / f'{k:05}.json'

  def shard(self, k: int) -> pathlib.Path:
    """The file of shard k."""
    return self.folder / f'{self.split}-{k:05}-of-{self.num_shards:05}{records.EXTENSION}'

  def positions(self, k: int) -> range:
    """The examples of shard k, as positions in the source."""
    n = len(self.source)
    return range(k * n // self.num_shards, (k + 1) * n // self.num_shards)


def write_shard(job: Job, k: int, tell: Tell) -> dict[str, Any]:
  """Writes shard k and the file of its entry, and returns the entry (see `data/records.py`).

  Raises:
    OSError: a file cannot be written, or the source cannot read one.
    ValueError: an example whose fields are not those of the one before, or cannot be stored.
  """
  file = job.shard(k)
  # A run that was killed may leave a worker for a moment, which writes to a file of its own.
  partial = file.with_name(f'{file.name}.{os.getpid()}.partial')
  try:
    entry = {'file': file.name, **_write(job, k, partial, tell)}
    with open(partial, 'rb') as stream:
      digest = hashlib.file_digest(stream, 'sha256')
      os.fsync(stream.fileno())
    entry |= {'bytes': partial.stat().st_size, 'sha256': digest.hexdigest()}
    # Before the shard has its name: a shard without an entry would be written again.
    records.write_json(job.entry(k), entry)
    partial.replace(file)
  finally:
    partial.unlink(missing_ok=True)
  return entry


def in_workers(job: Job, shards: Sequence[int], count: int) -> Iterator[tuple[int | None, Any]]:
  """Writes shards in `count` processes.

  Yields:
    (number, entry) of each shard as it is finished; between them (None, the arguments of `Tell`).

  Raises:
    ValueError: a worker was killed; and what `write_shard` raises.
  """
  context = multiprocessing.get_context('spawn')  # a fork of a process with threads may hang
  processes = {}
  try:
    for w in range(count):
      receiver, sender = context.Pipe(duplex=False)
      process = context.Process(target=_work, args=(job, shards[w::count], sender), daemon=True)
      process.start()
      sender.close()  # The worker has the other end: when it dies, ours ends.
      processes[receiver] = process
    while processes:
      for pipe in multiprocessing.connection.wait(list(processes)):
        try:
          k, result = pipe.recv()
        except (EOFError, OSError):  # OSError: killed in the middle of a message
          process = processes.pop(pipe)
          process.join()
          if process.exitcode:
            raise ValueError(
              f'a worker ended with exit code {process.exitcode} (-9 is often too little memory); '
              'what is finished is kept: give the same command again, with fewer workers'
            ) from None
          continue
        if isinstance(result, Exception):
          raise result
        yield k, result
  finally:
    for process in processes.values():
      process.terminate()
    for process in processes.values():
      process.join()


def _work(job: Job, shards: Sequence[int], pipe: Any) -> None:
  """Runs in a worker: it ignores Ctrl-C, which is for its parent, and ends when that dies."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()

  def tell(count: int, more: list[LeftOut]) -> None:
    pipe.send((None, (count, more)))

  try:
    for k in shards:
      pipe.send((k, write_shard(job, k, tell)))
  except MISTAKES as e:
    # As its message: not every exception can be pickled.
    pipe.send((None, OSError(str(e)) if isinstance(e, OSError) else ValueError(str(e))))
  except Exception:
    pipe.send((None, RuntimeError(traceback.format_exc())))


def _write(job: Job, k: int, partial: pathlib.Path, tell: Tell) -> dict[str, Any]:
  """Writes the records, and returns what the examples say of the entry."""
  from array_record.python.array_record_module import ArrayRecordWriter

  features, ids, left_out = None, [], []
  told, untold, told_at = 0, 0, time.monotonic()
  with _writing(job.shard(k)):
    writer = ArrayRecordWriter(str(partial), OPTIONS)
  for i in job.positions(k):
    try:
      example = _read(job.source, i)
    except BadExample as e:
      left_out.append({'name': name(job.source, i), 'reason': str(e)})
    else:
      record, found = records.encode(example), records.features(example)
      features = features or found
      if found != features:
        raise ValueError(f'{name(job.source, i)} has the fields {found}, and others {features}')
      ids.append(int(example['id']))
      with _writing(job.shard(k)):
        writer.write(record)
    untold += 1
    if time.monotonic() - told_at > TELL_SECONDS:
      tell(untold, left_out[told:])
      told, untold, told_at = len(left_out), 0, time.monotonic()
  with _writing(job.shard(k)):
    writer.close()
  tell(untold, left_out[told:])
  return {
    'examples': len(ids),
    'ids': [min(ids), max(ids)] if ids else None,
    'features': features,
    'left_out': left_out,
  }


def _read(source: Any, i: int) -> dict[str, Any]:
  """Example i with an id; raises BadExample where the source does, or its image does not decode."""
  example = {'id': np.int64(i), **source[i]}
  if isinstance(example.get('image'), bytes):
    try:
      decode_image(example['image'])
    except BadExample as e:
      raise BadExample(f'image does not decode: {e}') from None
  return example


@contextlib.contextmanager
def _writing(file: pathlib.Path) -> Iterator[None]:
  """ArrayRecord's errors, such as that of a full disk, as one sentence."""
  try:
    yield
  except RuntimeError as e:
    reason = str(e).removeprefix('write() failed: ').partition(';')[0]
    raise OSError(
      f'cannot write {file}: {reason}; what is finished is kept: once that is repaired, give the '
      'same command again'
    ) from None
