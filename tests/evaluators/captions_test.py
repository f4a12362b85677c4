"""Captions by image: who belongs to whom, what counts as right, what chance finds."""

import numpy as np
import pytest
from scipy import stats

from vit_jax.data.substitute import BadExample
from vit_jax.evaluators.captions import Captioned, Pairs, captioned_sources, check_k, share_found


class Rows:
  """Examples with the given texts; those that are None do not decode."""

  def __init__(self, texts, **fields):
    self.texts, self.fields = texts, fields

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, i):
    if self.texts[i] is None:
      raise BadExample('torn')
    image = np.full((2, 2, 3), i, np.uint8)
    others = {key: values[i] for key, values in self.fields.items()}
    return {'image': image, 'id': np.int64(100 + i), 'text': self.texts[i], **others}

  def name(self, i):
    return f'row {i}'


def test_captions_of_each_image_and_images_without_texts():
  source = Captioned(Rows(['a cat', ('a dog', ' ', 'Hund'), b'a bee', [b'x', 'y', 'z']]))
  assert source.texts == [('a cat',), ('a dog', 'Hund'), ('a bee',), ('x', 'y', 'z')]
  assert source.positions.tolist() == [0, 1, 2, 3] and len(source) == 4
  assert set(source[2]) == {'image', 'id'} and source[2]['id'] == 102
  assert source[3]['image'].max() == 3 and source.name(3) == 'row 3'


@pytest.mark.parametrize(
  ('captions', 'want'), [(1, [('a',), ('c',)]), (2, [('a', 'b'), ('c',)]), (5, [tuple('abd'), 'c'])]
)
def test_the_first_captions(captions, want):
  source = Captioned(Rows([('a', ' ', 'b', 'd'), 'c']), captions)
  assert source.texts == [tuple(own) for own in want]


def test_rows_of_one_group_are_one_image():
  rows = Rows(['a', 'b', 'c', 'd', 'e'], photo=['x', 'y', 'x', 'x', 'z'])
  source = Captioned(rows, group='photo')
  assert source.texts == [('a', 'c', 'd'), ('b',), ('e',)]
  assert source.positions.tolist() == [0, 1, 4] and source[2]['id'] == 104
  assert Captioned(rows, 2, group='photo').texts == [('a', 'c'), ('b',), ('e',)]
  numbers = Rows(['a', 'b', 'c'], photo=np.array([7, 3, 7]))
  assert Captioned(numbers, group='photo').texts == [('a', 'c'), ('b',)]


@pytest.mark.parametrize('group', [None, 'photo'])
def test_what_is_broken_or_blank_is_still_there_to_be_counted(group):
  source = Captioned(Rows(['a', None, ' ', (), 'b', None], photo=list('uvuwyz')), group=group)
  assert source.texts == [('a',), (), (), (), ('b',), ()]
  for i in (1, 2, 3, 5):
    with pytest.raises(BadExample, match='no caption'):
      source[i]


def test_right_is_the_own_image_or_every_image_with_the_text():
  texts = [('cat', 'pet'), ('dog', 'pet'), ('cat', 'cat'), ('ship',)]
  own = Pairs(texts, same_text=False)
  assert own.captions == ('cat', 'pet', 'dog', 'pet', 'cat', 'cat', 'ship')
  assert own.counts == (4, 7)
  assert own.right['text_to_image'] == [{0}, {0}, {1}, {1}, {2}, {2}, {3}]
  assert own.right['image_to_text'] == [{0, 1}, {2, 3}, {4, 5}, {6}]
  same = Pairs(texts, same_text=True)
  assert same.right['text_to_image'] == [{0, 2}, {0, 1}, {1}, {0, 1}, {0, 2}, {0, 2}, {3}]
  assert same.right['image_to_text'] == [{0, 1, 3, 4, 5}, {1, 2, 3}, {0, 4, 5}, {6}]
  assert [same.candidates(way) for way in ('text_to_image', 'image_to_text')] == [4, 7]


def test_share_found_is_that_of_the_hypergeometric_distribution():
  total, right, drawn = map(np.ravel, np.meshgrid(range(1, 9), range(9), range(9)))
  kept = (right <= total) & (drawn <= total)
  total, right, drawn = total[kept], right[kept], drawn[kept]
  want = stats.hypergeom.sf(0, total, right, drawn)
  np.testing.assert_allclose(share_found(right, total, drawn), want, atol=1e-12)
  assert len(want) > 200 and 0 in want and 1 in want


def test_chance_is_what_orders_drawn_at_random_find():
  pairs = Pairs([('a', 'b'), ('c',), ('d', 'e', 'a'), ('f',)], same_text=True)
  rng = np.random.default_rng(0)
  for direction, right in pairs.right.items():
    found = [
      bool(wanted & set(rng.permutation(pairs.candidates(direction))[:2].tolist()))
      for wanted in right
      for _ in range(4000)
    ]
    assert pairs.chance(direction, 2) == pytest.approx(np.mean(found), abs=0.015)
  alone = Pairs([(str(i),) for i in range(50)], same_text=False)
  assert alone.chance('text_to_image', 5) == pytest.approx(0.1) == alone.chance('image_to_text', 5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(captions=0), r'captions is 0; choose from 1, 2, \.\.\. or None'),
    (dict(captions='all'), "captions is 'all'; choose from 1, 2"),
    (dict(group='photo'), "the source gives no 'photo'; choose group from .'id', 'image', 'text'."),
  ],
)
def test_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    Captioned(Rows(['a', 'b']), **fields)


def test_a_source_without_texts_and_a_k_out_of_range():
  class Bare(Rows):
    def __getitem__(self, i):
      return {'image': np.zeros((2, 2, 3), np.uint8), 'id': np.int64(i)}

  with pytest.raises(ValueError, match='the source gives no text'):
    Captioned(Bare(['a']))
  with pytest.raises(ValueError, match='k is 3; choose from 1 to 2, the images'):
    captioned_sources(Rows(['a', 'b']), None, captions=None, group=None, k=(1, 3))
  with pytest.raises(ValueError, match='k is 0; choose from 1 to 2'):
    check_k((), 2)
