"""Image-text retrieval: a loop's answers, scikit-learn's, shuffled pairs, texts that repeat."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.shuffled import ShuffledTexts
from vit_jax.data.substitute import BadExample
from vit_jax.data.tokenizers.base import Tokenizer
from vit_jax.evaluators.image_text_retrieval import ImageTextRetrieval

STATE = types.SimpleNamespace(step=0, params={}, model_state={})
LENGTH = 12  # letters of a caption, and values of an image
CENTRE = 107 + np.sqrt(np.arange(LENGTH, dtype=np.float32))  # by which no two cosines are equal
DIRECTIONS = ('text_to_image', 'image_to_text')


class Bytes(Tokenizer):
  """A byte is a token."""

  def __init__(self):
    super().__init__(vocab_size=256, context=LENGTH, begin=None, end=None, pad=0)

  def _encode(self, text):
    return list(text.encode())


class Letters(nn.Module):
  """An image lies where the text lies whose bytes are its pixels."""

  def embeddings(self, batch):
    return self._embed(batch['image'])

  def text_embeddings(self, batch):
    return self._embed(batch['text'])

  def _embed(self, x):
    x = x.reshape(len(x), -1).astype(jnp.float32) - CENTRE
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


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


def make(counts, noise=5, seed=0):
  """Images with so many captions each, which are the image's letters with some exchanged."""
  rng = np.random.default_rng(seed)
  base = rng.integers(97, 123, (len(counts), LENGTH)).astype(np.uint8)
  texts = []
  for row, count in zip(base, counts, strict=True):
    own = np.tile(row, (count, 1))
    for caption in own:
      caption[rng.permutation(LENGTH)[:noise]] = rng.integers(97, 123, noise)
    texts.append([bytes(caption).decode() for caption in own])
  return Memory(base.reshape(-1, 2, 2, 3), texts)


def mesh_of(devices):
  """A mesh of so many devices, or of a shape."""
  if isinstance(devices, dict):
    return sharding.make_mesh(devices)
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def run(source, devices=8, **fields):
  key = 'sources' if isinstance(source, dict) else 'source'
  fields = dict(tokenizer=Bytes(), chance=False) | fields
  evaluator = ImageTextRetrieval(Letters(), mesh_of(devices), **{key: source}, **fields)
  return evaluator.run(STATE)


def unit(rows):
  rows = np.asarray(rows, np.float64).reshape(len(rows), -1) - CENTRE
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similarities(source):
  """[N, M] in float64, and the image of each caption, [M]."""
  captions = [text for own in source.text for text in own]
  owner = np.repeat(np.arange(len(source)), [len(own) for own in source.text])
  return unit(source.image) @ unit([list(text.encode()) for text in captions]).T, owner


def loop(source, k=(1, 5, 10)):
  """From the definition, a query at a time."""
  similarity, owner = similarities(source)
  for table in (similarity, similarity.T):
    assert np.diff(np.sort(table, axis=1)).min() > 1e-7  # else their order is one of rounding
  results = {}
  for n in k:
    results[f'text_to_image/recall@{n}'] = np.mean(
      [owner[m] in np.argsort(-column)[:n] for m, column in enumerate(similarity.T)]
    )
    results[f'image_to_text/recall@{n}'] = np.mean(
      [i in owner[np.argsort(-row)[:n]] for i, row in enumerate(similarity)]
    )
  return results


@pytest.mark.parametrize(
  ('batch_size', 'devices'),
  [(1, 1), (7, 1), (64, 8), (9, 8), (9, dict(data=2, fsdp=2, tensor=2))],
)
def test_equals_a_loop_with_one_to_five_captions_an_image(batch_size, devices):
  source = make([1 + i % 5 for i in range(43)], noise=8)
  want = loop(source)
  result = run(source, devices, batch_size=batch_size)
  assert result == pytest.approx(want, abs=1e-12)
  assert list(result) == [f'{way}/recall@{k}' for way in DIRECTIONS for k in (1, 5, 10)]
  for way in DIRECTIONS:
    assert 0.1 < result[f'{way}/recall@1'] < result[f'{way}/recall@5'] < 1


def test_the_image_of_a_caption_is_its_class_to_scikit_learn():
  source = make([5] * 30, noise=9)
  similarity, owner = similarities(source)
  result = run(source, k=(1, 2, 7))
  for k in (1, 2, 7):
    want = top_k_accuracy_score(owner, similarity.T, k=k)
    assert result[f'text_to_image/recall@{k}'] == pytest.approx(want, abs=1e-12)


def test_one_caption_an_image_is_as_open_clip_counts():
  pytest.importorskip('open_clip')
  peer = pytest.importorskip('open_clip_train.train')
  import torch

  source = make([1] * 60, noise=9)
  rows = source.image, [list(own[0].encode()) for own in source.text]
  want = peer.get_clip_metrics(*(torch.from_numpy(unit(one)) for one in rows), 100.0)
  result = run(source)
  for way in DIRECTIONS:
    for k in (1, 5, 10):
      assert result[f'{way}/recall@{k}'] == pytest.approx(want[f'{way}_R@{k}'], abs=1e-12)
    assert 0 < result[f'{way}/recall@1'] < result[f'{way}/recall@10'] < 1


def test_shuffled_pairs_fall_to_chance():
  source = make([5] * 300, noise=3)
  shuffled = ShuffledTexts(source)
  result = run({'true': source, 'shuffled': shuffled}, chance=True)
  for way, candidates in zip(DIRECTIONS, (300, 1500), strict=True):
    assert result[f'true/{way}/recall@1'] > 0.5
    for k in (1, 5, 10):
      chance = result[f'shuffled/{way}/recall@{k}_chance']
      assert chance == result[f'true/{way}/recall@{k}_chance']
      right = 1 if way == 'text_to_image' else 5
      wrong = np.prod([(candidates - right - i) / (candidates - i) for i in range(k)])
      assert chance == pytest.approx(1 - wrong, abs=1e-12)
      # The five captions of an image agree, so there are 300 queries either way.
      deviation = np.sqrt(chance * (1 - chance) / 300)
      assert abs(result[f'shuffled/{way}/recall@{k}'] - chance) < 4 * deviation


def test_texts_that_repeat_are_right_for_one_image_or_for_all_that_have_them():
  text = [['dddddddddddd'], ['dddddddddddd', 'zzzzaaaazzzz'], ['aaaazzzzaaaa']]
  image = np.array([list(own[0].encode()) for own in text], np.uint8).reshape(-1, 2, 2, 3)
  image[2] += 1
  own = run(Memory(image, text), k=(1, 2))
  # Both images are as similar to the text: the first one comes first.
  assert own['text_to_image/recall@1'] == pytest.approx(2 / 4)
  assert own['image_to_text/recall@1'] == pytest.approx(2 / 3)
  assert own['text_to_image/recall@2'] == own['image_to_text/recall@2'] == 1
  same = run(Memory(image, text), k=(1, 2), same_text=True, chance=True)
  assert same['text_to_image/recall@1'] == pytest.approx(3 / 4)
  assert same['image_to_text/recall@1'] == 1
  # Of three images, 2, 2, 1 and 1 are right; of four captions, 2, 3 and 1.
  assert same['text_to_image/recall@1_chance'] == pytest.approx((2 + 2 + 1 + 1) / 4 / 3)
  assert same['image_to_text/recall@1_chance'] == pytest.approx((2 + 3 + 1) / 3 / 4)


def test_same_text_changes_nothing_where_none_repeats():
  source = make([1 + i % 3 for i in range(20)], noise=9)
  assert run(source, same_text=True, chance=True) == run(source, chance=True)


def test_a_source_of_pairs_is_the_source_of_its_groups():
  source = make([1 + i % 5 for i in range(20)], noise=9)
  photos = [i for i, own in enumerate(source.text) for _ in own]
  order = np.random.default_rng(1).permutation(len(photos))
  order = sorted(order, key=lambda i: i != photos.index(photos[i]))  # an image's first comes first
  texts = [text for own in source.text for text in own]
  pairs = Memory(
    source.image[[photos[i] for i in order]],
    [texts[i] for i in order],
    photo=[f'{photos[i]:02}.jpg' for i in order],
  )
  assert run(pairs, group='photo') == pytest.approx(loop(source), abs=1e-12)
  assert run(pairs)['image_to_text/recall@1'] < loop(source)['image_to_text/recall@1']


@pytest.mark.parametrize('captions', [1, 2])
def test_the_first_captions_of_each_image(captions):
  source = make([1 + i % 5 for i in range(30)], noise=9)
  few = Memory(source.image, [own[:captions] for own in source.text])
  assert run(source, captions=captions) == pytest.approx(loop(few), abs=1e-12)


def test_a_caption_is_the_mean_over_templates():
  source = make([1] * 25)
  source.text = [[own[0][:10]] for own in source.text]
  templates = ('ab{}', '{}yz')
  made = [unit([list(t.replace('{}', own[0]).encode()) for t in templates]) for own in source.text]
  means = np.stack(made).mean(1)
  means /= np.linalg.norm(means, axis=1, keepdims=True)
  similarity = unit(source.image) @ means.T
  right = [np.argmax(column) == i for i, column in enumerate(similarity.T)]
  result = run(source, templates=templates)
  assert result['text_to_image/recall@1'] == pytest.approx(np.mean(right), abs=1e-12)
  assert result['text_to_image/recall@1'] != run(source)['text_to_image/recall@1']


def test_images_that_are_broken_or_without_captions_are_left_out_with_their_captions():
  source = make([1 + i % 5 for i in range(43)], noise=9)
  kept = [i for i in range(43) if i not in (0, 7, 42)]
  want = loop(Memory(source.image[kept], [source.text[i] for i in kept]))
  source.text[7] = ['', ' ']
  source.broken = (0, 42)
  assert run(source, max_bad_share=0.1, batch_size=8) == pytest.approx(want, abs=1e-12)
  with pytest.raises(ValueError, match='3 of the .* examples read do not decode'):
    run(source, max_bad_share=0.05, batch_size=64)


def test_images_that_do_not_decode_are_left_out_with_their_captions():
  source = make([2] * 20, noise=9)
  kept = [i for i in range(20) if i != 3]
  want = loop(Memory(source.image[kept], [source.text[i] for i in kept]))
  source.image = [*source.image]
  source.image[3] = b'no image'
  assert run(source, max_bad_share=0.1) == pytest.approx(want, abs=1e-12)


def test_a_spec_builds_it_and_clip_answers():
  vocabulary, context = 600, 8
  tokenizer = dict(
    type='data.tokenizers.clip.ClipBpe', vocab_size=vocabulary, context=context
  )  # fmt: skip
  objective = build({
    'type': 'objectives.clip.CLIP', 'projection': 12,
    'image': dict(type='models.vit.ViT', patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16,
                  pooling='mean'),
    'text': dict(type='models.text.TextTransformer', vocab_size=vocabulary, end_id=vocabulary - 1,
                 context=context, width=16, depth=1, num_heads=2, projection=12),
  })  # fmt: skip
  emoji = dict(type='data.emoji.Emoji', split='validation', text=True)
  spec = dict(
    type='evaluators.image_text_retrieval.ImageTextRetrieval', tokenizer=tokenizer, captions=1,
    sources={style: dict(**emoji, styles=(style,)) for style in ('google', 'twitter')},
    host='decode | resize(8)', batch_size=64,
  )  # fmt: skip
  batch = dict(image=np.zeros((2, 8, 8, 3), np.uint8), text=np.zeros((2, context), np.int32))
  init = jax.jit(functools.partial(objective.init, train=False))
  params = nn.unbox(init(jax.random.key(0), batch))['params']
  drawn = {}
  writer = types.SimpleNamespace(picture=lambda step, name, image: drawn.update({name: image}))
  evaluator = build(spec, objective=objective, mesh=mesh_of(8), writer=writer)
  state = types.SimpleNamespace(step=3, params=params, model_state={})
  result = evaluator.run(state, final=True)
  assert list(drawn) == [
    f'{s}/{what}' for s in ('google', 'twitter') for what in ('similarity', 'answers')
  ]
  assert all(image.dtype == np.uint8 and len(np.unique(image)) > 20 for image in drawn.values())
  drawn.clear()
  names = [f'{way}/recall@{k}{end}' for way in DIRECTIONS for k in (1, 5, 10)
           for end in ('', '_chance')]  # fmt: skip
  assert list(result) == [f'{style}/{name}' for style in ('google', 'twitter') for name in names]
  images = len(evaluator.sources['google'])
  for name in names:
    assert 0 <= result[f'google/{name}'] < 0.3  # an untrained encoder
  assert result['google/text_to_image/recall@5_chance'] == pytest.approx(5 / images)
  assert evaluator.run(state) == result
  assert not drawn  # Before the end there are no pictures.


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(k=(1, 21)), 'k is 21; choose from 1 to 20, the images'),
    (dict(templates=('a photo',)), "template 'a photo' does not have {} once"),
    (dict(captions=0), 'captions is 0; choose from 1, 2'),
    (dict(group='photo'), "the source gives no 'photo'; choose group from"),
    (dict(method='embed'), "image_text_retrieval calls 'embed', which Letters lacks; it has 'emb"),
    (dict(text_method='read'), "calls 'read', which Letters lacks"),
  ],
)
def test_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    run(make([1] * 20), **fields)


def test_too_few_images_that_decode_and_embeddings_that_are_not_finite():
  source = make([1] * 10)
  source.broken = (4,)
  with pytest.raises(ValueError, match='k is 10; choose from 1 to 9, the images'):
    run(source, max_bad_share=0.5)

  class Broken(Letters):
    def text_embeddings(self, batch):
      return jnp.full((len(batch['text']), LENGTH), jnp.nan)

  evaluator = ImageTextRetrieval(Broken(), mesh_of(8), tokenizer=Bytes(), source=make([1] * 10))
  with pytest.raises(ValueError, match='10 of 10 queries have features that are not finite'):
    evaluator.run(STATE)
