import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.models.transformer import ACTIVATIONS, Block, Mlp, compute_gradient_once, drop_path


def test_drop_path_drops_whole_examples_and_keeps_the_expectation():
  x = np.float32(np.random.default_rng(0).normal(1.0, size=(4000, 3, 2)))
  y = np.asarray(drop_path(x, 0.3, jax.random.key(1)))
  kept = y[:, 0, 0] != 0
  np.testing.assert_allclose(y[kept], x[kept] / 0.7, rtol=1e-6)
  assert (y[~kept] == 0).all()
  # Four standard errors of a proportion, then of a mean.
  assert abs(kept.mean() - 0.7) < 4 * (0.3 * 0.7 / 4000) ** 0.5
  np.testing.assert_allclose(y.mean(0), x.mean(0), atol=4 * float(y.std()) / 4000**0.5)


def test_drop_path_keeps_the_dtype_for_a_traced_rate():
  x = jnp.ones((8, 2), jnp.bfloat16)
  y = jax.jit(drop_path)(x, jnp.float32(0.5), jax.random.key(0))
  assert y.dtype == jnp.bfloat16
  assert set(np.asarray(y, np.float32).ravel()) == {0.0, 2.0}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_compute_gradient_once_is_the_identity(dtype):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), dtype)
  y, pull = jax.vjp(jax.jit(compute_gradient_once), x)
  np.testing.assert_array_equal(y, x)
  for gradient in (x, -x, x.at[0, 0, 0].set(jnp.nan), x.at[1, 2, 3].set(jnp.nan)):
    (back,) = pull(gradient)
    assert back.dtype == dtype
    # NaN stays NaN, and where the first is one the signs of the others are of no use.
    if jnp.isnan(gradient[0, 0, 0]):
      gradient, back = abs(gradient), abs(back)
    np.testing.assert_array_equal(np.float32(back), np.float32(gradient))


def test_compute_gradient_once_is_for_cpus_alone():
  step = jax.jit(jax.grad(lambda x: (compute_gradient_once(x) ** 2).sum()))
  traced = step.trace(jnp.ones((2, 3)))
  texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'cuda', 'tpu')}
  negates = {platform: 'stablehlo.negate' in text for platform, text in texts.items()}
  assert negates == {'cpu': True, 'cuda': False, 'tpu': False}


def test_activations_are_the_published_functions():
  x = np.linspace(-4, 4, 41)
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  expected = {
    'gelu': x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2,
    'gelu_tanh': x * (1 + np.tanh(inner)) / 2,
    'quick_gelu': x / (1 + np.exp(-1.702 * x)),
  }
  assert expected.keys() == ACTIVATIONS.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(x)), values, atol=1e-6)


def test_dropout_in_the_mlp_keeps_the_expectation():
  x = jnp.ones((4000, 8))
  mlp = Mlp(16, dropout=0.25)
  params = nn.unbox(jax.jit(lambda x: mlp.init(jax.random.key(0), x, False))(x))
  clean = np.asarray(mlp.apply(params, x, False))
  noisy = np.asarray(mlp.apply(params, x, True, rngs={'dropout': jax.random.key(1)}))
  assert (noisy == 0).mean() == pytest.approx(0.25, abs=0.02)
  np.testing.assert_allclose(noisy.mean(0), clean.mean(0), atol=4 * float(noisy.std()) / 4000**0.5)


def test_a_block_under_remat_is_the_same_block():
  x = np.float32(np.random.default_rng(0).normal(size=(2, 5, 16)))
  block = Block(32, 2, dropout=0.1)
  variables = nn.unbox(jax.jit(lambda x: block.init(jax.random.key(1), x, False))(x))
  rematted = nn.remat(Block, static_argnums=(2,))(32, 2, dropout=0.1)

  def grad(module):
    def loss(params):
      rngs = {'dropout': jax.random.key(2)}
      return (module.apply({'params': params}, x, True, 0.2, rngs=rngs) ** 2).sum()

    return jax.jit(jax.grad(loss))(variables['params'])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    grad(block),
    grad(rematted),
  )


def test_an_unknown_activation_lists_the_choices():
  with pytest.raises(ValueError, match="unknown activation 'relu6'; choose from 'gelu', 'gelu_ta"):
    Mlp(8, activation='relu6').init(jax.random.key(0), jnp.ones((1, 4)), False)
