"""Model FLOPs: the published ones, and a half and double of nothing however a step is compiled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vit_jax import sharding, state
from vit_jax.build import build
from vit_jax.preflight import flops
from vit_jax.preflight.flops import Flops


def counted(objective, *, batch=1, side=224, frozen=(), mesh=None, text=None) -> flops.Layers:
  mesh = mesh or sharding.make_mesh(dict(data=1), jax.devices()[:1])
  objective = build(objective) if isinstance(objective, dict) else objective
  spec = {
    'image': jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((batch,), jnp.int32),
  }
  if text:
    spec['text'] = jax.ShapeDtypeStruct((batch, text), jnp.int32)
  with jax.set_mesh(mesh):
    _, like = state.init_state(objective, optax.sgd(1.0), spec, 0, mesh)
    return flops.by_layer(objective, like, spec, frozen)


def supervised(type='models.vit.ViT', classes=1000, **encoder):
  return dict(
    type='objectives.supervised.Supervised',
    num_classes=classes,
    encoder=dict(type=type, **encoder),
  )


SMALL = dict(patch_size=4, width=16, depth=3, num_heads=2, mlp_dim=32, pooling='mean')
N, D, M, DEPTH, CLASSES = (8 // 4) ** 2, 16, 32, 3, 10


def test_vit_b16_is_as_published():
  layers = counted(supervised(variant='B/16', pooling='token'))
  patches, tokens, width, mlp = 196, 197, 768, 3072
  embedding = patches * 16 * 16 * 3 * width
  attention = 4 * tokens * width**2 + 2 * tokens**2 * width
  dense = 2 * tokens * width * mlp
  macs = embedding + 12 * (attention + dense) + width * 1000
  assert round(macs / 1e9, 1) == 17.6  # 17.58 GMACs: Table 6 of arXiv:2010.11929 rounds to 55.5 x 2
  total = flops.total(layers)
  assert total.forward == 2 * macs
  # Backward: as much twice, but that nothing wants the gradient of the pixels.
  assert total.step == 3 * 2 * macs - 2 * embedding
  attended = [f for path, f in layers.items() if path.startswith('encoder/block_0/attention')]
  assert sum(f.forward for f in attended) == 2 * attention
  assert layers['head'] == Flops(2 * width * 1000, 6 * width * 1000)


def test_resnet_50_is_as_published():
  macs, side, inputs = 112 * 112 * 7 * 7 * 3 * 64, 56, 64
  for stage, blocks in enumerate((3, 4, 6, 3)):
    width, outputs = 64 * 2**stage, 256 * 2**stage
    for block in range(blocks):
      before = side
      if stage and not block:
        side //= 2
      macs += before**2 * inputs * width  # 1x1, before the stride: v1.5
      macs += side**2 * 9 * width * width + side**2 * width * outputs
      macs += 0 if block else side**2 * inputs * outputs
      inputs = outputs
  macs += 2048 * 1000
  assert round(macs / 1e9, 1) == 4.1
  layers = counted(supervised('models.resnet.ResNet', variant='50'))
  assert flops.total(layers).forward == 2 * macs
  # All but the pixels' gradient.
  assert flops.total(layers).step == 6 * macs - 2 * 112 * 112 * 7 * 7 * 3 * 64


@pytest.mark.parametrize(
  'fields',
  [dict(scan=True), dict(remat='full'), dict(scan=True, remat='dots_no_batch')],
)
def test_the_way_it_is_compiled_does_not_matter(fields):
  plain = flops.total(counted(supervised(classes=CLASSES, **SMALL), side=8))
  block = 4 * N * D**2 + 2 * N**2 * D + 2 * N * D * M
  assert plain.forward == 2 * (N * 48 * D + DEPTH * block + D * CLASSES)
  other = counted(supervised(classes=CLASSES, **SMALL, **fields), side=8)
  assert flops.total(other) == plain
  if fields.get('scan'):
    (attention,) = {p.split('/')[2] for p in other if '/attention' in p} or {''}
    assert attention == 'attention'


def test_flops_grow_with_the_batch_and_not_with_the_mesh():
  one = flops.total(counted(supervised(**SMALL), side=8, batch=1))
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  many = flops.total(counted(supervised(**SMALL), side=8, batch=8, mesh=mesh))
  assert many == Flops(8 * one.forward, 8 * one.step)


def clip(**image):
  return dict(
    type='objectives.clip.CLIP',
    projection=8,
    image=dict(type='models.vit.ViT', **SMALL, **image),
    text=dict(
      type='models.text.TextTransformer', vocab_size=32, context=6, width=16, depth=1,
      num_heads=2, mlp_dim=32, end_id=31, projection=8,
    ),
  )  # fmt: skip


def test_a_frozen_tower_costs_its_forward_pass():
  trained = counted(clip(), side=8, batch=4, text=6)
  names = [p for p in parameter_names(clip()) if p.startswith('image/')]
  assert names
  frozen = counted(clip(), side=8, batch=4, text=6, frozen=names)
  for path, layer in trained.items():
    if path.startswith('image/'):
      assert frozen[path] == Flops(layer.forward, layer.forward)
    elif path == 'image_projection':
      assert frozen[path] == Flops(layer.forward, 2 * layer.forward)
    else:
      assert frozen[path] == layer


def parameter_names(objective) -> list[str]:
  from vit_jax import rules

  spec = {
    'image': jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8),
    'text': jax.ShapeDtypeStruct((4, 6), jnp.int32),
  }
  params = nn.unbox(state.abstract_variables(build(objective), spec))['params']
  return [rules.name(path) for path, _ in jax.tree.leaves_with_path(params)]


def test_chunks_are_encoded_once():
  plain = counted(clip(), side=8, batch=8, text=6)
  changed = clip()
  changed['image'] = dict(type='models.chunked.Chunked', chunks=2, encoder=changed['image'])
  assert flops.total(counted(changed, side=8, batch=8, text=6)) == flops.total(plain)


class Inside(nn.Module):
  """A loss that devices compute for their own rows, as the contrastive ones do."""

  @nn.compact
  def __call__(self, batch, *, train):
    x = nn.Dense(8)(batch['image'].reshape(batch['image'].shape[0], -1) / 255.0)

    def own(x):
      return jax.lax.scan(lambda total, _: (total + x @ x.T @ x, None), x, length=3)[0]

    rows = jax.shard_map(own, in_specs=P(('data', 'fsdp')), out_specs=P(('data', 'fsdp')))
    return jnp.mean(rows(x)), {}


@pytest.mark.parametrize('shape', [dict(data=8), dict(data=2, fsdp=2, tensor=2)])
def test_what_devices_compute_apart_counts_once_for_each_part(shape):
  mesh = sharding.make_mesh(shape)
  layers = counted(Inside(), side=2, batch=16, mesh=mesh)
  parts = sharding.batch_shards(mesh)
  own = 16 // parts
  products = 3 * parts * 2 * (2 * own * own * 8)
  assert layers['(loss, augmentation)'] == Flops(products, 3 * products)
  assert layers['Dense_0'] == Flops(2 * 16 * 12 * 8, 2 * 2 * 16 * 12 * 8)


def test_what_no_gradient_comes_through_has_no_backward_pass():
  class Stopped(nn.Module):
    @nn.compact
    def __call__(self, batch, *, train):
      x = batch['label'][:, None].astype(jnp.float32) * jnp.ones(4)
      x = nn.Dense(4, name='first')(x)
      x = nn.Dense(4, name='second')(jax.lax.stop_gradient(x))
      return jnp.mean(x), {}

  layers = counted(Stopped(), batch=2, side=1)
  assert layers == {'first': Flops(64, 128), 'second': Flops(64, 128)}


def test_xla_counts_about_as_many():
  """Those of the compiled gradient; XLA adds what is no product: a few percent of a wide model."""
  wide = dict(SMALL, width=128, mlp_dim=512, depth=2)
  layers = counted(supervised(classes=CLASSES, **wide), side=16, batch=8)
  objective = build(supervised(classes=CLASSES, **wide))
  batch = {'image': np.zeros((8, 16, 16, 3), np.uint8), 'label': np.zeros(8, np.int32)}
  params = nn.unbox(objective.init(jax.random.key(0), batch, train=False))['params']

  def loss(params):
    return objective.apply({'params': params}, batch, train=True)[0]

  compiled = jax.jit(jax.grad(loss)).lower(params).compile()
  assert 1 < compiled.cost_analysis()['flops'] / flops.total(layers).step < 1.05
