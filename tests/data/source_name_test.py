import pytest

from vit_jax.build import build
from vit_jax.data.source_name import SHORT, parse


@pytest.mark.parametrize(
  ('text', 'fields'),
  [
    ('digits', dict(type='data.digits.Digits')),
    ('digits:test', dict(type='data.digits.Digits', split='test')),
    ('folder:/a b/c', dict(type='data.folder.Folder', root='/a b/c')),
    ('folder:/a,b,split=val', dict(type='data.folder.Folder', root='/a,b', split='val')),
    ('folder:C:/a', dict(type='data.folder.Folder', root='C:/a')),
    ('folder:2012', dict(type='data.folder.Folder', root='2012')),
    ('csv:/x/n=1.csv', dict(type='data.csv.Csv', path='/x/n=1.csv')),
    (
      'csv:a.csv,label_key=None,classes=("a","b=c"),text_key=2',
      dict(type='data.csv.Csv', path='a.csv', label_key=None, classes=('a', 'b=c'), text_key='2'),
    ),
    ('csv:path=a.csv,split=a[:10%]', dict(type='data.csv.Csv', path='a.csv', split='a[:10%]')),
    ("emoji:styles=('google',)", dict(type='data.emoji.Emoji', styles=('google',))),
    ('vit_jax.data.digits.Digits', dict(type='vit_jax.data.digits.Digits')),
  ],
)
def test_one_word_names_a_source(text, fields):
  assert parse(text) == fields


def test_what_it_names_is_built():
  assert len(build(parse('digits:train[:10]'))) == 10


@pytest.mark.parametrize('name', SHORT)
def test_every_short_name_is_a_type(name):
  assert parse(name) == {'type': SHORT[name]}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('folders:/a', "unknown source 'folders' in 'folders:/a'; choose from 'array_record', 'csv'"),
    ('/my/images', "unknown source '/my/images'"),
    ('data.folder.Fodler:/a', "did you mean 'Folder'?"),
    ('my.package.Source', 'unknown type'),
    ('folder:/a,splt=val', "unknown field 'splt' in .*; choose from 'root', 'split'"),
  ],
)
def test_mistakes_are_one_sentence_with_the_choices(text, message):
  with pytest.raises(ValueError, match=message) as error:
    parse(text)
  assert '\n' not in str(error.value)
