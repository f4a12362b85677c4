import pickle
import re

import numpy as np
import pytest

from vit_jax.data.csv import Csv

# A comma, a quote and a line break inside a field, a blank line, other than ASCII.
TABLE = '''path,label,caption
a.jpg,dog,"a dog, asleep"
sub/b.png,cat,"two
lines"

c.jpg,cat,"he said ""no"""
é.jpg,emu,größer
d.jpg,dog,
'''
IMAGES = 'a.jpg', 'sub/b.png', 'c.jpg', 'é.jpg', 'd.jpg'
CAPTIONS = ['a dog, asleep', 'two\nlines', 'he said "no"', 'größer', '']


@pytest.fixture
def table(tmp_path):
  (tmp_path / 'sub').mkdir()
  for name in IMAGES:
    (tmp_path / name).write_bytes(name.encode())  # the source hands on bytes, it decodes nothing
  file = tmp_path / 'photos.csv'
  file.write_text(TABLE, encoding='utf-8')
  return file


def test_every_row_reads_back(table):
  source = Csv(str(table), text_key='caption')
  assert [e['image'].decode() for e in source] == list(IMAGES)
  assert [e['text'] for e in source] == CAPTIONS
  assert source.classes == ('cat', 'dog', 'emu')
  assert source.num_classes == 3
  assert [int(e['label']) for e in source] == [1, 0, 0, 2, 1]
  assert [int(e['id']) for e in source] == list(range(5))
  assert (source[0]['label'].dtype, source[0]['id'].dtype) == (np.int32, np.int64)
  assert source.name(1) == str(table.parent / 'sub/b.png')


@pytest.mark.parametrize('newline', ['\r\n', '\n'])
@pytest.mark.parametrize('start', ['\ufeff', ''])
def test_files_of_spreadsheets(table, start, newline):
  table.write_bytes((start + TABLE.replace('\n', newline)).encode())
  source = Csv(str(table), text_key='caption')
  captions = [c.replace('\n', newline) for c in CAPTIONS]
  assert [source[i]['text'] for i in (4, 3, 2, 1, 0)] == captions[::-1]


@pytest.mark.parametrize(
  ('split', 'ids'),
  [
    ('photos[:60%]', [0, 1, 2]),
    ('photos[-1:]', [4]),
    ('photos[3:]+photos[:1]', [3, 4, 0]),
    ('all', range(5)),
  ],
)
def test_slices_keep_ids(table, split, ids):
  source = Csv(str(table), split, text_key='caption')
  assert [int(e['id']) for e in source] == list(ids)
  assert [e['text'] for e in source] == [CAPTIONS[i] for i in ids]


def test_the_files_of_a_folder_are_its_splits(table):
  folder = table.parent
  table.unlink()
  (folder / 'train.csv').write_text('path,label\na.jpg,dog\nc.jpg,cat\n')
  (folder / 'test.tsv').write_text('label\tpath\nemu\tsub/b.png\n')  # its own order of columns
  (folder / 'notes.txt').write_text('no table')
  assert [e['image'] for e in Csv(str(folder))] == [b'a.jpg', b'c.jpg']
  source = Csv(str(folder), 'train[1:]+test')
  assert [(e['image'], int(e['label']), int(e['id'])) for e in source] == [
    (b'c.jpg', 0, 1),
    (b'sub/b.png', 2, 2),
  ]
  assert Csv(str(folder), 'test').classes == ('cat', 'dog', 'emu')  # those of all splits


def test_tabs_without_quoting(tmp_path):
  (tmp_path / 'pairs.tsv').write_text('url\tcaption\nx\t12" screen\ny\t"quoted\n')
  source = Csv(str(tmp_path / 'pairs.tsv'), image_key=None, label_key=None, text_key='caption')
  assert [e['text'] for e in source] == ['12" screen', '"quoted']
  assert source[0].keys() == {'text', 'id'}
  assert source.name(1) == 'pairs.tsv[1]'
  semicolons = tmp_path / 'a.csv'
  semicolons.write_text('text;label\nhello, world;3\n')
  source = Csv(str(semicolons), image_key=None, text_key='text', delimiter=';')
  assert (source[0]['text'], source[0]['label']) == ('hello, world', 3)


def test_numbers_are_labels_as_they_are(tmp_path):
  file = tmp_path / 'a.csv'
  file.write_text('text,label\na,7\nb,0\n')
  source = Csv(str(file), image_key=None, text_key='text')
  assert [int(e['label']) for e in source] == [7, 0]
  assert source.classes == ()
  named = Csv(str(file), image_key=None, text_key='text', classes=tuple('abcdefgh'))
  assert [int(e['label']) for e in named] == [7, 0]
  # Unless the numbers are names: these are the digits in another order.
  named = Csv(str(file), image_key=None, text_key='text', classes=('7', '0'))
  assert [int(e['label']) for e in named] == [0, 1]
  with pytest.raises(ValueError, match=r"column 'label' of .*: labels are 0 to 7, and there are 2"):
    Csv(str(file), image_key=None, text_key='text', classes=('a', 'b'))


def test_paths_start_from_root(table, tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  table = table.rename(tmp_path / 'elsewhere' / 'photos.csv')
  assert Csv(str(table), root=str(tmp_path))[1]['image'] == b'sub/b.png'
  with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / 'elsewhere/a.jpg'))):
    Csv(str(table))[0]


def test_pickled_source_reads_the_same_and_is_small(table):
  table.write_text(TABLE + 'a.jpg,dog,' + 'long ' * 1000 + '\n')
  source = Csv(str(table), text_key='caption')
  data = pickle.dumps(source)
  assert len(data) < 3000
  copy = pickle.loads(data)
  assert [copy[i] for i in (5, 2)] == [source[i] for i in (5, 2)]
  with pytest.raises(IndexError):
    copy[6]


def test_a_file_that_changes_is_not_read_on(table):
  source = Csv(str(table))
  table.write_text('path,label\n')
  with pytest.raises(ValueError, match=r'photos.csv has changed since it was opened'):
    source[0]


def test_mistakes_are_one_sentence_with_the_choices(table):
  path, folder = str(table), str(table.parent)
  for mistake, kwargs, message in [
    (ValueError, dict(image_key='file'), "no column 'file'; set image_key to one of 'path', 'lab"),
    (ValueError, dict(label_key='class'), "no column 'class'; set label_key to one of 'path'"),
    (ValueError, dict(image_key=None), 'both None; set one of'),
    (ValueError, dict(split='train'), "unknown split 'train'; choose from 'photos'"),
    (ValueError, dict(classes=('cat', 'dog')), "unknown labels 'emu'; classes has 'cat', 'dog'"),
    (FileNotFoundError, dict(path=f'{path}x'), "photos.csvx; .* has 'a.jpg', 'c.jpg'"),
    (FileNotFoundError, dict(path=f'{folder}/sub'), r"/\*.csv or \*.tsv; .* has 'b.png'"),
  ]:
    with pytest.raises(mistake, match=message) as error:
      Csv(**{'path': path, **kwargs})
    assert '\n' not in str(error.value)
  (table.parent / 'other.csv').write_text(TABLE)
  with pytest.raises(ValueError, match="several splits; set split to 'all', 'other', 'photos'"):
    Csv(folder)


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (b'a.jpg,dog\nb.jpg\n', 'line 3: 1 columns, and 2 have names'),
    (b'a.jpg,dog\n\n,cat\n', 'line 4: the path is empty'),
    (b'a.jpg,\n', 'line 2: the label is empty'),
    (b'a.jpg,d\xf6g\n', 'line 2: this is not UTF-8'),
    (b'a.jpg,"dog\n', 'line 2: unexpected end of data'),
    (b'', "split 'photos' is empty"),
  ],
)
def test_a_damaged_table_names_the_line(table, rows, message):
  table.write_bytes(b'path,label\n' + rows)
  with pytest.raises(ValueError, match=message):
    Csv(str(table))
