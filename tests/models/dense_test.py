"""`dense`, and the products that CPUs compute in another way than other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention, dense

RNG = np.random.default_rng(0)
# The shapes of x, the kernel and the bias.
SHAPES = {
  'one axis': ((3, 5, 8), (8, 6), (6,)),
  'two inputs': ((3, 5, 2, 4), (2, 4, 6), (6,)),
  'two outputs': ((5, 8), (8, 2, 3), (2, 3)),
}


def draw(*shapes):
  return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize('name', SHAPES)
def test_is_a_sum_over_inputs(name):
  x, kernel, bias = draw(*SHAPES[name])
  inputs = kernel.ndim - bias.ndim
  expected = np.tensordot(x, kernel, inputs) + bias
  actual = jax.jit(dense.dense, static_argnums=3)(x, kernel, bias, jnp.float32)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def values_and_gradients(function, arguments, dtype):
  """Of the result, weighted by fixed numbers so that no two parts have one gradient."""
  arguments = [jnp.asarray(a, dtype) for a in arguments]

  def value(*arguments):
    out = jax.tree.leaves(function(*arguments))
    return sum((jnp.sin(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape) * o).sum() for o in out)

  results = (
    jax.jit(function)(*arguments),
    jax.jit(jax.grad(value, range(len(arguments))))(*arguments),
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(dtype)}
  return jax.tree.map(lambda x: np.asarray(x, np.float32), results)


PAIRS = {
  **{f'dense, {name}': (dense._apply, dense._dense, shapes) for name, shapes in SHAPES.items()},
  'project': (attention.project, attention._project, ((2, 5, 8), (3, 8, 2, 4), (3, 2, 4))),
}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', PAIRS)
def test_cpus_compute_the_formula(name, dtype):
  ours, formula, shapes = PAIRS[name]
  arguments = draw(*shapes)
  if dtype == 'bfloat16':
    arguments = [np.asarray(jnp.asarray(a, dtype), np.float32) for a in arguments]
  actual = values_and_gradients(ours, arguments, dtype)
  expected = values_and_gradients(formula, arguments, 'float32')
  # The formula in float32 on the same numbers: ours is off by one rounding of the result.
  tolerance = 1e-5 if dtype == 'float32' else 2**-8
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


def test_other_devices_run_the_formula():
  x, kernel, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES['one axis'])
  lowered = jax.jit(dense._apply).trace(x, kernel, bias).lower(lowering_platforms=('tpu',))
  formula = jax.jit(dense._dense).trace(x, kernel, bias).lower(lowering_platforms=('tpu',))
  assert count(lowered, 'dot_general') == count(formula, 'dot_general') == 1
  assert count(lowered, 'reshape') == count(formula, 'reshape')


def count(lowered, operation):
  return lowered.as_text().count(f'stablehlo.{operation} ')


@pytest.mark.parametrize('values', [(1, np.nan, -2), (np.inf, 0, 3)])
def test_materialized_is_the_identity(values):
  x = np.array(values, np.float32)
  np.testing.assert_array_equal(jax.jit(dense.materialized)(x), x)


def test_materialized_keeps_a_first_nan():
  x = np.array([np.nan, 1], np.float32)
  assert np.isnan(jax.jit(dense.materialized)(x)[0])
