"""The 'open_clip_config.json' of open_clip: what it says of both towers and of images, in and out.

`open_clip/factory.py` reads it, `open_clip/model.py` and `transform.py` have the defaults.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax.adapters.layout import Facts, Preprocessing
from vit_jax.adapters.timm_models import TANH
from vit_jax.choices import check_choice
from vit_jax.models.clip_resnet import STRIDE, ClipResNet
from vit_jax.models.sizes import CLIP_MEAN, CLIP_STD
from vit_jax.models.text import TextTransformer
from vit_jax.models.vit import ViT

if TYPE_CHECKING:
  from vit_jax.model import Model

FILE = 'open_clip_config.json'
LN_EPS = 1e-5
RESIZE_MODES, INTERPOLATIONS = ('shortest', 'squash'), ('bicubic', 'bilinear')
# Keys of a tower, with the only values that our towers have; of some others nothing is said in
# arrays, and these change nothing in evaluation.
_BOTH = {
  'ls_init_value': (None,),
  'final_ln_after_pool': (False,),
  'block_type': (None, 'default'),
  'qk_norm': (False,),
  'scaled_cosine_attn': (False,),
  'scale_heads': (False,),
  'scale_attn_inner': (False,),
  'scale_attn': (False,),
  'scale_fc': (False,),
}
ONLY = {
  'vision_cfg': {
    **_BOTH,
    'pool_type': ('tok',),
    'attentional_pool': (False,),
    'pos_embed_type': ('learnable',),
    'timm_pool': ('map', 'avg'),  # The second is the default, also of what is not timm's.
    'timm_proj': ('none', 'linear', '', None),
  },
  'text_cfg': {
    **_BOTH,
    'pool_type': ('argmax', 'eos', 'last', 'first'),
    'embed_cls': (False,),
    'proj_type': ('linear',),
    'hf_model_name': (None,),
  },
}
# By width, depth and patch, what timm calls SigLIP's image towers.
SIGLIPS = {
  (768, 12, 16): 'base_patch16',
  (1024, 24, 16): 'large_patch16',
  (1152, 27, 14): 'so400m_patch14',
  (1152, 27, 16): 'so400m_patch16',
}


class Config(NamedTuple):
  """What the file says.

  Attributes:
    path: of the weights, for messages.
    model: of both towers; None where there is no such file.
    images: what an image goes through.
  """

  path: str
  model: Mapping[str, Any] | None = None
  images: Mapping[str, Any] = {}

  def tower(self, name: str) -> Mapping[str, Any]:
    """What it says of a tower, 'vision_cfg' or 'text_cfg'; nothing without a file."""
    return (self.model or {}).get(name) or {}

  def transformer(self, name: str, facts: Facts, activation: str | None) -> dict[str, Any]:
    """Activation and epsilon of a tower.

    Args:
      name: 'vision_cfg' or 'text_cfg'.
      facts: what the caller says.
      activation: what is known without a file.

    Raises:
      ValueError: nobody says the activation, which no array does.
    """
    keys = self.tower(name)
    if self.model is not None:
      tanh = (keys.get('act_kwargs') or {}).get('approximate') == 'tanh'
      activation = 'gelu_tanh' if tanh else 'gelu'
      if self.model.get('quick_gelu'):
        activation = 'quick_gelu'
    choices = ": 'quick_gelu' of what OpenAI has published, 'gelu' of most that open_clip has"
    epsilon = (keys.get('norm_kwargs') or {}).get('eps', LN_EPS)
    return {
      'activation': facts.need('activation', activation, self.path, choices),
      'ln_eps': facts.get('ln_eps', epsilon),
    }

  def preprocessing(self, size: tuple[int, int], channels: int) -> Preprocessing:
    """What an image goes through, before it is normalised.

    Raises:
      ValueError: it does what we have no transform for.
    """
    mode = self.images.get('resize_mode', 'shortest')
    interpolation = self.images.get('interpolation', 'bicubic')
    try:
      check_choice('resize_mode', mode, RESIZE_MODES)
      check_choice('interpolation', interpolation, INTERPOLATIONS)
    except ValueError as e:
      raise ValueError(f'{FILE} beside {self.path}: {e}') from None
    return Preprocessing(size, 1.0 if mode == 'shortest' else None, interpolation, channels)

  def colours(self, facts: Facts) -> tuple[Any, Any]:
    """Mean and std of images: CLIP's where nobody says others."""
    known = self.images.get('mean', CLIP_MEAN), self.images.get('std', CLIP_STD)
    return facts.get('mean', known[0]), facts.get('std', known[1])


def find_config(path: str, files: Mapping[str, Any]) -> Config:
  """What the file beside weights says.

  Args:
    path: of the weights.
    files: the JSON files beside them, by name.

  Raises:
    ValueError: it has what no model here has.
  """
  keys = files.get(FILE) or {}
  config = Config(path, keys.get('model_cfg'), keys.get('preprocess_cfg') or {})
  for tower, allowed in ONLY.items():
    for key, value in config.tower(tower).items():
      if key in allowed and value not in allowed[key]:
        raise ValueError(f'{path}: {FILE} has {key} {value!r}, which no model here has')
  return config


def write_config(model: 'Model') -> dict[str, Any]:
  """The file with which `open_clip.create_model('local-dir:FOLDER')` makes a model of a folder.

  What an image goes through is left out where it cannot be said so.

  Raises:
    ValueError: open_clip makes no such model.
  """
  objective = model.objective
  image, text = objective.image, objective.text
  timm = isinstance(image, ViT) and image.pooling == 'map'
  if isinstance(image, ClipResNet):
    vision = _resnet(image)
  else:
    vision = _trunk(image) if timm else _vit(image)
  activations = {tower.activation for tower in (image, text) if hasattr(tower, 'activation')}
  quick = text.activation == 'quick_gelu'
  if quick and len(activations) > 1:
    raise ValueError(f'open_clip has one quick_gelu for both towers, not {sorted(activations)}')
  config = {
    'embed_dim': text.projection,
    'quick_gelu': quick,
    'vision_cfg': vision,
    'text_cfg': _text(text),
    'custom_text': timm or text.projection_bias,
  }
  if objective.loss == 'sigmoid':
    config['init_logit_bias'] = objective.bias
  return {'model_cfg': config, 'preprocess_cfg': _images(model)}


def _images(model: 'Model') -> dict[str, Any]:
  preprocessing = model.preprocessing
  keys: dict[str, Any] = {'size': list(preprocessing.size), 'mode': 'RGB'}
  for name in ('mean', 'std'):
    value = model.spec.get(name, getattr(model.objective, name))
    if value is not None:
      keys[name] = np.broadcast_to(value, preprocessing.channels).tolist()
  if not preprocessing.transforms and preprocessing.crop_share in (None, 1.0):
    keys['interpolation'] = preprocessing.interpolation
    keys['resize_mode'] = 'squash' if preprocessing.crop_share is None else 'shortest'
  return keys


def _resnet(image: ClipResNet) -> dict[str, Any]:
  size, (height, width) = image.size, image.grid
  if height != width:
    raise ValueError(f'open_clip takes a residual network of squares, not {size.image_size}')
  return {'layers': list(size.blocks), 'width': size.width, 'image_size': STRIDE * height}


def _vit(image: ViT) -> dict[str, Any]:
  width, depth, mlp_dim, num_heads = image.size
  if image.patch[0] != image.patch[1] or not image.grid:
    raise ValueError(
      f'open_clip takes square patches and a stated grid, not {image.patch} and {image.grid}'
    )
  return {
    'layers': depth,
    'width': width,
    'head_width': width // num_heads,
    'mlp_ratio': _ratio(mlp_dim, width),
    'patch_size': image.patch[0],
    'image_size': [g * p for g, p in zip(image.grid, image.patch, strict=True)],
    'no_ln_pre': not image.pre_norm,
    **_act_and_norm(image),
  }


def _trunk(image: ViT) -> dict[str, Any]:
  """A SigLIP's, which open_clip takes from timm by its name alone."""
  width, depth = image.size[:2]
  known = SIGLIPS.get((width, depth, image.patch[0])) if image.patch[0] == image.patch[1] else None
  grid = image.grid or (0, 0)
  name = f'vit_{known}_siglip_{grid[0] * image.patch[0]}'
  activation = 'gelu_tanh' if TANH.match(name) else 'gelu'
  found = image.activation, image.ln_eps
  if not known or grid[0] != grid[1] or found != (activation, 1e-6):
    raise ValueError(
      f"open_clip takes a ViT with pooling 'map' from timm by its name, such as {name!r}, with "
      f'{activation!r} and an epsilon of 1e-6; this one has {found[0]!r} and {found[1]}, and is of '
      f'{image.size}'
    )
  return {'timm_model_name': name, 'timm_pool': 'map', 'timm_proj': 'none'} | {
    'image_size': grid[0] * image.patch[0]
  }


def _text(text: TextTransformer) -> dict[str, Any]:
  width, depth, mlp_dim, num_heads = text.size
  keys = {
    'context_length': text.context,
    'vocab_size': text.vocab_size,
    'width': width,
    'heads': num_heads,
    'layers': depth,
    'mlp_ratio': _ratio(mlp_dim, width),
    'no_causal_mask': not text.causal,
    'proj_bias': text.projection_bias,
    'pool_type': 'argmax' if text.pooling == 'end' else text.pooling,
    **_act_and_norm(text),
  }
  if text.pooling == 'end' and text.end_id != text.vocab_size - 1:
    keys |= {'pool_type': 'eos', 'eos_id': text.end_id}
  return keys


def _ratio(mlp_dim: int, width: int) -> float:
  """What open_clip multiplies the width by, before it rounds down."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _act_and_norm(tower: ViT | TextTransformer) -> dict[str, Any]:
  keys: dict[str, Any] = {'norm_kwargs': {'eps': tower.ln_eps}}
  if tower.activation == 'gelu_tanh':
    keys['act_kwargs'] = {'approximate': 'tanh'}
  return keys
