"""Attention: NumPy's rollout, its share on the masks, at any batch size and on any devices."""

import functools
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.emoji import Emoji
from vit_jax.data.substitute import BadExample
from vit_jax.evaluators import attention
from vit_jax.evaluators.attention import Attention
from vit_jax.models.lora import LoRA
from vit_jax.plots import filters


class Pictures(dict):
  def picture(self, step, name, array):
    self[name] = array


class Torn(Emoji):
  """Emoji of which one does not decode."""

  def __getitem__(self, i):
    if i == 3:
      raise BadExample('torn')
    return super().__getitem__(i)


class HalfMasks(Emoji):
  """Emoji whose mask is one half of the image."""

  def __init__(self, side):
    super().__init__('validation', styles=('google',))
    self.side = side

  def mask(self, i):
    mask = np.zeros((32, 32), np.float32)
    mask[:, slice(0, 13) if self.side == 'left' else slice(13, 32)] = 1
    return mask


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def make_objective(**fields):
  encoder = dict(
    type='models.vit.ViT', patch_size=8, width=32, depth=2, mlp_dim=32, num_heads=2, **fields
  )
  return build(
    {
      'type': 'objectives.supervised.Supervised',
      'num_classes': 8,
      'eval_augment': 'background(p=0)',
      'encoder': encoder,
    }
  )


def make_state(objective, seed=0, scale=4.0):
  """Random parameters, enlarged so that the attention is far from uniform."""
  batch = {'image': np.zeros((1, 32, 32, 3), np.uint8), 'label': np.zeros(1, np.int32)}
  init = jax.jit(functools.partial(objective.init, train=False))
  params = nn.unbox(init(jax.random.key(seed), batch))['params']
  params = jax.tree.map(lambda x: scale * x, params)
  return types.SimpleNamespace(step=7, params=params, model_state={})


def source_of(**fields):
  return Emoji('validation', styles=('google',), **fields)


def expected(objective, state, source, indices):
  """Rollouts [N, 4, 4] by matrix products, and their mean share on the masks."""
  image = np.stack([source[i]['image'] for i in indices])
  copy = objective.clone(encoder=objective.encoder.clone(attention='einsum'))
  apply = jax.jit(functools.partial(copy.apply, method='features', mutable=['intermediates']))
  _, new = apply({'params': state.params}, {'image': image})
  sown = new['intermediates']['encoder']
  rollouts, shares, areas = [], [], []
  for n, i in enumerate(indices):
    product = None
    for block in ('block_0', 'block_1'):
      weights = np.asarray(sown[block]['attention']['attention_weights'][0][n], np.float64)
      mixed = 0.5 * weights.mean(0) + 0.5 * np.eye(weights.shape[-1])
      mixed /= mixed.sum(1, keepdims=True)
      product = mixed if product is None else mixed @ product
    row = product[0] if objective.encoder.pooling == 'token' else product.mean(0)
    rollout = row[-16:] / row[-16:].sum()
    mask = source.mask(i).reshape(4, 8, 4, 8).mean((1, 3)).reshape(-1)
    rollouts.append(rollout.reshape(4, 4))
    shares.append((rollout * mask).sum())
    areas.append(source.mask(i).mean())
  return np.stack(rollouts), np.mean(shares), np.mean(areas)


@pytest.fixture(scope='module')
def token():
  objective = make_objective()
  return objective, make_state(objective)


@pytest.mark.parametrize('batch_size, devices', [(1, 1), (7, 8), (64, 8)])
def test_equals_numpy_at_any_batch_size(token, batch_size, devices):
  objective, state = token
  source = source_of()
  indices = np.linspace(0, len(source) - 1, 20).round().astype(int)
  _, share, area = expected(objective, state, source, indices)
  evaluator = Attention(objective, mesh_of(devices), source=source, count=20, batch_size=batch_size)
  result = evaluator.run(state)
  assert set(result) == {'mask_share', 'mask_area', 'untrained_mask_share'}
  assert result['mask_share'] == pytest.approx(share, abs=1e-6)
  assert result['mask_area'] == pytest.approx(area, abs=1e-6)
  # The same ViT for any batch: it stands near the area, since it knows nothing of the drawings.
  assert result['untrained_mask_share'] == pytest.approx(area, abs=0.05)
  assert abs(result['untrained_mask_share'] - result['mask_share']) > 1e-4


@pytest.mark.parametrize('pooling', ['token', 'mean', 'map'])
def test_rollout_of_each_pooling(pooling):
  objective = make_objective(pooling=pooling, positions='sincos2d')
  state, source = make_state(objective), source_of(alpha=True)
  want, *_ = expected(objective, state, source, range(24))
  evaluator = Attention(objective, mesh_of(8), source=source, count=len(source), batch_size=64)
  seen = evaluator._see({'params': state.params}, pictures=True)
  assert seen.shown[0].index == 0 and len(seen.shown) == 24
  np.testing.assert_allclose(seen.shown[0].rollout, want[0], atol=1e-6)
  np.testing.assert_array_equal(seen.shown[0].image, source[0]['image'])
  for shown in seen.shown:
    assert shown.rollout.sum() == pytest.approx(1, abs=1e-5)


def test_whatever_implementation_the_model_uses(token):
  objective, state = token
  fields = dict(source=source_of(), count=16, batch_size=16)
  einsum = Attention(objective, mesh_of(1), **fields).run(state)
  other = Attention(make_objective(attention='xla'), mesh_of(1), **fields).run(state)
  assert other == pytest.approx(einsum)


def test_shares_of_both_halves_make_one(token):
  objective, state = token
  left, right = (
    Attention(objective, mesh_of(8), source=HalfMasks(side), count=24).run(state)
    for side in ('left', 'right')
  )
  for name in left:
    assert left[name] + right[name] == pytest.approx(1, abs=1e-6)
  assert left['mask_area'] == pytest.approx(13 / 32)


def test_a_broken_example_moves_no_mask(token):
  objective, state = token
  source = Torn('validation', styles=('google',))
  rest = [i for i in range(len(source)) if i != 3]
  _, share, area = expected(objective, state, source, rest)
  result = Attention(objective, mesh_of(8), source=source, batch_size=32).run(state)
  assert result['mask_share'] == pytest.approx(share, abs=1e-6)
  assert result['mask_area'] == pytest.approx(area, abs=1e-6)


def test_untrained_share_is_of_no_state(token):
  objective, state = token
  evaluator = Attention(objective, mesh_of(8), source=source_of(), count=24)
  first, second = evaluator.run(state), evaluator.run(make_state(objective, seed=1))
  assert first['untrained_mask_share'] == second['untrained_mask_share']
  assert first['mask_share'] != second['mask_share']
  again = Attention(objective, mesh_of(8), source=source_of(), count=24)
  assert again.run(state) == first


@pytest.mark.parametrize('positions', ['learned', 'sincos2d'])
def test_pictures_of_the_last_run(positions):
  objective = make_objective(positions=positions)
  writer, state = Pictures(), make_state(objective)
  fields = dict(source=source_of(), count=8, batch_size=8)
  evaluator = Attention(objective, mesh_of(1), writer=writer, **fields)
  values = evaluator.run(state)
  assert not writer
  assert evaluator.run(state, final=True) == values
  assert set(writer) == {'rollout', 'distances', 'filters', 'positions'}
  for picture in writer.values():
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  before = dict(writer)
  evaluator.run(make_state(objective, seed=1), final=True)
  assert (before['rollout'] != writer['rollout']).any()
  assert (before['filters'] != writer['filters']).any()
  fixed = np.array_equal(before['positions'], writer['positions'])
  assert fixed == (positions == 'sincos2d')


def test_pictures_of_positions_on_a_grid_of_their_own_and_under_lora():
  plain = make_objective(grid=(3, 2))
  adapted = plain.clone(encoder=LoRA(plain.encoder, kernels=('block_0/attention/query/kernel',)))
  pictures = []
  for objective in (plain, adapted):
    writer, state = Pictures(), make_state(objective)
    evaluator = Attention(
      objective, mesh_of(1), source=source_of(), count=8, batch_size=8, writer=writer
    )
    evaluator.run(state, final=True)
    assert set(writer) == {'rollout', 'distances', 'filters', 'positions'}
    pictures.append(writer['positions'])
  assert pictures[0].shape == pictures[1].shape


def test_filters_are_those_of_the_layer_that_sees_pixels():
  objective = make_objective(conv_stem=(4, 6))
  writer, state = Pictures(), make_state(objective)
  Attention(objective, mesh_of(1), writer=writer, source=source_of(), count=8).run(
    state, final=True
  )
  kernel = state.params['encoder']['conv_stem']['conv_0']['kernel']
  assert kernel.shape == (3, 3, 3, 4)
  np.testing.assert_array_equal(writer['filters'], filters.filters(kernel))


def test_blocks_in_their_order():
  sown = {
    f'block_{i}': {'attention': {'attention_weights': (np.full((2, 3, 5, 5), i),)}}
    for i in (10, 2, 0, 11, 1, 9, 3, 8, 4, 7, 5, 6)
  }
  sown['map_head'] = {'attention': {'attention_weights': (np.ones((2, 3, 1, 5)),)}}
  found = attention.block_weights(sown)
  assert [int(w[0, 0, 0, 0]) for w in found] == list(range(12))
  stacked = np.arange(4)[:, None, None, None, None] * np.ones((4, 2, 3, 5, 5))
  scanned = {'blocks': {'attention': {'attention_weights': (stacked,)}}}
  found = attention.block_weights(scanned)
  assert [int(w[0, 0, 0, 0]) for w in found] == [0, 1, 2, 3]
  assert found[0].shape == (2, 3, 5, 5)


class NoEncoder(nn.Module):
  def features(self, batch):
    return batch['image'].reshape(len(batch['image']), -1)


class Pooled(nn.Module):
  """An objective on an encoder of any kind."""

  encoder: nn.Module

  def features(self, batch):
    return self.encoder(batch['image'])


class NoFeatures(nn.Module):
  encoder: nn.Module

  def logits(self, batch):
    return batch['image']


@pytest.mark.parametrize(
  'objective, message',
  [
    (NoEncoder(), 'such as models.vit.ViT; NoEncoder has no encoder'),
    (Pooled(nn.Dense(3)), 'such as models.vit.ViT; Pooled has the encoder Dense'),
    (NoFeatures(nn.Dense(3)), "calls 'features', which NoFeatures lacks; it has 'logits'"),
  ],
)
def test_an_encoder_that_is_no_vit(objective, message):
  with pytest.raises(ValueError, match=message):
    Attention(objective, mesh_of(1), source=source_of())


class Windows(nn.Module):
  """Looks like a ViT by its fields, but attends to nothing."""

  attention: str = 'auto'
  pooling: str = 'mean'
  patch: tuple[int, int] = (8, 8)

  def __call__(self, image):
    return image.mean((1, 2))


def test_an_encoder_without_attention_among_patches():
  evaluator = Attention(Pooled(Windows()), mesh_of(1), source=source_of(), count=8, batch_size=8)
  state = types.SimpleNamespace(step=0, params={}, model_state={})
  with pytest.raises(ValueError, match=r'blocks attend over all patches.*the encoder Windows'):
    evaluator.run(state)


def test_a_source_without_masks(token):
  with pytest.raises(ValueError, match=r'source with mask\(i\), which Digits lacks'):
    Attention(token[0], mesh_of(1), source=Digits())


@pytest.mark.parametrize('count', [0, 10**6])
def test_count_is_among_the_examples(token, count):
  with pytest.raises(ValueError, match=f'count is {count}; choose from 1 to '):
    Attention(token[0], mesh_of(1), source=source_of(), count=count)
