"""PCA-whitening against scikit-learn, and on any mesh."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

from vit_jax import sharding
from vit_jax.whitening import map_rows, pca_whiten

N, D = 501, 10


@pytest.fixture(scope='module')
def features():
  rng = np.random.default_rng(0)
  mixed = rng.normal(size=(N, D)) * np.linspace(1, 4, D) @ rng.normal(size=(D, D))
  return (mixed + 3).astype(np.float32)


def mesh_of(devices):
  return sharding.make_mesh(dict(data=devices), jax.devices()[:devices])


def project(x, mean, projection):
  return (x - mean) @ projection


@pytest.mark.smoke
@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('dim', [1, 6, D])
def test_equals_scikit_learn_up_to_signs(features, devices, dim):
  mesh = mesh_of(devices)
  whitening = pca_whiten(features, dim, mesh, block=16)
  ours = map_rows(project, features, mesh, *whitening, block=64)
  theirs = PCA(dim, whiten=True, svd_solver='full').fit_transform(features.astype(np.float64))
  signs = np.sign((ours * theirs).sum(0))
  np.testing.assert_allclose(ours, theirs * signs, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(np.cov(ours.T).reshape(dim, dim), np.eye(dim), atol=1e-3)


def test_signs_are_fixed(features):
  _, projection = pca_whiten(features, D, mesh_of(1))
  largest = np.take_along_axis(projection, np.abs(projection).argmax(0)[None], axis=0)
  assert (largest > 0).all()


def test_what_does_not_vary_stays_small(features):
  x = np.concatenate([features, features[:, :1], np.full((N, 1), 7, np.float32)], axis=1)
  mesh = mesh_of(8)
  ours = map_rows(project, x, mesh, *pca_whiten(x, D + 2, mesh))
  assert np.isfinite(ours).all()
  np.testing.assert_allclose(ours[:, :D].std(0), 1, rtol=1e-2)
  assert np.abs(ours[:, D:]).max() < 0.1
  same = np.ones((4, 3), np.float32)
  np.testing.assert_array_equal(map_rows(project, same, mesh, *pca_whiten(same, 2, mesh)), 0)


def test_mistakes_are_one_sentence(features):
  for x, dim, most in ((features, D + 1, D), (features, 0, D), (features[:4], 4, 3)):
    message = f'dim is {dim}; {len(x)} points with {D} features can be whitened to 1 to {most}'
    with pytest.raises(ValueError, match=message):
      pca_whiten(x, dim, mesh_of(1))
  with pytest.raises(ValueError, match='eps must be positive'):
    pca_whiten(features, 2, mesh_of(1), eps=0)
