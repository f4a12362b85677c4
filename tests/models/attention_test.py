import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.attention import Attention, attend

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


def written_out(q, k, v):
  """Eq. 1, arXiv:1706.03762, of scaled queries, differentiated by JAX."""
  weights = jax.nn.softmax(jnp.einsum('blhk,bmhk->bhlm', q, k))
  return jnp.einsum('bhlm,bmhk->blhk', weights, v)


def triple(scale=1.0, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = ((2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 6))
  q, k, v = (rng.normal(size=shape).astype(dtype) for shape in shapes)
  return scale * q, k, v


def gradients(function, arrays):
  """Value and gradients of a scalar with another weight for each output."""
  factor = np.random.default_rng(1).normal(size=(2, 5, 3, 6)).astype(np.float32)
  loss = lambda *arrays: (factor * function(*arrays)).sum()  # noqa: E731
  return jax.value_and_grad(loss, (0, 1, 2))(*arrays)


def test_attend_equals_numpy_in_double_precision():
  q, k, v = (x.astype(np.float64) for x in triple())
  logits = np.einsum('blhk,bmhk->bhlm', q, k)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  expected = np.einsum('bhlm,bmhk->blhk', weights / weights.sum(-1, keepdims=True), v)
  np.testing.assert_allclose(attend(*triple()), expected, rtol=1e-4, atol=1e-5)


# At 1e4 the exponentials of logits overflow.
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_attend_equals_the_softmax_written_out_in_value_and_gradient(scale):
  results = []
  for function in (attend, written_out):
    value, (d_q, d_k, d_v) = gradients(function, triple(scale))
    results.append((value, d_q, d_k / scale, d_v))  # d_k is a sum of queries.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)


def test_attend_in_bfloat16_is_as_close_as_the_softmax_written_out():
  arrays = triple(2.0)
  half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  exact = gradients(written_out, [x.astype(jnp.float32) for x in half])[1]

  def error(function):
    made = gradients(function, half)[1]
    assert all(x.dtype == jnp.bfloat16 for x in made)
    return [
      float(jnp.linalg.norm(a.astype(jnp.float32) - b)) for a, b in zip(made, exact, strict=True)
    ]

  ours, others = error(attend), error(written_out)
  assert all(a < b for a, b in zip(ours, others, strict=True)), (ours, others)


def test_attend_can_be_differentiated_twice_and_mapped():
  q, k, v = triple()

  def second(function):
    first = lambda q: (jax.grad(lambda q: (function(q, k, v) ** 2).sum())(q) ** 2).sum()  # noqa: E731
    return jax.grad(first)(q)

  np.testing.assert_allclose(second(attend), second(written_out), rtol=1e-3, atol=1e-4)
  mapped = jax.vmap(lambda q: attend(q, k, v))(jnp.stack([q, 2 * q]))
  np.testing.assert_allclose(mapped[1], attend(2 * q, k, v), atol=1e-6)


def test_user_errors_list_the_choices(x):
  with pytest.raises(ValueError, match="unknown attention 'flash'; choose from 'auto', 'einsum'"):
    Attention(HEADS, 'flash').init(jax.random.key(0), x)
  with pytest.raises(ValueError, match='width 32 is not divisible by num_heads 5'):
    Attention(5).init(jax.random.key(0), x)


# -- Masks.


def seen_by(kind):
  """Which of 7 keys each of 5 queries of 2 examples looks at, `[2, 1, 5 or 1, 7]`."""
  past = np.tri(5, 7, 2, dtype=bool)[None, None]
  keys = np.array([[1, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1]], bool)[:, None, None]
  second = keys & np.array([False, True])[:, None, None, None]  # The first sees nothing.
  return {'past': past, 'keys': keys, 'both': past & keys, 'none': second}[kind]


def looked_up(q, k, v, seen):
  """One query after the other, over the keys that it looks at alone."""
  seen = np.broadcast_to(seen, (2, 1, 5, 7))
  out = np.zeros((2, 5, 3, 6))
  for b, i, h in np.ndindex(2, 5, 3):
    keys = seen[b, 0, i]
    if keys.any():
      weights = np.exp(k[b, keys, h] @ q[b, i, h])
      out[b, i, h] = weights / weights.sum() @ v[b, keys, h]
  return out


@pytest.mark.parametrize('kind', ['past', 'keys', 'both', 'none'])
def test_masked_attend_is_a_mean_over_what_is_seen_and_zero_of_nothing(kind):
  seen = seen_by(kind)
  expected = looked_up(*(x.astype(np.float64) for x in triple()), seen)
  assert (expected == 0).all((2, 3)).any() == (kind in ('both', 'none'))
  np.testing.assert_allclose(attend(*triple(), seen), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scale', [1.0, 1e4])
@pytest.mark.parametrize('kind', ['past', 'keys', 'both', 'none'])
def test_gradients_of_masked_attend(kind, scale):
  seen = seen_by(kind)

  def written(q, k, v):
    # With finite numbers for -inf, and 0 where nothing is seen: JAX's gradients have no NaN then.
    logits = jnp.where(seen, jnp.einsum('blhk,bmhk->bhlm', q, k), -1e30)
    weights = jnp.where(seen, jax.nn.softmax(logits), 0.0)
    return jnp.einsum('bhlm,bmhk->blhk', weights, v)

  results = []
  for function in (lambda *arrays: attend(*arrays, seen), written):
    value, (d_q, d_k, d_v) = gradients(function, triple(scale))
    results.append((value, d_q, d_k / scale, d_v))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *results)
  assert all(np.isfinite(x).all() for x in results[0])


def test_masked_attend_can_be_differentiated_twice():
  q, k, v = triple()
  seen = seen_by('past')

  def second(function):
    first = lambda q: (jax.grad(lambda q: (function(q) ** 2).sum())(q) ** 2).sum()  # noqa: E731
    return jax.grad(first)(q)

  def written(q):
    logits = jnp.where(seen, jnp.einsum('blhk,bmhk->bhlm', q, k), -1e30)
    return jnp.einsum('bhlm,bmhk->blhk', jax.nn.softmax(logits), v)

  actual = second(lambda q: attend(q, k, v, seen))
  np.testing.assert_allclose(actual, second(written), rtol=1e-3, atol=1e-4)


MASK = np.array([[0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('mask', [None, MASK])
def test_implementations_agree_behind_a_mask(x, params, causal, mask):
  def loss(params, x, implementation):
    attention = Attention(HEADS, implementation, causal=causal)
    out = attention.apply({'params': params}, x, mask=mask)
    return (out**2).sum(), out

  results = []
  for implementation in ('einsum', 'xla'):
    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    results.append(grad(params, x, implementation))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)
  _, out = results[0]
  nothing = np.zeros((2, 7), bool) if mask is None else ~mask.any(1, keepdims=True)
  if mask is not None and causal:
    nothing = np.cumsum(mask, 1) == 0
    assert nothing.sum() == 2 + 7
  bias = np.broadcast_to(params['out']['bias'], out.shape)
  nothing = np.broadcast_to(nothing, (2, 7))
  np.testing.assert_allclose(out[nothing], bias[nothing], atol=1e-6)
  assert np.abs(out - bias)[~nothing].max(-1).min() > 0.01


def test_sown_weights_are_zero_where_nothing_is_looked_at(x, params):
  attention = Attention(HEADS, causal=True)
  _, state = attention.apply({'params': params}, x, mask=MASK, mutable='intermediates')
  (weights,) = state['intermediates']['attention_weights']
  seen = np.broadcast_to(np.tri(7, dtype=bool) & MASK[:, None, None], weights.shape)
  assert (weights[~seen] == 0).all() and (weights[seen] > 0).all()
  np.testing.assert_allclose(weights.sum(-1), seen.any(-1), atol=1e-6)


def test_a_causal_row_does_not_change_with_those_behind_it(x, params):
  other = x.copy()
  other[:, 4:] += 3
  one, two = (Attention(HEADS, causal=True).apply({'params': params}, x) for x in (x, other))
  np.testing.assert_array_equal(one[:, :4], two[:, :4])
  assert (np.abs(one - two)[:, 4:].max(-1) > 0.01).all()


def test_the_output_has_as_many_features_as_asked_for(x, params):
  shapes = lambda **fields: jax.eval_shape(  # noqa: E731
    lambda: nn.unbox(Attention(HEADS, **fields).init(jax.random.key(0), x)['params'])
  )
  wide = shapes(features=5)
  assert wide['out']['kernel'].shape == (HEADS, WIDTH // HEADS, 5)
  assert {**wide, 'out': None} == {**shapes(), 'out': None}
  cut = {**params, 'out': jax.tree.map(lambda p: p[..., :5], params['out'])}
  out = Attention(HEADS, features=5).apply({'params': cut}, x)
  whole = Attention(HEADS).apply({'params': params}, x)
  np.testing.assert_allclose(out, whole[..., :5], atol=1e-6)


def test_causal_attention_has_no_context(x):
  with pytest.raises(ValueError, match='causal attention has no context'):
    Attention(HEADS, causal=True).init(jax.random.key(0), x, x)
