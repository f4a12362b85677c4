"""Classification: NumPy's figures, whatever the batch, the devices and the order of the labels."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators import tally
from vit_jax.evaluators.classification import Classification
from vit_jax.plots import images as image_plots


class Arrays:
  """A source of arrays in memory; the examples in `broken` do not decode."""

  def __init__(self, image, label, classes=(), broken=()):
    self.image, self.label, self.broken = image, label, broken
    if classes:
      self.classes = classes

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    if i in self.broken:
      raise BadExample('torn')
    return {'image': self.image[i], 'label': self.label[i], 'id': np.int64(i)}


class Linear(nn.Module):
  """Logits that are linear in the pixels."""

  num_classes: int

  @nn.compact
  def logits(self, batch):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    return nn.Dense(self.num_classes)(x)

  def features(self, batch):
    return batch['image'].reshape(len(batch['image']), -1)


class Pictures(dict):
  def picture(self, step, name, array):
    self[name] = step, array


def make_state(kernel, bias):
  params = {'Dense_0': {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(bias)}}
  return types.SimpleNamespace(step=jnp.int32(3), params=params, model_state={})


def arrays(split):
  source = Digits(split)
  examples = [source[i] for i in range(len(source))]
  return np.stack([e['image'] for e in examples]), np.stack([e['label'] for e in examples])


@pytest.fixture(scope='module')
def nearest_mean():
  """The classifier by the nearest class mean: closed form, and about 90 % right on the digits."""
  image, label = arrays('train')
  x = image.reshape(len(image), -1).astype(np.float32) / 255
  means = np.stack([x[label == k].mean(0) for k in range(10)])  # [10, 64]
  return make_state(10 * means.T, -5 * (means**2).sum(1))


@pytest.fixture(scope='module')
def test_set():
  image, label = arrays('test')
  return image[:150], label[:150]


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def logits_of(state, image):
  dense = state.params['Dense_0']
  x = image.reshape(len(image), -1).astype(np.float64) / 255
  return x @ np.asarray(dense['kernel'], np.float64) + np.asarray(dense['bias'], np.float64)


def calibration_error(confidence, right):
  """Eq. 3 of arXiv:1706.04599, bin by bin."""
  error = 0.0
  for m in range(15):
    rows = [i for i, c in enumerate(confidence) if m / 15 < c <= (m + 1) / 15]
    if rows:
      gap = np.mean([right[i] for i in rows]) - np.mean([confidence[i] for i in rows])
      error += len(rows) / len(right) * abs(gap)
  return error


def expected(logits, label):
  shifted = logits - logits.max(1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  order = np.argsort(-logits, axis=1, kind='stable')
  right = order[:, 0] == label
  return {
    'calibration_error': calibration_error(np.exp(log_p).max(1), right),
    'accuracy': np.mean(order[:, 0] == label),
    'top5': np.mean([y in row for y, row in zip(label, order[:, :5], strict=True)]),
    'loss': -np.mean(log_p[np.arange(len(label)), label]),
  }


@pytest.mark.parametrize('batch_size, devices', [(1, 1), (7, 1), (64, 1), (7, 8), (64, 8)])
def test_equals_numpy_at_any_batch_size(nearest_mean, test_set, batch_size, devices):
  source = Arrays(*test_set)
  evaluator = Classification(Linear(10), mesh_of(devices), source=source, batch_size=batch_size)
  result = evaluator.run(nearest_mean)
  want = expected(logits_of(nearest_mean, test_set[0]), test_set[1])
  assert set(result) == set(want)
  assert result['accuracy'] == want['accuracy'] and result['top5'] == want['top5']
  assert result['loss'] == pytest.approx(want['loss'], rel=1e-5)
  assert result['calibration_error'] == pytest.approx(want['calibration_error'], rel=1e-4)
  assert 0.01 < result['calibration_error'] < 0.5
  assert 0.8 < result['accuracy'] < 1


def test_permuted_labels_fall_to_chance(nearest_mean):
  image, label = arrays('test')
  permuted = np.random.default_rng(0).permutation(label)
  sources = {'true': Arrays(image, label), 'permuted': Arrays(image, permuted)}
  result = Classification(Linear(10), mesh_of(8), sources=sources).run(nearest_mean)
  assert result['true/accuracy'] > 0.8
  assert 0.05 < result['permuted/accuracy'] < 0.16
  assert result['permuted/loss'] > np.log(10)


@pytest.mark.parametrize('shape', [dict(data=8), dict(data=2, fsdp=2, tensor=2)])
def test_a_model_of_the_library_on_any_mesh(shape):
  mesh = sharding.make_mesh(shape)
  objective = build(
    {
      'type': 'objectives.supervised.Supervised',
      'num_classes': 10,
      'encoder': dict(
        type='models.vit.ViT', patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2
      ),
    }
  )
  image, label = arrays('test')
  batch = {'image': image[:50], 'label': label[:50], 'id': np.arange(50)}
  params = nn.unbox(objective.init(jax.random.key(0), batch, train=False))['params']
  params['head']['kernel'] = jax.random.normal(jax.random.key(1), (16, 10))
  logits = objective.apply({'params': params}, batch, method='logits')
  variables = jax.eval_shape(lambda: objective.init(jax.random.key(0), batch, train=False))
  placed = jax.device_put(params, sharding.parameter_shardings(variables, mesh)['params'])
  state = types.SimpleNamespace(step=0, params=placed, model_state={})
  spec = {
    'type': 'evaluators.classification.Classification',
    'source': {'type': 'data.digits.Digits', 'split': 'test[:50]'},
    'batch_size': 16,
  }
  with jax.set_mesh(mesh):  # as in the training loop
    result = build(spec, objective=objective, mesh=mesh, writer=None).run(state)
  want = expected(np.asarray(logits, np.float64), label[:50])
  assert result == pytest.approx(want, rel=1e-4)


def test_equal_logits_and_nan_are_no_right_answers(test_set):
  source = Arrays(*test_set)
  evaluator = Classification(Linear(10), mesh_of(1), source=source)
  zero = evaluator.run(make_state(np.zeros((64, 10)), np.zeros(10)))
  assert zero['accuracy'] == np.mean(test_set[1] == 0)
  assert zero['top5'] == np.mean(test_set[1] < 5)
  assert zero['loss'] == pytest.approx(np.log(10))
  nan = evaluator.run(make_state(np.full((64, 10), np.nan), np.zeros(10)))
  assert nan['accuracy'] == nan['top5'] == 0
  assert np.isnan(nan['loss']) and np.isnan(nan['calibration_error'])


def test_broken_examples_do_not_count(nearest_mean, test_set):
  right = expected(logits_of(nearest_mean, test_set[0]), test_set[1])['accuracy'] * 150
  first_is_right = logits_of(nearest_mean, test_set[0][:1]).argmax() == test_set[1][0]
  source = Arrays(*test_set, broken=(0,))
  result = Classification(Linear(10), mesh_of(1), source=source).run(nearest_mean)
  assert result['accuracy'] == pytest.approx((right - first_is_right) / 149)


def test_few_classes_have_no_top5(test_set):
  image, label = test_set
  state = make_state(np.ones((64, 3)), np.zeros(3))
  result = Classification(Linear(3), mesh_of(1), source=Arrays(image, label % 3)).run(state)
  assert set(result) == {'accuracy', 'loss', 'calibration_error'}
  source = Arrays(image, label % 3)
  result = Classification(Linear(3), mesh_of(1), source=source, top=(1, 2)).run(state)
  assert set(result) == {'accuracy', 'top2', 'loss', 'calibration_error'}


def test_multi_hot_labels(test_set):
  image = test_set[0]
  rng = np.random.default_rng(0)
  state = make_state(rng.normal(size=(64, 6)).astype(np.float32), np.zeros(6))
  logits = logits_of(state, image)
  label = ((logits + 3 * rng.normal(size=logits.shape)) > 1).astype(np.float32)
  label[:, 5] = 0  # a class that does not occur
  label[3] = 0  # an image without label
  writer, source = Pictures(), Arrays(image, label)
  evaluator = Classification(Linear(6), mesh_of(8), writer=writer, source=source, batch_size=64)
  result = evaluator.run(state, final=True)
  best = logits.argmax(1)
  hit = label[np.arange(len(label)), best] > 0
  assert result['accuracy'] == hit.mean()
  loss = np.logaddexp(0, logits) - label * logits
  assert result['loss'] == pytest.approx(loss.sum(1).mean(), rel=1e-5)
  precision = metrics.average_precision_score(label[:, :5], logits[:, :5], average='macro')
  assert result['mean_average_precision'] == pytest.approx(precision, rel=1e-6)
  assert result['class/2'] == hit[label[:, 2] > 0].mean()
  assert 'class/5' not in result
  assert 'calibration_error' not in result and set(writer) == {'mistakes'}
  # Without the image that has no label, all others as before.
  fewer = Classification(Linear(6), mesh_of(8), source=source, batch_size=64, skip_unlabelled=True)
  labelled = label.any(1)
  assert not labelled.all()
  assert fewer.run(state)['accuracy'] == hit[labelled].mean()
  assert fewer.run(state)['loss'] == pytest.approx(loss.sum(1)[labelled].mean(), rel=1e-5)
  source.skip_unlabelled = True  # as a source says it of itself
  own = Classification(Linear(6), mesh_of(8), source=source, batch_size=64)
  assert own.run(state) == fewer.run(state)
  nothing = Arrays(image, np.zeros_like(label))
  with pytest.raises(ValueError, match='no example of the source has a label'):
    Classification(Linear(6), mesh_of(1), source=nothing, skip_unlabelled=True).run(state)


def test_average_precision_with_equal_scores():
  rng = np.random.default_rng(1)
  scores = rng.integers(0, 4, (60, 3)).astype(np.float32)
  labels = rng.random((60, 3)) < 0.3
  want = metrics.average_precision_score(labels, scores, average='macro')
  assert tally.mean_average_precision(scores, labels) == pytest.approx(want)
  assert np.isnan(tally.mean_average_precision(scores, np.zeros((60, 3), bool)))


def test_the_last_run_adds_classes_and_pictures(nearest_mean, test_set):
  classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
  writer, source = Pictures(), Arrays(*test_set, classes=classes)
  evaluator = Classification(Linear(10), mesh_of(1), writer=writer, sources={'digits': source})
  names = {'accuracy', 'top5', 'loss', 'calibration_error'}
  assert set(evaluator.run(nearest_mean)) == {f'digits/{k}' for k in names}
  assert not writer
  result = evaluator.run(nearest_mean, final=True)
  right = logits_of(nearest_mean, test_set[0]).argmax(1) == test_set[1]
  for k, name in enumerate(classes):
    assert result[f'digits/class/{name}'] == right[test_set[1] == k].mean()
  assert set(writer) == {f'digits/{k}' for k in ('calibration', 'confusion', 'mistakes')}
  for step, array in writer.values():
    assert step == 3 and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
  quiet = Classification(Linear(10), mesh_of(1), source=source, per_class=False)
  assert set(quiet.run(nearest_mean, final=True)) == names


def test_pictures_do_not_depend_on_the_batch(nearest_mean, test_set):
  drawn = []
  for batch_size, devices in ((7, 1), (64, 8)):
    writer = Pictures()
    Classification(
      Linear(10), mesh_of(devices), writer=writer, source=Arrays(*test_set), batch_size=batch_size
    ).run(nearest_mean, final=True)
    drawn.append(writer)
  for name in ('calibration', 'confusion', 'mistakes'):
    np.testing.assert_array_equal(drawn[0][name][1], drawn[1][name][1])


def test_the_first_mistake_is_the_most_confident_one(nearest_mean, test_set):
  logits = logits_of(nearest_mean, test_set[0])
  shifted = np.exp(logits - logits.max(1, keepdims=True))
  confidence = (shifted / shifted.sum(1, keepdims=True)).max(1)
  wrong = logits.argmax(1) != test_set[1]
  first = test_set[0][np.argmax(np.where(wrong, confidence, 0))]
  writer = Pictures()
  Classification(Linear(10), mesh_of(8), writer=writer, source=Arrays(*test_set)).run(
    nearest_mean, final=True
  )
  side = image_plots.enlarge(image_plots.to_rgb(first), 160)
  picture = writer['mistakes'][1]
  gap = image_plots.GAP
  top = gap + image_plots.TITLE
  np.testing.assert_array_equal(picture[top : top + len(side), gap : gap + len(side)], side)
  # Without mistakes there is nothing to draw.
  writer.clear()
  perfect = Arrays(test_set[0], logits.argmax(1).astype(np.int32))
  Classification(Linear(10), mesh_of(8), writer=writer, source=perfect).run(
    nearest_mean, final=True
  )
  assert set(writer) == {'calibration', 'confusion'}


def test_calibration_of_answers_whose_confidence_is_right():
  rng = np.random.default_rng(0)
  confidence = rng.uniform(0.1, 1, 50000).astype(np.float32)
  right = rng.random(50000) < confidence
  error = tally.calibration_error(tally.confidence_bins(confidence, right))
  assert error < 0.01
  assert error == pytest.approx(calibration_error(confidence.astype(float), right), rel=1e-9)
  sure = tally.calibration_error(tally.confidence_bins(np.ones(50000, np.float32), right))
  assert sure == pytest.approx(1 - right.mean())  # sure of everything
  bins = tally.confidence_bins(np.array([0.0, 0.01, 1.0]), np.array([False, False, True]))
  assert bins[:, 0].tolist() == [2] + 13 * [0] + [1]  # both ends are in a bin


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
def test_answers_are_chosen_from_some_classes(nearest_mean, test_set, batch_size, devices):
  classes, chosen = (2, 3, 5, 7), np.isin(test_set[1], (2, 3, 5, 7))
  image, label = test_set[0][chosen], test_set[1][chosen]
  want = expected(logits_of(nearest_mean, image)[:, classes], np.searchsorted(classes, label))
  del want['top5']  # of four classes
  names = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
  sources = {'all': Arrays(*test_set), 'some': Arrays(image, label, names)}
  sources['some'].subset = classes[::-1]
  writer = Pictures()
  evaluator = Classification(
    Linear(10), mesh_of(devices), writer=writer, sources=sources, batch_size=batch_size
  )
  result = evaluator.run(nearest_mean, final=True)
  some = {k[5:]: v for k, v in result.items() if k.startswith('some/')}
  by_class = {k: some.pop(k) for k in list(some) if k.startswith('class/')}
  assert some == pytest.approx(want, rel=1e-4)
  assert set(by_class) == {'class/two', 'class/three', 'class/five', 'class/seven'}
  assert (
    result['all/accuracy']
    == expected(logits_of(nearest_mean, test_set[0]), test_set[1])['accuracy']
  )
  assert some['accuracy'] >= np.mean(logits_of(nearest_mean, image).argmax(1) == label)
  # The same by the evaluator's own field.
  source = Arrays(image, label)
  evaluator = Classification(Linear(10), mesh_of(devices), source=source, classes=classes)
  assert evaluator.run(nearest_mean) == pytest.approx(want, rel=1e-4)
  multi_hot = Arrays(image, np.eye(10, dtype=np.float32)[label])
  evaluator = Classification(Linear(10), mesh_of(devices), source=multi_hot, classes=classes)
  assert evaluator.run(nearest_mean)['accuracy'] == want['accuracy']


def test_mistakes_in_the_classes(nearest_mean, test_set):
  def run(**fields):
    return Classification(Linear(10), mesh_of(1), source=Arrays(*test_set), **fields)

  with pytest.raises(
    ValueError, match=r'has label \d, which is none of the 3 classes that answers'
  ):
    run(classes=(1, 2, 3)).run(nearest_mean)
  with pytest.raises(ValueError, match='classes has 12, but the model gives 10 logits, for 0 to 9'):
    run(classes=(1, 12)).run(nearest_mean)
  for classes in ((), (1, 2, 1)):
    with pytest.raises(ValueError, match='are empty or name one twice'):
      run(classes=classes)


def test_a_missing_method_lists_those_there_are(test_set):
  message = "Evaluator classification calls 'answers', which Linear lacks; it has 'features', 'log"
  with pytest.raises(ValueError, match=message):
    Classification(Linear(10), mesh_of(1), source=Arrays(*test_set), method='answers')


@pytest.mark.parametrize('bad', [10, 77, -1])
def test_labels_beyond_the_logits(nearest_mean, test_set, bad):
  label = test_set[1].copy()
  label[149] = bad
  evaluator = Classification(Linear(10), mesh_of(1), sources={'odd': Arrays(test_set[0], label)})
  with pytest.raises(ValueError, match=f"source 'odd' has label {bad}, but the model gives 10 log"):
    evaluator.run(nearest_mean)


def test_multi_hot_labels_of_another_width(nearest_mean, test_set):
  source = Arrays(test_set[0], np.zeros((150, 4), np.float32))
  with pytest.raises(ValueError, match='multi-hot over 4 classes, the logits are 10'):
    Classification(Linear(10), mesh_of(1), source=source).run(nearest_mean)


@pytest.mark.parametrize('fields', [{}, dict(source=Digits(), sources=dict(a=Digits()))])
def test_one_source_or_several(fields):
  with pytest.raises(ValueError, match="one 'source' or several 'sources'"):
    Classification(Linear(10), mesh_of(1), **fields)
