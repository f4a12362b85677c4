import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.losses import classification
from vit_jax.models.features import Features
from vit_jax.objectives.supervised import Supervised

B, K = 4, 6


class Pixels(nn.Module):
  """Hands on what it is given, so that a test can see it."""

  @nn.compact
  def __call__(self, image, *, train):
    self.sow('seen', 'image', image)
    self.sow('seen', 'train', train)
    tokens = image.reshape(image.shape[0], -1, image.shape[-1])
    return Features(pooled=image.reshape(image.shape[0], -1), tokens=tokens, grid=image.shape[1:3])


def make_batch(multi_hot=False):
  rng = np.random.default_rng(0)
  label = rng.integers(0, K, B).astype(np.int32)
  if multi_hot:
    label = (rng.random((B, K)) < 0.4).astype(np.float32)
    label[0] = 0
    label[1] = 1
  return {'image': rng.integers(0, 256, (B, 2, 2, 3), dtype=np.uint8), 'label': label}


def make(**fields):
  objective = Supervised(Pixels(), **{'num_classes': K, **fields})
  variables = nn.unbox(objective.init(jax.random.PRNGKey(0), make_batch(), train=False))
  return objective, {'params': variables['params']}


def seen(objective, variables, batch, *, train=False, **kwargs):
  _, state = objective.apply(variables, batch, train=train, mutable=['seen'], **kwargs)
  return {name: values[0] for name, values in state['seen']['encoder'].items()}


@pytest.mark.smoke
@pytest.mark.parametrize(
  ('loss', 'chance'), [('softmax', math.log(K)), ('sigmoid', K * math.log(2))]
)
def test_starts_at_chance_whatever_the_images(loss, chance):
  objective, variables = make(loss=loss, label_smoothing=0.1)
  for train in (False, True):
    value, metrics = objective.apply(variables, make_batch(), train=train)
    np.testing.assert_allclose(value, chance, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], np.full(B, chance), rtol=1e-6)


def test_the_bias_of_the_head_at_the_start():
  objective, variables = make(loss='sigmoid', head_bias=-4.0)
  np.testing.assert_array_equal(variables['params']['head']['bias'], np.full(K, -4.0))
  logits = objective.apply(variables, make_batch(), method='logits')
  np.testing.assert_array_equal(logits, np.full((B, K), -4.0))
  loss, _ = objective.apply(variables, make_batch(), train=False)
  # One class is there, the others are not: -log s(-4) - (K - 1) log s(4).
  expected = math.log1p(math.exp(4)) + (K - 1) * math.log1p(math.exp(-4))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert loss < K * math.log(2)


def test_images_reach_the_encoder_scaled():
  objective, variables = make()
  batch = make_batch()
  image = seen(objective, variables, batch)['image']
  np.testing.assert_allclose(image, batch['image'] / 127.5 - 1, atol=1e-6)
  as_float = {**batch, 'image': batch['image'].astype(np.float32) / 255}
  np.testing.assert_allclose(seen(objective, variables, as_float)['image'], image, atol=1e-6)


def test_images_are_normalised_by_channel():
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  objective, variables = make(mean=mean, std=std)
  batch = make_batch()
  expected = (batch['image'] / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(
    seen(objective, variables, batch)['image'], expected, rtol=1e-5, atol=1e-6
  )


def test_augments_and_smooths_in_training_only():
  objective, variables = make(augment='invert(p=1)', label_smoothing=0.3)
  batch, rngs = make_batch(), {'augment': jax.random.PRNGKey(0)}
  variables['params']['head']['bias'] = jnp.arange(K, dtype=jnp.float32)
  plain = batch['image'] / 127.5 - 1
  evaluated = seen(objective, variables, batch)
  trained = seen(objective, variables, batch, train=True, rngs=rngs)
  np.testing.assert_allclose(evaluated['image'], plain, atol=1e-6)
  np.testing.assert_allclose(trained['image'], -plain, atol=1e-6)
  assert (evaluated['train'], trained['train']) == (False, True)
  logits = np.tile(np.arange(K, dtype=np.float32), (B, 1))
  for train, smoothing in ((False, 0.0), (True, 0.3)):
    loss, _ = objective.apply(variables, batch, train=train, rngs=rngs)
    expected = classification.softmax_cross_entropy(logits, batch['label'], smoothing=smoothing)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)


def test_mixes_in_training_only():
  objective, variables = make(mix='mixup(5.0)')
  batch = make_batch()
  rngs = {'augment': jax.random.key(0)}
  plain = seen(objective, variables, batch)['image']
  mixed = seen(objective, variables, batch, train=True, rngs=rngs)['image']
  partner = np.roll(plain, -1, axis=0)
  share = ((mixed - partner) / np.where(plain == partner, np.nan, plain - partner)).reshape(B, -1)
  assert np.nanmax(np.nanstd(share, axis=1)) < 1e-4  # each image is a blend, in one proportion
  share = np.nanmean(share, axis=1)[:, None]
  assert ((share > 0) & (share < 1)).all()

  # With the head moved, the loss is the cross-entropy against labels of the same proportion.
  variables = jax.tree.map(lambda x: x + 0.1 * np.arange(x.size).reshape(x.shape) % 1, variables)
  _, metrics = objective.apply(variables, batch, train=True, rngs=rngs)
  logits = mixed.reshape(B, -1) @ variables['params']['head']['kernel']
  logits += variables['params']['head']['bias']
  one_hot = np.eye(K)[batch['label']]
  target = share * one_hot + (1 - share) * np.roll(one_hot, -1, axis=0)
  expected = -(target * jax.nn.log_softmax(logits)).sum(1)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4)


def test_other_transforms_in_evaluation():
  objective, variables = make(eval_augment='invert(p=1)')
  batch = make_batch()
  plain = batch['image'] / 127.5 - 1
  np.testing.assert_allclose(seen(objective, variables, batch)['image'], -plain, atol=1e-6)
  trained = seen(objective, variables, batch, train=True)
  np.testing.assert_allclose(trained['image'], plain, atol=1e-6)


def test_transforms_that_draw_need_the_stream_in_training():
  objective, variables = make(augment='flip')
  with pytest.raises(Exception, match='augment'):
    objective.apply(variables, make_batch(), train=True)


def test_accuracy_of_class_numbers():
  objective, variables = make()
  variables['params']['head']['bias'] = jnp.eye(K)[2]
  batch = {**make_batch(), 'label': np.array([2, 2, 0, 5], np.int32)}
  _, metrics = objective.apply(variables, batch, train=False)
  np.testing.assert_array_equal(metrics['accuracy'], [1, 1, 0, 0])


@pytest.mark.smoke
def test_multi_label():
  objective, variables = make(loss='sigmoid')
  batch = make_batch(multi_hot=True)
  bias = jnp.asarray([0.5, -1.0, 2.0, 0.0, 1.0, -3.0])
  variables['params']['head']['bias'] = bias
  loss, metrics = objective.apply(variables, batch, train=True)
  expected = optax.sigmoid_binary_cross_entropy(jnp.tile(bias, (B, 1)), batch['label']).sum(-1)
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
  # Right where the first answer, class 2, is among the labels; without labels never.
  np.testing.assert_array_equal(metrics['accuracy'], batch['label'][:, 2])
  assert metrics['accuracy'][0] == 0
  assert metrics['accuracy'][1] == 1


def test_features_are_what_the_encoder_pools_and_logits_are_linear_in_them():
  objective, variables = make()
  kernel = np.random.default_rng(3).normal(size=(12, K)).astype(np.float32)
  variables['params']['head']['kernel'] = jnp.asarray(kernel)
  batch = make_batch()
  features = objective.apply(variables, batch, method='features')
  np.testing.assert_allclose(features, batch['image'].reshape(B, -1) / 127.5 - 1, atol=1e-6)
  logits = objective.apply(variables, batch, method='logits')
  np.testing.assert_allclose(logits, features @ kernel, rtol=1e-5, atol=1e-5)


def test_a_head_in_float32_on_an_encoder_in_bfloat16():
  class Low(nn.Module):
    @nn.compact
    def __call__(self, image, *, train):
      x = image.reshape(image.shape[0], -1).astype(jnp.bfloat16)
      return Features(pooled=x, tokens=x[:, None])

  objective = Supervised(Low(), num_classes=K)
  variables = objective.init(jax.random.PRNGKey(0), make_batch(), train=False)
  assert objective.apply(variables, make_batch(), method='logits').dtype == jnp.float32


@pytest.mark.smoke
def test_an_unknown_loss_lists_the_choices():
  objective = Supervised(Pixels(), num_classes=K, loss='hinge')
  with pytest.raises(ValueError, match=r"^unknown loss 'hinge'; choose from 'softmax', 'sigmoid'"):
    jax.eval_shape(lambda: objective.init(jax.random.PRNGKey(0), make_batch(), train=False))


@pytest.mark.parametrize('num_classes', [0, -1])
def test_a_head_has_at_least_one_class(num_classes):
  objective = Supervised(Pixels(), num_classes=num_classes)
  with pytest.raises(ValueError, match=f'^num_classes must be at least 1, got {num_classes}'):
    jax.eval_shape(lambda: objective.init(jax.random.PRNGKey(0), make_batch(), train=False))


def test_an_unknown_transform_lists_the_choices():
  objective = Supervised(Pixels(), num_classes=K, augment='sharpen')
  with pytest.raises(
    ValueError, match="unknown transform 'sharpen' in 'sharpen'; choose from 'aff"
  ):
    objective.apply(make()[1], make_batch(), train=True, rngs={'augment': jax.random.PRNGKey(0)})
