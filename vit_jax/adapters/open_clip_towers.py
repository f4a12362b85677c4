"""From the names and shapes in a file of CLIP to its two towers; `open_clip` has the format."""

from typing import Any, NamedTuple

from vit_jax.adapters import timm_config, timm_vit
from vit_jax.adapters.layout import (
  Facts,
  Layout,
  Preprocessing,
  count_blocks,
  shape_of,
  square_grid,
  supervised,
  vit_spec,
)
from vit_jax.adapters.mapping import under
from vit_jax.adapters.open_clip_config import Config
from vit_jax.adapters.open_clip_rules import TextParts, resnet_rules, vit_rules
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.two_towers import heads_of, text_spec
from vit_jax.models.clip_resnet import STRIDE, VARIANTS
from vit_jax.models.clip_resnet import Size as ResNetSize
from vit_jax.models.sizes import Size

TRUNK = 'visual.trunk'
POOLINGS = {'argmax': 'end', 'eos': 'end', 'last': 'last', 'first': 'first'}


class Image(NamedTuple):
  """An image tower.

  Attributes:
    layout: of it alone.
    dims: features of an embedding.
    projected: whether a projection of its own stands behind it.
  """

  layout: Layout
  dims: int
  projected: bool = False


def read_image(tensors: Tensors, facts: Facts, config: Config, activation: str | None) -> Image:
  """The image tower: a ViT, a residual network, or one of timm.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    config: what lies beside the file.
    activation: what is known without that.

  Raises:
    ValueError: an array is missing, or a fact that nobody says.
  """
  names = set(tensors)
  if any(name.startswith(f'{TRUNK}.') for name in names):
    return _trunk(tensors, facts, config)
  if 'visual.layer1.0.conv1.weight' in names:
    size, native = _resnet_size(tensors, facts)
    spec, dims, rules = _resnet_spec(size), size.projection, list(resnet_rules(size.blocks))
  else:
    spec, native, dims = _vit(tensors, facts, config, activation)
    depth = count_blocks(list(tensors), 'visual.transformer.resblocks.', '.')
    rules = list(vit_rules(depth, pre_norm=spec.get('pre_norm', False)))
  channels = shape_of(tensors, 'visual.conv1.weight')[1]
  layout = Layout(
    'open_clip',
    supervised(spec, None, *config.colours(facts)),
    config.preprocessing(native, channels),
    rules,
  )
  return Image(layout, dims, projected='visual.proj' in names)


def _vit(
  tensors: Tensors, facts: Facts, config: Config, activation: str | None
) -> tuple[dict[str, Any], tuple[int, int], int]:
  """The ViT, the size of its images, and the length of an embedding."""
  path, kernel = tensors.path, shape_of(tensors, 'visual.conv1.weight')
  if len(kernel) != 4:
    raise ValueError(f"'visual.conv1.weight' in {path} is {list(kernel)}, which is no convolution")
  width, _, *patch = kernel
  shape_of(tensors, 'visual.class_embedding')
  depth = count_blocks(list(tensors), 'visual.transformer.resblocks.', '.')
  mlp_dim = shape_of(tensors, 'visual.transformer.resblocks.0.mlp.c_fc.weight')[0]
  grid = square_grid(shape_of(tensors, 'visual.positional_embedding')[0] - 1, path, facts)
  head_width = config.tower('vision_cfg').get('head_width', 64)
  heads = width // head_width if config.model else heads_of(width, depth, mlp_dim)
  spec = vit_spec(
    Size(width, depth, mlp_dim, facts.need('num_heads', heads or None, path)),
    tuple(patch),
    grid,
    patch_bias=False,
    pooling='token',
    position_resize='bicubic',
    pre_norm='visual.ln_pre.weight' in tensors or None,
    **config.transformer('vision_cfg', facts, activation),
  )
  native = grid[0] * patch[0], grid[1] * patch[1]
  return spec, native, shape_of(tensors, 'visual.proj')[1]


def _resnet_size(tensors: Tensors, facts: Facts) -> tuple[ResNetSize, tuple[int, int]]:
  """The residual network's size, and that of its images."""
  names, pool = list(tensors), 'visual.attnpool'
  blocks = tuple(count_blocks(names, f'visual.layer{i}.', '.') for i in (1, 2, 3, 4))
  width = shape_of(tensors, 'visual.conv3.weight')[0]
  positions = shape_of(tensors, f'{pool}.positional_embedding')[0] - 1
  height, columns = (side * STRIDE for side in square_grid(positions, tensors.path, facts))
  dims = shape_of(tensors, f'{pool}.c_proj.weight')[0]
  image_size = height if height == columns else (height, columns)
  return ResNetSize(blocks, width, dims, image_size), (height, columns)


def _resnet_spec(size: ResNetSize) -> dict[str, Any]:
  """What `build` makes a residual network of, by its variant where it is a published one."""
  name = next((name for name, known in VARIANTS.items() if known == size), None)
  return {
    'type': 'models.clip_resnet.ClipResNet',
    **({'variant': name} if name else size._asdict()),
  }


def _trunk(tensors: Tensors, facts: Facts, config: Config) -> Image:
  """An image tower of timm."""
  trunk = tensors.select(TRUNK)
  if not timm_vit.matches(trunk):
    raise ValueError(f'{tensors.path} has an image tower of timm that is no ViT')
  name = config.tower('vision_cfg').get('timm_model_name')
  # As timm's own file would say it.
  files = {timm_config.FILE: {'architecture': name, 'num_classes': 0}} if name else {}
  layout = timm_vit.describe(trunk, facts, files)
  mean, std = config.colours(facts) if config.model else (facts.get('mean'), facts.get('std'))
  size, channels = layout.preprocessing.size, layout.preprocessing.channels
  preprocessing = Preprocessing(size, None, 'bicubic', channels)  # Of all of SigLIP's.
  if config.model:
    preprocessing = config.preprocessing(size, channels)
  spec = layout.objective['encoder']
  rules = [under(TRUNK, rule, '.') for rule in layout.rules]
  layout = Layout('open_clip', supervised(spec, None, mean, std), preprocessing, rules)
  return Image(layout, shape_of(trunk, 'patch_embed.proj.weight')[0])


def read_text(
  tensors: Tensors, facts: Facts, config: Config, activation: str | None
) -> tuple[dict[str, Any], TextParts]:
  """What `build` makes the text tower of, and which arrays it has; arguments as of the images."""
  keys = config.tower('text_cfg')
  prefix = 'text.' if 'text.token_embedding.weight' in tensors else ''
  bias = f'{prefix}text_projection.bias' in tensors
  projection = f'{prefix}text_projection.weight' if bias else f'{prefix}text_projection'
  blocks = f'{prefix}transformer.resblocks.'
  depth = count_blocks(list(tensors), blocks, '.')
  vocab_size, width = shape_of(tensors, f'{prefix}token_embedding.weight')
  mlp_dim = shape_of(tensors, f'{blocks}0.mlp.c_fc.weight')[0]
  heads = keys.get('heads', 8) if config.model else heads_of(width, depth, mlp_dim)
  if not heads:
    raise ValueError(
      f'{tensors.path} does not say the heads of its text tower, of {width} features; its '
      'open_clip_config.json, beside it, does'
    )
  pool_type = keys.get('pool_type', 'last' if bias and not config.model else 'argmax')
  causal = not (keys.get('no_causal_mask', False) if config.model else bias)
  pooling = POOLINGS[pool_type]
  end = keys.get('eos_id', 2) if pool_type == 'eos' else vocab_size - 1
  transformer = config.transformer('text_cfg', facts, activation)
  if bias and not config.model:  # SigLIP's own; CLIP's is another.
    transformer['ln_eps'] = facts.get('ln_eps', 1e-6)
  spec = text_spec(
    Size(width, depth, mlp_dim, heads),
    vocab_size,
    shape_of(tensors, f'{prefix}positional_embedding')[0],
    causal=causal,
    pooling=pooling,
    end_id=end if pooling == 'end' else None,
    projection=shape_of(tensors, projection)[0 if bias else 1],
    projection_bias=bias,
    **transformer,
  )
  return spec, TextParts(depth, prefix, bias, 'logit_bias' in tensors)
