"""Files from elsewhere, in a cache: an interrupted download goes on, a wrong one is removed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vit_jax.adapters.remote import Reply, address, is_http, opener, reason_of
from vit_jax.locks import lock

Progress = Callable[[int, int | None], object]

_CHUNK = 2**20  # bytes


def fetch(
  location: str | Path,
  *,
  sha256: str | None = None,
  cache: str | Path | None = None,
  progress: Progress | None = None,
) -> Path:
  """Gives a file that lies here, downloading it the first time.

  A download that was interrupted goes on where it stopped, unless the file has changed since or the
  server cannot start midway. Of several processes at once, one downloads and the others wait. A
  file that was downloaded is not compared with its source again; a revision or `sha256` pins it.
  Files that lie side by side there do so here.

  Args:
    location: a path; `https://...`, `http://...`; `hf://org/name[/file][@revision]`, a file of the
      Hugging Face Hub, 'model.safetensors' of 'main' unless given, read from `HF_ENDPOINT` with
      `HF_TOKEN` if these environment variables are set; or what fsspec opens, such as `gs://...`.
    sha256: what the file's bytes must give, in hexadecimal digits.
    cache: the folder for downloads; `$VIT_JAX_CACHE` by default, or else `~/.cache/vit_jax`.
    progress: called with the bytes that are here and those of the whole file, None if not known.

  Returns:
    The path itself, or that in the cache, whose name is the file's.

  Raises:
    FileNotFoundError: there is no such file.
    PermissionError: the server wants a token or another one.
    ConnectionError: the server cannot be reached or stopped midway.
    ValueError: an unknown scheme, a malformed location, another checksum, or a package is missing.
    OSError: the disk is full, or the server failed.
  """
  if sha256 is not None and not re.fullmatch('[0-9a-fA-F]{64}', sha256):
    raise ValueError(f'sha256 is {sha256!r}; it must be 64 hexadecimal digits')
  location = os.fspath(location)
  path = local_path(location)
  if path is not None:
    if not path.exists():
      raise FileNotFoundError(f'no file {path}')
    if sha256:
      _check_digest(path, path, sha256)
    return path
  path = _place(address(location), cache)
  if path.exists() and (sha256 is None or _digest(path) == sha256.lower()):
    return path
  open_at = opener(location)
  path.parent.mkdir(parents=True, exist_ok=True)
  with _locked(path.with_name(f'{path.name}.lock')):
    # Another process may have been here meanwhile.
    if path.exists() and (sha256 is None or _digest(path) == sha256.lower()):
      return path
    partial, note = (path.with_name(f'{path.name}.{end}') for end in ('partial', 'partial.json'))
    _download(location, open_at, partial, note, progress)
    try:
      if sha256:
        _check_digest(partial, location, sha256)
    except ValueError as e:
      partial.unlink()
      raise ValueError(f'{e}; what was downloaded is removed') from None
    partial.replace(path)
    note.unlink(missing_ok=True)
  return path


def local_path(location: str) -> Path | None:
  """The path that a location is, with a scheme or without; None for one elsewhere."""
  scheme, rest = re.fullmatch('(?:([A-Za-z][A-Za-z0-9+.-]+)://)?(.*)', location, re.S).groups()
  return Path(rest).expanduser() if scheme in (None, 'file', 'local') else None


def _place(url: str, cache: str | Path | None) -> Path:
  """Where a file is kept: under its own name, in a folder that stands for the one it lies in."""
  path, mark, query = url.partition('?') if is_http(url) else (url, '', '')
  folder, _, name = path.rpartition('/')
  clean = re.sub(r'[^\w.+-]', '_', urllib.parse.unquote(name))[-100:]
  if not clean.strip('.') or (is_http(url) and folder.endswith(':/')):
    raise ValueError(f'{url!r} names no file')
  # Names that differ before they are cleaned must not meet.
  key = folder + mark + query if clean == name else url
  # The end of the folder's name, without a password, for people who look into the cache.
  words = re.sub(r'[^\w.-]+', '-', folder.partition('://')[2].rpartition('@')[2])[-60:].strip('-.')
  digest = hashlib.sha256(key.encode()).hexdigest()[:12]
  root = Path(cache or os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax').expanduser()
  return root / '-'.join(filter(None, (words, digest))) / clean


def _download(
  location: str,
  open_at: Callable[[int], Reply],
  partial: Path,
  note: Path,
  progress: Progress | None,
) -> None:
  """Fills `partial`, going on from what it has if `note` says that it is of the same bytes."""
  was = _read_note(note) if partial.exists() else None
  have = partial.stat().st_size if was and was['version'] else 0
  if was and was['size'] is not None:
    if 0 < have == was['size']:
      return  # It was all here, and not yet renamed.
    have = have if have < was['size'] else 0
  reply = open_at(have)
  if reply.start and (reply.start != have or _note(reply) != was):
    reply.stream.close()
    reply = open_at(0)
  with contextlib.closing(reply.stream):
    if not reply.start:
      partial.unlink(missing_ok=True)  # Before the note, which would vouch for it.
      note.write_text(json.dumps(_note(reply)))
    done, size = reply.start, reply.size
    free = shutil.disk_usage(partial.parent).free
    if size is not None and size - done > free:
      raise OSError(
        f'no space left on device: {location} takes {size - done} bytes more and {partial.parent} '
        f'has {free}'
      )
    # Unbuffered: closing the file after an error has nothing left to write.
    with open(partial, 'ab', buffering=0) as f:
      if progress:
        progress(done, size)
      while chunk := _read(reply, location, done):
        _write(f, chunk, partial)
        done += len(chunk)
        if progress:
          progress(done, size)
  if size is not None and done != size:
    raise _stopped(location, done, size, 'the connection was closed')


def _note(reply: Reply) -> dict[str, Any]:
  return {'version': reply.version, 'size': reply.size}


def _read_note(file: Path) -> dict[str, Any] | None:
  try:
    note = json.loads(file.read_text())
    return {key: note[key] for key in ('version', 'size')}
  except (OSError, ValueError, LookupError, TypeError):
    return None  # The download starts again.


def _read(reply: Reply, location: str, done: int) -> bytes:
  try:
    return reply.stream.read(_CHUNK)
  except Exception as e:  # Every file system has its own.
    raise _stopped(location, done, reply.size, reason_of(e)) from e


def _stopped(location: str, done: int, size: int | None, reason: str) -> ConnectionError:
  of = '' if size is None else f' of {size}'
  return ConnectionError(
    f'{location} stopped after {done}{of} bytes ({reason}); fetch it again to go on'
  )


def _write(f: Any, chunk: bytes, file: Path) -> None:
  rest = memoryview(chunk)
  try:
    while rest:
      rest = rest[f.write(rest) :]
  except OSError as e:
    raise OSError(f'{file} cannot be written ({reason_of(e)}); fetch it again to go on') from e


def _check_digest(file: Path, what: str | Path, sha256: str) -> None:
  found = _digest(file)
  if found != sha256.lower():
    raise ValueError(f'{what} has the SHA-256 {found} and should have {sha256.lower()}')


def _digest(file: Path) -> str:
  with open(file, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
  """Waits until no other process is at it."""
  with open(file, 'w') as f:
    lock(f, wait=True)
    yield
