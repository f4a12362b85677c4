"""OpenAI's CLIP and the models of open_clip, both towers, in and out.

Radford et al. 2021, arXiv:2103.00020; SigLIP's of open_clip, arXiv:2303.15343, whose image tower is
timm's. The names are those of `open_clip/model.py`, which OpenAI's files have too.

What OpenAI has published are programs (TorchScript), and reading a file here runs no code: their
state dict can be read, and so can the same weights in open_clip's files.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from vit_jax.adapters import timm_vit
from vit_jax.adapters.layout import (
  Facts,
  Layout,
  refuse_arrays,
  refuse_fields,
)
from vit_jax.adapters.mapping import ENCODER, Rule, under, zeros
from vit_jax.adapters.open_clip_config import FILE, find_config, write_config
from vit_jax.adapters.open_clip_rules import (
  TextParts,
  projection_rule,
  resnet_rules,
  text_rules,
  vit_rules,
)
from vit_jax.adapters.open_clip_towers import TRUNK, read_image, read_text
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.two_towers import (
  as_image,
  check_dims,
  clip_tokenizer,
  join,
  pieces_tokenizer,
)
from vit_jax.models.clip_resnet import ClipResNet
from vit_jax.models.text import TextTransformer
from vit_jax.models.vit import ViT

if TYPE_CHECKING:
  from vit_jax.model import Model

# What OpenAI's state dicts have beside the weights.
OPENAI = 'input_resolution'
# What a part of a name says of an architecture that we have not.
OTHERS = {
  '.ls_': 'LayerScale',
  'visual.attn_pool': "CoCa's attention pooling",
  'visual.head.': 'a projection behind a tower of timm',
  'ln_inner': 'a norm inside the attention',
  'ln_attn': 'a norm behind the attention',
  'cls_emb': 'a class token of texts',
}
INSIDE = ('visual.', 'transformer.', 'text.', 'text_decoder.')
# Fields of the towers, with the only values that open_clip has a place for.
NO_PLACE = {
  'positions': ('learned',),
  'conv_stem': ((),),
  'norm_after_pooling': (False,),
  'registers': (0,),
  'pre_logits': (None,),
  'layer_scale': (None,),
  'qk_norm': (False,),
}
NO_PLACE_TEXT = {'pooling': ('end', 'last', 'first'), 'pad_id': (None,), 'mask_padding': (False,)}


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names holds both towers by these names."""
  names = set(names)
  first = {'visual.conv1.weight', f'{TRUNK}.patch_embed.proj.weight'}
  return bool(first & names) and any(
    {f'{prefix}token_embedding.weight', f'{prefix}transformer.resblocks.0.ln_1.weight'} <= names
    for prefix in ('', 'text.')
  )


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names, shapes and 'open_clip_config.json'.

  Without that file heads are those of the published size, or one for every 64 features; texts are
  causal and pooled at their end, or, where their projection has a bias, SigLIP's; and images are
  CLIP's. The activation is known of OpenAI's state dicts alone, by what else these hold.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: what lies beside it, by name.

  Raises:
    ValueError: an array is missing, one makes it another architecture, towers that do not belong
      together, or a fact that nobody says.
  """
  config = find_config(tensors.path, files)
  activation = 'quick_gelu' if OPENAI in tensors else None
  image = read_image(tensors, facts, config, activation)
  text, parts = read_text(tensors, facts, config, activation)
  check_dims(tensors.path, image.dims, text['projection'])
  context, vocab_size = text['context'], text['vocab_size']
  if text['pooling'] == 'last':
    tokenizer = pieces_tokenizer(files, vocab_size, context)
  elif config.tower('text_cfg').get('hf_tokenizer_name'):
    tokenizer = None
  else:
    tokenizer = clip_tokenizer(vocab_size, context)
  rules = [*([projection_rule()] if image.projected else []), *text_rules(parts)]
  layout = join(
    tensors,
    image.layout,
    text,
    rules,
    projection=image.dims if image.projected else None,
    tokenizer=tokenizer,
  )
  refuse_arrays(tensors, INSIDE, layout.rules, OTHERS)
  return layout


def joint_rules(objective: nn.Module) -> list[Rule]:
  """What the arrays of both towers are called in open_clip.

  Raises:
    ValueError: the towers have parts that open_clip has no place for.
  """
  text, image = objective.text, objective.image
  if not isinstance(text, TextTransformer) or text.projection is None:
    raise ValueError('open_clip takes a TextTransformer with a projection as the text tower')
  refuse_fields('open_clip', text, NO_PLACE_TEXT)
  trunk = isinstance(image, ViT) and image.pooling == 'map'
  rules, projected = _image_rules(image, trunk)
  if projected != (objective.projection is not None):
    need = 'needs a projection' if projected else 'has no place for a projection'
    raise ValueError(f'open_clip {need} behind this image tower')
  custom = trunk or text.projection_bias
  parts = TextParts(
    text.size.depth,
    'text.' if custom else '',
    text.projection_bias,
    objective.loss == 'sigmoid',
  )
  projection = [projection_rule()] if projected else []
  return [*map(as_image, rules), *projection, *text_rules(parts)]


def export_rules(encoder: nn.Module, num_classes: int | None) -> list[Rule]:
  """Raises ValueError: a model without a text tower has no place in open_clip."""
  del encoder, num_classes
  raise ValueError('open_clip takes an image tower and a text tower, and this model has no second')


def companions(model: 'Model') -> dict[str, dict[str, Any]]:
  """The file with which open_clip makes a model of a folder; see `write_config`."""
  return {FILE: write_config(model)}


def _image_rules(image: nn.Module, trunk: bool) -> tuple[list[Rule], bool]:
  """Rules of an image tower, and whether a projection of its own stands behind it."""
  if isinstance(image, ClipResNet):
    return list(resnet_rules(image.size.blocks)), False
  if not isinstance(image, ViT):
    raise ValueError(f'open_clip takes a ViT or a ClipResNet, not a {type(image).__name__}')
  refuse_fields('open_clip', image, NO_PLACE)
  if trunk:
    return [under(TRUNK, rule, '.') for rule in timm_vit.export_rules(image, None)], False
  refuse_fields('open_clip', image, {'pooling': ('token', 'map')})
  rules = list(vit_rules(image.size.depth, pre_norm=image.pre_norm))
  if image.patch_bias:
    rules.append(zeros(f'{ENCODER}/embedding/bias'))
  return rules, True
