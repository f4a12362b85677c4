"""The published image-text models, by name, as what `build` makes them of."""

from collections.abc import Mapping
from typing import Any

from vit_jax.choices import check_choice
from vit_jax.models.sizes import CLIP_MEAN, CLIP_STD


def _text(variant: str, projection: int) -> dict[str, Any]:
  """CLIP's text tower. Section 2.4, arXiv:2103.00020."""
  return {
    'type': 'models.text.TextTransformer',
    'variant': variant,
    'vocab_size': 49408,
    'end_id': 49407,
    'projection': projection,
    'activation': 'quick_gelu',
  }


def _clip(image: Mapping[str, Any], text: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
  colours = {'mean': CLIP_MEAN, 'std': CLIP_STD}
  return {'type': 'objectives.clip.CLIP', 'image': image, 'text': text, **fields, **colours}


def _vit(variant: str, text: str, projection: int, side: int = 224) -> dict[str, Any]:
  """CLIP with a ViT for images. Table 20, arXiv:2103.00020."""
  patch = int(variant.partition('/')[2])
  image = {
    'type': 'models.vit.ViT',
    'variant': variant,
    'grid': (side // patch, side // patch),
    'patch_bias': False,
    'pre_norm': True,
    'activation': 'quick_gelu',
    'ln_eps': 1e-5,
  }
  return _clip(image, _text(text, projection), projection=projection)


def _resnet(variant: str, projection: int, **text: Any) -> dict[str, Any]:
  """CLIP with a residual network for images. Table 19, arXiv:2103.00020."""
  image = {'type': 'models.clip_resnet.ClipResNet', 'variant': variant}
  return _clip(image, {**_text('B', projection), **text})


def _siglip(variant: str, side: int, width: int, depth: int, num_heads: int) -> dict[str, Any]:
  """SigLIP, whose towers are of one size. Section 4, arXiv:2303.15343; big_vision's configs."""
  patch = int(variant.partition('/')[2])
  shared = {'activation': 'gelu_tanh', 'ln_eps': 1e-6}
  image = {
    'type': 'models.vit.ViT',
    'variant': variant,
    'grid': (side // patch, side // patch),
    'pooling': 'map',
    **shared,
  }
  text = {
    'type': 'models.text.TextTransformer',
    'vocab_size': 32000,
    'width': width,
    'depth': depth,
    'num_heads': num_heads,
    'context': 64,
    'causal': False,
    'pooling': 'last',
    'projection': width,
    'projection_bias': True,
    **shared,
  }
  # Its published code bounds no scale.
  fields = {'loss': 'sigmoid', 'max_scale': None}
  return {'type': 'objectives.clip.CLIP', 'image': image, 'text': text, **fields}


MODELS: Mapping[str, Mapping[str, Any]] = {
  'ViT-B/32': _vit('B/32', 'B', 512),
  'ViT-B/16': _vit('B/16', 'B', 512),
  'ViT-L/14': _vit('L/14', 'L', 768),
  'ViT-L/14@336px': _vit('L/14', 'L', 768, 336),
  'RN50': _resnet('RN50', 1024),
  'RN101': _resnet('RN101', 512),
  'RN50x4': _resnet('RN50x4', 640, width=640, num_heads=10, mlp_dim=2560),
  'SigLIP-B/16': _siglip('B/16', 224, 768, 12, 12),
  'SigLIP-L/16-256': _siglip('L/16', 256, 1024, 24, 16),
}


def clip_model(name: str, **fields: Any) -> dict[str, Any]:
  """What `build` makes a published model of, without its weights.

  Args:
    name: as it was published: 'ViT-B/32', 'RN50', 'SigLIP-B/16'; a key of `MODELS`.
    **fields: others of `objectives.clip.CLIP`; of `image` and `text`, those to change.

  Raises:
    ValueError: an unknown name.
  """
  check_choice('name', name, MODELS)
  spec = dict(MODELS[name])
  for field, value in fields.items():
    inner = field in ('image', 'text')
    spec[field] = {**spec[field], **value} if inner else value
  return spec
