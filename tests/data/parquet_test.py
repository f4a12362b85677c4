import json
import pickle

import numpy as np
import pytest

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

from vit_jax.data.parquet import Parquet  # noqa: E402
from vit_jax.data.substitute import BadExample  # noqa: E402

N = 11
IMAGES = [f'picture {i}'.encode() for i in range(N)]
LABELS = ['dog', 'cat', 'emu', 'cat'] * 3
CAPTIONS = [f'größer {i}' for i in range(N)]


def write(file, rows=slice(N), groups=3, **columns):
  columns = {
    'image': pa.array(IMAGES[rows]),
    'label': pa.array(LABELS[:N][rows]),
    'caption': pa.array(CAPTIONS[rows]),
    **columns,
  }
  pq.write_table(pa.table(columns), file, row_group_size=groups)
  return str(file)


@pytest.mark.parametrize('groups', [1, 3, 100])
def test_every_row_reads_back_at_any_size_of_row_group(tmp_path, groups):
  source = Parquet(write(tmp_path / 'a.parquet', groups=groups), text_key='caption')
  order = np.random.default_rng(0).permutation(N)
  assert [source[i]['image'] for i in order] == [IMAGES[i] for i in order]
  assert [e['text'] for e in source] == CAPTIONS
  assert source.classes == ('cat', 'dog', 'emu')
  assert [source.classes[e['label']] for e in source] == LABELS[:N]
  assert [int(e['id']) for e in source] == list(range(N))
  assert (source[0]['label'].dtype, source[0]['id'].dtype) == (np.int32, np.int64)
  assert source.name(10) == 'a.parquet[10]'


@pytest.fixture
def folder(tmp_path):
  for k, rows in enumerate([slice(0, 4), slice(4, 8)]):
    write(tmp_path / f'train-0000{k}-of-00002.parquet', rows)
  write(tmp_path / 'test-00000-of-00001.parquet', slice(8, N))
  return str(tmp_path)


@pytest.mark.parametrize(
  ('split', 'ids'),
  [
    (None, range(8)),
    ('train[:75%]', range(6)),
    ('train[3:5]', [3, 4]),
    ('test', [8, 9, 10]),
    ('train[7:]+test[:1]', [7, 8]),
    ('all', range(N)),
  ],
)
def test_slices_of_sharded_splits_keep_ids(folder, split, ids):
  source = Parquet(folder, split)
  assert [int(e['id']) for e in source] == list(ids)
  assert [e['image'] for e in source] == [IMAGES[i] for i in ids]
  assert [source.classes[e['label']] for e in source] == [LABELS[i] for i in ids]


def test_a_pattern(folder):
  assert [e['image'] for e in Parquet(f'{folder}/te*.parquet')] == IMAGES[8:]


def test_the_images_of_hugging_face(tmp_path):
  for i in range(N):
    (tmp_path / f'{i}.png').write_bytes(IMAGES[i])
  images = [{'bytes': IMAGES[i], 'path': None} for i in range(5)]
  images += [{'bytes': None, 'path': f'{i}.png'} for i in range(5, N)]
  features = {'label': {'names': ['cow', 'ant', 'bee'], '_type': 'ClassLabel'}}
  table = pa.table({'image': images, 'label': pa.array(np.arange(N) % 3)})
  noted = {'huggingface': json.dumps({'info': {'features': features}})}
  pq.write_table(table.replace_schema_metadata(noted), tmp_path / 'train.parquet')
  source = Parquet(str(tmp_path / 'train.parquet'))
  assert [e['image'] for e in source] == IMAGES
  assert [int(e['label']) for e in source] == [i % 3 for i in range(N)]
  assert source.classes == ('cow', 'ant', 'bee')


def test_paths_start_from_root(tmp_path):
  (tmp_path / 'x.png').write_bytes(b'x')
  (tmp_path / 'tables').mkdir()
  file = write(tmp_path / 'tables/a.parquet', slice(1), image=pa.array(['x.png']))
  assert Parquet(file, root=str(tmp_path))[0]['image'] == b'x'
  with pytest.raises(FileNotFoundError, match='tables/x.png'):
    Parquet(file)[0]


@pytest.mark.parametrize(
  ('labels', 'kwargs', 'expected', 'classes'),
  [
    (pa.array([3, 0, 9]), {}, [3, 0, 9], ()),
    (pa.array([1, 0, 1], pa.uint8()), dict(classes=('no', 'yes')), [1, 0, 1], ('no', 'yes')),
    (pa.array([True, False, True]), {}, [1, 0, 1], ()),
    (pa.array(['b', 'a', 'b']).dictionary_encode(), {}, [1, 0, 1], ('a', 'b')),
    (pa.array(['b', 'a', 'b'], pa.large_string()), dict(classes=('b', 'a')), [0, 1, 0], ('b', 'a')),
  ],
)
def test_kinds_of_labels(tmp_path, labels, kwargs, expected, classes):
  source = Parquet(write(tmp_path / 'a.parquet', slice(3), label=labels), **kwargs)
  assert [int(e['label']) for e in source] == expected
  assert source.classes == classes


def test_pairs_without_labels_and_text_without_images(tmp_path):
  file = write(tmp_path / 'a.parquet')
  assert Parquet(file, label_key=None, text_key='caption')[0].keys() == {'image', 'text', 'id'}
  source = Parquet(file, image_key=None, text_key='caption')
  assert (source[4]['text'], source[4].keys()) == (CAPTIONS[4], {'text', 'label', 'id'})


def test_pickled_source_reads_the_same_and_is_small(folder):
  source = Parquet(folder)
  expected = source[5]  # open
  data = pickle.dumps(source)
  assert len(data) < 3000
  assert pickle.loads(data)[5] == expected
  with pytest.raises(IndexError):
    source[8]


def test_a_missing_image_is_a_bad_example(tmp_path):
  source = Parquet(write(tmp_path / 'a.parquet', slice(2), image=pa.array([b'x', None])))
  assert source[0]['image'] == b'x'
  with pytest.raises(BadExample, match=r'a.parquet has no image in row 1'):
    source[1]


def test_damage_names_the_file(tmp_path):
  file = write(tmp_path / 'a.parquet', groups=1)
  whole = (tmp_path / 'a.parquet').read_bytes()
  source = Parquet(file)
  (tmp_path / 'a.parquet').write_bytes(whole[: len(whole) // 2])
  for read in (lambda: Parquet(file), lambda: source[3]):
    with pytest.raises(ValueError, match=r'cannot read .*a.parquet, it is damaged or no Par') as e:
      read()
    assert '\n' not in str(e.value)


def test_mistakes_are_one_sentence_with_the_choices(tmp_path, folder):
  file = write(tmp_path / 'a.parquet', size=pa.array([1.5] * N))
  for mistake, kwargs, message in [
    (
      ValueError,
      dict(image_key='img'),
      "no column 'img'; set image_key to one of 'image', 'label'",
    ),
    (ValueError, dict(label_key='y'), "no column 'y'; set label_key to one of 'image', 'label'"),
    (ValueError, dict(image_key='size'), "'size' of .* is double, not bytes, a path .* of 'image'"),
    (
      ValueError,
      dict(text_key='size'),
      "is double, not text; set text_key to one of 'label', 'cap",
    ),
    (ValueError, dict(label_key='size'), 'is double, not an integer or a string; set label_key'),
    (ValueError, dict(classes=('cat',)), "unknown labels 'dog', 'emu'; classes has 'cat'"),
    (ValueError, dict(split='b'), "unknown split 'b'; choose from 'a'"),
    (FileNotFoundError, dict(path=str(tmp_path / 'b.parquet')), "b.parquet; .* has 'a.parquet'"),
  ]:
    with pytest.raises(mistake, match=message):
      Parquet(**{'path': file, **kwargs})
  file = write(tmp_path / 'c.parquet', slice(3), label=pa.array(['a', None, 'b']))
  with pytest.raises(ValueError, match=r"column 'label' of .*c.parquet is empty in 1 rows"):
    Parquet(file)
  file = write(tmp_path / 'd.parquet', slice(1), label=pa.array([2**31]))
  with pytest.raises(ValueError, match='which int32 does not hold'):
    Parquet(file)
