import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.losses import classification

pytestmark = pytest.mark.smoke

B, K = 6, 5
FUNCTIONS = classification.LOSSES


def make(multi_label=False, scale=3.0):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(B, K)).astype(np.float32) * scale
  if multi_label:
    label = (rng.random((B, K)) < 0.4).astype(np.int32)
    label[0] = 0  # Nothing in the picture.
    return logits, label
  return logits, rng.integers(0, K, B)


def as_targets(label, smoothing):
  """[B][K] probabilities, one number at a time."""
  rows = []
  for y in label:
    row = [float(k == y) for k in range(K)] if np.ndim(y) == 0 else [float(v) for v in y]
    rows.append([v * (1 - smoothing) + smoothing / K for v in row])
  return rows


def softmax_loop(logits, label, smoothing):
  losses = []
  for row, target in zip(logits.astype(float), as_targets(label, smoothing), strict=True):
    total = sum(math.exp(x - max(row)) for x in row)
    losses.append(
      -sum(t * (x - max(row) - math.log(total)) for x, t in zip(row, target, strict=True))
    )
  return losses


def sigmoid_loop(logits, label, smoothing):
  losses = []
  for row, target in zip(logits.astype(float), as_targets(label, smoothing), strict=True):
    loss = 0.0
    for x, t in zip(row, target, strict=True):
      p = 1 / (1 + math.exp(-x))
      loss -= t * math.log(p) + (1 - t) * math.log(1 - p)
    losses.append(loss)
  return losses


LOOPS = {'softmax': softmax_loop, 'sigmoid': sigmoid_loop}


def test_every_loss_has_a_loop():
  assert set(LOOPS) == set(FUNCTIONS)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('multi_label', [False, True])
@pytest.mark.parametrize('name', LOOPS)
def test_is_what_a_plain_loop_gives(name, multi_label, smoothing):
  logits, label = make(multi_label)
  loss = FUNCTIONS[name](logits, label, smoothing=smoothing)
  assert (loss.shape, loss.dtype) == ((B,), jnp.float32)
  np.testing.assert_allclose(loss, LOOPS[name](logits, label, smoothing), rtol=1e-5)


@pytest.mark.parametrize('name', LOOPS)
def test_class_numbers_and_their_one_hot_vectors_are_alike(name):
  logits, label = make()
  np.testing.assert_allclose(
    FUNCTIONS[name](logits, label, smoothing=0.1),
    FUNCTIONS[name](logits, np.eye(K)[label], smoothing=0.1),
    rtol=1e-6,
  )


def test_softmax_of_probabilities_is_their_cross_entropy():
  logits, _ = make()
  label = np.random.default_rng(1).dirichlet(np.ones(K), B).astype(np.float32)
  expected = softmax_loop(logits, label, 0.0)
  np.testing.assert_allclose(FUNCTIONS['softmax'](logits, label), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'chance'), [('softmax', math.log(K)), ('sigmoid', K * math.log(2))]
)
def test_equal_logits_give_the_chance_value(name, chance):
  _, label = make()
  for smoothing in (0.0, 0.1):
    loss = FUNCTIONS[name](jnp.zeros((B, K)), label, smoothing=smoothing)
    np.testing.assert_allclose(loss, np.full(B, chance), rtol=1e-6)


@pytest.mark.parametrize('multi_label', [False, True])
@pytest.mark.parametrize('name', LOOPS)
def test_float32_inside_whatever_the_compute_dtype(name, multi_label):
  logits, label = make(multi_label, scale=20.0)
  low = jnp.asarray(logits, jnp.bfloat16)
  loss = FUNCTIONS[name](low, jnp.asarray(label), smoothing=0.1)
  assert loss.dtype == jnp.float32
  # The same as that of the rounded logits in float32: nothing is lost after the input.
  rounded = np.asarray(low.astype(jnp.float32))
  np.testing.assert_allclose(loss, LOOPS[name](rounded, label, 0.1), rtol=1e-4, atol=1e-6)
  in_bfloat16 = np.asarray(loss.astype(jnp.bfloat16).astype(jnp.float32))
  assert np.abs(np.asarray(loss) - in_bfloat16).max() > 0


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('size', [1e4, 1e30])
@pytest.mark.parametrize('name', LOOPS)
def test_gradients_stay_finite_at_huge_logits(name, size, dtype):
  logits = jnp.asarray(size * np.array([[1, -1, 0, 1, -1], [-1, 1, 1, 0, 0]]), dtype)
  for label in ([0, 0], [1, 3]):

    def total(x, label=label):
      return FUNCTIONS[name](x, jnp.asarray(label), smoothing=0.1).sum()

    value, grad = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert grad.dtype == dtype
    assert np.isfinite(np.asarray(grad, np.float32)).all()
    assert np.abs(np.asarray(grad, np.float32)).max() > 0


@pytest.mark.parametrize('multi_label', [False, True])
@pytest.mark.parametrize('name', LOOPS)
def test_the_gradient_is_the_prediction_less_the_target(name, multi_label):
  logits, label = make(multi_label)
  if name == 'softmax' and multi_label:
    label = label / np.maximum(label.sum(-1, keepdims=True), 1)
    label[0] = 1 / K
  grad = jax.grad(lambda x: FUNCTIONS[name](x, jnp.asarray(label), smoothing=0.2).sum())(logits)
  predict = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[name]
  np.testing.assert_allclose(
    grad, predict(logits) - np.array(as_targets(label, 0.2)), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('multi_label', [False, True])
@pytest.mark.parametrize('name', LOOPS)
def test_examples_do_not_mix(name, multi_label):
  logits, label = make(multi_label)
  loss = FUNCTIONS[name](logits, label)
  order = np.array([4, 2, 0, 5, 1, 3])
  np.testing.assert_array_equal(FUNCTIONS[name](logits[order], label[order]), loss[order])
  np.testing.assert_allclose(FUNCTIONS[name](logits[:2], label[:2]), loss[:2], rtol=1e-6)


def test_targets_sum_to_what_the_labels_do():
  _, label = make()
  targets = classification.targets(jnp.asarray(label), K, 0.3)
  assert targets.dtype == jnp.float32
  np.testing.assert_allclose(targets.sum(-1), np.ones(B), rtol=1e-6)
  np.testing.assert_allclose(targets[np.arange(B), label], np.full(B, 0.7 + 0.3 / K), rtol=1e-6)
