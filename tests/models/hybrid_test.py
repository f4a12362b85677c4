"""The ResNet below a hybrid ViT, against its published sizes and a slow version in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.hybrid import Bottleneck, ResNetStem, StdConv
from vit_jax.models.vit import ViT


def shapes(model, side):
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  init = lambda image: model.init(jax.random.key(0), image, train=False)  # noqa: E731
  return nn.unbox(jax.eval_shape(init, image))['params']


# With a head of 1000 classes, as in timm's vit_base_r50_s16_224, vit_small_r26_s32_224,
# vit_large_r50_s32_224 and vit_tiny_r_s16_p8_224, whose patches are of 32 pixels.
@pytest.mark.parametrize(
  ('variant', 'width', 'count', 'grid'),
  [
    ('R50+B/16', 768, 98_659_112, (14, 14)),
    ('R26+S/32', 384, 36_431_912, (7, 7)),
    ('R50+L/32', 1024, 328_994_856, (7, 7)),
    ('R+Ti/32', 192, 6_337_704, (7, 7)),
  ],
)
def test_parameter_count(variant, width, count, grid):
  model = ViT(variant)
  body = sum(leaf.size for leaf in jax.tree.leaves(shapes(model, 224)))
  assert body + width * 1000 + 1000 == count
  image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  apply = lambda p, x: model.apply({'params': p}, x, train=False)  # noqa: E731
  assert jax.eval_shape(apply, shapes(model, 224), image).grid == grid


def test_a_larger_patch_is_taken_from_the_feature_map():
  kernel = shapes(ViT('R50+S/48'), 96)['embedding']['kernel']
  assert kernel.shape == (3, 3, 1024, 384)


def numpy_conv(x, kernel, stride):
  """A convolution with SAME padding as TensorFlow places it: one pixel more after than before."""
  kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
  size = kernel.shape[0]
  out = [-(-n // stride) for n in x.shape[1:3]]
  total = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, x.shape[1:3], strict=True)]
  x = np.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
  result = np.zeros((len(x), *out, kernel.shape[-1]))
  for i in range(out[0]):
    for j in range(out[1]):
      window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
      result[:, i, j] = np.einsum('bpqc,pqcd->bd', window, kernel)
  return result


def numpy_norm(x, p):
  groups = x.reshape(*x.shape[:3], 32, -1)
  mean = groups.mean((1, 2, 4), keepdims=True)
  variance = groups.var((1, 2, 4), keepdims=True)
  groups = (groups - mean) / np.sqrt(variance + 1e-6)
  return groups.reshape(x.shape) * p['scale'] + p['bias']


def randomised(params):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_bottleneck_equals_numpy(stride):
  x = np.random.default_rng(0).normal(size=(2, 5, 6, 16)).astype(np.float32)
  block = Bottleneck(32, stride)
  p = randomised(nn.unbox(block.init(jax.random.key(0), x))['params'])
  y = np.maximum(numpy_norm(numpy_conv(x, p['conv_1']['kernel'], 1), p['norm_1']), 0)
  y = np.maximum(numpy_norm(numpy_conv(y, p['conv_2']['kernel'], stride), p['norm_2']), 0)
  y = numpy_norm(numpy_conv(y, p['conv_3']['kernel'], 1), p['norm_3'])
  short = numpy_norm(numpy_conv(x, p['conv_proj']['kernel'], stride), p['norm_proj'])
  np.testing.assert_allclose(block.apply({'params': p}, x), np.maximum(short + y, 0), atol=1e-4)


def test_a_block_that_changes_no_shape_starts_as_the_identity():
  x = np.random.default_rng(0).uniform(size=(2, 4, 4, 128)).astype(np.float32)
  block = Bottleneck(32)
  variables = nn.unbox(block.init(jax.random.key(0), x))
  assert 'conv_proj' not in variables['params']
  np.testing.assert_allclose(block.apply(variables, x), x, atol=1e-6)


def test_the_stem_is_its_parts_in_order():
  image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
  stem = ResNetStem((1, 2), width=32)
  p = randomised(nn.unbox(stem.init(jax.random.key(0), image))['params'])
  x = numpy_norm(numpy_conv(image, p['conv_root']['kernel'], 2), p['norm_root'])
  x = np.pad(np.maximum(x, 0), ((0, 0), (0, 1), (0, 1), (0, 0)))  # [1, 9, 9, 32], of zeros
  x = np.stack(
    [[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(4)] for i in range(4)]
  )  # [4, 4, 1, 32]
  x = x.transpose(2, 0, 1, 3).astype(np.float32)
  for name, width, stride in (
    ('stage_0_block_0', 32, 1),
    ('stage_1_block_0', 64, 2),
    ('stage_1_block_1', 64, 1),
  ):
    x = Bottleneck(width, stride).apply({'params': p[name]}, x)
  out = stem.apply({'params': p}, image)
  assert out.shape == (1, 2, 2, 256)
  assert stem.stride == 8
  np.testing.assert_allclose(out, x, atol=1e-3)


def test_kernels_are_standardised_in_float32_inside_bfloat16():
  x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
  conv = StdConv(4, 3)
  variables = nn.unbox(conv.init(jax.random.key(0), x))
  shifted = jax.tree.map(lambda kernel: 3 * kernel + 7, variables)  # the same when standardised
  out = conv.apply(variables, x)
  # To rounding, and the 1e-5 that is added to a deviation of 0.1.
  np.testing.assert_allclose(conv.apply(shifted, x), out, rtol=2e-4, atol=1e-4)
  half = StdConv(4, 3, dtype=jnp.bfloat16).apply(shifted, x)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(np.float32), out, atol=0.1)
