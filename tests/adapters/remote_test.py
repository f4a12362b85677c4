"""Opening files elsewhere: what the hub's addresses mean, and what goes wrong is one sentence."""

import importlib.util
import socket

import fsspec
import pytest

from vit_jax.adapters.fetch import fetch
from vit_jax.adapters.remote import address

pytestmark = pytest.mark.usefixtures('cache')
CONTENT, OTHER = b'weights' * 99_999, b'others' * 99_999


@pytest.fixture
def server(server):
  server.content = CONTENT
  return server


@pytest.mark.parametrize(
  ('location', 'path'),
  [
    ('hf://org/name', '/org/name/resolve/main/model.safetensors'),
    ('hf://org/name@v1.0', '/org/name/resolve/v1.0/model.safetensors'),
    ('hf://org/name/sub/a b.npz', '/org/name/resolve/main/sub/a%20b.npz'),
    ('hf://org/name/a.npz@refs/pr/1', '/org/name/resolve/refs%2Fpr%2F1/a.npz'),
  ],
)
def test_a_file_of_the_hub(server, monkeypatch, location, path):
  assert address(location) == f'https://huggingface.co{path}'
  monkeypatch.setenv('HF_ENDPOINT', f'{server.url}/')
  assert fetch(location).read_bytes() == CONTENT
  monkeypatch.setenv('HF_TOKEN', 'secret')
  fetch(location)  # in the cache
  assert server.requests == [(path, None, None)]


@pytest.mark.parametrize('location', ['hf://', 'hf://org', 'hf://org/', 'hf://o/n/', 'hf://o/n@'])
def test_a_malformed_location_of_the_hub(location):
  with pytest.raises(ValueError, match=r'is not of the form hf://org/name\[/file\]\[@revision\]$'):
    fetch(location)


def test_the_hubs_token_is_sent_to_the_hub_alone(server, other_server, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', server.url)
  monkeypatch.setenv('HF_TOKEN', 'secret')
  server.redirect = '/moved'
  fetch('hf://org/name')
  assert server.requests[1] == ('/moved', None, 'Bearer secret')
  # A download that goes on follows to another server again.
  other_server.content, other_server.cut = OTHER, 300_000
  server.redirect = f'{other_server.url}/signed'
  with pytest.raises(ConnectionError):
    fetch('hf://org/other')
  server.redirect = f'{other_server.url}/signed'
  assert fetch('hf://org/other').read_bytes() == OTHER
  assert other_server.requests == [('/signed', None, None), ('/signed', 'bytes=300000-', None)]
  fetch(f'{server.url}/a.npz')
  assert server.requests[-1] == ('/a.npz', None, None)


@pytest.mark.parametrize(
  ('status', 'kind', 'says'),
  [
    (404, FileNotFoundError, r'/a.npz is not there \(404 Not Found\)$'),
    (403, PermissionError, r'/a.npz is not for everyone \(403 Forbidden\)$'),
    (503, OSError, '/a.npz cannot be read: the server answers 503 Service Unavailable$'),
  ],
)
def test_what_the_server_refuses_is_one_sentence(server, cache, status, kind, says):
  server.status = status
  with pytest.raises(kind, match=says):
    fetch(f'{server.url}/a.npz')
  assert [*cache.rglob('a.npz*')] == [*cache.rglob('a.npz.lock')]


def test_a_private_file_of_the_hub_is_one_sentence(server, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', server.url)
  server.status = 401
  with pytest.raises(PermissionError, match=r'^hf://o/n \(http.*safetensors\) .*set HF_TOKEN to'):
    fetch('hf://o/n')


def test_a_redirect_to_a_file_of_this_machine_is_refused(server, tmp_path):
  (tmp_path / 'secret').write_text('secret')
  server.redirect = f'file://{tmp_path}/secret'
  with pytest.raises(OSError, match='the server answers 302') as error:
    fetch(f'{server.url}/a.npz')
  assert '\n' not in str(error.value)


def test_a_server_that_is_not_there_is_one_sentence():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  url = f'http://127.0.0.1:{port}/a.npz'
  with pytest.raises(ConnectionError, match=f'^cannot reach 127.0.0.1:{port} for {url} .*refused'):
    fetch(url)


def test_an_unknown_scheme_and_a_file_that_fsspec_does_not_find():
  fsspec.filesystem('memory').pipe('/weights/a.npz', CONTENT)
  with pytest.raises(ValueError, match="unknown scheme 'foo' in 'foo://a/b'; choose from 'hf', "):
    fetch('foo://a/b')
  with pytest.raises(FileNotFoundError, match='^memory://weights/b.npz is not there$'):
    fetch('memory://weights/b.npz')
  with pytest.raises(OSError, match=r'^memory://weights cannot be opened \(it is a folder\)$'):
    fetch('memory://weights')


def test_a_missing_package_is_named():
  if importlib.util.find_spec('gcsfs'):
    pytest.skip('gcsfs is installed')
  with pytest.raises(ValueError, match='^gs://b/a.npz needs a package that is not .*gcsfs'):
    fetch('gs://b/a.npz')
