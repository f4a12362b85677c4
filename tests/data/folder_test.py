import pickle

import numpy as np
import pytest

from vit_jax.data.folder import Folder

FILES = (
  *(
    'train/cat/a.jpg',
    'train/cat/b.JPEG',
    'train/dog/z.png',
    'train/dog/é.webp',
    'train/emu/q.jpg',
  ),
  *('val/dog/1.jpg', 'val/cat/2.png'),
)
OTHERS = 'train/cat/notes.txt', 'train/cat/.hidden.jpg', 'train/.cache/x.jpg', 'train/list.jpg'


@pytest.fixture
def root(tmp_path):
  for file in FILES + OTHERS:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.encode())  # the source hands on bytes, it decodes nothing
  (tmp_path / 'train/cat/nested.jpg').mkdir()
  return tmp_path


def test_reads_each_picture_once_and_nothing_else(root):
  source = Folder(str(root))
  assert [e['image'].decode() for e in source] == sorted(FILES[:5])
  assert source.classes == ('cat', 'dog', 'emu')
  assert source.num_classes == 3
  assert [int(e['label']) for e in source] == [0, 0, 1, 1, 2]
  assert [source.name(i) for i in range(5)] == [str(root / f) for f in sorted(FILES[:5])]
  assert (source[0]['label'].dtype, source[0]['id'].dtype) == (np.int32, np.int64)


def test_a_split_without_some_class_has_the_labels_of_train(root):
  source = Folder(str(root), 'val')
  assert source.classes == ('cat', 'dog', 'emu')
  assert [(e['image'].decode(), int(e['label'])) for e in source] == [
    ('val/cat/2.png', 0),
    ('val/dog/1.jpg', 1),
  ]


def test_ids_are_unique_over_the_splits_and_fit_in_int32(root):
  ids = [int(e['id']) for split in ('train', 'val') for e in Folder(str(root), split)]
  assert ids[:5] == list(range(5))
  assert len(set(ids)) == 7
  assert max(ids) < 2**31


def test_classes_right_below_root(root):
  source = Folder(str(root / 'train'), '')
  assert [e['image'].decode() for e in source] == sorted(FILES[:5])
  assert source.classes == ('cat', 'dog', 'emu')


def test_without_train_the_classes_are_those_of_the_split(root):
  (root / 'train').rename(root / 'other')
  assert Folder(str(root), 'val').classes == ('cat', 'dog')


def test_pickled_source_reads_the_same(root):
  source = pickle.loads(pickle.dumps(Folder(str(root))))
  assert source[3]['image'].decode() == 'train/dog/é.webp'
  with pytest.raises(IndexError):
    source[5]


def test_mistakes_list_what_is_there(root, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no split 'test' in .*; choose from 'train', 'val'"):
    Folder(str(root), 'test')
  with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; .* has 'train', 'val'"):
    Folder(str(root / 'nowhere'))
  (root / 'val' / 'fox').mkdir()
  with pytest.raises(ValueError, match=r"lacks: 'fox'; choose from 'cat', 'dog', 'emu'"):
    Folder(str(root), 'val')
  (root / 'empty' / 'cat').mkdir(parents=True)
  (root / 'empty' / 'cat' / 'x.gif').touch()
  with pytest.raises(FileNotFoundError, match=r"no picture .*empty/CLASS/\*\.\{jpg.* has 'cat'"):
    Folder(str(root), 'empty')
