"""The base of evaluators of features: what it encodes, and the random and the pixel columns."""

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import sharding
from vit_jax.average import AveragedEvaluator
from vit_jax.data.digits import Digits
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators.representation import Representation, pixels


class Projected(nn.Module):
  """Features that are linear in the pixels, normalised by running statistics."""

  @nn.compact
  def features(self, batch):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    x = nn.Dense(6, bias_init=nn.initializers.normal())(x)
    return nn.BatchNorm(use_running_average=True, name='norm')(x)

  def tokens(self, batch):
    return self.features(batch)[:, None]


class Arrays:
  """A source of arrays in memory; the examples in `broken` do not decode."""

  def __init__(self, image, label, broken=()):
    self.image, self.label, self.broken, self.reads = image, label, broken, 0

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    self.reads += 1
    if i in self.broken:
      raise BadExample('torn')
    return {'image': self.image[i], 'label': self.label[i], 'id': np.int64(1000 + i)}


class Kept(Representation):
  """Keeps what it is given; its metric is the sum of all features."""

  def __init__(self, *args: Any, source: Any, **fields: Any):
    super().__init__(*args, **fields)
    self.source, self.seen = source, []

  def measure(self, encode):
    self.seen.append(encode(self.source))
    return {'sum': float(self.seen[-1].features.sum(dtype=np.float64))}


class State(types.SimpleNamespace):
  def replace(self, **fields):
    return State(**(vars(self) | fields))


def state_of(seed, size=64):
  rng = np.random.default_rng(seed)

  def params():
    dense = {'kernel': rng.normal(size=(size, 6)), 'bias': rng.normal(size=6)}
    norm = {'scale': rng.normal(size=6), 'bias': rng.normal(size=6)}
    return jax.tree.map(np.float32, {'Dense_0': dense, 'norm': norm})

  statistics = {'norm': {'mean': np.ones(6, np.float32), 'var': np.full(6, 2, np.float32)}}
  return State(params=params(), ema=params(), model_state={'batch_stats': statistics})


def features_of(params, statistics, image):
  """By NumPy, float64."""
  x = image.reshape(len(image), -1) / 255
  x = x @ np.asarray(params['Dense_0']['kernel'], np.float64) + params['Dense_0']['bias']
  norm = statistics['norm']
  x = (x - norm['mean']) / np.sqrt(np.asarray(norm['var'], np.float64) + 1e-5)
  return x * params['norm']['scale'] + params['norm']['bias']


def mesh_of(shape, devices):
  return sharding.make_mesh(shape, jax.devices()[:devices])


def digits(count):
  source = Digits('test')
  examples = [source[i] for i in range(count)]
  return np.stack([e['image'] for e in examples]), np.array([e['label'] for e in examples])


def make(source, devices=8, shape=None, **fields):
  mesh = mesh_of(shape or dict(data=-1), devices)
  return Kept(Projected(), mesh, source=source, **fields)


@pytest.mark.parametrize(
  'batch_size, shape, devices',
  [(7, dict(data=1), 1), (64, dict(data=-1), 8), (3, dict(data=2, fsdp=2, tensor=2), 8)],
)
def test_features_at_any_batch_size_on_any_mesh(batch_size, shape, devices):
  image, label = digits(53)
  evaluator = make(Arrays(image, label), devices, shape, batch_size=batch_size)
  state = state_of(0)
  result = evaluator.run(state)
  assert list(result) == ['sum', 'sum_random', 'sum_pixels']
  trained, random, raw = evaluator.seen
  statistics = state.model_state['batch_stats']
  want = features_of(state.params, statistics, image)
  np.testing.assert_allclose(trained.features, want, rtol=1e-4, atol=1e-4)
  # What Linen starts with: from the seed of the baseline, on one device, without a batch.
  start = nn.unbox(Projected().init(jax.random.key(0), {'image': image[:1]}, method='features'))
  want = features_of(start['params'], start['batch_stats'], image)
  np.testing.assert_allclose(random.features, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(raw.features, image.reshape(53, -1) / 255, atol=1e-6)
  for examples in evaluator.seen:
    assert examples.features.dtype == np.float32
    np.testing.assert_array_equal(examples.labels, label)
    np.testing.assert_array_equal(examples.ids, 1000 + np.arange(53))
  for name, examples in zip(result, evaluator.seen, strict=True):
    assert result[name] == pytest.approx(examples.features.sum(dtype=np.float64))


def test_the_baselines_are_measured_once():
  source = Arrays(*digits(20))
  evaluator = make(source, devices=1, batch_size=20)
  first = evaluator.run(state_of(0))
  assert (source.reads, len(evaluator.seen)) == (3 * 20, 3)
  second = evaluator.run(state_of(1), final=True)
  assert (source.reads, len(evaluator.seen)) == (4 * 20, 4)
  assert second['sum'] != first['sum']
  assert [second[f'sum_{name}'] for name in ('random', 'pixels')] == [
    first[f'sum_{name}'] for name in ('random', 'pixels')
  ]


def test_the_average_has_its_own_column_and_the_same_baselines():
  image, label = digits(20)
  evaluator, state = make(Arrays(image, label)), state_of(0)
  own, averaged = evaluator.run(state), AveragedEvaluator(evaluator).run(state)
  want = features_of(state.ema, state.model_state['batch_stats'], image)
  np.testing.assert_allclose(evaluator.seen[-1].features, want, rtol=1e-4, atol=1e-4)
  assert len(evaluator.seen) == 4
  assert averaged['sum'] != own['sum']
  assert averaged['sum_random'] == own['sum_random']


@pytest.mark.parametrize('names', [(), ('pixels',), ('random',)])
def test_baselines_are_chosen(names):
  evaluator = make(Arrays(*digits(10)), baselines=names)
  assert list(evaluator.run(state_of(0))) == ['sum', *(f'sum_{name}' for name in names)]


def test_the_random_encoder_has_a_seed():
  results = [
    make(Arrays(*digits(10)), baselines=('random',), random_seed=seed).run(state_of(0))
    for seed in (0, 0, 1)
  ]
  assert results[0] == results[1]
  assert results[0]['sum'] == results[2]['sum']
  assert results[0]['sum_random'] != results[2]['sum_random']


def test_broken_examples_are_left_out_of_every_column():
  image, label = digits(20)
  evaluator = make(Arrays(image, label, broken=(0, 7)), max_bad_share=0.2, batch_size=8)
  evaluator.run(state_of(0))
  kept = np.delete(np.arange(20), [0, 7])
  for examples in evaluator.seen:
    np.testing.assert_array_equal(examples.ids, 1000 + kept)
    np.testing.assert_array_equal(examples.labels, label[kept])
  np.testing.assert_allclose(
    evaluator.seen[2].features, image[kept].reshape(18, -1) / 255, atol=1e-6
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_pixels_of_small_images(channels):
  image = np.random.default_rng(0).integers(0, 256, (4, 32, 20, channels)).astype(np.uint8)
  made = pixels({'image': jnp.asarray(image)})
  assert made.dtype == np.float32
  np.testing.assert_allclose(made, image.reshape(4, -1) / 255, atol=1e-6)


def test_pixels_that_are_transparent_lie_on_white():
  image = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 4)).astype(np.uint8)
  image[0, 0, 0], image[0, 0, 1] = (10, 20, 30, 0), (51, 102, 153, 255)
  made = np.asarray(pixels({'image': jnp.asarray(image)})).reshape(4, 5, 6, 3)
  np.testing.assert_allclose(made[0, 0, 0], [1, 1, 1], atol=1e-6)
  np.testing.assert_allclose(made[0, 0, 1], [0.2, 0.4, 0.6], atol=1e-6)
  for one, rgba in zip(made, image, strict=True):
    white = Image.new('RGBA', (6, 5), (255, 255, 255, 255))
    want = Image.alpha_composite(white, Image.fromarray(rgba)).convert('RGB')
    np.testing.assert_allclose(one, np.asarray(want) / 255, atol=1.01 / 255)


def test_pixels_of_larger_images_are_reduced():
  # Pillow's bilinear filter is the same, antialiased, up to its rounding to 8 bits, twice.
  smooth = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype(np.uint8)
  image = np.asarray(Image.fromarray(smooth).resize((48, 100), Image.Resampling.BICUBIC))
  made = np.asarray(pixels({'image': jnp.asarray(image[None])})).reshape(32, 32, 3)
  want = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
  np.testing.assert_allclose(made * 255, want, atol=1.5)
  # One side alone is too long.
  thin = np.repeat(np.arange(0, 64, dtype=np.uint8)[:, None], 5, axis=1)[..., None]  # [64, 5, 1]
  made = np.asarray(pixels({'image': jnp.asarray(thin[None])})).reshape(32, 5)
  np.testing.assert_allclose(
    made[1:-1] * 255, np.arange(2.5, 62, 2)[:, None] + 0 * made[1:-1], atol=1e-3
  )


def test_a_method_that_is_missing():
  message = "representation_test calls 'embeddings', which Projected lacks; it has 'features'"
  with pytest.raises(ValueError, match=message):
    make(Arrays(*digits(4)), method='embeddings')


def test_features_are_vectors():
  with pytest.raises(ValueError, match=r"needs features \[B, D\]; 'tokens' gives \[8, 1, 6\]"):
    make(Arrays(*digits(4)), method='tokens', batch_size=8).run(state_of(0))


def test_labels_are_one_an_image():
  image, label = digits(4)
  evaluator = make(Arrays(image, np.eye(10, dtype=np.float32)[label]), baselines=())
  with pytest.raises(ValueError, match='needs one label an image, not multi-hot labels'):
    evaluator.run(state_of(0))


def test_an_unknown_baseline():
  with pytest.raises(ValueError, match="unknown baseline 'raw'; choose from 'random', 'pixels'"):
    make(Arrays(*digits(4)), baselines=('raw',))
