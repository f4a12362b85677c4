"""A batch in chunks gives the loss and the gradient of the whole batch, in less memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.models.chunked import Chunked
from vit_jax.models.projection import Projection
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.objectives.simclr import SimCLR

FIELDS = dict(patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32, pooling='mean')
VIEWS = np.random.default_rng(0).integers(0, 256, (16, 2, 16, 16, 3), np.uint8)


def objective(chunks, **fields):
  encoder = ViT(**FIELDS | fields)
  head = Projection(layers=2, dim=8, norm=False)
  return SimCLR(Chunked(encoder, chunks) if chunks else encoder, head)


def gradient(objective, params, batch, rngs=None):
  def loss(params):
    return objective.apply({'params': params}, batch, train=True, rngs=rngs)[0]

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope='module')
def params():
  made = objective(0).init(jax.random.key(0), {'views': VIEWS}, train=False)['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), nn.unbox(made))


def close(ours, theirs):
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max() + 1e-8)


@pytest.mark.parametrize('chunks', [1, 2, 4, 8])
def test_the_gradient_is_that_of_the_whole_batch(params, chunks):
  batch = {'views': VIEWS}
  close(gradient(objective(chunks), params, batch), gradient(objective(0), params, batch))


@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=2, fsdp=4)])
def test_on_eight_devices_each_keeps_its_rows(params, mesh):
  want = gradient(objective(0), params, {'views': VIEWS})
  mesh = sharding.make_mesh(mesh)
  with jax.set_mesh(mesh):
    batch = jax.device_put({'views': VIEWS}, sharding.batch_sharding(mesh))
    close(gradient(objective(4), params, batch), want)
    encode = jax.jit(
      jax.grad(
        lambda params, x: (
          Chunked(ViT(**FIELDS), 4).apply({'params': params}, x, train=True).pooled.sum()
        )
      )
    )
    x = jax.device_put(np.ones((32, 16, 16, 3), np.float32), sharding.batch_sharding(mesh))
    text = encode.lower(params['encoder'], x).compile().as_text()
  assert not any(word in text for word in ('all-gather', 'all-to-all', 'collective-permute'))


def test_names_and_evaluation_are_those_of_the_encoder(params):
  plain, chunked = (
    objective(n).init(jax.random.key(0), {'views': VIEWS}, train=False) for n in (0, 4)
  )
  jax.tree.map(np.testing.assert_array_equal, nn.unbox(chunked), nn.unbox(plain))
  image = {'image': VIEWS[:3, 0]}  # of any size
  ours, theirs = (objective(n).apply({'params': params}, image, method='features') for n in (4, 0))
  np.testing.assert_array_equal(ours, theirs)


def test_memory_is_that_of_a_chunk(params):
  batch = {'views': np.zeros((64, 2, 64, 64, 3), np.uint8)}
  sizes = []
  for chunks in (0, 8):
    made = objective(chunks)
    variables = jax.eval_shape(lambda made=made: made.init(jax.random.key(0), batch, train=False))

    def loss(params, made=made):
      return made.apply({'params': params}, batch, train=True)[0]

    compiled = jax.jit(jax.grad(loss)).lower(nn.unbox(variables)['params']).compile()
    sizes.append(compiled.memory_analysis().temp_size_in_bytes)
  assert sizes[1] < 0.5 * sizes[0]  # Images in float32 are there whole.


def test_each_chunk_drops_features_of_its_own(params):
  image = jnp.broadcast_to(VIEWS[0, 0] / 255.0, (8, 16, 16, 3))
  encoder = Chunked(ViT(**FIELDS, dropout=0.5), 4)
  rngs = {'dropout': jax.random.key(0)}
  pooled = encoder.apply({'params': params['encoder']}, image, train=True, rngs=rngs).pooled
  assert len(np.unique(np.asarray(pooled)[:, 0])) == 8


def test_what_cannot_be_is_refused(params):
  with pytest.raises(ValueError, match='chunks must be at least 1, got 0'):
    Chunked(ViT(**FIELDS), 0)
  made = SimCLR(Chunked(ResNet(blocks=(1,), bottleneck=False, width=8, small_stem=True), 2))
  with pytest.raises(ValueError, match='chunks is 2, but ResNet normalises by the statistics'):
    made.init(jax.random.key(0), {'views': VIEWS}, train=False)
  with pytest.raises(ValueError, match='chunks is 3, which does not divide the 32 .* choose from'):
    objective(3).apply({'params': params}, {'views': VIEWS}, train=True)
