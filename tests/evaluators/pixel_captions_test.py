"""Captions of the nearest image: scikit-learn's neighbours and TF-IDF, ties, the emoji's floor."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.emoji import Emoji, composite
from vit_jax.data.shuffled import ShuffledTexts
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators.pixel_captions import PixelCaptions, Words, expected_hits, split

DIRECTIONS = ('text_to_image', 'image_to_text')
K = (1, 5, 10)


class Memory:
  """Images and their texts in memory; examples in `broken` do not decode."""

  def __init__(self, image, text, broken=(), **fields):
    self.image, self.text, self.broken, self.fields = image, text, broken, fields

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    if i in self.broken:
      raise BadExample('torn')
    others = {key: values[i] for key, values in self.fields.items()}
    return {'image': self.image[i], 'text': self.text[i], 'id': np.int64(i), **others}


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def run(train, source, devices=8, **fields):
  key = 'sources' if isinstance(source, dict) else 'source'
  return PixelCaptions(None, mesh_of(devices), train=train, **{key: source}, **fields).run()


def read(source, background=(255, 255, 255)):
  """Images [N, H * W * 3] on a colour, and their texts."""
  examples = [source[i] for i in range(len(source))]
  image = np.stack([e['image'] for e in examples])
  if image.shape[-1] == 4:
    image = composite(image, background)
  return image.reshape(len(image), -1).astype(float), [e['text'] for e in examples]


def recalls(similarity, right, k=K):
  """The recalls of many orders of equal candidates, on average; `right` is bool like it, [Q, N]."""
  rng = np.random.default_rng(0)
  found = np.zeros(len(k))
  orders = 100
  for _ in range(orders):
    noise = rng.permuted(np.tile(np.arange(similarity.shape[1]), (len(similarity), 1)), axis=1)
    order = np.lexsort((noise, -np.round(similarity, 9)), axis=1)
    ranked = np.take_along_axis(right, order, axis=1)
    found += [ranked[:, :n].any(1).mean() for n in k]
  return found / orders


@pytest.mark.parametrize('captions', [1, 3])
def test_equals_scikit_learn_on_the_emoji(captions):
  train = Emoji('train', styles=('google',), text=True)
  test = Emoji('validation', styles=('twitter',), text=True)
  result = run(train, test, captions=captions)
  (pixels, descriptions), (images, texts) = read(train), read(test)
  descriptions, texts = ([own[:captions] for own in side] for side in (descriptions, texts))
  distance, near = NearestNeighbors(n_neighbors=2).fit(pixels).kneighbors(images)
  assert (distance[:, 0] < distance[:, 1]).all()  # else which one is the nearest is a choice
  descriptions = [' '.join(own) for own in descriptions]
  model = TfidfVectorizer().fit(descriptions)
  queries = [text for own in texts for text in own]
  owner = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
  similarity = (
    model.transform(queries) @ model.transform([descriptions[i] for i in near[:, 0]]).T
  ).toarray()
  right = owner[:, None] == np.arange(len(texts))
  wanted = (similarity, right), (similarity.T, right.T)
  for way, want in zip(DIRECTIONS, itertools.starmap(recalls, wanted), strict=True):
    assert [result[f'{way}/recall@{k}'] for k in K] == pytest.approx(want, abs=0.004)
  assert result['text_to_image/recall@10'] > 2 * 10 / len(test)  # well above chance
  assert list(result) == [f'{way}/recall@{k}' for way in DIRECTIONS for k in K]


def test_words_are_those_of_scikit_learn():
  documents = ['A cat, a CAT and a dog', 'the dog-house', 'x', 'naïve café _y_ 2 22', 'dog']
  queries = ['cat dog', 'Dog dog house', 'bird', '', 'CAFÉ 22 bird', 'the cat-house']
  model = TfidfVectorizer().fit(documents)
  want = (model.transform(queries) @ model.transform(documents).T).toarray()
  made = np.stack(list(Words(documents).similarity(queries, documents)))
  np.testing.assert_allclose(made, want, atol=1e-9)
  few = np.stack(list(Words(documents).similarity(queries, documents[:2])))
  np.testing.assert_array_equal(few, made[:, :2])
  for text in documents:
    assert split(text) == TfidfVectorizer().build_analyzer()(text)


def test_the_order_of_words_changes_nothing():
  rng = np.random.default_rng(0)
  names = [f'word{i}' for i in range(200)]
  documents = [' '.join(rng.choice(names, 40)) for _ in range(30)]
  same = [' '.join(rng.permutation(documents[0].split())) for _ in range(30)]
  for row in Words(documents).similarity(documents, same):
    assert len(set(row)) == 1


@pytest.mark.parametrize('seed', range(5))
def test_ties_find_what_their_random_orders_find(seed):
  rng = np.random.default_rng(seed)
  similarity = rng.integers(0, 3, 7) / 2
  right = set(rng.permutation(7)[:3].tolist())
  found = []
  for order in itertools.permutations(range(7)):
    ranked = sorted(order, key=lambda i: -similarity[i])  # keeps the order of equal ones
    found.append([bool(right & set(ranked[:k])) for k in (1, 2, 4, 7)])
  want = np.mean(found, axis=0)
  np.testing.assert_allclose(expected_hits(similarity, right, (1, 2, 4, 7)), want, atol=1e-12)


def drawings(count, seed=0):
  """Images that differ, and a word for each."""
  image = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
  return Memory(image, [f'drawing number{i}' for i in range(count)])


def test_its_own_training_images_are_found_and_shuffled_texts_are_not():
  source = drawings(60)
  result = run(source, {'own': source, 'shuffled': ShuffledTexts(source)})
  for way in DIRECTIONS:
    assert result[f'own/{way}/recall@1'] == 1
    assert result[f'shuffled/{way}/recall@1'] == 0


def test_unknown_words_find_what_chance_does():
  source = drawings(40)
  foreign = Memory(source.image, [f'other thing{i}' for i in range(40)])
  result = run(source, foreign)
  for way in DIRECTIONS:
    assert [result[f'{way}/recall@{k}'] for k in K] == pytest.approx([k / 40 for k in K])


@pytest.mark.parametrize(('batch_size', 'devices'), [(1, 1), (7, 8), (64, 8)])
def test_the_same_at_any_batch_size_without_what_is_broken(batch_size, devices):
  train = drawings(50)
  noisy = np.clip(train.image.astype(int) + 9, 0, 255).astype(np.uint8)
  texts = [[f'number{i} {i % 7}7', f'a drawing {i % 3}3'] for i in range(50)]
  kept = [i for i in range(50) if i not in (3, 49)]
  want = run(train, Memory(noisy[kept], [texts[i] for i in kept]), devices=1)
  texts[3] = ' '
  result = run(
    train, Memory(noisy, texts, broken=(49,)), devices, batch_size=batch_size, max_bad_share=0.1
  )
  assert result == want and 0.4 < result['text_to_image/recall@1'] < 1


def test_texts_that_repeat_groups_and_first_captions():
  image = drawings(4).image
  train = Memory(image, ['cat', 'dog', 'cat', 'ship'])
  own = run(train, train, k=(1,))
  assert own['text_to_image/recall@1'] == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
  same = run(train, train, k=(1,), same_text=True)
  assert same['text_to_image/recall@1'] == same['image_to_text/recall@1'] == 1
  pairs = Memory(image[[0, 0, 1, 1]], ['cat', 'pet', 'dog', 'pet'], photo=list('aabb'))
  lists = Memory(image[:2], [('cat', 'pet'), ('dog', 'pet')])
  grouped = run(pairs, pairs, k=(1,), group='photo')
  assert grouped == run(lists, lists, k=(1,))
  assert grouped['text_to_image/recall@1'] == pytest.approx((1 + 0.5 + 1 + 0.5) / 4)
  assert run(lists, lists, k=(1,), captions=1)['text_to_image/recall@1'] == 1


def test_transparent_images_lie_on_the_background():
  test = Emoji('validation', styles=('twitter',), text=True, alpha=True)
  train = Emoji('train', styles=('google',), text=True, alpha=True)
  opaque = [
    Emoji(part, styles=(style,), text=True, background=(0, 0, 255))
    for part, style in (('train', 'google'), ('validation', 'twitter'))
  ]
  assert run(train, test, background=(0, 0, 255)) == run(*opaque)
  assert run(train, test) != run(*opaque)


def test_a_spec_builds_it_and_it_is_computed_once():
  emoji = dict(type='data.emoji.Emoji', split='validation', text=True)
  spec = dict(
    type='evaluators.pixel_captions.PixelCaptions', captions=1, k=(1,),
    train=dict(**emoji, styles=('google',)),
    sources={style: dict(**emoji, styles=(style,)) for style in ('google', 'twitter')},
  )  # fmt: skip
  evaluator = build(spec, objective=None, mesh=mesh_of(8))
  result = evaluator.run(None, final=False)
  assert list(result) == [
    f'{s}/{way}/recall@1' for s in ('google', 'twitter') for way in DIRECTIONS
  ]
  assert result['google/text_to_image/recall@1'] > 0.9 > result['twitter/text_to_image/recall@1']
  evaluator.train.source = None  # what is read again would fail
  assert evaluator.run(None, final=True) == result
  assert not evaluator.reads_state


def test_errors():
  source = drawings(12)
  with pytest.raises(ValueError, match='k is 13; choose from 1 to 12, the images'):
    run(source, source, k=(13,))
  with pytest.raises(ValueError, match='the source gives no text'):
    run(Emoji('train'), source)
  wide = Memory(source.image[:, :, :2], source.text)
  with pytest.raises(ValueError, match='images have 24 values and those of the training source 48'):
    run(source, wide)
