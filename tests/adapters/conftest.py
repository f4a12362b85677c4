"""A server on this machine that can cut, ignore ranges, redirect, and change its file."""

import contextlib
import hashlib
import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest


class Server(http.server.ThreadingHTTPServer):
  """Serves `content` at every path.

  Attributes:
    cut: after so many bytes, the next answer ends.
    reset: a cut is a reset connection, not a closed one.
    ranges: whether it can start midway.
    sized: whether it says how long the file is.
    validators: whether it sends an ETag and Last-Modified.
    status: what it answers instead, such as 404.
    redirect: where the file is instead.
    pause: seconds between pieces of 64 KB.
    requests: `(path, Range, Authorization)` of each.
    sent: bytes of each answer.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.content, self.modified = b'', 'Mon, 01 Jan 2024 00:00:00 GMT'
    self.etag = True
    self.cut = self.status = self.redirect = None
    self.reset, self.ranges, self.sized, self.validators, self.pause = False, True, True, True, 0.0
    self.requests, self.sent = [], []

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}'


class _Handler(http.server.BaseHTTPRequestHandler):
  def log_message(self, *args):
    pass

  def do_GET(self):
    server, headers = self.server, self.headers
    server.requests.append((self.path, headers['Range'], headers['Authorization']))
    server.sent.append(0)
    number = len(server.sent) - 1
    if server.redirect:
      target, server.redirect = server.redirect, None
      self.send_response(302)
      self.send_header('Location', target)
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    if server.status:
      self.send_error(server.status)
      return
    content = server.content
    part = re.fullmatch(r'bytes=(\d+)-', headers['Range'] or '') if server.ranges else None
    start = int(part[1]) if part else 0
    if part and start >= len(content):
      self.send_error(416)
      return
    self.send_response(206 if part else 200)
    if part:
      self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
    if server.sized:
      self.send_header('Content-Length', str(len(content) - start))
    if server.validators:
      if server.etag:
        self.send_header('ETag', f'"{hashlib.md5(content).hexdigest()}"')
      self.send_header('Last-Modified', server.modified)
    self.end_headers()
    body = content[start:]
    cut, server.cut = server.cut, None
    for i in range(0, len(body), 65536):
      piece = body[i : i + 65536]
      if cut is not None:
        piece = piece[: max(cut - i, 0)]
      server.sent[number] += len(piece)  # First: the client may be done before this thread goes on.
      try:
        self.wfile.write(piece)
      except OSError:  # The client is gone.
        return
      if cut is not None and i + 65536 >= cut:
        break
      time.sleep(server.pause)
    if cut is not None and server.reset:
      time.sleep(0.2)  # What was sent arrives first.
      linger = struct.pack('ii', 1, 0)
      self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
      self.connection.close()
    self.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[Server]:
  with Server() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


@pytest.fixture
def server():
  with serving() as server:
    yield server


@pytest.fixture
def other_server():
  with serving() as server:
    yield server


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """The cache that downloads go to, and nothing of the user's that would change them."""
  for name in ('HF_ENDPOINT', 'HF_TOKEN', 'http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'
