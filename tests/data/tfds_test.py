import io
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip('tensorflow_datasets')

from vit_jax.data.tfds import Tfds  # noqa: E402

SIZES = {'test': 6, 'train': 21}  # not in the order of the ids
SHARDS = 3
PIXELS = {
  split: np.random.default_rng(k).integers(0, 256, (size, 5, 7, 3), dtype=np.uint8)
  for k, (split, size) in enumerate(SIZES.items())
}
LABELS = {split: np.arange(size) % 3 for split, size in SIZES.items()}


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def pixels_of(example):
  return np.asarray(Image.open(io.BytesIO(example['image'])))


def prepare(data_dir, path, file_format='array_record', image=None, encode=png):
  """Writes `data_dir/path` as TFDS does, with no TensorFlow."""
  from array_record.python.array_record_module import ArrayRecordWriter

  name, *_ = path.split('/')
  root = data_dir / path
  root.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': image or tfds.features.Image(shape=(None, None, 3)),
      'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cow']),
      'mask': tfds.features.Image(shape=(None, None, 1)),
      'size': np.float32,
    }
  )
  infos = []
  for split, size in SIZES.items():
    template = tfds.core.ShardedFileTemplate(
      data_dir=root, dataset_name=name, split=split, filetype_suffix=file_format
    )
    shards = np.array_split(np.arange(size), SHARDS)
    for k, rows in enumerate(shards):
      file = str(template.sharded_filepath(shard_index=k, num_shards=SHARDS))
      writer = ArrayRecordWriter(file, 'group_size:1')
      for i in rows:
        example = {'image': encode(PIXELS[split][i]), 'label': LABELS[split][i], 'size': 1.0}
        # A broken mask: features that were not asked for must not be decoded.
        writer.write(features.serialize_example(example | {'mask': b'no image'}))
      writer.close()
    lengths = [len(rows) for rows in shards]
    infos.append(
      tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=0, filename_template=template
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=root, features=features, split_infos=infos, check_data=False
  )
  return str(data_dir)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return prepare(tmp_path_factory.mktemp('tfds'), 'tiny/1.0.0')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_every_pixel_and_label_reads_back(data_dir, split):
  source = Tfds('tiny', split, data_dir)
  assert len(source) == SIZES[split]
  for i, example in enumerate(source):
    np.testing.assert_array_equal(pixels_of(example), PIXELS[split][i])
    assert example['label'] == LABELS[split][i]
  assert example.keys() == {'image', 'label', 'id'}
  assert (example['label'].dtype, example['id'].dtype) == (np.int32, np.int64)
  assert source.classes == ('ant', 'bee', 'cow')
  assert source.num_classes == 3


@pytest.mark.parametrize(
  ('split', 'ids'),
  [
    ('train[:50%]', range(10)),
    ('train[10:20]', range(10, 20)),
    ('train[-4:]', range(17, 21)),
    ('train[:99%]', range(21)),
    ('train[19:]+test[:50%]', range(19, 24)),
    ('all', range(27)),
  ],
)
def test_slices_read_the_right_examples_and_keep_their_ids(data_dir, split, ids):
  pixels = np.concatenate([PIXELS['train'], PIXELS['test']])
  source = Tfds('tiny', split, data_dir)
  assert [int(e['id']) for e in source] == list(ids)
  for k, i in enumerate(ids):
    np.testing.assert_array_equal(pixels_of(source[k]), pixels[i])
  assert source.name(0) == f'tiny/train[{ids[0]}]'


def test_worker_needs_no_tensorflow_and_reopens_the_files(data_dir, tmp_path):
  source = Tfds('tiny', 'train[5:]', data_dir)
  source[0]  # open
  (tmp_path / 'source').write_bytes(pickle.dumps(source))
  code = """
import pickle, sys
from vit_jax.data.tfds import Tfds
assert 'tensorflow_datasets' not in sys.modules
source = pickle.load(open(sys.argv[1], 'rb'))
print(source[3]['image'].hex(), source[3]['id'])
assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules
"""
  out = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'source'],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr
  assert out.stdout.split() == [source[3]['image'].hex(), '8']


def test_version_and_config(tmp_path):
  for path in ('tiny/1.0.0', 'tiny/10.0.0', 'tiny/9.0.0', 'two/small/1.0.0', 'two/big/1.0.0'):
    prepare(tmp_path, path)
  (tmp_path / 'tiny' / '11.0.0.incompleteABC').mkdir()
  assert Tfds('tiny', data_dir=str(tmp_path))._directory.endswith('tiny/10.0.0')
  assert Tfds('tiny:9.0.0', data_dir=str(tmp_path))._directory.endswith('tiny/9.0.0')
  assert len(Tfds('two/small', data_dir=str(tmp_path))) == 21
  assert len(Tfds('two/big:1.0.0', data_dir=str(tmp_path))) == 21
  with pytest.raises(ValueError, match="several configs; choose from 'two/big', 'two/small'"):
    Tfds('two', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"has 'two/big/1.0.0', 'two/small/1.0.0'"):
    Tfds('two/huge', data_dir=str(tmp_path))


def test_image_stored_as_array(tmp_path):
  image = tfds.features.Tensor(shape=(5, 7, 3), dtype=np.uint8)
  source = Tfds('tiny', 'test', prepare(tmp_path, 'tiny/1.0.0', image=image, encode=lambda x: x))
  np.testing.assert_array_equal(np.stack([e['image'] for e in source]), PIXELS['test'])
  assert source[0]['image'].dtype == np.uint8


def test_data_without_labels(data_dir):
  source = Tfds('tiny', 'train', data_dir, label_key=None)
  assert source[0].keys() == {'image', 'id'}
  assert source.classes == ()


def test_tfrecord_is_one_error_that_names_the_conversion(tmp_path):
  data_dir = prepare(tmp_path, 'tiny/1.0.0', file_format='tfrecord')
  with pytest.raises(ValueError, match='is prepared as tfrecord') as error:
    Tfds('tiny', 'train', data_dir)
  message = str(error.value)
  assert f'tfds convert_format --dataset_version_dir={tmp_path}/tiny/1.0.0 ' in message
  assert message.endswith(' --out_file_format=array_record')
  assert '\n' not in message


def test_converted_in_place_reads_the_array_record(tmp_path):
  # `tfds convert_format` leaves both formats side by side and adds a line to the description.
  data_dir = prepare(tmp_path, 'tiny/1.0.0')
  info = tmp_path / 'tiny/1.0.0/dataset_info.json'
  text = info.read_text()
  assert '"fileFormat": "array_record"' in text
  info.write_text(
    text.replace(
      '"fileFormat": "array_record"',
      '"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]',
    )
  )
  source = Tfds('tiny', 'train', data_dir)
  np.testing.assert_array_equal(pixels_of(source[20]), PIXELS['train'][20])


def test_nothing_is_downloaded(data_dir, monkeypatch):
  def connect(*args):
    raise AssertionError(f'network: {args}')

  monkeypatch.setattr('socket.socket.connect', connect)
  with pytest.raises(
    FileNotFoundError, match=r"not prepared in .*, which has 'tiny/1.0.0'"
  ) as error:
    Tfds('cifar10', 'train', data_dir)
  assert f'tfds build cifar10 --data_dir={data_dir} --file_format=array_record' in str(error.value)
  assert not (pathlib.Path(data_dir) / 'cifar10').exists()
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir + '/none')
  with pytest.raises(FileNotFoundError, match='none, which has nothing; nothing is downloaded'):
    Tfds('cifar10')


def test_relative_data_dir_is_named_in_full(data_dir, monkeypatch):
  monkeypatch.chdir(data_dir)
  assert Tfds('tiny', data_dir='.')._directory == f'{data_dir}/tiny/1.0.0'


def test_damaged_file_names_the_example(tmp_path):
  data_dir = prepare(tmp_path, 'tiny/1.0.0')
  (file,) = (tmp_path / 'tiny/1.0.0').glob('*train*-00001-of-*')
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  source = Tfds('tiny', 'train', data_dir)
  np.testing.assert_array_equal(pixels_of(source[0]), PIXELS['train'][0])
  with pytest.raises(
    ValueError, match=r'cannot read tiny/train\[7\]: a file in .*tiny/1.0.0 is dam'
  ):
    source[7]


def test_mistakes_list_the_choices(data_dir):
  with pytest.raises(ValueError, match="unknown split 'val'; choose from 'train', 'test'"):
    Tfds('tiny', 'val', data_dir)
  with pytest.raises(
    ValueError, match="no feature 'img'; choose from 'image', 'label', 'mask', 'size'"
  ):
    Tfds('tiny', 'train', data_dir, image_key='img')
  with pytest.raises(ValueError, match=r"feature 'size' of tiny .* set image_key"):
    Tfds('tiny', 'train', data_dir, image_key='size')
  with pytest.raises(ValueError, match=r"feature 'size' of tiny .* set label_key"):
    Tfds('tiny', 'train', data_dir, label_key='size')
  with pytest.raises(ValueError, match="cannot read the name 'tiny:latest'; write 'name'"):
    Tfds('tiny:latest', 'train', data_dir)
