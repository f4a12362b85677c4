"""Files of weights: every format gives the same arrays, one at a time, and none runs its code."""

import builtins
import io
import json
import os
import pickle
import re
import resource
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax.adapters.tensors import Tensors, open_tensors, split_prefix

torch = pytest.importorskip('torch')

MB = 2**20


def draw(*shape, dtype=np.float32):
  return np.random.default_rng(0).normal(size=shape, scale=9).astype(dtype)


WEIGHTS = {
  'params/img/kernel': draw(3, 4),
  'params/img/bias': draw(4, dtype=ml_dtypes.bfloat16),
  'params/txt/half': draw(2, 1, dtype=np.float16),
  'params/t': np.array(3.5, np.float32),
  'opt/step': np.array(7, np.int32),
  'opt/mask': np.array([True, False]),
  'empty': np.zeros((0, 5), np.float32),
}


def to_torch(x: np.ndarray):
  if x.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
  return torch.from_numpy(x.copy())


def save(path, weights=WEIGHTS):
  """Writes a file as its own library does."""
  if path.name.endswith('.safetensors'):
    save_file(weights, path)
  elif path.name.endswith('.index.json'):
    files = {name: f'shard-{i % 2}.safetensors' for i, name in enumerate(weights)}
    for file in set(files.values()):
      save_file({n: weights[n] for n in weights if files[n] == file}, path.parent / file)
    path.write_text(json.dumps({'metadata': {}, 'weight_map': files}))
  elif path.name.endswith('.npz'):
    np.savez(path, **weights)
  else:
    torch.save({name: to_torch(x) for name, x in weights.items()}, path)
  return path


def assert_same(tensors, weights):
  assert set(tensors) == set(tensors.shapes) == set(weights)
  assert len(tensors) == len(weights)
  for name, x in weights.items():
    assert tensors.shapes[name] == (x.shape, x.dtype)
    y = tensors[name]
    assert type(y) is np.ndarray and y.dtype == x.dtype and y.shape == x.shape
    np.testing.assert_array_equal(y, x)


def refused(path, says, kind=ValueError):
  """One sentence that names the file."""
  with pytest.raises(kind, match=says) as error:
    open_tensors(path)
  text = str(error.value)
  assert '\n' not in text and os.path.basename(str(path).split(':')[0]) in text and len(text) < 500


FORMATS = ('w.safetensors', 'w.safetensors.index.json', 'w.npz', 'w.bin', 'w.pt', 'W.PTH')


@pytest.mark.parametrize('name', FORMATS)
def test_every_format_gives_the_arrays_that_were_saved(tmp_path, name):
  tensors = open_tensors(save(tmp_path / name))
  assert isinstance(tensors, Tensors)
  assert_same(tensors, WEIGHTS)
  assert 'params/none' not in tensors and tensors.get('params/none') is None
  with pytest.raises(KeyError, match=f"{name} has no array 'no'; it has .*'params/img/bias'"):
    tensors['no']


@pytest.mark.parametrize('name', FORMATS)
def test_a_prefix_selects_a_subtree_and_goes_from_its_names(tmp_path, name):
  file = save(tmp_path / name)
  image = {'kernel': WEIGHTS['params/img/kernel'], 'bias': WEIGHTS['params/img/bias']}
  assert_same(open_tensors(f'{file}:params/img'), image)
  assert_same(open_tensors(f'{file}:params/img/'), image)
  assert_same(open_tensors(file).select('params').select('img'), image)
  refused(f'{file}:param', r"nothing under 'param'; there is 'opt', 'params'$")
  refused(f'{file}:params/image', r"'params/image'; there is 'params/img', 'params/txt'$")
  refused(f'{file}:params/img/bias', r'there is nothing$')


def test_a_file_with_a_colon_in_its_name_is_that_file(tmp_path):
  assert_same(open_tensors(save(tmp_path / 'a.npz:b.npz')), WEIGHTS)


@pytest.mark.parametrize(
  ('location', 'file', 'prefix'),
  [
    ('a.npz', 'a.npz', None),
    ('a.npz:params/img', 'a.npz', 'params/img'),
    ('gs://b/a.npz:params', 'gs://b/a.npz', 'params'),
    ('https://h:80/a.pth', 'https://h:80/a.pth', None),
    ('https://h:80/a.pth?x=1:model', 'https://h:80/a.pth?x=1', 'model'),
    ('hf://o/n/a.safetensors@v1:vision', 'hf://o/n/a.safetensors@v1', 'vision'),
    ('hf://o/n@v1', 'hf://o/n@v1', None),
    ('a.safetensors.index.json:x', 'a.safetensors.index.json', 'x'),
  ],
)
def test_an_address_and_its_prefix_come_apart(location, file, prefix):
  assert split_prefix(location) == (file, prefix)


@pytest.mark.parametrize('save_npz', [np.savez, np.savez_compressed])
def test_bfloat16_comes_back_from_an_npz_though_numpy_forgets_it(tmp_path, save_npz):
  x = draw(4, 3, dtype=ml_dtypes.bfloat16)
  save_npz(tmp_path / 'a.npz', x=x, fortran=np.asfortranarray(x), scalar=x[0, 0])
  assert np.load(tmp_path / 'a.npz')['x'].dtype == np.dtype('V2')
  tensors = open_tensors(tmp_path / 'a.npz')
  assert_same(tensors, {'x': x, 'fortran': x, 'scalar': x[0, 0]})


@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_the_weights_of_a_pytorch_checkpoint_are_found_in_their_container(tmp_path, key):
  layer = torch.nn.Linear(3, 2)
  content = {
    key: layer.state_dict(),
    f'{key}_ema': {n: 2 * x for n, x in layer.state_dict().items()},
    'optimizer': {'state': {0: {'momentum': torch.ones(3)}}, 'lr': 0.1},
    'epoch': 3,
  }
  torch.save(content, tmp_path / 'a.pth')
  weights = {n: x.numpy() for n, x in layer.state_dict().items()}
  assert_same(open_tensors(tmp_path / 'a.pth'), weights)
  double = {n: 2 * x for n, x in weights.items()}
  assert_same(open_tensors(f'{tmp_path}/a.pth:{key}_ema'), double)
  assert_same(open_tensors(f'{tmp_path}/a.pth:optimizer.state.0'), {'momentum': np.ones(3, 'f')})
  refused(f'{tmp_path}/a.pth:ema', f"nothing under 'ema'; there is .*'{key}', '{key}_ema'")


def test_nested_pytorch_dicts_are_joined_by_dots_and_other_values_left_out(tmp_path):
  content = {'teacher': {'head.weight': torch.ones(2)}, 'args': ['a'], 'step': 3, 5: torch.zeros(1)}
  torch.save(content, tmp_path / 'a.pth')
  want = {'teacher.head.weight': np.ones(2, 'f'), '5': np.zeros(1, 'f')}
  assert_same(open_tensors(tmp_path / 'a.pth'), want)
  assert_same(open_tensors(f'{tmp_path}/a.pth:teacher'), {'head.weight': np.ones(2, 'f')})


def test_pytorch_tensors_of_every_kind(tmp_path):
  x = torch.arange(12.0).reshape(3, 4)
  content = {
    'transposed': x.T,
    'parameter': torch.nn.Parameter(x),
    'slice': x[1:, ::2].to(torch.bfloat16),
    'float8': x.to(torch.float8_e4m3fn),
    'conjugate': torch.complex(x, x).conj(),
  }
  torch.save(content, tmp_path / 'a.pt')
  x = x.numpy()
  want = {
    'transposed': x.T,
    'parameter': x,
    'slice': x[1:, ::2].astype(ml_dtypes.bfloat16),
    'float8': x.astype(ml_dtypes.float8_e4m3fn),
    'conjugate': x - 1j * x,
  }
  assert_same(open_tensors(tmp_path / 'a.pt'), want)
  torch.save({'ok': torch.ones(2), 'odd': torch.eye(2).to_sparse()}, tmp_path / 'a.pt')
  refused(tmp_path / 'a.pt', r"a.pt cannot be read \('odd' is of type sparse_coo, which NumPy has")


def test_a_pytorch_file_from_before_1_6(tmp_path):
  torch.save({'a': torch.ones(3)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
  assert_same(open_tensors(tmp_path / 'a.pth'), {'a': np.ones(3, 'f')})


def test_what_is_read_does_not_change_with_the_file(tmp_path):
  for name in ('a.safetensors', 'a.npz', 'a.pt'):
    file = save(tmp_path / name, {'x': np.ones(4096, 'f')})
    x = open_tensors(file)['x']
    with open(file, 'r+b') as f:
      f.write(bytes(file.stat().st_size))
    np.testing.assert_array_equal(x, 1)
    x[:] = 2  # Nor is it read-only.


def test_without_pytorch_its_files_are_one_sentence_and_others_are_read(tmp_path, monkeypatch):
  files = [save(tmp_path / name) for name in ('a.pth', 'a.npz', 'a.safetensors')]
  real = builtins.__import__

  def without(name, *rest, **options):
    if name == 'torch':
      raise ImportError(name)
    return real(name, *rest, **options)

  monkeypatch.setattr(builtins, '__import__', without)
  refused(files[0], r'a.pth cannot be read \(torch, which reads it, is not installed: pip install')
  for file in files[1:]:
    assert_same(open_tensors(file), WEIGHTS)


@pytest.mark.parametrize('name', ['a.safetensors', 'a.safetensors.index.json', 'a.npz', 'a.pt'])
def test_values_come_one_at_a_time_and_none_is_kept(tmp_path, name):
  weights = {str(i): np.full((2, MB), i, np.float32) for i in range(6)}  # 8 MB each
  file = save(tmp_path / name, weights)
  del weights
  tracemalloc.start()
  try:
    tensors = open_tensors(file)
    assert tracemalloc.get_traced_memory()[1] < 4 * MB
    assert {n: shape for n, (shape, _) in tensors.shapes.items()} == dict.fromkeys(
      '012345', (2, MB)
    )
    for n in tensors:
      assert tensors[n][1, -1] == float(n)
    assert 8 * MB < tracemalloc.get_traced_memory()[1] < 20 * MB
  finally:
    tracemalloc.stop()


HUGE = 2**29  # floats; the files have holes for them


def save_huge_safetensors(file):
  header = {
    'small': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]},
    'huge': {'dtype': 'F32', 'shape': [HUGE], 'data_offsets': [8, 8 + 4 * HUGE]},
  }
  text = json.dumps(header).encode()
  with open(file, 'wb') as f:
    f.write(struct.pack('<Q', len(text)) + text)
    f.truncate(8 + len(text) + 8 + 4 * HUGE)


def save_huge_pytorch(file):
  with torch.serialization.skip_data():
    torch.save({'small': torch.zeros(2), 'huge': torch.empty(HUGE)}, file)


@pytest.mark.parametrize(
  ('name', 'save_huge'),
  [('a.safetensors', save_huge_safetensors), ('a.pth', save_huge_pytorch)],
)
def test_reading_one_tensor_does_not_read_the_others(tmp_path, name, save_huge):
  save_huge(tmp_path / name)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  tensors = open_tensors(tmp_path / name)
  assert tensors.shapes['huge'] == ((HUGE,), np.float32)
  np.testing.assert_array_equal(tensors['small'], [0, 0])
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # in KB


@pytest.mark.parametrize('name', ['a.safetensors', 'a.npz', 'a.pt', 'a.bin', 'a.pth'])
def test_a_file_cut_anywhere_or_of_something_else_is_one_sentence(tmp_path, name):
  file = save(tmp_path / name)
  whole = file.read_bytes()
  cuts = [whole[: int(len(whole) * part)] for part in (0, 0.01, 0.3, 0.6, 0.9, 0.99)]
  others = [
    whole[:-1],
    b'<!DOCTYPE html>',
    b'version https://git-lfs.github.com/spec/v1\n',
    b'PK\3\4',
  ]
  for content in cuts + others:
    file.write_bytes(content)
    refused(file, f'{name} cannot be read')


@pytest.mark.parametrize(('name', 'other'), [('a.npz', 'a.pt'), ('a.safetensors', 'a.npz')])
def test_a_file_with_the_ending_of_another_format_is_one_sentence(tmp_path, name, other):
  for a, b in ((name, other), (other, name)):
    save(tmp_path / a).replace(tmp_path / f'moved{tmp_path.joinpath(b).suffix}')
    refused(tmp_path / f'moved{tmp_path.joinpath(b).suffix}', 'cannot be read')


def test_a_damaged_array_is_named_and_the_others_are_read(tmp_path):
  np.savez(tmp_path / 'a.npz', good=draw(100), bad=draw(100, 100))
  content = bytearray((tmp_path / 'a.npz').read_bytes())
  content[len(content) // 2] ^= 1
  (tmp_path / 'a.npz').write_bytes(content)
  tensors = open_tensors(tmp_path / 'a.npz')
  np.testing.assert_array_equal(tensors['good'], draw(100))
  with pytest.raises(ValueError, match=r"^'bad' in .*a.npz cannot be read \(Bad CRC-32") as error:
    tensors['bad']
  assert '\n' not in str(error.value)


class Hostile:
  """Touches a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_calls_a_function_is_refused_and_not_run(tmp_path, zipped):
  content = {'a': torch.ones(2), 'b': Hostile(tmp_path / 'pwned')}
  torch.save(content, tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
  refused(tmp_path / 'a.pt', r'a.pt cannot be read \(it calls for \w+.mkdir, and reading must run')
  (tmp_path / 'b.bin').write_bytes(pickle.dumps(content['b'], protocol=2))
  refused(tmp_path / 'b.bin', 'b.bin cannot be read')
  assert not (tmp_path / 'pwned').exists()
  torch.load(tmp_path / 'a.pt', weights_only=False)  # What was refused is what would have run.
  assert (tmp_path / 'pwned').exists()


def test_an_npz_with_python_objects_is_refused_and_not_run(tmp_path):
  np.savez(tmp_path / 'a.npz', a=np.ones(2), b=np.array([Hostile(tmp_path / 'pwned')], object))
  refused(tmp_path / 'a.npz', r"a.npz cannot be read \('b' holds Python objects, and reading those")
  assert not (tmp_path / 'pwned').exists()


def write_npz(path, member: str, content: bytes):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(member, content)


def test_an_npz_that_claims_what_it_has_not_takes_no_memory_for_it(tmp_path):
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    buffer, {'descr': '<f4', 'fortran_order': False, 'shape': (2**40, 2**10)}
  )
  write_npz(tmp_path / 'a.npz', 'x.npy', buffer.getvalue())
  refused(tmp_path / 'a.npz', r"\('x' has 128 bytes where \d+ are due")
  write_npz(tmp_path / 'a.npz', 'x.npy', b'text')
  refused(tmp_path / 'a.npz', r"\('x' is no array: ")
  write_npz(tmp_path / 'a.npz', 'notes.txt', b'text')
  refused(tmp_path / 'a.npz', r"\('notes.txt' in it is no array")
  np.savez(tmp_path / 'a.npz', x=np.ones(3, ml_dtypes.float8_e4m3fn))
  refused(tmp_path / 'a.npz', r"\('x' is of type \|V1, which means nothing")


@pytest.mark.parametrize(
  ('size', 'header'),
  [
    (2**62, {}),
    (10**6, {}),
    (None, {'x': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}}),  # no data
    (None, {'x': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 8]}}),
    (None, {'x': {'dtype': 'F99', 'shape': [2], 'data_offsets': [0, 8]}}),
    (None, {'x': {'dtype': 'F32', 'shape': [-2], 'data_offsets': [0, 8]}}),
    (None, {'x': {'dtype': 'F8_E5M2', 'shape': [8], 'data_offsets': [0, 8]}}),
    (None, ['x']),
  ],
)
def test_a_safetensors_header_that_lies_is_one_sentence(tmp_path, size, header):
  text = json.dumps(header).encode()
  content = struct.pack('<Q', len(text) if size is None else size) + text + bytes(8)
  (tmp_path / 'a.safetensors').write_bytes(content)
  refused(tmp_path / 'a.safetensors', 'a.safetensors cannot be read')


@pytest.mark.parametrize(
  ('content', 'says', 'kind'),
  [
    ('{', 'cannot be read', ValueError),
    ('[1]', "no 'weight_map'", ValueError),
    ('{"weight_map": {"a": 3}}', "no 'weight_map' from names to files", ValueError),
    ('{"weight_map": {"a": "../b.safetensors"}}', 'is not beside it', ValueError),
    ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' is not beside it", ValueError),
    ('{"weight_map": {"a": "c.safetensors"}}', 'names a shard c.safet.*not bes', FileNotFoundError),
    ('{"weight_map": {"a": "d.safetensors"}}', 'its shard d.safetensors: .*header', ValueError),
    ('{"weight_map": {"z": "b.safetensors"}}', "b.safetensors has no 'z'", ValueError),
  ],
)
def test_an_index_whose_shards_are_not_there_is_one_sentence(tmp_path, content, says, kind):
  save(tmp_path / 'b.safetensors', {'a': np.ones(2)})
  (tmp_path / 'd.safetensors').write_bytes(b'nothing')
  (tmp_path / 'w.safetensors.index.json').write_text(content)
  refused(tmp_path / 'w.safetensors.index.json', says, kind)


def test_no_file_a_folder_and_an_unknown_format(tmp_path):
  refused(tmp_path / 'a.npz', f'^no file {re.escape(str(tmp_path))}/a.npz$', FileNotFoundError)
  refused(tmp_path, 'is a folder; choose a file that ends in .safetensors, .safetensors.index')
  (tmp_path / 'a.h5').write_bytes(b'')
  refused(tmp_path / 'a.h5', r'a.h5 is of no known format; choose a file that ends in .*\.pth$')
  torch.save(torch.ones(2), tmp_path / 'a.pt')
  refused(tmp_path / 'a.pt', 'it holds a Tensor and no dict of tensors')
  torch.save({'epoch': 3}, tmp_path / 'a.pt')
  refused(tmp_path / 'a.pt', 'it holds no tensors')
