"""Shuffled pairs: every text once, none at home, and nothing else moved."""

import pickle

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.build import build
from vit_jax.data.emoji import Emoji, read_texts
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.shuffled import ShuffledTexts
from vit_jax.data.subset import Subset
from vit_jax.data.substitute import BadExample


class Numbers:
  """Example i has the text 'i'; those in `bad` do not decode."""

  classes = ('even', 'odd')
  num_classes = 2

  def __init__(self, size, bad=()):
    self.size, self.bad = size, bad

  def __len__(self):
    return self.size

  def __getitem__(self, i):
    if i in self.bad:
      raise BadExample(f'{i} is broken')
    image = np.full((2, 2, 1), i, np.uint8)
    return {'image': image, 'label': np.int32(i % 2), 'id': np.int64(100 + i), 'text': str(i)}

  def name(self, i):
    return f'number {i}'


@pytest.mark.parametrize('size', [2, 3, 4, 17, 200])
@pytest.mark.parametrize('seed', [0, 1, 12345])
def test_every_text_once_and_none_at_home(size, seed):
  shuffled = ShuffledTexts(Numbers(size), seed)
  texts = [int(shuffled[i]['text']) for i in range(size)]
  assert sorted(texts) == list(range(size)) and len(shuffled) == size
  assert all(text != i for i, text in enumerate(texts))
  assert texts == shuffled.partners.tolist()
  again = ShuffledTexts(Numbers(size), seed)
  assert [int(again[i]['text']) for i in range(size)] == texts


def test_seeds_shuffle_differently_and_every_partner_is_as_likely():
  counts = np.zeros((5, 5), int)
  for seed in range(2000):
    partners = ShuffledTexts(Numbers(5), seed).partners
    counts[np.arange(5), partners] += 1
  assert (np.diag(counts) == 0).all()
  # Each other count is binomial with mean 500 and standard deviation 19.4.
  others = counts[~np.eye(5, dtype=bool)]
  assert (abs(others - 500) < 90).all()


def test_a_shuffle_stays_as_it_is():
  # Written down when it was made: no version of NumPy or of this file may draw another.
  assert ShuffledTexts(Numbers(8)).partners.tolist() == [3, 2, 6, 7, 5, 0, 4, 1]


def test_all_but_the_text_is_the_example_s_own():
  source = Numbers(20)
  shuffled = ShuffledTexts(source)
  for i in range(20):
    made, own = shuffled[i], source[i]
    assert made.pop('text') != own.pop('text')
    assert made.keys() == own.keys()
    for key, value in own.items():
      np.testing.assert_array_equal(made[key], value)
    assert shuffled.name(i) == f'number {i}'


def test_what_the_source_says_of_itself():
  source = Numbers(4)
  shuffled = ShuffledTexts(source)
  assert shuffled.classes == source.classes and shuffled.num_classes == 2
  assert shuffled.subset is None
  source.subset = (0,)
  assert ShuffledTexts(source).subset == (0,)

  class Bare:
    def __len__(self):
      return 3

    def __getitem__(self, i):
      return {'id': np.int64(i), 'text': str(i)}

  bare = ShuffledTexts(Bare())
  assert bare.classes == () and bare.num_classes == 0 and bare.name(2) == 'example 2'


def test_what_is_broken_breaks_its_own_and_the_one_that_has_its_text():
  shuffled = ShuffledTexts(Numbers(10, bad=(4,)))
  asks = int(np.flatnonzero(shuffled.partners == 4)[0])
  for i in range(10):
    if i in (4, asks):
      with pytest.raises(BadExample, match='4 is broken'):
        shuffled[i]
    else:
      assert shuffled[i]['id'] == 100 + i


def test_a_subset_of_shuffled_texts_keeps_their_pairs():
  shuffled = ShuffledTexts(Numbers(30))
  few = Subset(shuffled, per_class=3)
  assert len(few) == 6
  for i, position in enumerate(few.positions):
    assert few[i]['text'] == shuffled[int(position)]['text'] and few[i]['id'] == 100 + position


@pytest.mark.parametrize('i', [-1, 5])
def test_index_out_of_range(i):
  shuffled = ShuffledTexts(Numbers(5))
  for call in (shuffled.__getitem__, shuffled.name):
    with pytest.raises(IndexError, match=f'example {i} of 5'):
      call(i)


def test_errors():
  with pytest.raises(
    ValueError, match='a source of 1 has nothing to shuffle; choose one of at least 2'
  ):
    ShuffledTexts(Numbers(1))
  silent = ShuffledTexts(Emoji('validation'))
  with pytest.raises(ValueError, match="gives no text to shuffle, but .'id', 'image', 'label'."):
    silent[0]


def test_from_a_config_through_the_pipeline():
  spec = dict(
    type='data.shuffled.ShuffledTexts',
    source=dict(type='data.emoji.Emoji', split='validation', styles=('twitter',), text=True),
    seed=3,
  )
  shuffled = pickle.loads(pickle.dumps(build(spec)))
  whole = Emoji('validation', styles=('twitter',))
  assert shuffled.classes == whole.classes and len(shuffled) == len(whole)
  for i in (0, 5):
    assert shuffled[i]['text'] == read_texts()[whole.rows[shuffled.partners[i]]]
  sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ('data',)), PartitionSpec('data'))
  host = 'decode | caption(first=1.0) | tokenize("data.tokenizers.clip.ClipBpe", context=8)'
  with eval_batches(shuffled, host=host, batch_size=16, sharding=sharding) as batches:
    read = [jax.tree.map(np.asarray, batch) for batch in batches]
  mask = np.concatenate([batch['_mask'] for batch in read])
  numbers, tokens = (np.concatenate([b[key] for b in read])[mask] for key in ('id', 'text'))
  np.testing.assert_array_equal(numbers, whole.ids)
  tokenizer = build(dict(type='data.tokenizers.clip.ClipBpe', context=8))
  names = [read_texts()[row][0] for row in whole.rows[shuffled.partners]]
  np.testing.assert_array_equal(tokens, [tokenizer(name) for name in names])
