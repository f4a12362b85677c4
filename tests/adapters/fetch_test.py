"""Downloads: every byte comes once, also after an interruption; what is wrong does not stay."""

import concurrent.futures
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vit_jax.adapters.fetch import fetch

pytestmark = pytest.mark.usefixtures('cache')
ROOT = Path(__file__).parents[2]
MB = 2**20
CONTENT = np.random.default_rng(0).bytes(5 * MB + 123)
OTHER = np.random.default_rng(1).bytes(5 * MB + 123)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(server):
  server.content = CONTENT
  return server


@pytest.fixture
def memory():
  files = fsspec.filesystem('memory')
  files.pipe('/weights/a.npz', CONTENT)
  yield files
  files.store.clear()


def left(folder: Path) -> list[str]:
  """What lies in a cache, besides locks."""
  return sorted(p.name for p in folder.rglob('*') if p.is_file() and p.suffix != '.lock')


def interrupt_after(size: int):
  def progress(done, total):
    if done >= size:
      raise KeyboardInterrupt

  return progress


def test_a_path_is_returned_as_it_is(tmp_path, cache):
  file = tmp_path / 'a.npz'
  file.write_bytes(CONTENT)
  assert fetch(file) == fetch(str(file)) == fetch(f'file://{file}', sha256=DIGEST) == file
  with pytest.raises(FileNotFoundError, match=f'^no file {tmp_path}/b.npz$'):
    fetch(tmp_path / 'b.npz')
  with pytest.raises(ValueError, match=f'SHA-256 {DIGEST} and should have {"0" * 64}$'):
    fetch(file, sha256='0' * 64)
  assert file.exists() and not cache.exists()


def test_a_file_is_downloaded_once(server, tmp_path, cache):
  seen = []
  file = fetch(f'{server.url}/a.npz', progress=lambda *both: seen.append(both))
  assert file.read_bytes() == CONTENT and file.name == 'a.npz'
  assert file.parent.parent == cache and left(cache) == ['a.npz']
  assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT),) * 2 and seen == sorted(seen)
  assert fetch(f'{server.url}/a.npz', sha256=DIGEST.upper()) == file
  assert len(server.requests) == 1
  elsewhere = fetch(f'{server.url}/a.npz', cache=tmp_path / 'other')
  assert tmp_path / 'other' in elsewhere.parents and len(server.requests) == 2


def test_files_that_lie_side_by_side_do_so_here_and_others_never_meet(server):
  paths = ('/a/x.npz', '/a/y.npz', '/b/x.npz', '/a/x.npz?v=2', '/a/x%20y.npz', '/a/x_y.npz')
  files = [fetch(f'{server.url}{path}') for path in paths]
  assert len(set(files)) == len(files)
  assert files[0].parent == files[1].parent and files[0].parent != files[3].parent
  assert files[0].name == files[2].name == files[3].name == 'x.npz'
  assert all(re.fullmatch(r'[\w.+-]+', part) for file in files for part in file.parts[-2:])


@pytest.mark.parametrize('url', ['http://host', 'http://host/', 'http://host/a/', 'http://h/a/..'])
def test_an_address_of_no_file(url):
  with pytest.raises(ValueError, match='names no file$'):
    fetch(url)


@pytest.mark.parametrize('reset', [False, True])
def test_after_a_cut_connection_only_the_missing_bytes_are_sent(server, reset, cache):
  server.cut, server.reset = 3 * MB, reset
  with pytest.raises(
    ConnectionError, match=rf'/a.npz stopped after \d+ of {len(CONTENT)} bytes \('
  ):
    fetch(f'{server.url}/a.npz')
  assert left(cache) == ['a.npz.partial', 'a.npz.partial.json']
  have = next(cache.rglob('*.partial')).stat().st_size
  # A reset throws away what has not been read yet.
  assert have <= 3 * MB if reset else have == 3 * MB
  seen = []
  file = fetch(f'{server.url}/a.npz', sha256=DIGEST, progress=lambda *both: seen.append(both))
  assert file.read_bytes() == CONTENT
  assert server.requests[1][1] == (f'bytes={have}-' if have else None)
  assert server.sent == [3 * MB, len(CONTENT) - have]
  assert seen[0] == (have, len(CONTENT))
  assert left(cache) == ['a.npz']


def test_a_download_is_cut_again_and_again(server):
  for _ in range(5):
    server.cut = MB
    with pytest.raises(ConnectionError):
      fetch(f'{server.url}/a.npz')
  assert fetch(f'{server.url}/a.npz').read_bytes() == CONTENT
  assert server.sent == [MB] * 5 + [123]


def test_a_killed_process_is_gone_on_from(server, cache):
  server.pause = 0.02
  process = start(f'{server.url}/a.npz')
  wait_for(lambda: any(p.stat().st_size >= MB for p in cache.rglob('*.partial')))
  process.send_signal(signal.SIGKILL)
  process.wait()
  server.pause = 0
  have = next(cache.rglob('*.partial')).stat().st_size
  assert have >= MB
  assert fetch(f'{server.url}/a.npz').read_bytes() == CONTENT
  assert server.requests[1][1] == f'bytes={have}-' and server.sent[1] == len(CONTENT) - have


def test_killed_before_the_file_got_its_name_nothing_is_sent_again(server, cache):
  with pytest.raises(KeyboardInterrupt):
    fetch(f'{server.url}/a.npz', progress=interrupt_after(len(CONTENT)))
  assert left(cache) == ['a.npz.partial', 'a.npz.partial.json']
  assert fetch(f'{server.url}/a.npz', sha256=DIGEST).read_bytes() == CONTENT
  assert len(server.requests) == 1


def test_a_server_that_ignores_ranges_sends_all_again(server):
  server.cut = 3 * MB
  with pytest.raises(ConnectionError):
    fetch(f'{server.url}/a.npz')
  server.ranges = False
  assert fetch(f'{server.url}/a.npz').read_bytes() == CONTENT
  assert server.sent == [3 * MB, len(CONTENT)]


@pytest.mark.parametrize(
  'change',
  [
    dict(content=OTHER),
    dict(content=OTHER, etag=False, modified='Tue, 02 Jan 2024 00:00:00 GMT'),
    dict(content=OTHER[: 4 * MB], etag=False),  # Only its size tells.
    dict(content=OTHER[: 2 * MB]),  # shorter than what is here
    dict(content=OTHER, validators=False),  # Nothing tells that it is the same.
  ],
)
def test_a_file_that_changed_on_the_server_comes_whole(server, change):
  server.etag = change.get('etag', True)
  server.cut = 3 * MB
  with pytest.raises(ConnectionError):
    fetch(f'{server.url}/a.npz')
  vars(server).update(change)
  assert fetch(f'{server.url}/a.npz').read_bytes() == change['content']
  assert server.requests[1][1] == f'bytes={3 * MB}-' and server.requests[2][1] is None


def test_without_validators_a_download_starts_again(server):
  server.validators, server.cut = False, 3 * MB
  with pytest.raises(ConnectionError):
    fetch(f'{server.url}/a.npz')
  server.content = OTHER
  assert fetch(f'{server.url}/a.npz').read_bytes() == OTHER
  assert [asked for _, asked, _ in server.requests] == [None, None]


@pytest.mark.parametrize('note', [None, '', '{', '[]', '{"size": 3}'])
def test_a_partial_file_that_nothing_vouches_for_starts_again(server, note, cache):
  server.cut = 3 * MB
  with pytest.raises(ConnectionError):
    fetch(f'{server.url}/a.npz')
  file = next(cache.rglob('*.partial.json'))
  assert json.loads(file.read_text())['size'] == len(CONTENT)
  file.unlink() if note is None else file.write_text(note)
  assert fetch(f'{server.url}/a.npz').read_bytes() == CONTENT
  assert server.requests[1][1] is None


def test_a_file_of_unknown_length(server):
  server.sized, seen = False, []
  file = fetch(f'{server.url}/a.npz', progress=lambda *both: seen.append(both))
  assert file.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), None)


def test_an_empty_file(server):
  server.content = b''
  assert fetch(f'{server.url}/a.npz').read_bytes() == b''


def test_a_wrong_checksum_is_an_error_and_the_file_goes(server, cache):
  wrong = hashlib.sha256(OTHER).hexdigest()
  with pytest.raises(ValueError, match=f'/a.npz has the SHA-256 {DIGEST} and should have {wrong};'):
    fetch(f'{server.url}/a.npz', sha256=wrong)
  assert not [name for name in left(cache) if not name.endswith('.json')]
  server.content = OTHER
  assert fetch(f'{server.url}/a.npz', sha256=wrong).read_bytes() == OTHER
  server.content = CONTENT  # What the cache has is not what is asked for now.
  assert fetch(f'{server.url}/a.npz', sha256=DIGEST).read_bytes() == CONTENT
  with pytest.raises(ValueError, match="sha256 is 'abc'; it must be 64 hexadecimal digits"):
    fetch(f'{server.url}/a.npz', sha256='abc')


def start(location: str) -> subprocess.Popen:
  code = 'import sys; from vit_jax.adapters.fetch import fetch; print(fetch(sys.argv[1]))'
  return subprocess.Popen(
    [sys.executable, '-c', code, location],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )


def wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_two_processes_at_once_download_once(server):
  server.pause = 0.02
  processes = [start(f'{server.url}/a.npz') for _ in range(2)]
  files = {process.communicate(timeout=60)[0].strip() for process in processes}
  assert len(files) == 1 and Path(files.pop()).read_bytes() == CONTENT
  assert server.sent == [len(CONTENT)]


def test_threads_at_once_download_once(server):
  server.pause = 0.002
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    files = set(pool.map(lambda _: fetch(f'{server.url}/a.npz'), range(8)))
  assert len(files) == 1 and files.pop().read_bytes() == CONTENT
  assert server.sent == [len(CONTENT)]


def test_fsspec_files_go_on_where_they_stopped(memory, cache):
  with pytest.raises(KeyboardInterrupt):
    fetch('memory://weights/a.npz', progress=interrupt_after(2 * MB))
  seen = []
  file = fetch('memory://weights/a.npz', progress=lambda *both: seen.append(both), sha256=DIGEST)
  assert file.read_bytes() == CONTENT and file.name == 'a.npz'
  assert seen[0] == (2 * MB, len(CONTENT)) and left(cache) == ['a.npz']
  memory.rm('/weights/a.npz')
  assert fetch('memory://weights/a.npz') == file


def test_a_partial_file_that_is_too_long_starts_again(memory, cache):
  with pytest.raises(KeyboardInterrupt):
    fetch('memory://weights/a.npz', progress=interrupt_after(2 * MB))
  next(cache.rglob('*.partial')).write_bytes(CONTENT + b'more')
  assert fetch('memory://weights/a.npz').read_bytes() == CONTENT


def test_fsspec_files_that_changed_come_whole(memory):
  with pytest.raises(KeyboardInterrupt):
    fetch('memory://weights/a.npz', progress=interrupt_after(2 * MB))
  memory.pipe('/weights/a.npz', OTHER)
  seen = []
  file = fetch('memory://weights/a.npz', progress=lambda *both: seen.append(both))
  assert file.read_bytes() == OTHER and seen[0] == (0, len(OTHER))


@pytest.fixture
def small_disk(make_disk):
  return make_disk(megabytes=3)


@pytest.mark.parametrize('sized', [True, False])
def test_a_full_disk_is_one_sentence_and_the_download_goes_on_later(server, small_disk, sized):
  server.sized = sized
  with pytest.raises(OSError, match='[Nn]o space left on device') as error:
    fetch(f'{server.url}/a.npz', cache=small_disk)
  assert '\n' not in str(error.value) and type(error.value) is OSError
  # Where the length is known, nothing is written in vain.
  assert len([*small_disk.rglob('*.partial')]) == (not sized)
  subprocess.run(['mount', '-o', 'remount,size=8m', str(small_disk)], check=True)
  assert fetch(f'{server.url}/a.npz', cache=small_disk, sha256=DIGEST).read_bytes() == CONTENT
