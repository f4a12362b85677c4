"""LoRA: the encoder at the start, then NumPy's sum of W and A B; nothing else differs."""

import functools
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import optim, sharding, units
from vit_jax.build import build
from vit_jax.data.emoji import Emoji
from vit_jax.evaluators.attention import Attention
from vit_jax.models.lora import LoRA, merge
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised
from vit_jax.state import TrainState, abstract_variables, stacked_names
from vit_jax.train import make_train_step

SMALL = dict(patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2)
IMAGE = np.random.default_rng(0).uniform(size=(2, 8, 12, 3)).astype(np.float32)
QV = ('block.*/attention/(query|value)/kernel',)
RANK, ALPHA = 3, 5.0

# An encoder, and the kernels that are adapted.
CASES = {
  'looped': (ViT(**SMALL), (*QV, 'embedding/kernel')),
  'scanned': (ViT(**SMALL, scan=True), ('blocks/.*/kernel',)),
  'looped, remat': (ViT(**SMALL, pooling='map', conv_stem=(8,), remat='dots'), ('.*/kernel',)),
  'scanned, remat': (ViT(**SMALL, scan=True, remat='full'), QV),
  'resnet': (ResNet(blocks=(1, 1), width=8, small_stem=True), ('(.*/)?conv_.*/kernel',)),
}


def named(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def nested(flat):
  return traverse_util.unflatten_dict(flat, sep='/')


def make_variables(model):
  """The first variables, unboxed."""
  return nn.unbox(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), IMAGE))


@functools.cache
def make(case):
  """A model, its first variables, and some with a B that is random."""
  encoder, kernels = CASES[case]
  model = LoRA(encoder, kernels, rank=RANK, alpha=ALPHA)
  variables = make_variables(model)
  rng = np.random.default_rng(1)
  lora = {
    name: rng.normal(size=x.shape).astype(np.float32) if name.endswith('/b') else x
    for name, x in named(variables['params']['lora']).items()
  }
  changed = {**variables, 'params': {**variables['params'], 'lora': nested(lora)}}
  return model, variables, changed


def without(variables, params=None):
  """The variables of the encoder alone, with other parameters where given."""
  inner = {name: tree['encoder'] for name, tree in variables.items()}
  return inner if params is None else {**inner, 'params': params}


def numpy_merged(params):
  """W + (alpha / rank) A B, one matrix after another."""
  encoder, lora = (
    {name: np.asarray(x, np.float64) for name, x in named(params[part]).items()}
    for part in ('encoder', 'lora')
  )
  for name in {name.rpartition('/')[0] for name in lora}:
    a, b, kernel = lora[f'{name}/a'], lora[f'{name}/b'], encoder[name]
    layers = kernel.shape[0] if name.startswith('blocks/') else 1
    a, b = a.reshape(layers, -1, RANK), b.reshape(layers, RANK, -1)
    delta = np.stack([a[i] @ b[i] for i in range(layers)])
    encoder[name] = kernel + ALPHA / RANK * delta.reshape(kernel.shape)
  return nested({name: x.astype(np.float32) for name, x in encoder.items()})


def apply(model, variables, *, key=2, **asked):
  @jax.jit
  def run(variables, image):
    rngs = {'dropout': jax.random.key(key)}
    return model.apply(variables, image, rngs=rngs, **{'train': False, **asked})

  return run(variables, IMAGE)


def expect(got, expected, **tolerance):
  """`got` is like `expected`, to the bit where no tolerance is given."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
    if tolerance:
      np.testing.assert_allclose(a, b, **tolerance, err_msg=str(path))
    else:
      np.testing.assert_array_equal(a, b, err_msg=str(path))


# -- What it computes.


@pytest.mark.parametrize('case', CASES)
def test_at_the_start_it_is_the_encoder(case):
  model, variables, _ = make(case)
  expect(apply(model, variables), apply(model.encoder, without(variables)))
  own = make_variables(model.encoder)
  assert jax.tree.structure(without(variables)) == jax.tree.structure(own)
  assert jax.tree.map(jnp.shape, without(variables)) == jax.tree.map(jnp.shape, own)


@pytest.mark.parametrize('case', CASES)
def test_it_is_the_encoder_with_kernels_that_numpy_merged(case):
  model, variables, changed = make(case)
  mutable = [name for name in variables if name != 'params']  # The statistics of BatchNorm.
  asked = dict(train=True, mutable=mutable)
  merged = without(changed, numpy_merged(changed['params']))
  features, new = apply(model, changed, **asked)
  expected, expected_new = apply(model.encoder, merged, **asked)
  expect(features, expected, rtol=2e-4, atol=2e-4)
  expect(without(new), expected_new, rtol=2e-4, atol=2e-4)
  assert list(new) == (['batch_stats'] if case == 'resnet' else [])
  first, _ = apply(model, variables, **asked)
  assert np.abs(features.pooled - first.pooled).max() > 0.1


@pytest.mark.parametrize('case', CASES)
def test_merge_gives_the_parameters_of_the_plain_encoder(case):
  model, variables, changed = make(case)
  merged = merge(changed['params'], alpha=ALPHA)
  expect(merged, numpy_merged(changed['params']), rtol=1e-5, atol=1e-5)
  before, after = named(variables['params']['encoder']), named(merged)
  adapted = {name.rpartition('/')[0] for name in named(variables['params']['lora'])}
  assert {name for name in before if not np.array_equal(before[name], after[name])} == adapted
  expect(
    apply(model, changed),
    apply(model.encoder, without(changed, merged)),
    rtol=1e-5,
    atol=1e-5,
  )
  expect(merge(variables['params'], alpha=ALPHA), variables['params']['encoder'])


SHAPES = {
  'looped': {
    **{
      f'block_{i}/attention/{layer}/kernel': ((16, 3), (3, 2, 8))
      for i in range(2)
      for layer in ('query', 'value')
    },
    'embedding/kernel': ((4, 4, 3, 3), (3, 16)),
  },
  'scanned': {
    **{
      f'blocks/attention/{layer}/kernel': ((2, 16, 3), (2, 3, 2, 8))
      for layer in ('query', 'key', 'value')
    },
    'blocks/attention/out/kernel': ((2, 2, 8, 3), (2, 3, 16)),
    'blocks/mlp/fc_1/kernel': ((2, 16, 3), (2, 3, 24)),
    'blocks/mlp/fc_2/kernel': ((2, 24, 3), (2, 3, 16)),
  },
  'resnet': {
    'conv_root/kernel': ((3, 3, 3, 3), (3, 8)),
    'stage_0_block_0/conv_1/kernel': ((3, 3, 8, 3), (3, 8)),
    'stage_0_block_0/conv_2/kernel': ((3, 3, 8, 3), (3, 8)),
    'stage_1_block_0/conv_1/kernel': ((3, 3, 8, 3), (3, 16)),
    'stage_1_block_0/conv_2/kernel': ((3, 3, 16, 3), (3, 16)),
    'stage_1_block_0/conv_proj/kernel': ((1, 1, 8, 3), (3, 16)),
  },
}


@pytest.mark.parametrize('case', SHAPES)
def test_the_kernels_that_were_asked_for_have_factors(case):
  _, variables, _ = make(case)
  shapes = {name: x.shape for name, x in named(variables['params']['lora']).items()}
  assert shapes == {
    f'{name}/{factor}': shape
    for name, both in SHAPES[case].items()
    for factor, shape in zip('ab', both, strict=True)
  }


@pytest.mark.parametrize(('layers', 'rank'), [('query', 8), ('query|value', 4), ('.*', 2)])
def test_parameter_count_of_the_paper(layers, rank):
  """2 x matrices x width x rank: of GPT-3's 96 layers "18M", Section 7.1, arXiv:2106.09685."""
  gpt = ViT(patch_size=4, width=12288, depth=96, mlp_dim=49152, num_heads=96, scan=True)
  model = LoRA(gpt, (f'blocks/attention/({layers})/kernel',), rank=rank)
  init = functools.partial(model.init, train=False)
  lora = nn.unbox(jax.eval_shape(init, jax.random.key(0), IMAGE))['params']['lora']
  assert sum(x.size for x in jax.tree.leaves(lora)) == 2 * 96 * 8 * 12288 == 18_874_368


def test_a_is_gaussian_with_variance_1_by_inputs_and_b_is_zero():
  encoder = ViT(patch_size=4, width=64, depth=4, mlp_dim=128, num_heads=2, scan=True)
  model = LoRA(encoder, ('blocks/(attention/(query|out)|mlp/fc_2)/kernel',), rank=32)
  factors = named(make_variables(model)['params']['lora'])
  for name, inputs in [('attention/query', 64), ('attention/out', 64), ('mlp/fc_2', 128)]:
    a, b = (np.asarray(factors[f'blocks/{name}/kernel/{factor}']) for factor in 'ab')
    assert a.std() == pytest.approx(inputs**-0.5, rel=0.05), name
    assert np.abs(a).max() > 3 * a.std(), name
    assert not np.array_equal(a[0], a[1]), name
    assert not b.any(), name


# -- An encoder like any other.


class Plain(nn.Module):
  """Has an encoder under the same name as `LoRA`, and so with the same random numbers."""

  encoder: nn.Module

  def __call__(self, x, *, train, **asked):
    return self.encoder(x, train=train, **asked)


class Views(nn.Module):
  """Looks twice."""

  encoder: nn.Module

  def __call__(self, x, *, train, **asked):
    return self.encoder(x, train=train, **asked), self.encoder(x, train=train, **asked)


@pytest.mark.parametrize('scan', [False, True])
def test_what_is_asked_of_the_encoder_and_its_random_numbers_come_through(scan):
  drops = dict(dropout=0.3, drop_path=0.3)
  encoder = ViT(**SMALL, **drops, scan=scan)
  adapted, plain = Views(LoRA(encoder, QV)), Views(Plain(encoder))
  variables = make_variables(adapted)
  asked = dict(
    train=True, blocks=(0, -1), keep=np.array([[0, 2], [1, 4]]), mutable=['intermediates']
  )
  (features, again), new = apply(adapted, variables, **asked)
  (expected, expected_again), expected_new = apply(plain, variables, **asked)
  expect(features, expected)
  expect(again, expected_again)
  expect(new, expected_new)
  assert len(features.blocks) == 2
  assert len(jax.tree.leaves(new)) == (2 if scan else 4)  # Attention weights.
  (other, _), _ = apply(adapted, variables, key=3, **asked)
  for drawn in (again, other):
    assert np.abs(drawn.pooled - features.pooled).max() > 0.1


BATCH = {
  'image': np.random.default_rng(2).integers(0, 256, (8, 8, 8, 3), np.uint8),
  'label': np.arange(8, dtype=np.int32) % 4,
}


def spec_of(batch):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


@pytest.mark.parametrize('fields', [dict(), dict(scan=True), dict(remat='dots', dtype='bfloat16')])
def test_with_the_encoder_frozen_the_factors_and_the_head_are_trained(fields):
  objective = Supervised(LoRA(ViT(**SMALL, **fields), QV, rank=2), num_classes=4)
  spec = spec_of(BATCH)
  init = jax.jit(functools.partial(objective.init, train=False))
  variables = nn.unbox(init(jax.random.key(0), BATCH))
  rng = np.random.default_rng(3)
  # Neither B nor the head is zero, or no gradient would come through.
  params = jax.tree.map(
    lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(x.dtype), variables['params']
  )
  config = dict(name='sgd', learning_rate=0.1, freeze=('encoder/encoder/.*',), schedule='constant')
  steps = functools.partial(units.steps, batch_size=8, num_examples=8)
  optimizer = optim.build_optimizer(config, params, total_steps=1, steps=steps)
  state = TrainState(
    jnp.zeros([], jnp.int32), params, {}, optimizer.tx.init(params), jax.random.key(1)
  )
  step = jax.jit(make_train_step(objective, optimizer.tx, frozen=optimizer.frozen))
  after, metrics = step(state, BATCH)
  assert metrics['grad_norm'] > 0
  before, after = named(params), named(after.params)
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  assert changed == {name for name in before if name.startswith(('encoder/lora/', 'head/'))}
  assert abstract_variables(objective, spec).keys() == {'params'}


# -- Sharding.


@pytest.mark.parametrize('scan', [False, True])
def test_the_factors_have_the_axes_of_their_kernel(scan):
  encoder = ViT(**SMALL, scan=scan)
  objective = Supervised(LoRA(encoder, ('block.*/kernel', 'embedding/kernel')), num_classes=4)
  variables = abstract_variables(objective, spec_of(BATCH))
  boxes = named(variables['params']['encoder']['lora'])
  assert all(len(box.names) == box.value.ndim for box in boxes.values())
  names = {name for box in boxes.values() for name in box.names if name}
  assert names == {'embed', 'heads', 'head_dim', 'mlp', *(['layers'] if scan else [])}
  assert names <= set(sharding.LOGICAL_AXES)
  block, lead = ('blocks', ('layers',)) if scan else ('block_0', ())
  axes = {name: box.names for name, box in boxes.items()}
  assert axes[f'{block}/attention/query/kernel/a'] == (*lead, 'embed', None)
  assert axes[f'{block}/attention/query/kernel/b'] == (*lead, None, 'heads', 'head_dim')
  assert axes[f'{block}/attention/out/kernel/a'] == (*lead, 'heads', 'head_dim', None)
  assert axes[f'{block}/attention/out/kernel/b'] == (*lead, None, 'embed')
  assert axes['embedding/kernel/a'] == (None, None, None, None)
  assert axes['embedding/kernel/b'] == (None, 'embed')
  stacked = {name for name in stacked_names(variables) if '/lora/' in name}
  assert stacked == {f'encoder/lora/{name}' for name in boxes if name.startswith('blocks/')}
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  placed = sharding.parameter_shardings(variables, mesh)['params']
  for leaf, to in zip(
    jax.tree.leaves(nn.unbox(variables)['params']), jax.tree.leaves(placed), strict=True
  ):
    assert math.prod(leaf.shape) % math.prod(to.shard_shape(leaf.shape)) == 0


# -- What evaluators read.


def test_the_attention_evaluator_sees_the_adapted_encoder():
  vit = dict(type='models.vit.ViT', **{**SMALL, 'patch_size': 8})
  lora = dict(type='models.lora.LoRA', encoder=vit, kernels=('.*/kernel',), alpha=100.0)
  plain, adapted = (
    build(
      dict(
        type='objectives.supervised.Supervised',
        num_classes=8,
        eval_augment='background(p=0)',
        encoder=encoder,
      )
    )
    for encoder in (vit, lora)
  )
  batch = {'image': np.zeros((1, 32, 32, 3), np.uint8), 'label': np.zeros(1, np.int32)}
  init = jax.jit(functools.partial(adapted.init, train=False))
  params = jax.tree.map(lambda x: x + 0.1, nn.unbox(init(jax.random.key(0), batch)))['params']
  merged = {'encoder': merge(params['encoder'], alpha=100.0), 'head': params['head']}

  def run(objective, params):
    mesh = sharding.make_mesh(dict(data=-1), jax.devices()[:1])
    source = Emoji('validation', styles=('google',))
    state = types.SimpleNamespace(step=0, params=params, model_state={})
    return Attention(objective, mesh, source=source, count=8, batch_size=8).run(state)

  got, expected = run(adapted, params), run(plain, merged)
  assert got['mask_share'] == pytest.approx(expected['mask_share'], rel=1e-5)
  assert got['mask_share'] != pytest.approx(got['untrained_mask_share'], rel=1e-3)
  encoder = adapted.encoder
  for field in ('size', 'patch', 'pooling', 'positions', 'attention'):
    assert getattr(encoder, field) == getattr(plain.encoder, field), field
  kernel = encoder.pixel_kernel(params['encoder'])
  expect(kernel, merged['encoder']['embedding']['kernel'])
  assert encoder.clone(attention='xla', rank=2) == LoRA(
    plain.encoder.clone(attention='xla'), ('.*/kernel',), rank=2, alpha=100.0
  )


def test_the_attention_evaluator_refuses_an_adapted_resnet():
  objective = Supervised(LoRA(ResNet('18'), ('conv_root/kernel',)), num_classes=8)
  source = Emoji('validation', styles=('google',))
  with pytest.raises(ValueError, match='needs an encoder whose blocks attend .* the encoder LoRA'):
    Attention(objective, sharding.make_mesh(dict(data=-1)), source=source)


# -- Mistakes.


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(rank=0), '^rank must be at least 1, got 0$'),
    (dict(alpha=0.0), '^alpha must be a number > 0, got 0.0$'),
    (dict(kernels=()), '^kernels must be patterns'),
    (dict(kernels=QV[0]), '^kernels must be patterns'),
    (
      dict(kernels=('block_0/atention/query/kernel',)),
      r"^kernels: 'block_0/atention/query/kernel' matches none of \d+ parameters; the closest are"
      " 'block_0/attention/query/kernel', ",
    ),
    (dict(kernels=(*QV, 'blocks/.*')), "^kernels: 'blocks/.*' matches none of"),
    (
      dict(kernels=(*QV, 'block_1/mlp/fc_1/.*')),
      r"^kernels: 'block_1/mlp/fc_1/\.\*' matches 'block_1/mlp/fc_1/bias', which is no kernel; the"
      " closest are 'block_1/mlp/fc_1/kernel', ",
    ),
    (dict(kernels=('(',)), '^kernels: .* is no regular expression'),
  ],
)
def test_mistakes_are_named_with_the_choices(fields, message):
  with pytest.raises(ValueError, match=message):
    model = LoRA(ViT(**SMALL), **{'kernels': QV, **fields})
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGE)
