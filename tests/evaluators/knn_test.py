"""Nearest neighbours: scikit-learn's answers, at any batch size and on any mesh; else chance."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.evaluators import knn
from vit_jax.evaluators.knn import KNN

STATE = types.SimpleNamespace(step=0, params={}, model_state={})


class Centred(nn.Module):
  """Features are the pixels less 128: a gray image has the features zero."""

  def features(self, batch):
    image = batch['image']
    return image.reshape(len(image), -1).astype(jnp.float32) - 128


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
  return np.stack([e['image'] for e in examples]), np.stack([e['label'] for e in examples])


def inputs(image):
  return image.reshape(len(image), -1) - 128.0


def weights(temperature):
  """Of distances 1 - cosine, as scikit-learn asks for them."""
  return lambda distance: np.exp((1 - distance) / temperature)


def expected(k, temperature, train, test):
  votes = 'uniform' if temperature is None else weights(temperature)
  model = KNeighborsClassifier(k, metric='cosine', weights=votes, algorithm='brute')
  return model.fit(inputs(train[0]), train[1]).score(inputs(test[0]), test[1])


def loop(train, test, k, temperature):
  """An image at a time, a vote at a time."""
  right = 0
  for image, label in zip(inputs(test[0]), test[1], strict=True):
    rows = inputs(train[0])
    lengths = np.sqrt((rows**2).sum(1) * (image**2).sum())
    cosines = np.divide(rows @ image, lengths, out=np.zeros(len(rows)), where=lengths > 0)
    votes = np.zeros(10)
    for i in np.argsort(-cosines, kind='stable')[:k]:
      votes[train[1][i]] += 1 if temperature is None else np.exp(cosines[i] / temperature)
    right += votes.argmax() == label
  return right / len(test[1])


def run(train, test, devices=8, **fields):
  fields = dict(k=20, baselines=()) | fields
  return KNN(Centred(), mesh_of(devices), train=train, source=test, **fields).run(STATE)


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
@pytest.mark.parametrize('temperature', [0.07, None])
def test_equals_scikit_learn_at_any_batch_size(batch_size, devices, temperature):
  # 301 training images are no multiple of 8 devices; 200 of them are weighed down to far ones.
  sources = Digits('train[:301]'), Digits('test[:150]')
  data = arrays('train[:301]'), arrays('test[:150]')
  fields = dict(batch_size=batch_size, temperature=temperature)
  result = run(*sources, devices, k=(10, 20, 100, 200), **fields)
  assert list(result) == ['10nn', '20nn', '100nn', '200nn']
  for k in (10, 20, 100, 200):
    want = expected(k, temperature, *data)
    assert result[f'{k}nn'] == pytest.approx(want, abs=1e-9)
    assert want == pytest.approx(loop(*data, k, temperature), abs=1e-9)
  assert result['10nn'] > 0.85


def test_the_published_protocol_is_the_default():
  evaluator = KNN(Centred(), mesh_of(8), train=Digits('train'), source=Digits('test'), baselines=())
  want = expected(200, 0.07, arrays('train'), arrays('test'))
  assert evaluator.run(STATE) == {'accuracy': pytest.approx(want, abs=1e-9)}


def test_permuted_labels_fall_to_chance():
  image, label = arrays('train')
  permuted = Arrays(image, np.random.default_rng(0).permutation(label))
  assert 0.04 < run(permuted, Digits('test'))['accuracy'] < 0.17


@pytest.mark.parametrize('devices', [1, 8])
def test_features_of_zeros_and_ties(devices):
  # Gray images are equally like everything: the first 3 training images vote, labels 4, 4 and 2.
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (20, 2, 2, 1)).astype(np.uint8)
  train = Arrays(image, [4, 4, 2] + [7] * 17)
  gray = np.full((3, 2, 2, 1), 128, np.uint8)
  assert run(train, Arrays(gray, [4, 4, 2]), devices, k=3) == {'accuracy': pytest.approx(2 / 3)}
  # The same image five times under two labels: the first of them is the nearest one.
  same = Arrays(np.repeat(image[:2], [5, 3], axis=0), [6, 5, 5, 5, 5, 1, 1, 1])
  assert run(same, Arrays(image[:1], [6]), devices, k=1) == {'accuracy': 1}
  assert run(same, Arrays(image[:1], [5]), devices, k=2) == {'accuracy': 1}  # the lower label


def test_several_sources_and_labels_with_gaps():
  image, label = arrays('train[:100]')
  train = Arrays(image, 1000 * label)
  sources = {'same': train, 'others': Arrays(image, label + 1)}
  evaluator = KNN(Centred(), mesh_of(8), train=train, sources=sources, k=[1, 5], baselines=())
  result = evaluator.run(STATE)
  assert result['same/1nn'] == 1 and result['others/1nn'] == 0
  assert list(result) == ['same/1nn', 'same/5nn', 'others/1nn', 'others/5nn']


def test_votes_do_not_overflow():
  scores = np.array([[1, 0.99, 0.99, 0.99], [0.5, 0.5, 0.5, -1]], np.float32)
  votes = np.array([[2, 1, 1, 1], [0, 1, 1, 0]])
  np.testing.assert_array_equal(knn.vote(scores, votes, 3, 1e-4), [2, 1])
  np.testing.assert_array_equal(knn.vote(scores, votes, 3, 1.0), [1, 1])
  np.testing.assert_array_equal(knn.vote(scores, votes, 3, None), [1, 0])


def test_votes_are_counted_in_blocks(monkeypatch):
  rng = np.random.default_rng(0)
  scores = -np.sort(-rng.uniform(-1, 1, (23, 9)), axis=1)
  votes = rng.integers(0, 5, (23, 9))
  want = knn.vote(scores, votes, 5, 0.07)
  monkeypatch.setattr(knn, 'BLOCK', 4)
  np.testing.assert_array_equal(knn.vote(scores, votes, 5, 0.07), want)


def test_from_a_spec_with_its_baselines():
  spec = {
    'type': 'evaluators.knn.KNN',
    'train': {'type': 'data.digits.Digits', 'split': 'train[:100]'},
    'sources': {'test': {'type': 'data.digits.Digits', 'split': 'test[:50]'}},
    'k': 5,
  }
  result = build(spec, objective=Centred(), mesh=mesh_of(8)).run(STATE)
  names = ['test/accuracy', 'test/accuracy_random', 'test/accuracy_pixels']
  assert list(result) == names
  assert result['test/accuracy_random'] == result['test/accuracy'] > 0.6


@pytest.mark.parametrize('k', [0, 51, (5, 51), ()])
def test_k_is_among_the_training_images(k):
  with pytest.raises(ValueError, match=r'k is (0|51); choose from 1 to 50, the training images'):
    KNN(Centred(), mesh_of(1), train=Digits('train[:50]'), source=Digits('test'), k=k)


@pytest.mark.parametrize('temperature', [0, -0.1])
def test_temperature_is_positive(temperature):
  with pytest.raises(ValueError, match=f'temperature {temperature} must be positive'):
    run(Digits('train'), Digits('test'), temperature=temperature)
