"""What is DeepCluster's own; `objectives_test.py` has what holds for every objective."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.objectives import deepcluster

B, SIDE, K, N, D = 6, 8, 4, 20, 16
ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=D, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
)


@pytest.fixture(scope='module')
def made():
  """The objective, a batch, and variables whose head is away from its zeros."""
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8),
    'id': np.array([3, 19, 0, 7, 7, 12], np.int32),
  }
  objective = build(
    dict(type='objectives.deepcluster.DeepCluster', encoder=ENCODER, num_clusters=K, num_examples=N)
  )
  variables = nn.unbox(objective.init(jax.random.key(0), batch, train=False))
  variables['params']['head']['kernel'] = rng.normal(size=(D, K)).astype(np.float32)
  return objective, batch, variables


def with_clusters(variables, **values):
  codebook = {**variables['clusters']['codebook'], **values}
  return {**variables, 'clusters': {'codebook': codebook}}


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_target_is_the_cluster_of_the_id_weighted(made):
  objective, batch, variables = made
  assignment = np.arange(N, dtype=np.int32) % 3
  assignment[7] = -1  # in no clustering
  weight = np.array([0.5, 2.0, 1.0, 9.0], np.float32)
  variables = with_clusters(variables, assignment=assignment, weight=weight, nmi_labels=0.25)
  loss, metrics = objective.apply(variables, batch, train=True)
  features = objective.apply(variables, batch, method='features')
  logits = features @ variables['params']['head']['kernel']
  expected = [
    0 if assignment[i] < 0 else -weight[assignment[i]] * row[assignment[i]]
    for i, row in zip(batch['id'], log_softmax(np.asarray(logits)), strict=True)
  ]
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
  assert metrics['nmi_labels'] == 0.25
  largest = np.maximum(assignment[batch['id']], 0) == 0  # whose weight is least
  np.testing.assert_array_equal(metrics['baseline'], largest)
  answers = np.asarray(logits).argmax(1)
  known = batch['id'] != 7
  np.testing.assert_array_equal(
    metrics['accuracy'][known], (answers == assignment[batch['id']])[known]
  )


def test_in_evaluation_any_image_has_its_nearest_center(made):
  objective, batch, variables = made
  rng = np.random.default_rng(1)
  features = np.asarray(objective.apply(variables, batch, method='features'))
  mean, projection = features.mean(0), rng.normal(size=(D, D))
  centers = rng.normal(size=(K, D))
  values = dict(mean=mean, projection=projection, centers=centers)
  values = {name: value.astype(np.float32) for name, value in values.items()}
  variables = with_clusters(variables, clusterings=jnp.int32(1), **values)
  batch = {**batch, 'id': np.full(B, 10**6, np.int32)}  # of no training example
  z = (features - mean) @ projection
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  nearest = ((z[:, None] - centers) ** 2).sum(-1).argmin(1)
  assert len(set(nearest)) > 1
  logits = features @ variables['params']['head']['kernel']
  _, metrics = objective.apply(variables, batch, train=False)
  expected = -log_softmax(logits)[np.arange(B), nearest]
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(metrics['accuracy'], logits.argmax(1) == nearest)


def test_features_are_whitened_to_no_more_dimensions_than_they_have(made):
  objective, batch, _ = made
  for pca, dim in ((4, 4), (256, D)):
    shapes = jax.eval_shape(
      lambda pca=pca: objective.clone(pca=pca).init(jax.random.key(0), batch, train=False)
    )
    codebook = shapes['clusters']['codebook']
    assert codebook['projection'].shape == (D, dim)
    assert codebook['centers'].shape == (K, dim)


def test_zero_features_stay_finite():
  zeros = jnp.zeros((2, 3))
  np.testing.assert_array_equal(deepcluster.compress(zeros, jnp.zeros(3), jnp.eye(3)), zeros)


@pytest.mark.parametrize(
  ('field', 'value', 'least'), [('num_clusters', 1, 2), ('num_examples', 0, 1), ('pca', 0, 1)]
)
def test_mistakes_are_one_sentence(made, field, value, least):
  objective, batch, variables = made
  with pytest.raises(ValueError, match=f'{field} must be at least {least}, got {value}'):
    objective.clone(**{field: value}).apply(variables, batch, train=False)
