"""What is Rotation's own; `objectives_test.py` has what holds for every objective."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.objectives.rotation import TURNS, turn
from vit_jax.state import streams

B, SIDE = 6, 8
ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
)
RESNET = dict(type='models.resnet.ResNet', blocks=(1,), width=8, small_stem=True)


def batch(height=SIDE):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, height, SIDE, 3), dtype=np.uint8)
  return {'image': image, 'id': np.arange(B, dtype=np.int32)}


def apply(objective, variables, data, **options):
  return jax.jit(functools.partial(objective.apply, **options))(variables, data)


def made(data=None, **fields):
  objective = build({'type': 'objectives.rotation.Rotation', 'encoder': ENCODER, **fields})
  data = batch() if data is None else data
  variables = nn.unbox(jax.jit(lambda: objective.init(jax.random.key(0), data, train=False))())
  # A head of zeros has one answer for all.
  kernel = jax.random.normal(jax.random.key(1), variables['params']['head']['kernel'].shape)
  variables['params']['head']['kernel'] = kernel
  return objective, data, variables


def test_turning_is_numpys_and_turning_back_gives_the_image_exactly():
  image = np.random.default_rng(0).random((9, SIDE, SIDE, 3)).astype(np.float32)
  turns = np.arange(9) - 4
  turned = turn(image, turns)
  for one, k, expected in zip(turned, turns, image, strict=True):
    np.testing.assert_array_equal(one, np.rot90(expected, k))
  np.testing.assert_array_equal(turn(turned, -turns), image)


def test_the_loss_is_the_mean_over_the_four_rotations_of_each_image():
  objective, data, variables = made()
  loss, metrics = apply(objective, variables, data, train=False)
  losses, right = np.zeros((B, TURNS)), np.zeros((B, TURNS))
  for k in range(TURNS):
    turned = {**data, 'image': np.rot90(data['image'], k, axes=(1, 2))}
    features = apply(objective, variables, turned, method='features')
    logits = np.asarray(features @ variables['params']['head']['kernel'], np.float64)
    losses[:, k] = np.log(np.exp(logits).sum(1)) - logits[:, k]
    right[:, k] = logits.argmax(1) == k
  np.testing.assert_allclose(metrics['loss'], losses.mean(1), rtol=1e-4)
  np.testing.assert_allclose(metrics['accuracy'], right.mean(1), rtol=1e-6)
  np.testing.assert_allclose(loss, losses.mean(), rtol=1e-4)


def test_one_rotation_is_drawn_for_each_image():
  objective, data, variables = made(all_rotations=False)
  data = {**data, 'id': np.arange(B, dtype=np.int32) + 100}
  _, metrics = apply(objective, variables, data, train=False)
  pictures = apply(objective, variables, data, method='pictures')
  image, turned = np.asarray(pictures['image']), np.asarray(pictures['turned'])
  for i in range(B):
    # Which one it was is seen in the picture.
    (k,) = (k for k in range(TURNS) if np.array_equal(np.rot90(image[i], k), turned[i]))
    one = {'image': (255 * turned[i : i + 1]).round().astype(np.uint8)}
    logits = (
      apply(objective, variables, one, method='features') @ (variables['params']['head']['kernel'])
    )
    loss = jax.nn.logsumexp(logits[0]) - logits[0, k]
    np.testing.assert_allclose(metrics['loss'][i], loss, rtol=1e-4)
    told = int(jnp.argmax(logits[0]))
    np.testing.assert_array_equal(pictures['turned back'][i], np.rot90(turned[i], -told))
    assert metrics['accuracy'][i] == (told == k)


def test_rotations_are_drawn_evenly_and_anew_in_training():
  objective, _, variables = made(all_rotations=False)
  data = {'image': np.zeros((400, SIDE, SIDE, 3), np.uint8)}

  def draw(module, batch):
    return module._draw(batch, train=True)

  drawn = [
    apply(objective, variables, data, method=draw, rngs=streams(jax.random.key(k))) for k in (0, 1)
  ]
  counts = np.bincount(drawn[0], minlength=TURNS)
  assert counts.min() > 60 and len(counts) == TURNS  # 100 each, with a deviation of 9
  assert (drawn[0] != drawn[1]).mean() > 0.6


def test_a_batch_norm_sees_all_rotations_at_once():
  objective, data, variables = made(encoder=RESNET)
  _, new = apply(objective, variables, data, train=True, mutable=['batch_stats'])
  turned = np.concatenate([np.rot90(data['image'], k, axes=(1, 2)) for k in range(TURNS)])
  image = turned.astype(np.float32) / 127.5 - 1
  params, stats = variables['params']['encoder'], variables['batch_stats']['encoder']
  _, expected = objective.encoder.apply(
    {'params': params, 'batch_stats': stats}, image, train=True, mutable=['batch_stats']
  )
  for a, b in zip(
    jax.tree.leaves(new['batch_stats']), jax.tree.leaves(expected['batch_stats']), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_image_that_is_not_square_is_an_error():
  with pytest.raises(ValueError, match='Rotation turns square images, not 12x8; crop or resize'):
    made(batch(height=12))
