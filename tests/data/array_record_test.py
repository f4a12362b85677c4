import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vit_jax.data import records
from vit_jax.data.array_record import ArrayRecord
from vit_jax.data.prepare import prepare
from vit_jax.data.shards import Job

SIZES = {'train': 23, 'test': 7}


class Mixed:
  """Every kind of field that a source may have."""

  classes = ('ant', 'bee', 'cöw')

  def __init__(self, split, first=0):
    self.split, self.first = split, first

  def __len__(self):
    return SIZES[self.split]

  def __getitem__(self, i):
    rng = np.random.default_rng(self.first + i)
    return {
      'image': rng.integers(0, 256, (3, 2 + i % 3, 3), dtype=np.uint8),
      'label': np.int32(i % 3),
      'id': np.int64(self.first + i),
      'text': f'größer {i}\n' * (i % 3),
      'blob': rng.bytes(i),
      'weights': rng.random((2, 3)).astype('>f4'),
      'flag': np.bool_(i % 2),
    }


TRAIN, TEST = Mixed('train'), Mixed('test', first=100)


def write(folder, source, split, shards=3, spec=None):
  spec = {'type': 'tests.Mixed', 'split': split} if spec is None else spec
  return prepare(Job(source, spec, folder, split, shards))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records') / 'out'
  write(folder, TRAIN, 'train')
  write(folder, TEST, 'test', 2)
  return folder


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(actual[key], value)
    if isinstance(value, bytes | str):
      assert type(actual[key]) is type(value)
    else:
      assert actual[key].dtype == value.dtype.newbyteorder('=')
      assert actual[key].shape == value.shape


@pytest.mark.parametrize('source', [TRAIN, TEST])
def test_what_is_read_is_what_was_written(folder, source):
  read = ArrayRecord(str(folder), source.split)
  assert len(read) == len(source)
  for i in np.random.default_rng(0).permutation(len(source)):
    assert_same(read[i], source[int(i)])
  assert read.classes == ('ant', 'bee', 'cöw')
  assert read.num_classes == 3
  assert read.features['image'] == 'uint8'
  assert (read.features['text'], read.features['blob']) == ('str', 'bytes')


def test_encoded_images_stay_the_bytes_that_they_were(tmp_path):
  record = records.encode({'image': b'\xff\xd8 jpeg', 'id': np.int64(3)})
  assert b'\xff\xd8 jpeg' in record
  assert records.decode(record)['image'] == b'\xff\xd8 jpeg'


@pytest.mark.parametrize(
  ('split', 'ids'),
  [
    (None, range(23)),
    ('train[:50%]', range(12)),
    ('train[7:9]', [7, 8]),
    ('test[-2:]', [105, 106]),
    ('train[20:]+test[:2]', [20, 21, 22, 100, 101]),
    ('all', [*range(23), *range(100, 107)]),
  ],
)
def test_slices_keep_the_ids_of_the_source(folder, split, ids):
  source = ArrayRecord(str(folder), split)
  assert [int(e['id']) for e in source] == list(ids)
  for example in source:
    i = int(example['id'])
    assert_same(example, TEST[i - 100] if i >= 100 else TRAIN[i])


def test_a_pattern_chooses_files(folder):
  source = ArrayRecord(f'{folder}/train-0000[12]*')
  assert [int(e['id']) for e in source] == list(range(7, 23))
  (one,) = folder.glob('test-00001-*')
  assert [int(e['id']) for e in ArrayRecord(str(one))] == [103, 104, 105, 106]
  assert source.name(0) == 'train-00001-of-00003.array_record[0]'


def test_pickled_source_reads_the_same_in_another_process_and_is_small(folder, tmp_path):
  source = ArrayRecord(str(folder), 'train[5:]')
  assert int(source[0]['id']) == 5  # open
  data = pickle.dumps(source)
  assert len(data) < 3000
  (tmp_path / 'source').write_bytes(data)
  code = 'import pickle, sys; print(pickle.load(open(sys.argv[1], "rb"))[3]["blob"].hex())'
  root = pathlib.Path(__file__).parents[2]
  out = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'source'], capture_output=True, text=True, cwd=root
  )
  assert out.stdout.strip() == TRAIN[8]['blob'].hex(), out.stderr
  with pytest.raises(IndexError):
    source[18]


def test_damage_is_named(tmp_path):
  write(tmp_path, TRAIN, 'train')
  source = ArrayRecord(str(tmp_path))
  file = tmp_path / 'train-00001-of-00003.array_record'
  whole = file.read_bytes()
  at = whole.index(TRAIN[9]['blob'])
  file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
  with pytest.raises(
    ValueError, match=r'cannot read train-00001-of-00003.array_record\[2\]: '
  ) as e:
    [source[i] for i in range(23)]
  assert f'vit_jax prepare --verify {tmp_path}' in str(e.value)
  assert '\n' not in str(e.value)
  file.write_bytes(whole[:at])
  with pytest.raises(ValueError, match=r'00001-of-00003.array_record is damaged: it has \d+ bytes'):
    ArrayRecord(str(tmp_path))
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r'00001-of-00003.array_record is missing; give the'):
    ArrayRecord(str(tmp_path))


def test_splits_that_do_not_go_together(tmp_path):
  write(tmp_path, TRAIN, 'train')
  write(tmp_path, Mixed('test'), 'test')
  assert len(ArrayRecord(str(tmp_path), 'test')) == 7
  with pytest.raises(ValueError, match="splits 'test' and 'train' number their examples alike"):
    ArrayRecord(str(tmp_path), 'train+test')
  other = Mixed('test', first=100)
  other.classes = ('ant',)
  write(tmp_path, other, 'other')
  with pytest.raises(ValueError, match="'other' and 'train' differ in their classes; read one"):
    ArrayRecord(str(tmp_path), 'train+other')


def test_mistakes_are_one_sentence_with_the_choices(folder, tmp_path):
  with pytest.raises(ValueError, match="unknown split 'val'; choose from 'train', 'test'"):
    ArrayRecord(str(folder), 'val')
  (tmp_path / 'notes.json').write_text('[1]')
  with pytest.raises(FileNotFoundError, match="has no index, which .* has 'notes.json': prepare"):
    ArrayRecord(str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"no file .*/none; .* has 'notes.json'"):
    ArrayRecord(str(tmp_path / 'none'))
  (tmp_path / 'train.json').write_text('{"format":')
  with pytest.raises(ValueError, match=r'train.json is no readable JSON; delete it'):
    ArrayRecord(str(tmp_path))
  (tmp_path / 'train.json').write_text(json.dumps({'format': 'vit_jax examples 2'}))
  with pytest.raises(ValueError, match="the format 'vit_jax examples 2', and this reads"):
    ArrayRecord(str(tmp_path))
  with pytest.raises(ValueError, match="field 'path' is PosixPath .*; choose bytes, str, a list"):
    records.encode({'path': tmp_path})
  with pytest.raises(ValueError, match='no record of an example'):
    records.decode(b'\x93\x01')
