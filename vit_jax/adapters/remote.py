"""Opening files elsewhere, at any byte: HTTP, the Hugging Face Hub, and what fsspec opens.

HTTP is read with Python's own `urllib`: fsspec's would make aiohttp a dependency of everyone.
"""

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

import fsspec

from vit_jax.reasons import reason

_TIMEOUT = 60  # seconds without a byte
_SCHEMES = ('hf', 'https', 'http', 'gs', 's3', 'memory', 'file')
_HUB_FILE = 'model.safetensors'


class Reply(NamedTuple):
  """An open file: what `stream` gives from byte `start` on, of `size` bytes.

  Two replies of one `version` and size are of the same bytes; None is of none that can be told.
  """

  stream: Any
  start: int
  size: int | None
  version: str | None


def opener(location: str) -> Callable[[int], Reply]:
  """A function that opens a file from a byte on; a server may start at another one.

  Args:
    location: with a scheme, as `fetch` has it.

  Returns:
    From a byte's number to a `Reply`. It raises FileNotFoundError, PermissionError where the server
    wants a token or another one, ConnectionError where it cannot be reached, or OSError.

  Raises:
    ValueError: an unknown scheme, a malformed location, or a package is missing.
    OSError: the file system cannot be opened.
  """
  url = address(location)
  return _http(location, url) if is_http(url) else _fsspec(url)


def address(location: str) -> str:
  """The address that `hf://org/name[/file][@revision]` stands for; any other stays as it is.

  Raises:
    ValueError: it begins with 'hf://' and goes on otherwise.
  """
  return _hub_url(location) if location.startswith('hf://') else location


def is_http(url: str) -> bool:
  """Whether it is a web address."""
  return url.startswith(('http://', 'https://'))


def reason_of(error: object) -> str:
  """What went wrong, in a few words."""
  return reason(error, getattr(error, 'strerror', None))


def _hub_url(location: str) -> str:
  match = re.fullmatch(r'hf://([\w.-]+)/([\w.-]+)(?:/([^@]+))?(?:@(.+))?', location)
  if not match:
    raise ValueError(f'{location!r} is not of the form hf://org/name[/file][@revision]')
  org, name, file, revision = match.groups()
  endpoint = os.environ.get('HF_ENDPOINT', '').rstrip('/') or 'https://huggingface.co'
  revision = urllib.parse.quote(revision or 'main', safe='')
  return f'{endpoint}/{org}/{name}/resolve/{revision}/{urllib.parse.quote(file or _HUB_FILE)}'


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows a server to another one, and does not show that one the token."""

  def redirect_request(
    self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
  ) -> Any:
    new = super().redirect_request(req, fp, code, msg, headers, newurl)
    if new is not None and (new.type, new.host) != (req.type, req.host):
      new.remove_header('Authorization')
    return new


def _http(location: str, url: str) -> Callable[[int], Reply]:
  director = urllib.request.build_opener(_Redirects)
  headers = {'User-Agent': 'vit_jax', 'Accept-Encoding': 'identity'}
  token = os.environ.get('HF_TOKEN')
  if token and location.startswith('hf://'):
    headers['Authorization'] = f'Bearer {token}'

  def open_at(start: int) -> Reply:
    part = {'Range': f'bytes={start}-'} if start else {}
    try:
      # Characters that no address has are quoted, and what is quoted stays so.
      quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
      request = urllib.request.Request(quoted, headers=headers | part)
      stream = director.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as e:
      e.close()
      if e.code == 416 and start:  # It has become shorter.
        return open_at(0)
      raise _refused(location, url, e) from None
    except (OSError, ValueError, http.client.HTTPException) as e:
      host = urllib.parse.urlsplit(url).netloc.rpartition('@')[2]
      why = reason_of(getattr(e, 'reason', e))
      raise ConnectionError(f'cannot reach {host} for {location} ({why})') from None
    version = [stream.headers[name] for name in ('ETag', 'Last-Modified') if stream.headers[name]]
    size = stream.headers['Content-Length']
    if stream.status == 206:
      match = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)', stream.headers['Content-Range'] or '')
      start, size = match.groups() if match else (-1, None)
    else:
      start = 0
    size = int(size) if size and size.isdigit() else None
    return Reply(stream, int(start), size, ' '.join(version) or None)

  return open_at


def _refused(location: str, url: str, error: urllib.error.HTTPError) -> OSError:
  what = location if location == url else f'{location} ({url})'
  said = f'{error.code} {reason_of(error.reason)}'
  if error.code in (404, 410):
    return FileNotFoundError(f'{what} is not there ({said})')
  if error.code in (401, 403):
    hint = '; if the name is right, set HF_TOKEN to a token' if location != url else ''
    return PermissionError(f'{what} is not for everyone ({said}){hint}')
  return OSError(f'{what} cannot be read: the server answers {said}')


def _fsspec(url: str) -> Callable[[int], Reply]:
  scheme = url.partition('://')[0]
  if scheme not in fsspec.available_protocols():
    choices = ', '.join(map(repr, _SCHEMES))
    raise ValueError(
      f'unknown scheme {scheme!r} in {url!r}; choose from {choices}, or another that fsspec opens'
    )
  try:
    files, path = fsspec.url_to_fs(url)
  except ImportError as e:
    raise ValueError(f'{url} needs a package that is not installed ({reason_of(e)})') from None
  except Exception as e:
    raise OSError(f'{url} cannot be opened ({reason_of(e)})') from e

  def open_at(start: int) -> Reply:
    try:
      files.invalidate_cache()
      info = files.info(path)
      if info.get('type') == 'directory':
        raise IsADirectoryError('it is a folder')
      stream = files.open(path, 'rb')
      stream.seek(start)
      return Reply(stream, start, info.get('size'), files.ukey(path))
    except FileNotFoundError:
      raise FileNotFoundError(f'{url} is not there') from None
    except Exception as e:
      raise OSError(f'{url} cannot be opened ({reason_of(e)})') from e

  return open_at
