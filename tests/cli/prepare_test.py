"""`vit_jax prepare`: killed and gone on with; what it says; its mistakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.data.array_record import ArrayRecord
from vit_jax.data.folder import Folder

ROOT = Path(__file__).parents[2]
SLOW = """
import os, time
from vit_jax.data.folder import Folder

class Slow(Folder):
  def __getitem__(self, i):
    time.sleep(float(os.environ.get('SLOW_SECONDS', 0)))
    return super().__getitem__(i)
"""


@pytest.fixture
def images(tmp_path):
  for i in range(24):
    file = tmp_path / 'images' / ('train' if i < 16 else 'val') / 'ab'[i % 2] / f'{i:02}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(i).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(file)
  return tmp_path / 'images'


@pytest.fixture
def run(capfd):
  """A function that runs the command; its exit code, and the lines on stdout and stderr."""

  def run(*argv):
    capfd.readouterr()
    code = cli.main(['prepare', *map(str, argv)])
    out = capfd.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()

  return run


def contents(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_splits_stand_beside_each_other(run, images, tmp_path):
  out = tmp_path / 'out'
  for split, count in (('train', 16), ('val', 8)):
    code, (line,), progress = run(f'folder:{images}', out, '--split', split, '--workers', 0)
    assert (code, line) == (0, f"{out}: '{split}' has {count} examples in 1 files")
    assert progress[-1].startswith(f'step {count}/{count}')
    source, expected = ArrayRecord(str(out), split), Folder(str(images), split)
    assert [source[i] for i in range(count)] == [expected[i] for i in range(count)]
  assert len(ArrayRecord(str(out), 'train+val')) == 24
  code, (line,), _ = run('--verify', out)
  assert (code, line) == (0, f'{out}: 24 examples in 2 files are as they were written')


def test_a_prepared_source_can_be_prepared_again(run, images, tmp_path):
  run(f'folder:{images}', tmp_path / 'a', '--workers', 0)
  code, (line,), _ = run(
    *(f'array_record:{tmp_path / "a"}', tmp_path / 'b', '--split', 'train[4:]', '--name', 'most'),
    *('--shards', 3, '--workers', 0),
  )
  assert (code, line) == (0, f"{tmp_path / 'b'}: 'most' has 12 examples in 3 files")
  assert [int(e['id']) for e in ArrayRecord(str(tmp_path / 'b'))] == list(range(4, 16))


def test_broken_images_are_named_and_counted(run, images, tmp_path):
  broken = images / 'train/a/02.png'
  broken.write_bytes(broken.read_bytes()[:60])
  argv = f'folder:{images}', tmp_path / 'out', '--workers', 0
  code, _, errors = run(*argv)
  assert code == 1
  assert str(broken) in errors[-1]
  assert 'too many for a share of 0.01 of 16' in errors[-1]
  code, (line, *table), errors = run(*argv, '--max-bad-share', 0.1)
  assert code == 0
  assert line.endswith('has 15 examples in 1 files')
  assert [row.split('  ')[0] for row in table] == ['left out', table[1], 'image does not decode']
  assert table[2].split()[-1] == '1'
  assert sum(e.startswith(f'left out {broken}: ') for e in errors) == 1


def test_killed_in_the_middle_and_gone_on_with(run, images, tmp_path, monkeypatch):
  (tmp_path / 'slow_source.py').write_text(SLOW)
  monkeypatch.syspath_prepend(tmp_path)
  argv = [f'slow_source.Slow:{images}', tmp_path / 'out', '--shards', 8, '--workers', 2]
  environment = {'PYTHONPATH': f'{ROOT}:{tmp_path}', 'SLOW_SECONDS': '0.3'}
  with subprocess.Popen(
    [sys.executable, '-m', 'vit_jax', 'prepare', *map(str, argv)],
    env=os.environ | environment,
    stderr=subprocess.DEVNULL,
  ) as process:
    end = time.monotonic() + 100
    while len(done := list((tmp_path / 'out').glob('*.array_record'))) < 2:
      assert process.poll() is None
      assert time.monotonic() < end
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
  # The workers end with it: nothing is written from here on.
  time.sleep(0.5)
  files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'out').glob('*.array_record')}
  assert 2 <= len(files) < 8
  assert files.keys() >= {p.name for p in done}
  assert list((tmp_path / 'out').glob('*.partial'))
  assert not (tmp_path / 'out/train.json').exists()

  code, (line,), progress = run(*argv[:-1], 0)
  assert (code, line) == (0, f"{tmp_path / 'out'}: 'train' has 16 examples in 8 files")
  assert progress[0].startswith(f'step {2 * len(files)}/16')
  for name, changed in files.items():
    assert (tmp_path / 'out' / name).stat().st_mtime_ns == changed
  run(argv[0], tmp_path / 'whole', *argv[2:-1], 0)
  assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')
  assert not list((tmp_path / 'out').glob('.prepare*'))
  assert run('--verify', tmp_path / 'out')[0] == 0


def test_mistakes_are_one_sentence_and_leave_no_trace(run, images, tmp_path):
  before = sorted(tmp_path.rglob('*'))
  out, spec = tmp_path / 'out', f'folder:{images}'
  for argv, message in [
    ([], 'prepare takes SPEC and OUT'),
    ([spec], 'prepare takes SPEC and OUT'),
    (['--verify', out, spec], '--verify takes a folder and nothing else'),
    (['--verify', out], f'{out} has no index of prepared data; it has nothing'),
    (['folders:x', out], "unknown source 'folders' in 'folders:x'; choose from 'array_record'"),
    ([f'{spec},spilt=val', out], "unknown field 'spilt' in"),
    ([f'{spec}x', out], f"no folder {images}x; {tmp_path} has 'images'"),
    ([spec, out, '--split', 'test'], "choose from 'train', 'val'"),
    (['digits', out, '--split', 'train[:10%]'], "'train[:10%]' is several splits or part of one"),
    (['digits', out, '--split', 'all'], "'all' is several splits or part of one; say what to"),
    ([spec, out, '--shards', 0], '--shards must be 1 to 99999, got 0'),
    ([spec, out, '--workers', -1], '--workers must be 0 or more, got -1'),
    ([spec, out, '--max-bad-share', 2], '--max-bad-share must be 0 to 1, got 2'),
    (['digits', images / 'train/a/00.png'], '00.png is a file; choose a folder'),
  ]:
    code, stdout, stderr = run(*argv)
    assert (code, stdout, len(stderr)) == (1, [], 1), argv
    assert message in stderr[0]
  assert sorted(tmp_path.rglob('*')) == before


def test_a_flipped_bit_is_found(run, tmp_path):
  run('digits', tmp_path, '--split', 'validation', '--workers', 0)
  (file,) = tmp_path.glob('*.array_record')
  data = bytearray(file.read_bytes())
  data[1000] ^= 1
  file.write_bytes(data)
  code, _, errors = run('--verify', tmp_path)
  assert code == 1
  assert errors[-1] == (
    f"vit_jax: error: 1 of 1 files in {tmp_path} are missing or damaged: '{file.name}'; delete "
    'them and give the `vit_jax prepare` that made them again'
  )
