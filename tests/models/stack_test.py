"""Blocks in a loop or a scan, with activations kept or computed again: the same function."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.evaluators.attention import block_weights
from vit_jax.models.stack import REMAT
from vit_jax.models.vit import ViT
from vit_jax.sharding import LOGICAL_AXES

DEPTH = 3
FIELDS = dict(patch_size=4, width=16, depth=DEPTH, mlp_dim=24, num_heads=2, pooling='mean')
IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32))


@pytest.fixture(scope='module')
def params():
  model = ViT(**FIELDS)
  return nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), IMAGE, train=False))())['params']


def stacked(params):
  """The loop's parameters as the scan has them."""
  blocks = [params[f'block_{i}'] for i in range(DEPTH)]
  rest = {name: value for name, value in params.items() if not name.startswith('block_')}
  return {**rest, 'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def value_and_grad(model, params, train=False):
  def loss(params):
    rngs = {'dropout': jax.random.key(1)}
    out = model.apply({'params': params}, IMAGE, train=train, rngs=rngs, blocks=(0, -1))
    return jnp.mean(out.pooled**2) + jnp.mean(jnp.stack(out.blocks) ** 2), out

  (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return out, grads


def assert_close(a, b, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize('remat', REMAT)
@pytest.mark.parametrize('scan', [False, True])
def test_every_combination_is_the_plain_loop(params, scan, remat):
  out, grads = value_and_grad(ViT(**FIELDS), params)
  given = stacked(params) if scan else params
  other, other_grads = value_and_grad(ViT(**FIELDS, scan=scan, remat=remat), given)
  assert_close(out, other)
  assert_close(stacked(grads) if scan else grads, other_grads)


@pytest.mark.parametrize('scan', [False, True])
def test_computing_again_draws_the_same_dropout(params, scan):
  fields = dict(FIELDS, dropout=0.2, drop_path=0.3, scan=scan)
  given = stacked(params) if scan else params
  _, kept = value_and_grad(ViT(**fields), given, train=True)
  _, again = value_and_grad(ViT(**fields, remat='full'), given, train=True)
  assert_close(kept, again)


def test_each_block_of_a_scan_draws_dropout_of_its_own(params):
  same = {**stacked(params)}
  same['blocks'] = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), same['blocks'])
  model = ViT(**FIELDS, scan=True, dropout=0.5)
  out, _ = value_and_grad(model, same, train=True)
  first, last = out.blocks
  assert float(jnp.abs(first - last).max()) > 0.1

  # Stochastic depth grows from 0: the first block of a scan drops nothing.
  plain, _ = value_and_grad(ViT(**FIELDS, scan=True), same)
  dropped, _ = value_and_grad(ViT(**FIELDS, scan=True, drop_path=0.9), same, train=True)
  assert_close(plain.blocks[0], dropped.blocks[0])
  assert float(jnp.abs(plain.blocks[1] - dropped.blocks[1]).max()) > 0.01


def test_remat_keeps_less(params):
  def kept(remat):
    model = ViT(**FIELDS, remat=remat)
    loss = lambda p: jnp.sum(model.apply({'params': p}, IMAGE, train=False).pooled ** 2)  # noqa: E731
    leaves = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))
    return sum(leaf.size for leaf in leaves)

  none, dots, no_batch, full = (kept(r) for r in ('none', 'dots', 'dots_no_batch', 'full'))
  assert none > dots > no_batch > full


def test_a_scan_names_its_axis_and_keeps_its_attention(params):
  model = ViT(**FIELDS, scan=True)
  boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, train=False))['params']
  kernel = boxed['blocks']['mlp']['fc_1']['kernel']
  assert kernel.names == ('layers', 'embed', 'mlp')
  assert 'layers' in LOGICAL_AXES
  # Each block starts from numbers of its own.
  made = nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), IMAGE, train=False))())['params']
  kernels = made['blocks']['mlp']['fc_1']['kernel']
  assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1

  apply = lambda model, p: model.apply(  # noqa: E731
    {'params': p}, IMAGE, train=False, mutable=['intermediates']
  )[1]['intermediates']
  loop, scanned = apply(ViT(**FIELDS), params), apply(model, stacked(params))
  assert_close(block_weights(loop), block_weights(scanned))
