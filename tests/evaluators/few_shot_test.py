"""Few-shot transfer: scikit-learn's accuracy, at any batch size, and chance where labels are."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators import few_shot
from vit_jax.evaluators.few_shot import FewShot


class Arrays:
  """A source of arrays in memory; the examples in `broken` do not decode."""

  def __init__(self, image, label, broken=()):
    self.image, self.label, self.broken, self.reads = image, label, broken, []

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    self.reads.append(i)
    if i in self.broken:
      raise BadExample('torn')
    return {'image': self.image[i], 'label': self.label[i], 'id': np.int64(i)}


class Projected(nn.Module):
  """Features that are linear in the pixels."""

  @nn.compact
  def features(self, batch):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    return nn.Dense(24)(x)

  def tokens(self, batch):
    return self.features(batch)[:, None]


@pytest.fixture(scope='module')
def state():
  kernel = jax.random.normal(jax.random.key(0), (64, 24))
  params = {'Dense_0': {'kernel': kernel, 'bias': jnp.ones(24)}}
  return types.SimpleNamespace(step=0, params=params, model_state={})


def arrays(split):
  source = Digits(split)
  examples = [source[i] for i in range(len(source))]
  return np.stack([e['image'] for e in examples]), np.stack([e['label'] for e in examples])


def few(*args, **fields):
  """Without baselines, which are the base class's."""
  return FewShot(*args, baselines=(), **fields)


def features_of(state, image):
  dense = state.params['Dense_0']
  x = image.reshape(len(image), -1).astype(np.float64) / 255
  return x @ np.asarray(dense['kernel'], np.float64) + np.asarray(dense['bias'], np.float64)


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def expected(state, train, test, drawn, l2=2.0**10):
  """By scikit-learn, from the examples `drawn` [draws, K, shots]."""
  scores = []
  for rows in drawn.reshape(len(drawn), -1):
    x, y = features_of(state, train[0][rows]), train[1][rows]
    mean, std = x.mean(0), x.std(0) + 1e-5

    def inputs(z, mean=mean, std=std):
      return np.concatenate([(z - mean) / std, np.full((len(z), 1), 100.0)], axis=1)

    model = Ridge(alpha=l2, fit_intercept=False, solver='cholesky')
    model.fit(inputs(x), 2 * np.eye(10)[y] - 1)
    answers = model.predict(inputs(features_of(state, test[0]))).argmax(1)
    scores.append(np.mean(answers == test[1]))
  return np.mean(scores)


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 1), (64, 8)])
def test_equals_scikit_learn_at_any_batch_size(state, batch_size, devices):
  evaluator = few(
    Projected(),
    mesh_of(devices),
    train=Digits('train'),
    source=Digits('test'),
    batch_size=batch_size,
  )
  result = evaluator.run(state)
  _, drawn = few_shot.draw(Digits('train'), 25, 3, 0)
  for shots in (5, 10, 25):
    want = expected(state, arrays('train'), arrays('test'), drawn[:, :, :shots])
    assert result[f'{shots}shot'] == pytest.approx(want, abs=1e-9)
  assert set(result) == {'5shot', '10shot', '25shot'}
  assert 0.6 < result['5shot'] < result['25shot'] < 1
  assert evaluator.run(state, final=True) == result


def test_permuted_labels_fall_to_chance(state):
  image, label = arrays('train')
  permuted = Arrays(image, np.random.default_rng(0).permutation(label))
  evaluator = few(Projected(), mesh_of(8), train=permuted, source=Digits('test'), shots=(25,))
  assert 0.04 < evaluator.run(state)['25shot'] < 0.17


def test_a_model_of_the_library_on_any_mesh():
  objective = build(
    {
      'type': 'objectives.supervised.Supervised',
      'num_classes': 10,
      'encoder': dict(
        type='models.vit.ViT', patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2
      ),
    }
  )
  batch = {'image': arrays('test')[0][:8], 'label': np.zeros(8, np.int32)}
  params = nn.unbox(objective.init(jax.random.key(0), batch, train=False))['params']
  made = types.SimpleNamespace(step=0, params=params, model_state={})
  results = []
  for shape, devices in ((dict(data=1), 1), (dict(data=2, fsdp=2, tensor=2), 8)):
    mesh = sharding.make_mesh(shape, jax.devices()[:devices])
    spec = {
      'type': 'evaluators.few_shot.FewShot',
      'train': {'type': 'data.digits.Digits'},
      'sources': {'test': {'type': 'data.digits.Digits', 'split': 'test'}},
      'shots': (5,),
    }
    evaluator = build(spec, objective=objective, mesh=mesh)
    results.append(evaluator.run(made))
  assert results[1] == pytest.approx(results[0], abs=0.004)  # one answer of 360 may be rounded over
  assert results[0]['test/5shot'] > 0.3


def test_several_sources_and_the_choice_of_l2(state):
  train, validation, test = arrays('train'), arrays('validation'), arrays('test')
  strengths = (1e-3, 1e2, 1e4, 1e8)
  sources = {'test': Digits('test'), 'half': Digits('test[:180]')}
  evaluator = few(
    Projected(),
    mesh_of(8),
    train=Digits('train'),
    sources=sources,
    validation=Digits('validation'),
    shots=(2, 10),
    draws=2,
    seed=5,
    l2=strengths,
  )
  result = evaluator.run(state)
  assert set(result) == {
    '2shot_l2', '10shot_l2', 'test/2shot', 'test/10shot', 'half/2shot', 'half/10shot',
  }  # fmt: skip
  _, drawn = few_shot.draw(Digits('train'), 10, 2, 5)
  for shots in (2, 10):
    chosen = drawn[:, :, :shots]
    scores = [expected(state, train, validation, chosen, l2) for l2 in strengths]
    best = strengths[int(np.argmax(scores))]
    assert result[f'{shots}shot_l2'] == best
    want = expected(state, train, test, chosen, best)
    assert result[f'test/{shots}shot'] == pytest.approx(want, abs=1e-9)
    half = tuple(part[:180] for part in test)
    want = expected(state, train, half, chosen, best)
    assert result[f'half/{shots}shot'] == pytest.approx(want, abs=1e-9)


def test_the_draw():
  source = Digits('train')
  _, labels = arrays('train')
  classes, drawn = few_shot.draw(source, 25, 3, 0)
  assert classes.tolist() == list(range(10)) and drawn.shape == (3, 10, 25)
  for one in drawn:
    assert len(np.unique(one)) == 250  # without replacement
    np.testing.assert_array_equal(labels[one], np.repeat(np.arange(10)[:, None], 25, 1))
  assert not (drawn[0] == drawn[1]).any(1).all()
  np.testing.assert_array_equal(few_shot.draw(source, 25, 3, 0)[1], drawn)
  np.testing.assert_array_equal(few_shot.draw(source, 5, 1, 0)[1], drawn[:1, :, :5])  # nested
  assert (few_shot.draw(source, 25, 3, 1)[1] != drawn).any()
  # Each example is as likely as any other of its class.
  mean = np.mean([few_shot.draw(source, 5, 1, seed)[1].mean() for seed in range(40)])
  assert abs(mean - len(source) / 2) < 4 * len(source) / np.sqrt(12 * 2000)


def test_labels_are_read_once_and_only_as_far_as_needed():
  image, label = arrays('train')
  source = Arrays(image, label)
  source.num_classes = 10
  few_shot.draw(source, 5, 2, 0)
  assert len(source.reads) == len(set(source.reads)) < len(source)


def test_classes_of_a_source_that_declares_none(state):
  image, label = arrays('train')
  odd = np.isin(label, (1, 5, 8))
  train = Arrays(image[odd], label[odd] * 10)
  classes, drawn = few_shot.draw(train, 5, 1, 0)
  assert classes.tolist() == [10, 50, 80] and drawn.shape == (1, 3, 5)
  test_image, test_label = arrays('test')
  seen = np.isin(test_label, (1, 5, 8))
  test = Arrays(test_image[seen], test_label[seen] * 10)
  evaluator = few(Projected(), mesh_of(8), train=train, source=test, shots=(5,))
  assert evaluator.run(state)['5shot'] > 0.8
  other = Arrays(test_image, test_label * 10)
  evaluator = few(Projected(), mesh_of(8), train=train, source=other, shots=(5,))
  with pytest.raises(ValueError, match=r'the source has label \d+, of which the training source'):
    evaluator.run(state)


def test_broken_examples_are_left_out(state):
  image, label = arrays('train')
  broken = tuple(few_shot.draw(Digits('train'), 5, 1, 0)[1][0, 0, :2])
  source = Arrays(image, label, broken=broken)
  _, drawn = few_shot.draw(source, 5, 1, 0)
  assert not np.isin(drawn, broken).any()
  test = arrays('test')
  evaluator = few(
    Projected(), mesh_of(1), train=source, source=Arrays(*test, broken=(3,)), shots=(5,), draws=1
  )
  kept = np.arange(len(test[0])) != 3
  want = expected(state, (image, label), (test[0][kept], test[1][kept]), drawn)
  assert evaluator.run(state)['5shot'] == pytest.approx(want, abs=1e-9)


def test_too_few_examples_name_the_class(state):
  class Few(Digits):
    classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

  evaluator = few(Projected(), mesh_of(1), train=Few('train[:60]'), source=Digits('test'))
  with pytest.raises(ValueError, match=r"class '[a-z]+' has \d+ examples in .* few for 25 shots"):
    evaluator.run(state)


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(method='answers'), "few_shot calls 'answers', which Projected lacks; it has 'features'"),
    (dict(shots=()), 'at least 1'),
    (dict(shots=(0, 5)), 'at least 1'),
    (dict(draws=0), 'draws 0 must be at least 1'),
    (dict(l2=0.0), 'must be positive'),
    (dict(l2=(1.0, 2.0)), "need a 'validation' source"),
    (dict(validation=Digits('validation')), "need a 'validation' source"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(ValueError, match=message):
    few(Projected(), mesh_of(1), train=Digits(), source=Digits('test'), **fields)


def test_what_features_and_labels_must_be(state):
  image, label = arrays('test')
  with pytest.raises(ValueError, match=r"needs features \[B, D\]; 'tokens' gives \[\d+, 1, 24\]"):
    few(Projected(), mesh_of(1), train=Digits(), source=Digits('test'), method='tokens').run(state)
  multi_hot = Arrays(image, np.eye(10, dtype=np.float32)[label])
  for train, test in ((multi_hot, Digits('test')), (Digits(), multi_hot)):
    with pytest.raises(ValueError, match='one label an image, not multi-hot'):
      few(Projected(), mesh_of(1), train=train, source=test).run(state)
