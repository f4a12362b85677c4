import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.attention import Attention

WIDTH, HEADS = 32, 4


@pytest.fixture(scope='module')
def x():
  return np.float32(np.random.default_rng(0).normal(size=(2, 7, WIDTH)))


@pytest.fixture(scope='module')
def params(x):
  params = nn.unbox(Attention(HEADS).init(jax.random.key(1), x)['params'])
  return jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
  )


def test_einsum_and_xla_agree_in_value_and_gradient(x, params):
  def loss(params, x, implementation):
    out = Attention(HEADS, implementation).apply({'params': params}, x)
    return (out**2).sum(), out

  results = []
  for implementation in ('einsum', 'xla'):
    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    results.append(grad(params, x, implementation))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


def test_sown_weights_are_distributions_over_the_context(x, params):
  context = np.float32(np.random.default_rng(2).normal(size=(2, 5, WIDTH)))
  _, state = Attention(HEADS).apply({'params': params}, x, context, mutable='intermediates')
  (weights,) = state['intermediates']['attention_weights']
  assert weights.shape == (2, HEADS, 7, 5)
  assert weights.dtype == jnp.float32
  assert (weights >= 0).all()
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_one_query_is_shared_by_all_examples(x, params):
  query = x[:1, :1]
  for implementation in ('einsum', 'xla'):
    attention = Attention(HEADS, implementation)
    shared = attention.apply({'params': params}, query, x)
    repeated = attention.apply({'params': params}, jnp.repeat(query, len(x), axis=0), x)
    np.testing.assert_allclose(shared, repeated, atol=1e-6)


def test_the_softmax_is_float32_inside_bfloat16(x, params):
  attention = Attention(HEADS, dtype=jnp.bfloat16)
  out, state = attention.apply({'params': params}, 30 * x, mutable='intermediates')
  (weights,) = state['intermediates']['attention_weights']
  assert out.dtype == jnp.bfloat16
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)  # bfloat16 is 4e-3 off.


def test_user_errors_list_the_choices(x):
  with pytest.raises(ValueError, match="unknown attention 'flash'; choose from 'auto', 'einsum'"):
    Attention(HEADS, 'flash').init(jax.random.key(0), x)
  with pytest.raises(ValueError, match='width 32 is not divisible by num_heads 5'):
    Attention(5).init(jax.random.key(0), x)
