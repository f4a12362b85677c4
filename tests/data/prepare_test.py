import dataclasses
import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import prepare as module
from vit_jax.data.array_record import ArrayRecord
from vit_jax.data.folder import Folder
from vit_jax.data.prepare import default_shards, prepare, verify
from vit_jax.data.shards import Job

ROOT = Path(__file__).parents[2]
N = 20


@pytest.fixture
def images(tmp_path):
  """10 cats and 10 dogs."""
  for i in range(N):
    file = tmp_path / 'images/train' / ('cat' if i < 10 else 'dog') / f'{i:02}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(file)
  return tmp_path / 'images'


@pytest.fixture
def job(images, tmp_path):
  return Job(Folder(str(images)), {'root': str(images)}, tmp_path / 'out', 'train', 4)


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def times(folder):
  return {p.name: p.stat().st_mtime_ns for p in folder.glob('*.array_record')}


def test_workers_write_the_same_bytes_and_every_example(job, tmp_path):
  prepare(job)
  other = dataclasses.replace(job, folder=tmp_path / 'other')
  prepare(other, num_workers=3)
  assert contents(job.folder) == contents(other.folder)
  assert sorted(contents(job.folder)) == [
    *(f'train-{k:05}-of-00004.array_record' for k in range(4)),
    'train.json',
  ]
  source = ArrayRecord(str(job.folder))
  for i in range(N):
    assert source[i] == job.source[i]  # the files' bytes, as they were
  assert source.classes == job.source.classes


def test_the_shards_and_their_bytes_do_not_depend_on_the_machine():
  assert [default_shards(n) for n in (1, 5000, 5001, 1_281_167)] == [1, 1, 2, 257]


def test_what_is_finished_is_not_written_again(job):
  prepare(job)
  before = times(job.folder)
  prepare(job)
  assert times(job.folder) == before
  # One file is lost: that one only is made again, the same.
  lost = job.shard(2)
  data = lost.read_bytes()
  lost.unlink()
  prepare(job)
  assert lost.read_bytes() == data
  after = times(job.folder)
  assert [name for name in after if after[name] != before[name]] == [lost.name]


def test_a_run_that_fails_keeps_its_finished_shards(job, tmp_path):
  whole = dataclasses.replace(job, folder=tmp_path / 'whole')
  prepare(whole)
  missing = Path(job.source.name(12))  # of shard 2
  data = missing.read_bytes()
  missing.unlink()
  with pytest.raises(FileNotFoundError, match=missing.name):
    prepare(job)
  before = times(job.folder)
  assert sorted(before) == [job.shard(k).name for k in (0, 1)]
  with pytest.raises(FileNotFoundError, match='has no index, which `vit_jax prepare` writes last'):
    ArrayRecord(str(job.folder))
  # A partial file of a run that was killed is in nobody's way.
  job.shard(2).with_name(f'{job.shard(2).name}.1.partial').write_bytes(b'partial')
  missing.write_bytes(data)
  progress = []
  prepare(job, report=lambda done, left_out: progress.append(done))
  assert (progress[0], progress[-1]) == (10, N)
  assert contents(job.folder) == contents(whole.folder)
  assert times(job.folder).items() >= before.items()


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_images_are_named_and_left_out_up_to_a_share(job, workers):
  broken = [3, 12]
  for i in broken:
    file = Path(job.source.name(i))
    file.write_bytes(file.read_bytes()[:60])
  names = [job.source.name(i) for i in broken]
  with pytest.raises(
    ValueError, match=r'2 of the .* \(image does not decode: 2\), too many for a share of 0.05 of '
  ):
    prepare(job, num_workers=workers, max_bad_share=0.05)
  told = []
  index = prepare(
    job, num_workers=workers, max_bad_share=0.1, report=lambda done, left: told.append(list(left))
  )
  assert index['examples'] == N - 2
  left_out = [left for shard in index['shards'] for left in shard['left_out']]
  assert [left['name'] for left in left_out] == names
  assert {left['name'] for left in told[-1]} == set(names)
  assert all('truncated' in left['reason'] or 'Error' in left['reason'] for left in left_out)
  source = ArrayRecord(str(job.folder))
  assert [int(e['id']) for e in source] == [i for i in range(N) if i not in broken]


def test_no_image_decodes(job):
  for i in range(N):
    Path(job.source.name(i)).write_bytes(b'')
  with pytest.raises(ValueError, match='every example of the source is left out'):
    prepare(job, max_bad_share=1)


def test_checksums_catch_a_flipped_bit(job):
  prepare(job)
  progress = []
  assert verify(job.folder, lambda done, total: progress.append((done, total))) == (4, N)
  assert progress[-1] == (N, N)
  for k in (1, 3):
    data = bytearray(job.shard(k).read_bytes())
    data[len(data) // 2] ^= 1
    job.shard(k).write_bytes(data)
  with pytest.raises(ValueError, match='2 of 4 files in .* are missing or damaged: ') as error:
    verify(job.folder)
  assert job.shard(1).name in str(error.value)
  assert job.shard(0).name not in str(error.value)
  for k in (1, 3):
    job.shard(k).unlink()
  with pytest.raises(ValueError, match='2 of 4 files'):
    verify(job.folder)
  prepare(job)
  assert verify(job.folder) == (4, N)
  with pytest.raises(FileNotFoundError, match=r"no index of prepared data; it has 'train'"):
    verify(job.source.directory + '/..')


def test_another_source_in_the_same_place_changes_nothing(job):
  prepare(job)
  before = contents(job.folder)
  for change, message in [
    (dict(num_shards=3), "already holds 'train' with other shards: 4 is there, 3 is asked for"),
    (dict(spec={'root': 'x'}), 'with other source'),
    (dict(source=Short(job.source)), 'with other positions: 20 is there, 3 is asked for'),
  ]:
    with pytest.raises(ValueError, match=message):
      prepare(dataclasses.replace(job, **change))
  assert contents(job.folder) == before
  prepare(dataclasses.replace(job, split='again', num_shards=3))  # another name, beside it
  assert contents(job.folder).items() >= before.items()


def test_another_source_where_a_run_was_stopped_changes_nothing(job):
  missing = Path(job.source.name(12))
  missing.rename(missing.with_suffix('.away'))
  with pytest.raises(FileNotFoundError):
    prepare(job)
  before = times(job.folder)
  with pytest.raises(ValueError, match='with other shards: 4 is there, 3 is asked for'):
    prepare(dataclasses.replace(job, num_shards=3))
  assert times(job.folder) == before


class Short:
  """The first 3 examples, with fields that differ."""

  def __init__(self, source, **more):
    self.source, self.more, self.classes = source, more, source.classes

  def __len__(self):
    return 3

  def __getitem__(self, i):
    return self.source[i] | (self.more if i == 2 else {})


class Ends:
  """Ends the process that reads it, as the kernel does where memory is short."""

  def __len__(self):
    return 3

  def __getitem__(self, i):
    os._exit(9)


def test_mistakes_are_one_sentence(job, tmp_path):
  def refused(message, **change):
    with pytest.raises(ValueError, match=message) as error:
      prepare(dataclasses.replace(job, **change))
    assert '\n' not in str(error.value)

  (tmp_path / 'file').touch()
  refused('file is a file; choose a folder', folder=tmp_path / 'file')
  more = Short(job.source, text='a')
  refused(r"has the fields \{.*'text': 'str'\}, and others", source=more, num_shards=1)
  refused(r"and .*-00002-of-00003.array_record \{.*'text'", source=more, split='b', num_shards=3)
  (job.folder / 'c.json').write_text('{}')
  refused(r'c.json is in the way: it is no index; choose another', split='c')


def test_a_worker_that_is_killed(job):
  with pytest.raises(ValueError, match='a worker ended with exit code 9 .* is kept: give the same'):
    prepare(dataclasses.replace(job, source=Ends()), num_workers=1)


def test_two_runs_do_not_meet(job):
  job.parts.mkdir(parents=True)
  with (
    module._locked(job.parts / 'lock', job.folder),
    pytest.raises(ValueError, match='another `vit_jax prepare` is writing to .*; wait for it'),
  ):
    prepare(job)


@pytest.mark.parametrize(('number', 'goes_on'), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_only_a_missing_lock_is_gone_without(job, monkeypatch, number, goes_on):
  def flock(stream, operation):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, 'flock', flock)
  if goes_on:
    assert prepare(job)['examples']
  else:
    with pytest.raises(OSError, match=os.strerror(number)):
      prepare(job)


def test_a_full_disk_is_one_sentence_and_what_is_finished_stays(images, tmp_path):
  # No file may grow past 200 kB: the first shard, of 64 kB, can be written.
  code = textwrap.dedent(f"""
    import pathlib, resource
    from tests_sources import Growing
    from vit_jax.data.prepare import prepare
    from vit_jax.data.shards import Job
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}))
    prepare(Job(Growing(), {{}}, pathlib.Path({str(tmp_path / 'out')!r}), 'train', 2))
  """)
  (tmp_path / 'tests_sources.py').write_text(
    textwrap.dedent("""
      import numpy as np
      class Growing:
        def __len__(self):
          return 20
        def __getitem__(self, i):
          return {'image': np.zeros((1000 if i < 10 else 50_000, 1, 1), np.uint8)}
    """)
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': f'{ROOT}:{tmp_path}'},
    capture_output=True,
    text=True,
  )
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('OSError: cannot write ')
  assert last.endswith('give the same command again')
  assert 'train-00001-of-00002.array_record: File too large; what is finished is kept' in last
  names = sorted(p.name for p in (tmp_path / 'out').iterdir())
  assert names == ['.prepare-train', 'train-00000-of-00002.array_record']
  entry = json.loads((tmp_path / 'out/.prepare-train/00000.json').read_text())
  assert entry['examples'] == 10
