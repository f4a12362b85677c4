import gzip
import pathlib
import pickle
import struct

import numpy as np
import pytest

from vit_jax.data.idx import Idx

DEBIAN = pathlib.Path('/usr/share/datasets/fashion-mnist')
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)


def idx(array):
  """The format as its author describes it: magic number, sizes, bytes."""
  return struct.pack(f'>{1 + array.ndim}I', 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(root, names='{}-{}-idx{}-ubyte.gz'):
  for prefix, part in (('train', slice(0, 20)), ('t10k', slice(20, 30))):
    for kind, array in (('images', IMAGES[part]), ('labels', LABELS[part])):
      content = idx(array)
      name = names.format(prefix, kind, array.ndim)
      (root / name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  return str(root)


@pytest.fixture
def root(tmp_path):
  return write(tmp_path)


@pytest.mark.parametrize(
  'names',
  ['{}-{}-idx{}-ubyte.gz', '{}-{}-idx{}-ubyte', '{}-{}.idx{}-ubyte', '{}-{}.idx{}-ubyte.gz'],
)
def test_reads_every_published_file_name(tmp_path, names):
  source = Idx('mnist', 'all', directory=write(tmp_path, names))
  assert len(source) == 30
  for i, example in enumerate(source):
    np.testing.assert_array_equal(example['image'], IMAGES[i][..., None])
    assert (example['label'], example['id']) == (LABELS[i], i)
  assert (example['image'].dtype, example['label'].dtype) == (np.uint8, np.int32)
  assert example['id'].dtype == np.int64


def test_held_out_slice_keeps_ids(root):
  train, held = Idx('mnist', 'train[:18]', root), Idx('mnist', 'train[18:]', root)
  assert (len(train), len(held)) == (18, 2)
  assert [int(e['id']) for e in held] == [18, 19]
  assert held.name(1) == 'mnist/train[19]'
  assert [int(e['id']) for e in Idx('mnist', 'test', root)] == list(range(20, 30))


def test_pickled_source_is_small_and_reads_the_same(root):
  source = Idx('fashion_mnist', 'test', root)
  stored = pickle.dumps(source)
  assert len(stored) < 2000
  np.testing.assert_array_equal(pickle.loads(stored)[3]['image'], source[3]['image'])


def test_classes_have_names(root):
  assert Idx('mnist', 'test', root).classes == tuple('0123456789')
  fashion = Idx('fashion_mnist', 'test', root)
  assert fashion.num_classes == len(fashion.classes) == 10
  assert fashion.classes[9] == 'Ankle boot'


def damage(name, change):
  return lambda root: (root / name).write_bytes(change((root / name).read_bytes()))


@pytest.mark.parametrize(
  ('harm', 'message'),
  [
    (damage('train-images-idx3-ubyte.gz', lambda b: b[:-30]), 'train-images.* is damaged'),
    (damage('train-images-idx3-ubyte.gz', lambda b: b'<html>' + b), 'train-images.* is damaged'),
    (
      damage('train-images-idx3-ubyte.gz', lambda b: b[:40] + bytes(9) + b[49:]),
      'train-images.* is damaged',
    ),
    (
      damage('t10k-images-idx3-ubyte.gz', lambda _: gzip.compress(idx(IMAGES[20:])[:-1])),
      r't10k-images.* is truncated or damaged: its header says \(10, 6, 5\), 299 bytes follow',
    ),
    (
      damage('t10k-labels-idx1-ubyte.gz', lambda _: gzip.compress(idx(IMAGES))),
      't10k-labels.* no IDX file: it starts with 00000803, not 00000801',
    ),
    (
      damage('t10k-labels-idx1-ubyte.gz', lambda _: gzip.compress(b'')),
      't10k-labels.* no IDX file',
    ),
    (
      damage('train-labels-idx1-ubyte.gz', lambda _: gzip.compress(idx(LABELS[:7]))),
      'train-images.* has 20 images, .*train-labels.* 7 labels',
    ),
    (
      damage('train-labels-idx1-ubyte.gz', lambda _: gzip.compress(idx(LABELS[:20] + 9))),
      'train-labels.* has label 18, there are 10 classes',
    ),
  ],
)
def test_damaged_file_is_named(root, harm, message):
  harm(pathlib.Path(root))
  with pytest.raises(ValueError, match=message) as error:
    Idx('mnist', 'train', root)
  assert '\n' not in str(error.value)


def test_missing_files_name_the_package_and_the_names(tmp_path):
  with pytest.raises(FileNotFoundError, match='apt-get install dataset-fashion-mnist') as error:
    Idx('fashion_mnist', 'train', str(tmp_path / 'nowhere'))
  assert 'train-images-idx3-ubyte.gz or train-images-idx3-ubyte or' in str(error.value)


def test_mistakes_list_the_choices(root):
  with pytest.raises(ValueError, match="'cifar'; choose from 'mnist', 'fashion_mnist'"):
    Idx('cifar', 'train', root)
  with pytest.raises(ValueError, match="'validation'; choose from 'train', 'test'"):
    Idx('mnist', 'validation', root)
  with pytest.raises(ValueError, match='directory is not set'):
    Idx('mnist')


@pytest.mark.skipif(not DEBIAN.is_dir(), reason='needs apt-get install dataset-fashion-mnist')
def test_fashion_mnist_as_debian_installs_it():
  train, test = Idx('fashion_mnist', 'train'), Idx('fashion_mnist', 'test')
  assert (len(train), len(test)) == (60000, 10000)
  # Balanced, Table 2, arXiv:1708.07747; the mean and deviation that are used to standardise it.
  assert (np.bincount([e['label'] for e in test]) == 1000).all()
  pixels = np.stack([train[i]['image'] for i in range(60000)]) / np.float32(255)
  assert pixels.shape == (60000, 28, 28, 1)
  assert pixels.mean() == pytest.approx(0.2860, abs=1e-4)
  assert pixels.std() == pytest.approx(0.3530, abs=1e-4)
  assert train.classes[train[0]['label']] == 'Ankle boot'
