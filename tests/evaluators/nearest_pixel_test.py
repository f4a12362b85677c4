"""The nearest neighbour in pixels: scikit-learn's answers, exactly, in blocks."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators import nearest_pixel
from vit_jax.evaluators.nearest_pixel import NearestPixel


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def arrays(source):
  examples = [source[i] for i in range(len(source))]
  image = np.stack([e['image'] for e in examples])
  return image.reshape(len(image), -1), np.stack([e['label'] for e in examples])


class Counting(Digits):
  """Counts how often it is read."""

  reads = 0

  def __getitem__(self, i):
    Counting.reads += 1
    return super().__getitem__(i)


class Permuted(Digits):
  """The digits, each with the label of another one."""

  def __getitem__(self, i):
    order = np.random.default_rng(0).permutation(len(self))
    return {**super().__getitem__(i), 'label': super().__getitem__(int(order[i]))['label']}


class Torn(Digits):
  """The digits, of which the fifth is broken."""

  def __getitem__(self, i):
    if i == 4:
      raise BadExample('torn')
    return super().__getitem__(i)


@pytest.mark.parametrize('k', [1, 3, 10])
def test_equals_scikit_learn(k):
  train, test = arrays(Digits('train')), arrays(Digits('test'))
  model = KNeighborsClassifier(k, algorithm='brute').fit(train[0].astype(float), train[1])
  distance, _ = model.kneighbors(test[0].astype(float), n_neighbors=k + 1)
  certain = distance[:, k - 1] < distance[:, k]  # else which neighbours they are is a choice
  predicted = nearest_pixel.majority(train[1][nearest_pixel.nearest(test[0], train[0], k)])
  assert certain.mean() > 0.9
  np.testing.assert_array_equal(predicted[certain], model.predict(test[0].astype(float))[certain])


@pytest.mark.parametrize('batch_size, devices', [(1, 1), (7, 8), (64, 8)])
def test_accuracy_at_any_batch_size(batch_size, devices):
  train, test = Digits('train[:300]'), Digits('test[:60]')
  model = KNeighborsClassifier(1).fit(*arrays(train))
  evaluator = NearestPixel(None, mesh_of(devices), train=train, source=test, batch_size=batch_size)
  assert evaluator.run(None) == {'accuracy': model.score(*arrays(test))}


@pytest.mark.parametrize('batch_size', [1, 8])
def test_broken_images_are_left_out_even_where_a_batch_has_no_other(batch_size):
  train, test = Digits('train[:300]'), Digits('test[:20]')
  evaluator = NearestPixel(
    None,
    mesh_of(1),
    train=train,
    source=Torn('test[:20]'),
    batch_size=batch_size,
    max_bad_share=0.1,
  )
  images, labels = (np.delete(x, 4, 0) for x in arrays(test))
  model = KNeighborsClassifier(1).fit(*arrays(train))
  assert evaluator.run(None) == {'accuracy': model.score(images, labels)}


def test_permuted_labels_fall_to_chance():
  sources = {'true': Digits('test'), 'permuted': Permuted('test')}
  result = NearestPixel(None, mesh_of(8), train=Digits('train'), sources=sources).run(None)
  assert result['true/accuracy'] > 0.95
  assert 0.04 < result['permuted/accuracy'] < 0.17


def test_is_computed_once():
  evaluator = NearestPixel(
    None, mesh_of(1), train=Counting('train[:50]'), source=Counting('test[:20]')
  )
  first = evaluator.run(None)
  before = Counting.reads
  assert before > 0
  assert evaluator.run(None, final=True) == first
  assert Counting.reads == before


def test_exact_and_the_first_of_equal_ones(monkeypatch):
  # Differences of one gray level in 3072 values of about 200, where float32 cannot tell.
  rng = np.random.default_rng(0)
  base = rng.integers(150, 250, 3072).astype(np.int64)
  train = np.stack([base + (np.arange(3072) < n) for n in (9, 3, 7, 3, 1, 1, 5)]).astype(np.uint8)
  images = np.stack([base, base + (np.arange(3072) < 4), base]).astype(np.uint8)
  want = [[4, 5, 1, 3], [1, 3, 6, 2], [4, 5, 1, 3]]
  np.testing.assert_array_equal(nearest_pixel.nearest(images, train, 4), want)
  monkeypatch.setattr(nearest_pixel, 'BLOCK', 1)  # an image at a time
  np.testing.assert_array_equal(nearest_pixel.nearest(images, train, 4), want)


def test_the_majority():
  votes = np.array([[3, 1, 3], [2, 1, 0], [0, 4, 4]])
  np.testing.assert_array_equal(nearest_pixel.majority(votes), [3, 0, 4])


def test_transparent_drawings_lie_on_the_background():
  def accuracy(**fields):
    spec = dict(type='data.emoji.Emoji', styles=('google',), **fields)
    made = {
      'type': 'evaluators.nearest_pixel.NearestPixel',
      'train': {**spec, 'split': 'validation'},
      'sources': {'test': {**spec, 'split': 'test'}},
    }
    return build(made, objective=None, mesh=mesh_of(1), writer=None).run(None)['test/accuracy']

  assert accuracy(alpha=True) == accuracy(alpha=False) > 0.2


@pytest.mark.parametrize('k', [0, 51])
def test_k_is_among_the_training_images(k):
  with pytest.raises(ValueError, match=f'k is {k}; choose from 1 to 50'):
    NearestPixel(None, mesh_of(1), train=Digits('train[:50]'), source=Digits('test'), k=k)


def test_images_of_two_sizes():
  with pytest.raises(ValueError, match='192 values and those of the training source 64'):
    nearest_pixel.nearest(np.zeros((2, 192), np.uint8), np.zeros((5, 64), np.uint8), 1)
