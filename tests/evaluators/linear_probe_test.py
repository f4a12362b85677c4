"""Linear probe: scikit-learn's accuracy, at any batch size, and chance where labels are."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.evaluators.linear_probe import LinearProbe


class Arrays:
  """A source of arrays in memory."""

  def __init__(self, image, label):
    self.image, self.label = image, label

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    return {'image': self.image[i], 'label': np.int32(self.label[i]), 'id': np.int64(i)}


class Projected(nn.Module):
  """Features that are linear in the pixels."""

  @nn.compact
  def features(self, batch):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    return nn.Dense(24)(x)


@pytest.fixture(scope='module')
def state():
  kernel = jax.random.normal(jax.random.key(0), (64, 24))
  params = {'Dense_0': {'kernel': kernel, 'bias': jnp.ones(24)}}
  return types.SimpleNamespace(step=0, params=params, model_state={})


def arrays(split):
  source = Digits(split)
  examples = [source[i] for i in range(len(source))]
  return np.stack([e['image'] for e in examples]), np.stack([e['label'] for e in examples])


def features_of(state, image):
  dense = state.params['Dense_0']
  x = image.reshape(len(image), -1).astype(np.float64) / 255
  return x @ np.asarray(dense['kernel'], np.float64) + np.asarray(dense['bias'], np.float64)


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def expected(train, test, l2, scaled_by=None):
  """By scikit-learn, from features [N, D] and labels [N] each."""
  mean, std = (lambda x: (x.mean(0), x.std(0)))(train[0] if scaled_by is None else scaled_by)
  model = LogisticRegression(C=1 / (len(train[0]) * l2), tol=1e-6, max_iter=2000)
  model.fit((train[0] - mean) / std, train[1])
  return model.score((test[0] - mean) / std, test[1])


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
def test_equals_scikit_learn_at_any_batch_size(state, batch_size, devices):
  evaluator = LinearProbe(
    Projected(),
    mesh_of(devices),
    train=Digits('train'),
    sources={'test': Digits('test'), 'half': Digits('test[:180]')},
    l2=1e-3,
    batch_size=batch_size,
    baselines=(),
  )
  result = evaluator.run(state)
  assert set(result) == {'test/accuracy', 'half/accuracy', 'l2', 'gradient', 'converged'}
  train, test = ((features_of(state, image), label) for image, label in map(arrays, SPLITS))
  want = expected(train, test, 1e-3)
  # One answer of 360 may be rounded over.
  assert result['test/accuracy'] == pytest.approx(want, abs=0.003) and want > 0.9
  half = tuple(part[:180] for part in test)
  assert result['half/accuracy'] == pytest.approx(expected(train, half, 1e-3), abs=0.006)
  assert result['l2'] == 1e-3 and result['converged'] == 1 and 0 < result['gradient'] <= 1e-5
  assert evaluator.run(state, final=True) == result


SPLITS = ('train', 'test')


@pytest.mark.parametrize('refit', [False, True])
def test_the_choice_of_l2_and_the_baselines(state, refit):
  strengths = (1e-3, 1.0, 100.0)
  evaluator = LinearProbe(
    Projected(),
    mesh_of(8),
    train=Digits('train[:150]'),
    source=Digits('test'),
    validation=Digits('validation'),
    l2=strengths,
    refit=refit,
  )
  result = evaluator.run(state)
  metrics = ('accuracy', 'l2', 'gradient', 'converged')
  assert set(result) == {m + of for m in metrics for of in ('', '_random', '_pixels')}
  image, label = arrays('train')
  train = features_of(state, image[:150]), label[:150]
  validation, test = (
    (features_of(state, image), label) for image, label in map(arrays, ('validation', 'test'))
  )
  scores = [expected(train, validation, l2) for l2 in strengths]
  assert result['l2'] == strengths[int(np.argmax(scores))] < 100
  both = tuple(np.concatenate(pair) for pair in zip(train, validation, strict=True))
  want = expected(both if refit else train, test, result['l2'], scaled_by=train[0])
  assert result['accuracy'] == pytest.approx(want, abs=0.003)
  assert result['accuracy_pixels'] > 0.85 and result['accuracy_random'] > 0.5
  assert result['converged'] == result['converged_pixels'] == result['converged_random'] == 1


def test_permuted_labels_fall_to_chance(state):
  image, label = arrays('train')
  permuted = Arrays(image, np.random.default_rng(0).permutation(label))
  evaluator = LinearProbe(
    Projected(), mesh_of(8), train=permuted, source=Digits('test'), l2=0.1, baselines=()
  )
  assert 0.04 < evaluator.run(state)['accuracy'] < 0.17


def test_stopping_early_is_told(state):
  evaluator = LinearProbe(
    Projected(), mesh_of(1), train=Digits(), source=Digits('test'), l2=1e-6, baselines=(),
    optimizer_options=dict(max_steps=3),
  )  # fmt: skip
  result = evaluator.run(state)
  assert result['converged'] == 0 and result['gradient'] > 1e-5


def test_sgd(state):
  evaluator = LinearProbe(
    Projected(), mesh_of(8), train=Digits(), source=Digits('test'), optimizer='sgd', baselines=(),
    optimizer_options=dict(epochs=20, batch_size=128),
  )  # fmt: skip
  result = evaluator.run(state)
  assert set(result) == {'accuracy', 'l2', 'gradient'} and result['l2'] == 0
  assert result['accuracy'] > 0.85
  evaluator = LinearProbe(
    Projected(), mesh_of(8), train=Digits(), source=Digits('test'), optimizer='sgd', baselines=(),
    optimizer_options=dict(epochs=20, batch_size=128, learning_rate=1e-9),
  )  # fmt: skip
  assert evaluator.run(state)['accuracy'] < result['accuracy']


def test_a_class_that_train_lacks_is_counted_as_wrong(state):
  (image, label), (_, answers) = map(arrays, SPLITS)
  odd = label % 2 == 1
  fields = dict(source=Digits('test'), baselines=())
  train = Arrays(image[odd], label[odd])
  result = LinearProbe(Projected(), mesh_of(1), train=train, l2=0.01, **fields).run(state)
  share = np.mean(answers % 2 == 1)
  assert 0.9 * share < result['accuracy'] <= share
  # In validation it is known once it is fitted to.
  fields |= dict(train=train, validation=Digits('validation'), l2=(0.01, 0.1))
  unknown, known = (
    LinearProbe(Projected(), mesh_of(1), refit=refit, **fields).run(state)
    for refit in (False, True)
  )
  assert unknown['accuracy'] <= share < known['accuracy']


def test_what_does_not_vary_counts_for_nothing(state):
  image, label = arrays('test')
  image[:, 0] = 255  # in the test alone; in training the corner is always black
  train = Arrays(
    np.where(np.arange(8)[:, None, None] == 0, 0, arrays('train')[0]), arrays('train')[1]
  )
  results = []
  for changed in (image, np.where(np.arange(8)[:, None, None] == 0, 0, image)):
    evaluator = LinearProbe(
      Projected(),
      mesh_of(1),
      train=train,
      source=Arrays(changed.astype(np.uint8), label),
      l2=0.01,
      baselines=('pixels',),
    )
    results.append(evaluator.run(state)['accuracy_pixels'])
  assert results[0] == results[1] > 0.8


def test_scale_is_taken_out_unless_told_not_to(state):
  smaller = jax.tree.map(lambda x: x * 1e-3, state.params)
  accuracy = {}
  for standardise in (True, False):
    evaluator = LinearProbe(
      Projected(),
      mesh_of(1),
      train=Digits(),
      source=Digits('test'),
      l2=0.01,
      standardise=standardise,
      baselines=(),
    )
    small = types.SimpleNamespace(params=smaller, model_state={})
    accuracy[standardise] = [evaluator.run(s)['accuracy'] for s in (state, small)]
  assert accuracy[True][0] == pytest.approx(accuracy[True][1], abs=0.003)
  assert accuracy[False][0] > accuracy[False][1] + 0.1


def test_from_a_config(state):
  spec = {
    'type': 'evaluators.linear_probe.LinearProbe',
    'train': {'type': 'data.digits.Digits'},
    'source': {'type': 'data.digits.Digits', 'split': 'test'},
    'l2': 0.01,
    'baselines': (),
  }
  evaluator = build(spec, objective=Projected(), mesh=mesh_of(8))
  assert evaluator.run(state)['accuracy'] > 0.85


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(method='answers'), "linear_probe calls 'answers', which Projected lacks"),
    (dict(optimizer='adam'), "unknown optimizer 'adam'; choose from 'lbfgs', 'sgd'"),
    (dict(l2=-1.0), 'must be at least 0'),
    (dict(l2=()), 'must be at least 0'),
    (dict(l2=(1.0, 2.0)), "several 'l2' need a 'validation' source"),
    (dict(), "several 'l2' need a 'validation' source"),
    (dict(l2=1.0, validation=Digits('validation')), "several 'l2' need a 'validation' source"),
    (dict(l2=1.0, optimizer_options=dict(epochs=3)), "unknown option of 'lbfgs' 'epochs'"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(ValueError, match=message):
    LinearProbe(Projected(), mesh_of(1), train=Digits(), source=Digits('test'), **fields)


def test_one_class_is_none(state):
  image, label = arrays('train')
  train = Arrays(image[label == 3], label[label == 3])
  evaluator = LinearProbe(Projected(), mesh_of(1), train=train, source=Digits('test'), l2=1.0)
  with pytest.raises(ValueError, match='needs two classes; all labels of train are 3'):
    evaluator.run(state)


def test_each_encoder_is_judged_example_by_example(state):
  evaluator = LinearProbe(
    Projected(), mesh_of(1), train=Digits('train'), source=Digits('test[:100]'), l2=1e-2
  )
  result = evaluator.run(state)
  encoders = evaluator.encoders(state)
  assert list(encoders) == ['trained', 'random', 'pixels']
  answers = []
  for name, encode in encoders.items():
    judged, l2, fit = evaluator.judge(encode)
    right, ids = judged['']
    np.testing.assert_array_equal(ids, [Digits('test[:100]')[i]['id'] for i in range(100)])
    suffix = '' if name == 'trained' else f'_{name}'
    assert right.mean() == pytest.approx(result[f'accuracy{suffix}'])
    assert (l2, fit.gradient) == (result['l2'], result[f'gradient{suffix}'])
    answers.append(right)
  assert any((one != answers[0]).any() for one in answers[1:])
