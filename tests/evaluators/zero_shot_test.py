"""Zero-shot: a loop's answers, open_clip's classifier, digits by name, some of the classes."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data import prompts
from vit_jax.data.digits import Digits
from vit_jax.data.substitute import BadExample
from vit_jax.data.tokenizers.base import Tokenizer
from vit_jax.evaluators.zero_shot import ZeroShot, classifier, ranks

CONTEXT, VOCAB = 16, 600
TOKENIZER = dict(type='data.tokenizers.clip.ClipBpe', context=CONTEXT, vocab_size=VOCAB)
CLASSES = ('cat', 'dog', 'red panda', 'oak tree', 'ship', 'moon', 'bee')
TEMPLATES = ('a photo of a {}.', '{}', 'art of the {}!')
CLIP = {
  'type': 'objectives.clip.CLIP',
  'projection': 12,
  'image': dict(
    type='models.vit.ViT', patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
  ),
  'text': dict(
    type='models.text.TextTransformer', vocab_size=VOCAB, end_id=VOCAB - 1, context=CONTEXT,
    width=16, depth=1, num_heads=2, projection=12,
  ),
}  # fmt: skip


class Arrays:
  """A source of arrays in memory; the examples in `broken` do not decode."""

  def __init__(self, image, label, broken=(), **attributes):
    self.image, self.label, self.broken = image, label, broken
    vars(self).update(attributes)

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    if i in self.broken:
      raise BadExample('torn')
    return {'image': self.image[i], 'label': self.label[i], 'id': np.int64(i)}


class Bytes(Tokenizer):
  """A byte is a token."""

  def __init__(self):
    super().__init__(vocab_size=256, context=24, begin=None, end=None, pad=0)

  def _encode(self, text):
    return list(text.encode())

  def _decode(self, ids):
    return bytes(ids).decode()


class Means(nn.Module):
  """Images are their pixels less the mean image, and a text with a digit is that digit's mean."""

  @nn.compact
  def _means(self):
    return self.param('means', nn.initializers.zeros, (10, 64))

  def embeddings(self, batch):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    return unit(x - self._means().mean(0))

  def text_embeddings(self, batch):
    digit = jnp.where((batch['text'] >= 48) & (batch['text'] < 58), batch['text'] - 48, -1).max(1)
    return unit((self._means() - self._means().mean(0))[digit])


def unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def mesh_of(devices):
  """A mesh of so many devices, or of a shape."""
  if isinstance(devices, dict):
    return sharding.make_mesh(devices)
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


@pytest.fixture(scope='module')
def clip():
  """A CLIP, and a state of it in which images and texts differ."""
  objective = build(CLIP)
  batch = {
    'image': np.zeros((2, 8, 8, 3), np.uint8),
    'text': np.zeros((2, CONTEXT), np.int32),
    'id': np.arange(2),
  }
  init = jax.jit(functools.partial(objective.init, train=False))
  variables = nn.unbox(init(jax.random.key(0), batch))
  params = jax.tree.map(lambda x: 1.5 * x, variables['params'])
  state = types.SimpleNamespace(step=0, params=params, model_state={})
  embed = jax.jit(functools.partial(objective.apply, {'params': params}), static_argnames='method')
  return types.SimpleNamespace(objective=objective, state=state, embed=embed)


def pictures(rows=37, classes=7, seed=0, **attributes):
  """Images whose colours differ, with labels at random."""
  rng = np.random.default_rng(seed)
  colour = rng.integers(0, 256, (rows, 1, 1, 3))
  image = np.clip(colour + rng.integers(-60, 60, (rows, 8, 8, 3)), 0, 255).astype(np.uint8)
  return Arrays(image, rng.integers(0, classes, rows).astype(np.int32), **attributes)


def rows_of(clip, classes, templates):
  """The embeddings of the classes, text by text."""
  tokenizer = build(TOKENIZER)
  rows = []
  for name in classes:
    texts = [tokenizer(one.replace('{}', name)) for one in templates]
    made = [clip.embed({'text': text[None]}, method='text_embeddings')[0] for text in texts]
    mean = np.asarray(made, np.float64).mean(0)
    rows.append(mean / np.linalg.norm(mean))
  return np.stack(rows)


def order_of(clip, source, rows):
  """The classes of each image, the nearest first."""
  batch = {'image': source.image, 'id': np.arange(len(source))}
  similarity = np.asarray(clip.embed(batch, method='embeddings'), np.float64) @ rows.T
  assert np.diff(np.sort(similarity), axis=1).min() > 1e-6  # else their order is one of rounding
  return np.argsort(-similarity, axis=1)


def expected(order, label, top=(1, 5)):
  values = {
    'accuracy' if k == 1 else f'accuracy@{k}': np.mean(
      [y in row[:k] for y, row in zip(label, order, strict=True)]
    )
    for k in top
  }
  right = order[:, 0] == label
  shares = [right[label == y].mean() for y in np.unique(label)]
  return values | {'mean_per_class': np.mean(shares)}


def run(clip, source, devices=8, **fields):
  fields = dict(tokenizer=TOKENIZER, classes=CLASSES, templates=TEMPLATES) | fields
  key = 'sources' if isinstance(source, dict) else 'source'
  evaluator = ZeroShot(clip.objective, mesh_of(devices), **{key: source}, **fields)
  return evaluator.run(clip.state)


@pytest.mark.parametrize(
  'batch_size, devices', [(1, 1), (7, 1), (64, 8), (9, 8), (9, dict(data=2, fsdp=2, tensor=2))]
)
def test_equals_a_loop_at_any_batch_size(clip, batch_size, devices):
  source = pictures()
  order = order_of(clip, source, rows_of(clip, CLASSES, TEMPLATES))
  assert len(set(order[:, 0])) >= 3  # else it would be no test of the texts
  source.label = order[np.arange(37), np.arange(37) % 7 * (np.arange(37) % 3 > 0)]
  want = expected(order, source.label)
  result = run(clip, source, devices, batch_size=batch_size)
  assert list(result) == ['accuracy', 'accuracy@5', 'mean_per_class']
  assert result == pytest.approx(want, abs=1e-12)
  assert result['accuracy'] < result['accuracy@5'] < 1
  answers = order[:, 0]
  balanced = metrics.balanced_accuracy_score(source.label, answers)
  assert result['mean_per_class'] == pytest.approx(balanced) != result['accuracy']


@pytest.mark.parametrize('batch_size', [1, 8, 32])
def test_the_classifier_is_that_of_open_clip(batch_size):
  open_clip = pytest.importorskip('open_clip')
  import torch

  table = np.random.default_rng(0).normal(size=(VOCAB, 12)).astype(np.float32)
  tokenizer, shapes = build(TOKENIZER), set()

  def encode(tokens):
    shapes.add(tokens.shape)
    x = table[tokens].mean(1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  class Model:
    def encode_text(self, texts, normalize):
      assert normalize
      return torch.from_numpy(encode(texts.numpy()))

  want = open_clip.build_zero_shot_classifier(
    Model(),
    lambda texts: torch.from_numpy(np.stack([tokenizer(text) for text in texts])),
    CLASSES,
    TEMPLATES,
    num_classes_per_batch=None,
  )
  shapes.clear()
  made = classifier(encode, tokenizer, CLASSES, TEMPLATES, batch_size=batch_size)
  assert made.shape == (len(CLASSES), 12) and made.dtype == np.float32
  np.testing.assert_allclose(made, want.T, atol=1e-6)
  assert shapes == {(batch_size, CONTEXT)}


def test_the_classifier_of_a_state(clip):
  fields = dict(tokenizer=build(TOKENIZER), classes=CLASSES, templates=TEMPLATES, batch_size=5)
  evaluator = ZeroShot(clip.objective, mesh_of(8), source=pictures(), **fields)
  made = evaluator.classifier(clip.state, CLASSES)
  np.testing.assert_allclose(made, rows_of(clip, CLASSES, TEMPLATES), atol=2e-6)


def test_digits_by_their_names_and_permuted_labels_chance():
  train, test = Digits('train'), Digits('test')
  examples = [train[i] for i in range(len(train))]
  x = np.stack([e['image'].reshape(-1) for e in examples]) / np.float32(255)
  label = np.array([e['label'] for e in examples])
  means = np.stack([x[label == k].mean(0) for k in range(10)])
  state = types.SimpleNamespace(step=0, params={'means': jnp.asarray(means)}, model_state={})
  image = np.stack([test[i]['image'] for i in range(len(test))])
  label = np.stack([test[i]['label'] for i in range(len(test))])
  permuted = np.random.default_rng(0).permutation(label)
  sources = {'true': Arrays(image, label), 'permuted': Arrays(image, permuted)}
  names = tuple(map(str, range(10)))
  result = ZeroShot(
    Means(), mesh_of(8), tokenizer=Bytes(), sources=sources, classes=names
  ).run(state)  # fmt: skip
  centred = means - means.mean(0)
  centred /= np.linalg.norm(centred, axis=1, keepdims=True)
  answers = ((image.reshape(len(image), -1) / 255 - means.mean(0)) @ centred.T).argmax(1)
  assert result['true/accuracy'] == pytest.approx(np.mean(answers == label), abs=1e-12)
  assert result['true/accuracy'] > 0.85 and result['true/accuracy@5'] > 0.98
  assert 0.05 < result['permuted/accuracy'] < 0.16
  assert 0.4 < result['permuted/accuracy@5'] < 0.6


def test_names_are_those_of_each_source(clip):
  named = pictures(classes=3), pictures(classes=2, seed=1)
  named[0].classes, named[1].classes = ('cat', 'ship', 'moon'), ('bee', 'oak tree')
  result = run(clip, dict(zip('ab', named, strict=True)), classes=None, templates=None, top=(1, 2))
  for name, source in zip('ab', named, strict=True):
    rows = rows_of(clip, source.classes, ('a photo of a {}.',))
    want = expected(order_of(clip, source, rows), source.label, top=(1, 2))
    for key, value in want.items():
      assert result[f'{name}/{key}'] == pytest.approx(value, abs=1e-12)


def test_answers_are_among_the_classes_that_labels_name(clip):
  source = pictures(classes=3)
  some = run(clip, source, labels=(6, 0, 3))
  assert some == run(clip, source, classes=('bee', 'cat', 'oak tree'))
  assert 'accuracy@5' not in some
  everything = run(clip, Arrays(source.image, np.array([6, 0, 3], np.int32)[source.label]))
  assert some['accuracy'] > everything['accuracy']


def test_answers_are_among_the_subset_of_a_source(clip):
  source = pictures(classes=3)
  subset = Arrays(source.image, np.array([1, 4, 6], np.int32)[source.label], subset=(6, 1, 4))
  assert run(clip, subset) == run(clip, source, classes=('dog', 'ship', 'bee'))


def test_any_of_several_labels_is_right(clip):
  source = pictures()
  several = np.random.default_rng(2).random((37, len(CLASSES))) < 0.3
  several[[4, 30]] = False
  multi_hot = Arrays(source.image, several.astype(np.float32))
  order = order_of(clip, source, rows_of(clip, CLASSES, TEMPLATES))
  right = several[np.arange(37), order[:, 0]]
  of_class = [right[several[:, k]].mean() for k in range(len(CLASSES))]
  result = run(clip, multi_hot, batch_size=8)
  assert result['accuracy'] == pytest.approx(right.mean()) and 0.1 < right.mean() < 0.6
  assert result['mean_per_class'] == pytest.approx(np.mean(of_class))
  multi_hot.skip_unlabelled = True
  assert run(clip, multi_hot)['accuracy'] == pytest.approx(right.sum() / several.any(1).sum())
  with pytest.raises(ValueError, match='no example of the source has a label'):
    run(clip, Arrays(source.image, np.zeros((37, 7), np.float32)))
  multi_hot.label = multi_hot.label[:, :5]
  with pytest.raises(ValueError, match='multi-hot labels over 5 classes, and answers are up to cl'):
    run(clip, multi_hot)


def test_broken_examples_are_left_out(clip):
  source = pictures(broken=(0, 11))
  kept = np.delete(np.arange(37), [0, 11])
  want = run(clip, Arrays(source.image[kept], source.label[kept]))
  assert run(clip, source, max_bad_share=0.1, batch_size=8) == want


def test_published_prompts_and_what_comes_before_them(clip):
  source, cifar = pictures(classes=10), prompts.load('cifar10')
  given = run(clip, source, classes=cifar.classes, templates=cifar.templates)
  assert run(clip, source, prompts='cifar10', classes=None, templates=None) == given
  one = run(clip, source, classes=cifar.classes, templates=('{}',))
  assert run(clip, source, prompts='cifar10', classes=None, templates=('{}',)) == one
  of_classes = run(clip, pictures(), templates=cifar.templates)
  assert run(clip, pictures(), prompts='cifar10', templates=None) == of_classes


def test_ranks():
  nan = np.nan
  similarity = jnp.array([[0.1, 0.5, 0.3], [0.2, 0.2, 0.2], [nan, 0.1, 0.2], [0.3, nan, 0.1]])
  columns = jnp.array([4, 7, 9])
  assert ranks(similarity, jnp.array([9, 7, 4, 4]), columns).tolist() == [1, 1, 3, 1]
  assert ranks(similarity, jnp.array([7, 4, 9, 8]), columns).tolist() == [0, 0, 1, 3]
  several = jnp.zeros((4, 10)).at[jnp.array([0, 0, 1, 1, 2]), jnp.array([4, 9, 7, 9, 5])].set(1)
  assert ranks(similarity, several, columns).tolist() == [1, 1, 3, 3]


def test_a_spec_builds_it(clip):
  spec = dict(
    type='evaluators.zero_shot.ZeroShot', tokenizer=TOKENIZER,
    source=dict(type='data.emoji.Emoji', split='validation', styles=('google',)),
    host='decode | resize(8)', batch_size=64,
  )  # fmt: skip
  evaluator = build(spec, objective=clip.objective, mesh=mesh_of(8))
  result = evaluator.run(clip.state, final=True)
  assert set(result) == {'accuracy', 'accuracy@5', 'mean_per_class'}
  assert 0 <= result['accuracy'] <= result['accuracy@5'] < 1


def test_a_label_that_has_no_class(clip):
  source = pictures()
  source.label[20] = 7
  with pytest.raises(ValueError, match="'odd' has label 7, which is none of the 7 that have a cla"):
    run(clip, {'odd': source}, batch_size=8)
  source.label[20] = 3
  with pytest.raises(ValueError, match='label 3, which is none of the 3 that have a class, from 0'):
    run(clip, Arrays(source.image, np.minimum(source.label, 3)), labels=(1, 5, 2))


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(prompts='pets'), "unknown prompts 'pets'; choose from 'cifar10'"),
    (dict(classes=None), 'the source has no names of its classes; give classes or prompts'),
    (dict(classes=('cat', '')), "classes has '' at 1, which is no text"),
    (dict(templates=('a photo',)), "template 'a photo' does not have {} once"),
    (dict(labels=(0, 7)), 'the labels of the source have 7; choose from 0 to 6, the classes'),
    (dict(labels=(2, 2)), 'the labels of the source are none or name a class twice'),
    (dict(method='embed'), "zero_shot calls 'embed', which CLIP lacks; it has 'embeddings'"),
    (dict(text_method='texts'), "zero_shot calls 'texts', which CLIP lacks"),
  ],
)
def test_errors(clip, fields, message):
  with pytest.raises(ValueError, match=message):
    run(clip, pictures(), **fields)


def test_names_that_contradict_the_labels(clip):
  source = pictures(classes=3)
  source.classes = ('dog', 'Red_Panda', 'lion')
  with pytest.raises(ValueError, match="label 0 of the source is 'dog', which is class 1 of those"):
    run(clip, source)
  assert run(clip, source, labels=(1, 2, 3)) == run(
    clip, Arrays(source.image, source.label), classes=('dog', 'red panda', 'oak tree')
  )
  source.classes = ('cat', 'dog', 'Red_Panda')
  assert run(clip, source) == run(clip, Arrays(source.image, source.label))
