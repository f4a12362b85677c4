"""What timm's names of Vision Transformers say that their arrays do not, and ours in its names.

Of `timm/models/vision_transformer.py` and `vision_transformer_hybrid.py`, version 1.0.31.
"""

import re

from vit_jax.adapters.layout import published_heads
from vit_jax.adapters.timm_config import Config
from vit_jax.models.vit import VARIANTS, ViT

ACTIVATIONS = ('gelu', 'gelu_tanh', 'quick_gelu')  # the same names here and there
EPSILONS = {'': 1e-6, 'clip_': 1e-5}  # by what stands in the architecture's name
# Heads of (width, depth, mlp_dim), beside the published sizes; (1536, 40, 6144) is SigLIP's.
HEADS = {
  (64, 6, 192): 2, (64, 8, 192): 2, (256, 10, 1024): 4, (256, 14, 1280): 4, (320, 14, 1792): 5,
  (384, 36, 1536): 6, (512, 12, 2048): 8, (512, 20, 2048): 8, (640, 12, 2560): 10,
  (832, 21, 2176): 13, (896, 12, 3584): 14, (896, 18, 2304): 14, (1152, 27, 4304): 16,
  (1536, 40, 6144): 16,
}  # fmt: skip
# The one of a published size that has other heads.
OTHER_HEADS = {'vit_base_patch16_gap_224': 16}
# SigLIPs that timm makes with GELU's approximation; it makes others with the exact one.
TANH = re.compile(
  'vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_|vit_large_patch16_siglip_(gap_)?512'
)
# Norms after the branches, rotary positions, and a head that looks at registers.
NOT_HERE = re.compile('_(rpn|rope|pe)_|^test_vit3$')

# By our names of sizes, timm's, and the patches that it has them with; with CLIP's epsilon too.
SIZES = {
  'Ti': ('tiny', (16,), ()),
  'S': ('small', (16, 32, 8), ()),
  'B': ('base', (16, 32, 8), (16, 32)),
  'L': ('large', (16, 32, 14), (14,)),
  'H': ('huge', (14,), (14,)),
  'g': ('giant', (14,), (14,)),
  'G': ('gigantic', (14,), (14,)),
}
# By the blocks of a hybrid's ResNet.
HYBRIDS = {
  (): 'vit_tiny_r_s16_p8_224',
  (2, 2, 2, 2): 'vit_small_r26_s32_224',
  (3, 4, 9): 'vit_base_r50_s16_224',
  (3, 4, 6, 3): 'vit_large_r50_s32_224',
}


def check_model(config: Config) -> None:
  """Raises ValueError where 'config.json' says of a ViT what no model here has."""
  args = config.args
  if NOT_HERE.search(config.architecture):
    raise config.refuse(f'architecture {config.architecture!r}')
  if args.get('pool_include_prefix'):
    raise config.refuse('pool_include_prefix, by which a head looks at registers')
  if args.get('act_layer') not in (None, *ACTIVATIONS):
    raise config.refuse(f'act_layer {args["act_layer"]!r}')
  if args.get('norm_layer') not in (None, 'layernorm'):
    raise config.refuse(f'norm_layer {args["norm_layer"]!r}')


def heads_of(config: Config, width: int, depth: int, mlp_dim: int) -> int | None:
  """The attention heads of a ViT; None where nobody says them."""
  return (
    config.args.get('num_heads')
    or OTHER_HEADS.get(config.architecture)
    or published_heads(width, depth, mlp_dim)
    or HEADS.get((width, depth, mlp_dim))
  )


def activation_of(config: Config) -> str | None:
  """The activation in the MLPs of a ViT; None without 'config.json'."""
  if config.args.get('act_layer') or not config.architecture:
    return config.args.get('act_layer')
  if 'quickgelu' in config.architecture:
    return 'quick_gelu'
  return 'gelu_tanh' if TANH.match(config.architecture) else 'gelu'


def epsilon_of(config: Config) -> float | None:
  """The epsilon of a ViT's LayerNorms; None without 'config.json'."""
  if not config.architecture:
    return None
  clip = '_clip_' in config.architecture and 'norm_layer' not in config.args
  return EPSILONS['clip_' if clip else '']


def architecture_of(encoder: ViT) -> str:
  """The architecture nearest to a ViT, with its epsilon, which nothing else can say."""
  if encoder.stem:
    return HYBRIDS[encoder.stem.blocks]
  clip = next(infix for infix, epsilon in EPSILONS.items() if epsilon == encoder.ln_eps)
  size = next((name for name, known in VARIANTS.items() if known == encoder.size), 'B')
  name, *patches = SIZES[size]
  choices = patches[bool(clip)]
  if not choices:
    name, choices = 'base', (16,)
  patch = encoder.patch[0] if encoder.patch[0] in choices else choices[0]
  return f'vit_{name}_patch{patch}_{clip}224'
