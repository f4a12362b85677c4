import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.decoder import Decoder
from vit_jax.models.features import Features
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT

torch = pytest.importorskip('torch')


def features(grid=(2, 3), width=10):
  n = grid[0] * grid[1]
  tokens = np.random.default_rng(0).normal(size=(2, n, width)).astype(np.float32)
  return Features(pooled=tokens.mean(1), tokens=tokens, grid=grid)


def made(given, channels=3, size=(16, 24), **fields):
  """A decoder, its parameters away from their start, and what it gives."""
  decoder = Decoder(**fields)
  start = nn.unbox(decoder.init(jax.random.key(0), given, channels, size))
  rng = np.random.default_rng(1)
  moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), start)
  return decoder, start, moved['params'], decoder.apply(moved, given, channels, size)


def torch_conv(x, kernel):
  kernel = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1)
  return torch.nn.functional.conv2d(x, kernel, padding=1)


def torch_shuffle(x, factor):
  batch, size, h, w = x.shape
  x = x.reshape(batch, factor**2, -1, h, w).transpose(1, 2).reshape(batch, size, h, w)
  return torch.nn.functional.pixel_shuffle(x, factor)


def torch_norm(x, p):
  x = x.permute(0, 2, 3, 1)
  scale, bias = (torch.tensor(np.asarray(p[key])) for key in ('scale', 'bias'))
  x = torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-6)
  return torch.relu(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize('doublings', [0, 1, 2])
def test_equals_convolutions_and_pixel_shuffles(doublings):
  given = features()
  _, _, params, ours = made(given, width=8, doublings=doublings)
  x = given.tokens @ np.asarray(params['project']['kernel'])
  x = torch.tensor(x.reshape(2, 2, 3, 8)).permute(0, 3, 1, 2)
  x = torch_norm(x, params['norm_0'])
  for i in range(1, doublings + 1):
    x = torch_shuffle(torch_conv(x, params[f'conv_{i}']['kernel']), 2)
    x = torch_norm(x, params[f'norm_{i}'])
    assert x.shape[1] == 8 // 2**i
  x = torch_shuffle(torch_conv(x, params['pixels']['kernel']), 8 // 2**doublings)
  expected = x.permute(0, 2, 3, 1).numpy() + np.asarray(params['bias'])
  assert ours.shape == (2, 16, 24, 3)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_starts_at_zero():
  given = features()
  decoder, start, _, _ = made(given, width=8)
  np.testing.assert_array_equal(decoder.apply(start, given, 3, (16, 24)), 0)


@pytest.mark.parametrize(
  'encoder',
  [
    ViT(patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=16),
    ResNet(blocks=(1, 1), width=8, small_stem=True),
    ResNet(blocks=(1, 1, 1), width=8),
  ],
  ids=['vit', 'small_resnet', 'resnet'],
)
def test_gives_an_image_of_what_any_encoder_gives(encoder):
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48, 3)), jnp.float32)
  given, _ = encoder.init_with_output(jax.random.key(0), image, train=False)
  _, _, _, decoded = made(given, channels=2, size=(32, 48), width=8, doublings=1)
  assert decoded.shape == (2, 32, 48, 2)
  assert np.isfinite(decoded).all()


def test_computes_in_its_dtype():
  _, _, params, decoded = made(features(), width=8, dtype='bfloat16')
  assert decoded.dtype == jnp.bfloat16
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_what_cannot_be_is_an_error():
  with pytest.raises(ValueError, match='width 12 of a decoder cannot be halved 3 times'):
    Decoder(width=12, doublings=3)
  with pytest.raises(ValueError, match='make 8x12 of the grid 2x3, which does not divide 20x24'):
    made(features(), size=(20, 24), width=8)
  with pytest.raises(ValueError, match='needs features with a grid'):
    made(features().replace(grid=None), width=8)
