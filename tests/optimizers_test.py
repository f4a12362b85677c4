"""Optimizers against plain loops written from their papers' equations."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from vit_jax import optim, units

TOTAL = 20
STEPS = functools.partial(units.steps, batch_size=10, num_examples=100)
# Kernels and biases of a dense layer and of attention's heads, a class token, and a head.
SHAPES = {
  'block/fc/kernel': (3, 5),
  'block/fc/bias': (5,),
  'block/query/kernel': (6, 2, 4),
  'block/query/bias': (2, 4),
  'cls': (1, 1, 4),
  'head/kernel': (4, 3),
  'head/bias': (3,),
}
FIELDS = dict(
  learning_rate=0.1,
  schedule='linear',
  warmup={'steps': 2},
  weight_decay=0.2,
  decay=(('head/kernel', 3.0), ('.*/kernel', 1.0)),
  multiplier=(('head/.*', 2.0),),
)


def lr(s, name):
  """What `FIELDS` say: a ramp of two steps, then linearly to 0, and twice that in the head."""
  return 0.1 * (s / 2 if s < 2 else (TOTAL - s) / (TOTAL - 2)) * (2 if 'head' in name else 1)


def wd(name):
  return {'head/kernel': 0.6}.get(name, 0.2 if name.endswith('/kernel') else 0.0)


def has_trust_ratio(name):
  return name in ('block/fc/kernel', 'block/query/kernel', 'cls', 'head/kernel')


def nested(values):
  tree = {}
  for name, value in values.items():
    *parents, last = name.split('/')
    functools.reduce(lambda t, k: t.setdefault(k, {}), parents, tree)[last] = value
  return tree


def draw(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


# What bfloat16 keeps may round either way where float32 and float64 differ.
ROUNDED = 5e-4

GRADS = [draw(seed) for seed in range(1, 7)]


def build(name, params, stacked=(), **fields):
  config = {'name': name, **FIELDS, **fields}
  return optim.build_optimizer(
    config, nested(params), total_steps=TOTAL, steps=STEPS, stacked=stacked
  )


def train(optimizer, grads=GRADS, params=None):
  params = nested(jax.tree.map(jnp.asarray, draw(0) if params is None else params))
  state = jax.jit(optimizer.tx.init)(params)

  @jax.jit
  def step(params, state, grad):
    updates, state = optimizer.tx.update(grad, state, params)
    return optax.apply_updates(params, updates), state

  for grad in grads:
    params, state = step(params, state, nested(grad))
  return named(params), state


def named(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def double(values):
  return {name: value.astype(np.float64) for name, value in values.items()}


def bfloat16(x):
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def norm(x):
  return math.sqrt(sum(v**2 for v in x.ravel()))


def expect_close(got, expected, rtol=2e-5, atol=2e-6):
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=rtol, atol=atol, err_msg=name)


def test_lamb():
  b1, b2, eps = 0.8, 0.95, 1e-3
  p = double(draw(0))
  mu, nu = (dict.fromkeys(p, 0.0) for _ in range(2))
  for s, grad in enumerate(map(double, GRADS)):
    for name, g in grad.items():
      mu[name] = b1 * mu[name] + (1 - b1) * g
      nu[name] = b2 * nu[name] + (1 - b2) * g**2
      r = mu[name] / (1 - b1 ** (s + 1)) / (np.sqrt(nu[name] / (1 - b2 ** (s + 1))) + eps)
      u = r + wd(name) * p[name]
      ratio = norm(p[name]) / norm(u) if has_trust_ratio(name) else 1
      p[name] = p[name] - lr(s, name) * ratio * u
  optimizer = build('lamb', draw(0), options={'b1': b1, 'b2': b2, 'eps': eps})
  expect_close(train(optimizer)[0], p)


@pytest.mark.parametrize(('momentum', 'nesterov'), [(0.8, False), (0.8, True), (0, False)])
def test_lars(momentum, nesterov):
  eta = 0.02
  p = double(draw(0))
  velocity = dict.fromkeys(p, 0.0)
  for s, grad in enumerate(map(double, GRADS)):
    for name, g in grad.items():
      twice = 2 if 'head' in name else 1  # A multiplier comes last.
      u = g + wd(name) * p[name]
      ratio = eta * norm(p[name]) / norm(u) if has_trust_ratio(name) else 1
      scaled = lr(s, name) / twice * ratio * u
      velocity[name] = momentum * velocity[name] + scaled
      step = scaled + momentum * velocity[name] if nesterov else velocity[name]
      p[name] = p[name] - twice * step
  options = {'eta': eta, 'momentum': momentum, 'nesterov': nesterov}
  expect_close(train(build('lars', draw(0), options=options))[0], p)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_biases_have_neither_trust_ratio_nor_decay(name):
  optimizer = build(name, draw(0), decay=None)
  assert {row.name for row in optimizer.table if row.decay} == {
    n for n, shape in SHAPES.items() if n.endswith('kernel')
  }
  big = {n: 100 * value for n, value in draw(0).items()}
  moves = [
    {n: after - start[n] for n, after in train(optimizer, GRADS[:2], start)[0].items()}
    for start in (draw(0), big)
  ]
  for n in SHAPES:
    if not has_trust_ratio(n):  # The step does not know how large the parameter is.
      np.testing.assert_allclose(moves[1][n], moves[0][n], rtol=1e-2, atol=1e-5)
    else:
      assert norm(moves[1][n]) > 50 * norm(moves[0][n])


def test_a_parameter_that_is_zero_moves_all_the_same():
  zero = {name: 0 * value for name, value in draw(0).items()}
  for name in ('lars', 'lamb'):
    after, _ = train(build(name, draw(0), warmup=None), GRADS[:1], zero)
    assert all(norm(value) > 0 for value in after.values())


@pytest.mark.parametrize('mu_dtype', ['float32', 'bfloat16'])
def test_lion(mu_dtype):
  b1, b2 = 0.8, 0.95
  keep = bfloat16 if mu_dtype == 'bfloat16' else np.float64
  p = double(draw(0))
  mu = {name: np.zeros(shape) for name, shape in SHAPES.items()}
  for s, grad in enumerate(map(double, GRADS)):
    for name, g in grad.items():
      u = np.sign(b1 * mu[name] + (1 - b1) * g)
      p[name] = p[name] - lr(s, name) * (u + wd(name) * p[name])
      mu[name] = keep(b2 * mu[name] + (1 - b2) * g)
  options = {'b1': b1, 'b2': b2, 'mu_dtype': mu_dtype}
  expect_close(train(build('lion', draw(0), options=options))[0], p)


def second_moment(g, row, column, b2, factor):
  """Algorithm 4, arXiv:1804.04235: R, C and R C / mean(R), over the two largest axes."""
  square = g**2 + 1e-30
  if not factor:
    row = b2 * row + (1 - b2) * square
    return row, column, row
  small, large = np.argsort(g.shape)[-2:]
  row = b2 * row + (1 - b2) * square.mean(axis=large, keepdims=True)
  column = b2 * column + (1 - b2) * square.mean(axis=small, keepdims=True)
  return row, column, row * column / row.mean(axis=small, keepdims=True)


@pytest.mark.parametrize('mu_dtype', ['float32', 'bfloat16'])
def test_adafactor(mu_dtype):
  # A low cap, so that it is reached: 1 - 2^-0.8 is 0.43, 1 - 3^-0.8 is 0.58.
  cap, d = 0.5, 0.9
  keep = bfloat16 if mu_dtype == 'bfloat16' else np.float64
  p = double(draw(0))
  row, column, mu = (dict.fromkeys(p, 0.0) for _ in range(3))
  for s, grad in enumerate(map(double, GRADS)):
    b2 = min(cap, 1 - (s + 1) ** -0.8)
    for name, g in grad.items():
      factor = len(g.shape) > 1 and sorted(g.shape)[-2] >= 3
      row[name], column[name], v = second_moment(g, row[name], column[name], b2, factor)
      u = g / np.sqrt(v)
      u = u / max(1, math.sqrt(np.mean(u**2)) / d)
      u = 0.9 * mu[name] + 0.1 * u
      mu[name] = keep(u)
      p[name] = p[name] - lr(s, name) * (u + wd(name) * p[name])
  options = {'b2_cap': cap, 'clipping_threshold': d, 'min_dim_size_to_factor': 3}
  optimizer = build('adafactor', draw(0), options={**options, 'mu_dtype': mu_dtype})
  atol = ROUNDED if mu_dtype == 'bfloat16' else 2e-5
  expect_close(train(optimizer)[0], p, atol=atol)


def test_adafactor_is_small():
  params = {'kernel': np.zeros((64, 12, 48), np.float32), 'bias': np.zeros(48, np.float32)}
  fields = dict(decay=None, multiplier=())
  state = train(build('adafactor', params, **fields), [], params)[1]
  sizes = [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(state) if leaf.size > 1]
  assert sorted(sizes) == sorted(
    [
      *(((64, 12, 48), 'bfloat16'), ((48,), 'bfloat16')),  # Momentum.
      *(((12, 48), 'float32'), ((64, 12), 'float32'), ((48,), 'float32')),  # Second moment.
    ]
  )


@pytest.mark.parametrize('name', ['sgd', 'lars'])
def test_momentum_in_bfloat16(name):
  options = {
    'momentum': 0.8,
    'accumulator_dtype': 'bfloat16',
    **({'eta': 1.0} if name == 'lars' else {}),
  }
  after, state = train(build(name, draw(0), options=options, decay=None, weight_decay=0))
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.shape}
  assert dtypes == {'bfloat16'}
  p = double(draw(0))
  velocity = {n: np.zeros(shape) for n, shape in SHAPES.items()}
  for s, grad in enumerate(map(double, GRADS)):
    for n, g in grad.items():
      twice = 2 if 'head' in n else 1
      rate = lr(s, n) / twice
      if name == 'lars':
        g = rate * g * (norm(p[n]) / norm(g) if has_trust_ratio(n) else 1)
      u = g + 0.8 * velocity[n]
      velocity[n] = bfloat16(u)
      p[n] = p[n] - twice * (u if name == 'lars' else rate * u)
  expect_close(after, p, atol=ROUNDED)


@pytest.mark.parametrize('freeze', [(), ('image/bias',)])
@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_stacked_layers_are_trained_as_single_ones(name, freeze):
  """Two towers, of 3 and of 2 layers, stacked as a scan has them, and the same layer by layer."""
  depths, shapes = {'image': 3, 'text': 2}, {'kernel': (4, 5), 'bias': (5,)}
  single = {
    f'{tower}/{layer}/{n}': shape
    for tower, depth in depths.items()
    for layer in range(depth)
    for n, shape in shapes.items()
  } | {'head/kernel': (5, 3)}
  scales = {n: 10.0 ** (len(n) % 3 + int(n.split('/')[1])) for n in single if 'head' not in n}

  def stack(values):
    stacked = {
      f'{tower}/{n}': np.stack([values[f'{tower}/{i}/{n}'] for i in range(depth)])
      for tower, depth in depths.items()
      for n in shapes
    }
    return {**stacked, 'head/kernel': values['head/kernel']}

  def scaled(seed):  # Layers of very different sizes, which a common norm would treat alike.
    return {n: v * np.float32(scales.get(n, 1)) for n, v in draw(seed, single).items()}

  grads = [scaled(seed) for seed in range(1, 4)]
  options = {'min_dim_size_to_factor': 2} if name == 'adafactor' else {}
  fields = dict(options=options, decay=None)
  apart = build(name, scaled(0), freeze=tuple(f.replace('/', '/./') for f in freeze), **fields)
  names = [f'{tower}/{n}' for tower in depths for n in shapes]
  together = build(name, stack(scaled(0)), stacked=names, freeze=freeze, **fields)
  expected = stack(train(apart, grads, scaled(0))[0])
  got, state = train(together, [stack(g) for g in grads], stack(scaled(0)))
  expect_close(got, expected, rtol=1e-5, atol=1e-5)
  assert jax.tree.structure(state) == jax.tree.structure(together.tx.init(nested(stack(scaled(0)))))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('lars', {'trust': 1}, "unknown option of 'lars' 'trust'; choose from 'eta', 'momentum', 'ne"),
    ('lamb', {'eta': 1}, "unknown option of 'lamb' 'eta'; choose from 'b1', 'b2', 'eps', 'mu_dt"),
    ('lion', {'eps': 1}, "unknown option of 'lion' 'eps'; choose from 'b1', 'b2', 'mu_dtype'"),
    ('adafactor', {'b2': 1}, "'b2'; choose from 'b1', 'mu_dtype', 'decay_rate', 'b2_cap', 'clip"),
    ('sgd', {'accumulator_dtype': 'bf16'}, "'bf16'; choose from 'float32', 'bfloat16'"),
    ('adafactor', {'mu_dtype': 'half'}, "unknown mu_dtype 'half'; choose from 'float32', 'bfloat"),
    ('lars', {'eta': '1e-3'}, r"optimizer\.options\.eta must be a number >= 0, got '1e-3'"),
  ],
)
def test_mistakes_are_named_with_the_choices(name, options, message):
  with pytest.raises(ValueError, match=message) as error:
    build(name, draw(0), options=options)
  assert '\n' not in str(error.value)


def test_every_optimizer_is_tested_here_or_beside_the_schedules():
  assert set(optim.OPTIMIZERS) == {'sgd', 'adamw', 'lamb', 'lars', 'lion', 'adafactor'}
