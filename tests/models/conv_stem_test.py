"""Convolutions before the patches, against PyTorch's."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax.models.conv_stem import ConvStem
from vit_jax.models.vit import ViT

torch = pytest.importorskip('torch')

SMALL = dict(width=16, depth=1, mlp_dim=16, num_heads=2, positions='sincos2d', pooling='mean')


def randomised(params):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), nn.unbox(params))


def test_the_stem_equals_pytorch():
  image = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
  stem = ConvStem((5, 7))
  p = randomised(stem.init(jax.random.key(0), image)['params'])
  x = torch.from_numpy(image.transpose(0, 3, 1, 2))
  for i, features in enumerate((5, 7)):
    kernel = torch.from_numpy(p[f'conv_{i}']['kernel'].transpose(3, 2, 0, 1))
    x = torch.nn.functional.pad(x, (0, 1, 0, 1))  # an even side has its zeros after it
    x = torch.nn.functional.conv2d(x, kernel, stride=2).permute(0, 2, 3, 1)
    scale, bias = (torch.from_numpy(p[f'norm_{i}'][name]) for name in ('scale', 'bias'))
    x = torch.nn.functional.layer_norm(x, (features,), scale, bias, 1e-6)
    x = torch.relu(x).permute(0, 3, 1, 2)
  out = stem.apply({'params': p}, image)
  assert out.shape == (2, 2, 3, 7)
  assert stem.stride == 4
  np.testing.assert_allclose(out, x.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_patches_are_cut_from_the_feature_map():
  model = ViT(patch_size=(8, 4), conv_stem=(6, 10), **SMALL)
  image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  variables = nn.unbox(model.init(jax.random.key(0), image, train=False))
  assert variables['params']['embedding']['kernel'].shape == (2, 1, 10, 16)
  assert model.apply(variables, image, train=False).grid == (2, 4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(patch_size=6), 'patch_size 6 is not a multiple of 4, the stride of the conv_stem'),
    (dict(variant='R26+S/32'), "'R26\\+S/32' has a ResNet in the place of a conv_stem"),
  ],
)
def test_a_stem_that_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    ViT(**SMALL, conv_stem=(6, 10), **fields)
