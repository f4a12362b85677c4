"""What is SimCLR's own; `objectives_test.py` has what holds for every objective."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.losses import contrastive
from vit_jax.objectives import inputs
from vit_jax.state import streams

B, SIDE, D = 6, 8, 16
ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=D, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
)


def batch(**more):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8),
    'label': (np.arange(B) % 3).astype(np.int32),
    'id': np.arange(B, dtype=np.int32),
    **more,
  }


def made(data=None, **fields):
  objective = build({'type': 'objectives.simclr.SimCLR', 'encoder': ENCODER, **fields})
  data = batch() if data is None else data
  variables = nn.unbox(objective.init(streams(jax.random.key(0)) | {'params': jax.random.key(1)},
                                      data, train=True))  # fmt: skip
  return objective, data, variables


def train(objective, data, variables, seed=0):
  (loss, metrics), _ = objective.apply(
    variables, data, train=True, rngs=streams(jax.random.key(seed)), mutable=['batch_stats']
  )
  return loss, metrics


def test_views_of_the_host_and_of_the_device_are_the_same_task():
  data = batch()
  data['views'] = np.stack([data['image']] * 2, axis=1)
  objective, _, variables = made(data)
  loss, _ = train(objective, data, variables)
  del data['views']
  np.testing.assert_allclose(train(objective, data, variables)[0], loss, rtol=1e-6)


def test_each_view_has_draws_of_its_own():
  data = batch()
  views = inputs.views(data, 'noise(0.5)', jax.random.key(0), 2)
  assert views.shape == (B, 2, SIDE, SIDE, 3)
  assert not np.allclose(views[:, 0], views[:, 1])
  assert len(np.unique(views[:, 0].sum((1, 2, 3)))) == B


def test_one_branch_alone_is_augmented():
  data = batch()
  views = inputs.views(data, ('', 'invert(p=1)'), jax.random.key(0), 2)
  image = data['image'].astype(np.float32) / 255
  np.testing.assert_allclose(views[:, 0], image, atol=1e-6)
  np.testing.assert_allclose(views[:, 1], 1 - image, atol=1e-6)
  with pytest.raises(ValueError, match='2 augmentations for 3 views'):
    inputs.views(data, ('', 'flip'), jax.random.key(0), 3)


def test_supervised_pulls_a_class_together():
  objective, data, variables = made(supervised=True, projection=dict(
    type='models.projection.Projection', norm=False))  # fmt: skip
  loss, _ = objective.apply(variables, data, train=False)
  z = jnp.repeat(objective.apply(variables, data, method=_embed)[:, None], 2, axis=1)
  expected, _ = contrastive.nt_xent(z, 0.1, labels=data['label'])
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
  assert not np.allclose(loss, contrastive.nt_xent(z, 0.1)[0].mean())


def _embed(objective, data):
  return objective.projection(objective.features(data), False)


@pytest.mark.parametrize('layer', [0, 1, 2, 3])
def test_features_are_read_where_asked(layer):
  objective, data, variables = made(
    projection=dict(type='models.projection.Projection', layers=3, width=24, dim=5)
  )
  features = objective.clone(features_layer=layer).apply(variables, data, method='features')
  assert features.shape == (B, (D, 24, 24, 5)[layer])
  encoded = objective.apply(variables, data, method='features')
  head = {k: v['projection'] for k, v in variables.items()}
  expected = objective.projection.apply(head, encoded, False, layer)
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(temperature=0.0), 'temperature must be positive'),
    (dict(views=1), 'views must be at least 2'),
    (dict(features_layer=3), 'features_layer is 3; choose from 0 to 2'),
  ],
)
def test_what_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('images', ['constant', 'one'])
def test_loss_and_gradients_are_finite(dtype, images):
  data = batch()
  if images == 'constant':
    data['image'][:] = 7
  else:
    data = {key: value[:1] for key, value in data.items()}
  objective, _, variables = made(data, encoder=dict(ENCODER, dtype=dtype))
  params, state = variables['params'], {'batch_stats': variables['batch_stats']}

  def loss(params):
    return train(objective, data, {'params': params, **state})[0]

  value, grads = jax.value_and_grad(loss)(params)
  assert np.isfinite(value)
  for grad in jax.tree.leaves(grads):
    assert np.isfinite(np.asarray(grad, np.float32)).all()
