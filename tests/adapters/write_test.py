"""Files are written whole or not at all, and by the rules of their format or not at all."""

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.adapters import mapping, write


def arrays(scale=1.0):
  rng = np.random.default_rng(0)
  return {name: (scale * rng.normal(size=(3, 4))).astype(np.float32) for name in ('b/x', 'a')}


def read(path):
  if path.suffix == '.npz':
    return dict(np.load(path))
  return safetensors.numpy.load_file(path)


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_what_was_saved_is_read_by_others(tmp_path, suffix):
  path = tmp_path / 'new' / f'a{suffix}'
  write.save(path, arrays())
  found = read(path)
  assert found.keys() == arrays().keys()
  for name, array in arrays().items():
    np.testing.assert_array_equal(found[name], array, strict=True)
  write.save(path, arrays(2.0))
  np.testing.assert_array_equal(read(path)['a'], arrays(2.0)['a'])
  assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_the_same_arrays_are_the_same_bytes(tmp_path, suffix):
  files = [tmp_path / f'{name}{suffix}' for name in 'ab']
  for file in files:
    write.save(file, arrays())
  assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_on_a_full_disk_what_was_there_stays(make_disk, suffix):
  path = make_disk(1) / f'a{suffix}'
  write.save(path, arrays())
  before = path.read_bytes()
  with pytest.raises(OSError, match=rf'cannot write .*a{suffix}'):
    write.save(path, {'large': np.zeros(1 << 20, np.float32)})
  assert path.read_bytes() == before
  assert list(path.parent.iterdir()) == [path]


def test_another_ending_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"a.bin ends in '.bin'; choose from .npz, .safetensors"):
    write.save(tmp_path / 'a.bin', arrays())
  assert list(tmp_path.iterdir()) == []


def test_stacked_blocks_are_taken_apart():
  stacked = np.arange(6).reshape(3, 2)
  plain = write.one_by_one({'params/encoder/blocks/norm/bias': stacked, 'params/encoder/cls': 5})
  assert list(plain) == [
    *(f'params/encoder/block_{i}/norm/bias' for i in range(3)),
    'params/encoder/cls',
  ]
  np.testing.assert_array_equal(plain['params/encoder/block_1/norm/bias'], [2, 3])


def test_rules_write_all_or_nothing():
  rules = [mapping.linear('kernel', 'weight'), mapping.same('bias', 'bias')]
  variables = {'kernel': np.arange(6.0).reshape(2, 3), 'bias': np.ones(3)}
  written = dict(write.their_arrays(rules, variables))
  np.testing.assert_array_equal(written['weight'], variables['kernel'].T)
  assert all(array.flags.c_contiguous for array in written.values())
  with pytest.raises(ValueError, match="the format has no place for 'scale'"):
    dict(write.their_arrays(rules, {**variables, 'scale': np.ones(3)}))
  with pytest.raises(ValueError, match="the model has no 'bias', which the format has"):
    dict(write.their_arrays(rules, {'kernel': variables['kernel']}))
