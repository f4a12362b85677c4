"""timm's Vision Transformers, those of DeiT and the hybrids, in and out.

`VisionTransformer` of `timm/models/vision_transformer.py`; the files that DeiT, DINO and MAE have
published have its names too. A class token that is not what the head looks at is a register here,
as in MAE's fine-tuned models, which are pooled by the mean.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vit_jax.adapters.layout import (
  Facts,
  Layout,
  count_blocks,
  refuse_arrays,
  refuse_fields,
  shape_of,
  square_grid,
  stem_of,
  supervised,
  vit_spec,
)
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.timm_config import (
  FILE,
  Config,
  class_names,
  find_config,
  pair,
  read_images,
  write_config,
)
from vit_jax.adapters.timm_models import (
  EPSILONS,
  activation_of,
  architecture_of,
  check_model,
  epsilon_of,
  heads_of,
)
from vit_jax.adapters.timm_vit_rules import BACKBONE, Parts, first_layer, rules_of
from vit_jax.models.hybrid import ResNetStem, stride_of
from vit_jax.models.vit import Size, ViT

if TYPE_CHECKING:
  from vit_jax.model import Model

KERNEL = 'patch_embed.proj.weight'
POOLINGS = {'token': 'token', 'avg': 'mean', 'map': 'map'}
# What a part of a name says of an architecture that we have not.
OTHERS = {
  'dist': "DeiT's second token, of distillation",
  'register_tokens': "registers by the name of DINOv2's own code",
  'rel_pos': 'relative positions',
  'relative_position': 'relative positions',
  'attn.norm': 'a norm inside the attention',
  'mlp.norm': 'a norm inside the MLP',
  'fc1_g': 'a SwiGLU MLP',
  BACKBONE: 'a ResNet of another kind',
}
INSIDE = ('patch_embed.', 'blocks.', 'norm_pre.', 'dist_token', 'head_dist.', 'register_tokens')
LAYER_SCALE = 1e-5  # timm's `init_values` of most models
# Fields of a ViT, with the only values that timm has a place for,
NO_PLACE = {
  'positions': ('learned',),
  'conv_stem': ((),),
  'pre_logits': (None,),
  'ln_eps': tuple(EPSILONS.values()),
}
# and those of a hybrid.
NO_PLACE_HYBRID = {**NO_PLACE, 'stem_constants': ('timm',), 'ln_eps': (EPSILONS[''],)}


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is of this format."""
  return {KERNEL, 'blocks.0.norm1.weight', 'blocks.0.attn.qkv.weight'} <= set(names)


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names, shapes and 'config.json'.

  Exact GELU and an epsilon of 1e-6 are timm's own; where its models have others, their name in
  'config.json' says so. Without that file they have to be stated where a ViT may be CLIP's, by its
  first LayerNorm, and the activation where it may be SigLIP's: with attention pooling, or the mean
  of tokens behind a LayerNorm.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: the JSON files beside it, by name.

  Raises:
    ValueError: an array is missing, or one makes it another architecture; a fact that nobody says.
  """
  path, config = tensors.path, find_config(tensors.path, files)
  check_model(config)
  kernel = shape_of(tensors, KERNEL)
  if len(kernel) != 4:
    raise ValueError(f'{KERNEL!r} in {path} is {list(kernel)}, which is no convolution')
  width, _, *sides = kernel
  parts = _find_parts(tensors, _pooling(tensors, facts, config))
  refuse_arrays(tensors, INSIDE, list(rules_of(parts)), OTHERS)
  for norm in ('blocks.0.norm1', parts.last_norm):  # An RMSNorm has no bias; some have no last one.
    shape_of(tensors, f'{norm}.bias')
  stride = 1 if parts.resnet is None else stride_of(parts.resnet)
  patch = sides[0] * stride, sides[1] * stride
  prefix, grid = _split_positions(tensors, parts, patch, facts, config)
  parts = parts._replace(prefix=prefix)
  sizes = width, parts.depth, _mlp_dim(tensors)
  spec = vit_spec(
    Size(*sizes, facts.need('num_heads', heads_of(config, *sizes), path)),
    patch,
    grid,
    stem='' if parts.resnet is None else stem_of(parts.resnet, path),
    **_fields(parts, facts, config),
  )
  native = grid[0] * patch[0], grid[1] * patch[1]
  channels = shape_of(tensors, f'{first_layer(parts.resnet)}.weight')[1]
  preprocessing, mean, std = read_images(config, native, patch, channels)
  classes = shape_of(tensors, 'head.bias')[0] if parts.head else None
  objective = supervised(spec, classes, facts.get('mean', mean), facts.get('std', std))
  names = class_names(config, classes, facts)
  return Layout('timm', objective, preprocessing, list(rules_of(parts)), names)


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT is called in timm.

  Registers have no positions there, nor then has a class token: `no_embed_class`. Fixed positions
  are refused: timm has learned ones alone.

  Raises:
    ValueError: it has parts that timm has no place for.
  """
  hybrid = isinstance(encoder.stem, ResNetStem)
  refuse_fields('timm', encoder, NO_PLACE_HYBRID if hybrid else NO_PLACE)
  if not encoder.pre_norm:  # Theirs lack the bias together with this norm.
    refuse_fields('timm', encoder, {'patch_bias': (True,)})
  cls = encoder.pooling == 'token'
  parts = Parts(
    encoder.size.depth,
    encoder.pooling,
    cls=cls,
    registers=encoder.registers,
    prefix=int(cls and not encoder.registers),
    patch_bias=not encoder.pre_norm,
    zero_patch_bias=encoder.pre_norm and encoder.patch_bias,
    qk_norm=encoder.qk_norm,
    layer_scale=encoder.layer_scale is not None,
    pre_norm=encoder.pre_norm,
    last_norm='fc_norm' if encoder.norm_after_pooling else 'norm',
    head=num_classes is not None,
    resnet=encoder.stem.blocks if hybrid else None,
  )
  return list(rules_of(parts))


def companions(model: 'Model') -> dict[str, dict[str, Any]]:
  """The 'config.json' with which `timm.create_model('local-dir:FOLDER', pretrained=True)` opens it.

  See `write_config` for what it says of images.
  """
  encoder, size = model.objective.encoder, model.preprocessing.size
  width, depth, mlp_dim, num_heads = encoder.size
  patch, stem = encoder.patch, encoder.stem
  if encoder.grid:
    size = tuple(g * p for g, p in zip(encoder.grid, patch, strict=True))
  ratio = mlp_dim / width
  args = {
    'img_size': list(size),
    'patch_size': [p // (stem.stride if stem else 1) for p in patch],
    'in_chans': model.preprocessing.channels,
    'embed_dim': width,
    'depth': depth,
    'num_heads': num_heads,
    # Their product is rounded down.
    'mlp_ratio': ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf),
    'class_token': encoder.pooling == 'token',
    'no_embed_class': encoder.registers > 0,
    'reg_tokens': encoder.registers,
    'global_pool': next(theirs for theirs, ours in POOLINGS.items() if ours == encoder.pooling),
    'fc_norm': encoder.norm_after_pooling,
    'pre_norm': encoder.pre_norm,
    'qk_norm': encoder.qk_norm,
    'act_layer': encoder.activation,
  }
  if encoder.layer_scale is not None:
    args['init_values'] = encoder.layer_scale or LAYER_SCALE  # Of 0, timm makes none.
  first = first_layer(stem.blocks if stem else None)
  return {FILE: write_config(model, architecture_of(encoder), args, first, 'head')}


def _fields(parts: Parts, facts: Facts, config: Config) -> dict[str, Any]:
  """Fields of the ViT beside its sizes; None leaves the default."""
  normed = parts.pooling == 'mean' and parts.last_norm == 'norm'
  clip, siglip = parts.pre_norm, parts.pooling == 'map' or (normed and not parts.cls)
  activation = activation_of(config) or (None if clip or siglip else 'gelu')
  epsilon = epsilon_of(config) or (None if clip else EPSILONS[''])
  scale = config.args.get('init_values') or LAYER_SCALE
  return {
    'stem_constants': None if parts.resnet is None else 'timm',
    'patch_bias': None if parts.patch_bias else False,
    'pooling': parts.pooling,
    'position_resize': 'bicubic',
    'pre_norm': parts.pre_norm or None,
    'norm_after_pooling': (parts.pooling == 'mean' and not normed) or None,
    'registers': parts.cls + parts.registers - (parts.pooling == 'token') or None,
    'layer_scale': scale if parts.layer_scale else None,
    'qk_norm': parts.qk_norm or None,
    'activation': facts.need('activation', activation, config.path),
    'ln_eps': facts.need('ln_eps', epsilon, config.path),
  }


def _find_parts(tensors: Tensors, pooling: str) -> Parts:
  """All but where positions begin."""
  registers = 'reg_token'
  return Parts(
    count_blocks(list(tensors), 'blocks.', '.'),
    pooling,
    cls='cls_token' in tensors,
    registers=shape_of(tensors, registers)[1] if registers in tensors else 0,
    patch_bias='patch_embed.proj.bias' in tensors,
    qkv_bias='blocks.0.attn.qkv.bias' in tensors,
    qk_norm='blocks.0.attn.q_norm.weight' in tensors,
    layer_scale='blocks.0.ls1.gamma' in tensors,
    pre_norm='norm_pre.weight' in tensors,
    last_norm='fc_norm' if 'fc_norm.weight' in tensors else 'norm',
    head='head.weight' in tensors,
    resnet=_resnet_blocks(tensors),
  )


def _pooling(tensors: Tensors, facts: Facts, config: Config) -> str:
  """What the caller says, else 'config.json', else what there are arrays for."""
  if config.global_pool and config.global_pool not in POOLINGS:
    raise config.refuse(f'global_pool {config.global_pool!r}')
  cls, map_head = 'cls_token' in tensors, 'attn_pool.latent' in tensors
  after = 'fc_norm.weight' in tensors
  has = 'map' if map_head else 'token' if cls and not after else 'mean'
  pooling = facts.get('pooling', POOLINGS.get(config.global_pool, has))
  if (pooling == 'token' and not cls) or (pooling == 'map' and (not map_head or after)):
    raise ValueError(f'{tensors.path} has not the arrays of pooling {pooling!r}, but of {has!r}')
  return pooling


def _split_positions(
  tensors: Tensors, parts: Parts, patch: tuple[int, int], facts: Facts, config: Config
) -> tuple[int, tuple[int, int]]:
  """How many positions come before those of the patches, and the grid of these.

  Raises:
    ValueError: nobody says the grid, and it could be several; or it has another number of patches.
  """
  path, rows = tensors.path, shape_of(tensors, 'pos_embed')[-2]
  choices = {0, parts.cls + parts.registers}
  size = config.args.get('img_size') or config.images.get('input_size')
  said = size and tuple(s // p for s, p in zip(pair(size), patch, strict=True))
  # Of files with several sizes timm takes the one that accounts for every position.
  said = said if said and rows - math.prod(said) in choices else None
  grid = facts.get('grid', said)
  if not grid:
    squares = [n for n in choices if rows > n and math.isqrt(rows - n) ** 2 == rows - n]
    if len(squares) == 1:
      return squares[0], square_grid(rows - squares[0], path, facts)
    grid = facts.need('grid', None, path, f', of {rows} positions')
  prefix = rows - math.prod(grid)
  if prefix not in choices:
    raise ValueError(f'{path} has {rows} positions, which are not those of grid={tuple(grid)}')
  return prefix, tuple(grid)


def _mlp_dim(tensors: Tensors) -> int:
  hidden = shape_of(tensors, 'blocks.0.mlp.fc1.weight')[0]
  if shape_of(tensors, 'blocks.0.mlp.fc2.weight')[1] != hidden:
    raise ValueError(
      f"'blocks.0.mlp.fc1.weight' in {tensors.path} has other outputs than fc2 has inputs (a "
      'SwiGLU MLP), which no model here has'
    )
  return hidden


def _resnet_blocks(tensors: Tensors) -> tuple[int, ...] | None:
  """Blocks a stage of the ResNet below; () for its first layers alone, None for none."""
  names = list(tensors)
  if not any(name.startswith(BACKBONE) for name in names):
    return None
  stages = count_blocks(names, f'{BACKBONE}.stages.', '.')
  return tuple(count_blocks(names, f'{BACKBONE}.stages.{i}.blocks.', '.') for i in range(stages))
