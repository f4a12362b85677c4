"""Clustering: scikit-learn's agreement of scikit-learn's clusters, and chance where it is."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.evaluators.clustering import Clustering

STATE = types.SimpleNamespace(step=0, params={}, model_state={})


class Pixels(nn.Module):
  """Features are the pixels."""

  def features(self, batch):
    return batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32)


class Arrays:
  """A source of arrays in memory."""

  def __init__(self, image, label):
    self.image, self.label = image, label

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    return {'image': self.image[i], 'label': np.int32(self.label[i]), 'id': np.int64(i)}


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def arrays(split):
  source = Digits(split)
  examples = [source[i] for i in range(len(source))]
  return np.stack([e['image'] for e in examples]), np.array([e['label'] for e in examples])


def run(source, devices=8, **fields):
  fields = dict(baselines=(), starts=3) | fields
  return Clustering(Pixels(), mesh_of(devices), source=source, **fields).run(STATE)


def entropy(labels):
  share = np.bincount(labels) / len(labels)
  share = share[share > 0]
  return -(share * np.log(share)).sum()


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
@pytest.mark.parametrize('normalize', [True, False])
def test_equals_scikit_learn_at_any_batch_size(batch_size, devices, normalize):
  image, label = arrays('test')
  rows = image.reshape(len(image), -1).astype(np.float32)
  if normalize:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  clusters = KMeans(10, n_init=3, random_state=0).fit_predict(rows)
  fields = dict(batch_size=batch_size, normalize=normalize, purity=True)
  result = run(Digits('test'), devices, **fields)
  nmi = 2 * mutual_info_score(label, clusters) / (entropy(label) + entropy(clusters))
  most = [np.bincount(label[clusters == c]).max() for c in range(10)]
  want = {'nmi': nmi, 'ari': adjusted_rand_score(label, clusters), 'purity': sum(most) / len(label)}
  assert result == pytest.approx(want, abs=1e-9)
  assert result['nmi'] > 0.6


def test_length_matters_only_where_it_is_kept():
  # Two directions, each bright or dark: by length one pair of clusters, by direction the other.
  rng = np.random.default_rng(0)
  direction, bright = rng.integers(0, 2, 80), rng.integers(0, 2, 80)
  image = np.eye(2)[direction] * (20 + 220 * bright)[:, None] + rng.integers(0, 3, (80, 2))
  image = image.astype(np.uint8).reshape(80, 1, 2, 1)
  by_direction = Arrays(image, direction)
  assert run(by_direction) == {'nmi': pytest.approx(1), 'ari': pytest.approx(1)}
  assert run(by_direction, normalize=False)['ari'] < 0.7


def test_permuted_labels_fall_to_chance():
  image, label = arrays('test')
  permuted = Arrays(image, np.random.default_rng(0).permutation(label))
  result = run(permuted, purity=True)
  assert abs(result['ari']) < 0.02
  assert result['nmi'] < 0.1
  assert result['purity'] < 0.25


def test_as_many_clusters_as_classes_that_occur():
  image, label = arrays('test')
  kept = np.isin(label, (0, 3, 6))
  source = Arrays(image[kept], label[kept] * 100)
  assert run(source) == run(source, k=3)
  assert run(source)['ari'] > 0.9
  assert run(source, k=12)['ari'] < 0.5
  assert run(source, k=kept.sum(), purity=True)['purity'] == 1  # every example a cluster


def test_from_a_spec_with_its_baselines():
  spec = {
    'type': 'evaluators.clustering.Clustering',
    'sources': {
      'test': {'type': 'data.digits.Digits', 'split': 'test[:60]'},
      'validation': {'type': 'data.digits.Digits', 'split': 'validation[:60]'},
    },
    'starts': 2,
  }
  result = build(spec, objective=Pixels(), mesh=mesh_of(8)).run(STATE)
  metrics = ('nmi', 'nmi_random', 'nmi_pixels', 'ari', 'ari_random', 'ari_pixels')
  assert list(result) == [f'{s}/{m}' for s in ('test', 'validation') for m in metrics]
  # Pixels are in [0, 1] there, which changes no direction.
  assert result['test/nmi_pixels'] == pytest.approx(result['test/nmi'], abs=1e-9)
  assert result['test/nmi'] != result['validation/nmi']


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'k': 0}, 'k is 0; choose from 1 to 50, the examples of the smallest source'),
    ({'k': 51}, 'k is 51; choose from 1 to 50'),
    ({'starts': 0}, 'starts is 0; it must be at least 1'),
  ],
)
def test_numbers_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    run(Digits('test[:50]'), **fields)
