"""Writes any source as ArrayRecord files: in parallel, and killed or stopped, to be gone on with.

The bytes of a shard depend on the source and the number of shards alone. A shard is written under
another name and renamed when it is whole and on the disk; a run writes those that are not there.
The index is written last: a split has one or is not prepared.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.choices import listed
from vit_jax.data import records
from vit_jax.data.shards import Job, LeftOut, in_workers, write_shard
from vit_jax.locks import lock

SHARD_EXAMPLES = 5000  # of a shard by default: half a gigabyte of photographs

Report = Callable[[int, list[LeftOut]], None]  # positions done, and examples left out, in all


def default_shards(size: int) -> int:
  """How many files a source of `size` examples makes; the machine has no say in it."""
  return max(1, min(-(-size // SHARD_EXAMPLES), 99999))


def prepare(
  job: Job, *, num_workers: int = 0, max_bad_share: float = 0.01, report: Report | None = None
) -> dict[str, Any]:
  """Writes the shards of `job` that are not there yet, and then the index.

  Args:
    job: what to write.
    num_workers: processes; 0 writes in this one.
    max_bad_share: up to this share of the examples, those are left out whose image does not decode,
      or that the source cannot use.
    report: called with the progress, that of runs before included.

  Returns:
    The index (`data/records.py`).

  Raises:
    ValueError: the folder holds another source under this name, somebody else is writing there, too
      many examples are left out, or a worker was killed.
    OSError: a file cannot be read or written. Whatever is raised, the finished shards stay.
  """
  if len(job.source) == 0:
    raise ValueError('the source has no examples; choose another split or path')
  if job.folder.exists() and not job.folder.is_dir():
    raise ValueError(f'{job.folder} is a file; choose a folder')
  index_file = job.folder / f'{job.split}.json'
  index = _check_index(job, index_file)
  entries = _finished(job, index)
  if index and len(entries) == job.num_shards:
    return index
  job.parts.mkdir(parents=True, exist_ok=True)
  with _locked(job.parts / 'lock', job.folder):
    _check_plan(job)
    _remove_partial(job)  # of a run that was killed
    try:
      _write_missing(job, entries, num_workers, max_bad_share, report or (lambda *_: None))
    finally:
      _remove_partial(job)
    index = _index(job, [entries[k] for k in range(job.num_shards)])
    records.write_json(index_file, index)
    shutil.rmtree(job.parts)
  return index


def verify(
  folder: str | os.PathLike, report: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
  """Reads every shard that `folder` has an index of, and compares its SHA-256.

  Args:
    folder: what `prepare` has written.
    report: called with the numbers of examples that have been read, and that there are.

  Returns:
    The numbers of files and of examples.

  Raises:
    FileNotFoundError: there is no index.
    ValueError: files are missing or damaged; they are named.
  """
  folder = pathlib.Path(folder)
  shards = [s for index in records.read_indices(folder) for s in index['shards']]
  if not shards:
    there = sorted(os.listdir(folder)) if folder.is_dir() else []
    raise FileNotFoundError(f'{folder} has no index of prepared data; it has {listed(there)}')
  damaged, done, total = [], 0, sum(shard['examples'] for shard in shards)
  for shard in shards:
    try:
      with open(folder / shard['file'], 'rb') as stream:
        digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    except OSError:
      digest = None
    if digest != shard['sha256']:
      damaged.append(shard['file'])
    done += shard['examples']
    if report:
      report(done, total)
  if damaged:
    raise ValueError(
      f'{len(damaged)} of {len(shards)} files in {folder} are missing or damaged: '
      f'{listed(damaged)}; delete them and give the `vit_jax prepare` that made them again'
    )
  return len(shards), done


def left_out_counts(left_out: list[LeftOut]) -> dict[str, int]:
  """How many examples were left out for each reason, the most frequent first; without details."""
  reasons = collections.Counter(left['reason'].partition(':')[0] for left in left_out)
  return dict(reasons.most_common())


def _plan(job: Job) -> dict[str, Any]:
  """What a finished or half-finished split must have in common with a job to be its own."""
  plan = {
    'format': records.FORMAT,
    'split': job.split,
    'source': job.spec,
    'positions': len(job.source),
    'classes': list(getattr(job.source, 'classes', ())),
  }
  return json.loads(json.dumps(plan))


def _check_index(job: Job, file: pathlib.Path) -> dict[str, Any] | None:
  """The index of the split, if there is one and it is of this job."""
  index = records.read_index(file)
  if index is None and file.exists():
    raise ValueError(f'{file} is in the way: it is no index; choose another folder or name')
  if index is not None:
    _check_same(job, {**index, 'shards': len(index['shards'])})
  return index


def _check_plan(job: Job) -> None:
  """Notes whose shards are in the folder, or compares with the note of the run before."""
  file = job.parts / 'plan.json'
  if file.exists():
    _check_same(job, json.loads(file.read_text(encoding='utf-8')))
  else:
    records.write_json(file, {**_plan(job), 'shards': job.num_shards})


def _check_same(job: Job, there: dict[str, Any]) -> None:
  for key, value in {**_plan(job), 'shards': job.num_shards}.items():
    if there.get(key) != value:
      raise ValueError(
        f'{job.folder} already holds {job.split!r} with other {key}: {_short(there.get(key))} is '
        f'there, {_short(value)} is asked for; choose another folder or name, or delete it'
      )


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 160 else f'{text[:160]}...'


def _finished(job: Job, index: dict[str, Any] | None) -> dict[int, dict[str, Any]]:
  """The entries of the shards that are whole, by number."""
  entries = {}
  for k in range(job.num_shards):
    if index is not None:
      entry = {**index['shards'][k], 'features': index['features']}
    elif job.entry(k).exists():
      entry = json.loads(job.entry(k).read_text(encoding='utf-8'))
    else:
      continue
    with contextlib.suppress(FileNotFoundError):
      if job.shard(k).stat().st_size == entry['bytes']:
        entries[k] = entry
  return entries


def _remove_partial(job: Job) -> None:
  for file in job.folder.glob(f'{job.split}-[0-9][0-9][0-9][0-9][0-9]-of-*.partial'):
    file.unlink(missing_ok=True)


def _write_missing(job: Job, entries, num_workers: int, max_share: float, report: Report) -> None:
  """Adds to `entries` those of the shards that it lacks."""
  missing = [k for k in range(job.num_shards) if k not in entries]
  done = sum(len(job.positions(k)) for k in entries)
  left_out = [left for entry in entries.values() for left in entry['left_out']]

  def tell(count: int, more: list[LeftOut]) -> None:
    nonlocal done
    done += count
    left_out.extend(more)
    report(done, left_out)
    if len(left_out) > max_share * len(job.source):
      counts = ', '.join(f'{why}: {n}' for why, n in left_out_counts(left_out).items())
      raise ValueError(
        f'{len(left_out)} of the {done} examples read are left out ({counts}), too many for a '
        f'share of {max_share:g} of {len(job.source)}; the first are '
        f'{listed([left["name"] for left in left_out], 5)}: repair or remove them, or allow a '
        'larger share'
      )

  tell(0, [])
  if num_workers == 0:
    for k in missing:
      entries[k] = write_shard(job, k, tell)
    return
  results = in_workers(job, missing, min(num_workers, len(missing)))
  with contextlib.closing(results):  # After an error too the workers have ended here.
    for k, result in results:
      if k is None:
        tell(*result)
      else:
        entries[k] = result


@contextlib.contextmanager
def _locked(file: pathlib.Path, folder: pathlib.Path) -> Iterator[None]:
  """Keeps a second run out, which would take this one's files for those of a killed run."""
  with open(file, 'w', encoding='utf-8') as stream:
    try:
      lock(stream, wait=False)
    except BlockingIOError:
      raise ValueError(f'another `vit_jax prepare` is writing to {folder}; wait for it') from None
    yield


def _index(job: Job, entries: list[dict[str, Any]]) -> dict[str, Any]:
  """The index of a split, from the entries of all its shards."""
  filled = [entry for entry in entries if entry['examples']]
  if not filled:
    raise ValueError('every example of the source is left out; there is nothing to write')
  for a, b in itertools.pairwise(filled):
    if a['features'] != b['features']:
      raise ValueError(
        f'{a["file"]} has examples with the fields {a["features"]}, and {b["file"]} {b["features"]}'
      )
  ids = [number for entry in filled for number in entry['ids']]
  return _plan(job) | {
    'examples': sum(entry['examples'] for entry in entries),
    'ids': [min(ids), max(ids)],
    'features': filled[0]['features'],
    'shards': [{k: v for k, v in entry.items() if k != 'features'} for entry in entries],
  }
