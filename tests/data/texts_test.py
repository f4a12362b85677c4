"""Host transforms of texts: what may be drawn is drawn, blank texts are not, mistakes are named."""

import collections
import pickle

import jax
import numpy as np
import pytest

from vit_jax import compose, sharding
from vit_jax.data import pipeline, transforms
from vit_jax.data.emoji import Emoji
from vit_jax.data.substitute import BadExample
from vit_jax.data.tokenizers.clip import ClipBpe


def run(text, host, seed=0):
  example = {'text': text, 'id': 3}
  rng = np.random.default_rng(seed)
  for transform in compose.build(host, transforms):
    example = pickle.loads(pickle.dumps(transform))(example, rng)
  return example['text']


def drawn(text, host, times=2000):
  transform = compose.build(host, transforms)[0]
  rng = np.random.default_rng(0)
  return collections.Counter(transform({'text': text}, rng)['text'] for _ in range(times))


def test_captions_are_drawn_alike_but_for_blank_ones():
  counts = drawn(['one', ' ', b'two', '', 'three'], 'caption')
  assert set(counts) == {'one', 'two', 'three'}
  assert all(abs(count / 2000 - 1 / 3) < 0.05 for count in counts.values())


@pytest.mark.parametrize('first', [0.0, 0.7, 1.0])
def test_the_first_has_its_probability(first):
  counts = drawn(('name', 'a', 'b'), f'caption(first={first})')
  assert counts['name'] / 2000 == pytest.approx(first, abs=0.05)
  if first < 1:
    assert abs(counts['a'] - counts['b']) < 0.1 * 2000


def test_several_are_joined_without_repetition():
  counts = drawn(('name', 'a', 'b', 'c'), 'caption(first=0.2, join=2)')
  words = [text.split(', ') for text in counts if text != 'name']
  assert {len(one) for one in words} == {1, 2}
  assert all(len(set(one)) == len(one) and 'name' not in one for one in words)
  assert len(words) == 3 + 3 * 2


def test_one_text_needs_no_list_and_no_text_is_a_bad_example():
  assert run('grinning', 'caption(first=0)') == run(b'grinning', 'caption') == 'grinning'
  for blank in ('', '  ', ['', ' '], []):
    with pytest.raises(BadExample, match='all its texts are blank'):
      run(blank, 'caption')


def test_templates_are_drawn():
  counts = drawn('cat', 'template("a photo of {}", "{}!")')
  assert set(counts) == {'a photo of cat', 'cat!'} and min(counts.values()) > 900
  assert run('{}{x}', 'template("a {}")') == 'a {}{x}'


def test_tokens_are_those_of_the_tokenizer():
  ids = run(['a red fruit'], 'caption | template("a photo of {}") | tokenize(context=9)')
  np.testing.assert_array_equal(ids, ClipBpe(9)('a photo of a red fruit'))
  assert ids.dtype == np.int32
  small = run('cat', 'tokenize("data.tokenizers.clip.ClipBpe", context=5, vocab_size=600)')
  assert small.shape == (5,) and small.max() < 600
  assert run('', 'tokenize(context=4)').tolist() == [49406, 49407, 0, 0]
  assert run('a ' * 5000, 'tokenize(context=4)').tolist() == [49406, 320, 320, 49407]


@pytest.mark.parametrize(
  'host, words',
  [
    ('caption(first=2)', 'first is a probability, not 2'),
    ('caption(join=0)', 'join must be at least 1, got 0'),
    ('template()', 'there is no template'),
    ('template("a photo")', "template 'a photo' does not have {} once"),
    ('template("{} {}")', 'does not have {} once'),
    ('template("{} {x}")', 'does not have {} once'),
    ('tokenize(context=2)', 'context 2 has no room'),
    ('tokenize(length=4)', 'length'),
    ('tokenize("clip")', "type 'clip' is no dotted path"),
    ('tokenize(vocab_size=10)', 'vocab_size 10 is not in 514 to 49408'),
  ],
)
def test_mistakes_are_named_when_the_chain_is_built(host, words):
  with pytest.raises(ValueError) as error:
    compose.build(host, transforms)
  assert words in str(error.value)


def test_a_text_that_is_not_there_or_not_one_is_named():
  with pytest.raises(ValueError, match="tokenize takes one text, not 2; put 'caption' before it"):
    run(['a', 'b'], 'tokenize')
  with pytest.raises(ValueError, match=r"gives no text, but \['image'\]"):
    compose.build('caption', transforms)[0]({'image': 0}, np.random.default_rng(0))
  with pytest.raises(ValueError, match=r"gives no text, but \['image'\]"):
    compose.build('tokenize', transforms)[0]({'image': 0}, np.random.default_rng(0))


def test_emoji_come_in_batches_with_their_texts():
  source = Emoji('validation', styles=('google',), text=True)
  name, *keywords = source[0]['text']
  assert name == source.table()[0]['name'] and keywords == source.table()[0]['keywords'].split('|')
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  host = 'caption(first=1) | template("an emoji of {}") | tokenize(context=12)'
  batches = pipeline.eval_batches(
    source, host=host, batch_size=4, sharding=sharding.batch_sharding(mesh)
  )
  text = np.asarray(next(iter(batches))['text'])
  np.testing.assert_array_equal(text[0], ClipBpe(12)(f'an emoji of {name}'))
  assert text.shape == (4, 12)


def test_subcategories_can_be_kept_back():
  everything = Emoji('all')
  kept = Emoji('all', within=('food-fruit', 'cat-face'))
  rest = Emoji('all', without=('food-fruit', 'cat-face'))
  assert {row['subcategory'] for row in kept.table()} == {'food-fruit', 'cat-face'}
  assert sorted([*kept.ids, *rest.ids]) == sorted(everything.ids)
  assert kept.classes == everything.classes == rest.classes
  with pytest.raises(ValueError, match="unknown subcategory 'fruit'; choose from"):
    Emoji(without=('fruit',))
