"""`Dinov2Model` and `Dinov2WithRegistersModel` of transformers, in and out. arXiv:2304.07193.

The names on the Hub are those of 2023; since version 5 the modules of the attention are called
otherwise, and files may have either. `Dinov2ForImageClassification` classifies by the class token
and the mean of the patches side by side. Of its files the encoder is read, and the classifier is
reported as unused, unless its weights on the mean are all 0: so a head of ours is written, which
looks at the class token alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.adapters.hf_config import OTHERS, UNREAD, Defaults, find_config, write_config
from vit_jax.adapters.hf_layout import Where, make_layout
from vit_jax.adapters.hf_vit import HUB_ATTENTION, MODULE_ATTENTION, attention, embeddings
from vit_jax.adapters.layout import (
  Facts,
  Layout,
  count_blocks,
  refuse_arrays,
  refuse_fields,
  shape_of,
)
from vit_jax.adapters.mapping import (
  ENCODER,
  HEAD,
  Arrays,
  Rule,
  Shapes,
  mlp,
  norm,
  same,
)
from vit_jax.adapters.tensors import Tensors
from vit_jax.models.vit import ViT

# Of `Dinov2Config` and `Dinov2WithRegistersConfig`.
KNOWN = {kind: Defaults('gelu', 1e-6) for kind in ('dinov2', 'dinov2_with_registers')}
LAYER_SCALE = 1.0  # their `layerscale_value`
NO_PLACE = {
  'pooling': ('token',),
  'positions': ('learned',),
  'pre_logits': (None,),
  'qk_norm': (False,),
  'pre_norm': (False,),
}


CLASSIFIER = 'classifier'


class _Parts(NamedTuple):
  prefix: str  # 'dinov2.', ..., or nothing for the encoder alone
  depth: int
  head: bool = False
  attention: Sequence[str] = HUB_ATTENTION
  qkv_bias: bool = True
  registers: bool = False


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names holds a DINOv2 of this format."""
  return _find(names) is not None


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names, shapes and 'config.json'.

  Without that file, exact GELU and an epsilon of 1e-6 are the defaults of `Dinov2Config`, and heads
  are those of the published size of this shape. Positions are interpolated to the size that
  'preprocessor_config.json' says, 224 for the published ones, which have them for 518.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: the JSON files beside it, by name.

  Raises:
    ValueError: an array is missing, or one makes it another architecture, such as SwiGLU's; a fact
      that nobody says.
  """
  prefix = _find(tensors)
  parts = _find_parts(tensors, prefix)
  rules = list(_rules(parts))
  refuse_arrays(tensors, (f'{prefix}embeddings.', f'{prefix}encoder.'), rules, OTHERS, UNREAD)
  config = find_config(tensors.path, files, KNOWN, ('hidden_act', 'layer_norm_eps'))
  registers = f'{prefix}embeddings.register_tokens'
  return make_layout(
    tensors,
    facts,
    files,
    config,
    Where(
      f'{prefix}embeddings.patch_embeddings.projection.weight',
      f'{prefix}embeddings.position_embeddings',
      f'{prefix}encoder.layer.0.mlp.fc1.weight',
      f'{CLASSIFIER}.bias' if parts.head else None,
    ),
    rules,
    depth=parts.depth,
    processor='BitImageProcessor',
    # Their two models differ in it: `interpolate_pos_encoding`.
    position_resize='bicubic' if parts.registers else 'bicubic_plain',
    registers=shape_of(tensors, registers)[1] if parts.registers else None,
    layer_scale=config.get('layerscale_value') or LAYER_SCALE,
  )


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT with LayerScale is called on the Hub: a DINOv2, with registers or without.

  Raises:
    ValueError: it has parts that the format has no place for.
  """
  name = "transformers' DINOv2"
  refuse_fields(name, encoder, NO_PLACE)
  if encoder.layer_scale is None:
    raise ValueError(f'{name} has LayerScale in every block, and this ViT has not')
  width, depth, mlp_dim, _ = encoder.size
  if mlp_dim % width:
    raise ValueError(f'{name} has an mlp_dim that is a multiple of the width, not {mlp_dim}')
  head = num_classes is not None
  prefix = f'{_model_type(encoder)}.' if head else ''
  rules = list(_rules(_Parts(prefix, depth, head, registers=encoder.registers > 0)))
  # Zeros, as transformers starts with; it misses the array otherwise.
  mask = np.zeros((1, width), np.float32)
  rules.append(Rule((), (f'{prefix}embeddings.mask_token',), lambda *_: [], lambda _: [mask]))
  return rules


def export_config(
  encoder: ViT, size: tuple[int, int], channels: int, labels: Sequence[str]
) -> dict[str, Any]:
  """The 'config.json' of a ViT with LayerScale; arguments as of `write_config`."""
  name = 'Dinov2WithRegisters' if encoder.registers else 'Dinov2'
  name += 'ForImageClassification' if labels else 'Model'
  config = write_config(encoder, _model_type(encoder), name, size, channels, labels)
  width, _, mlp_dim, _ = encoder.size
  del config['intermediate_size']  # They have a ratio.
  config |= {
    'mlp_ratio': mlp_dim // width,
    'layerscale_value': encoder.layer_scale,
    'use_swiglu_ffn': False,
    'qkv_bias': True,
  }
  return config | ({'num_register_tokens': encoder.registers} if encoder.registers else {})


def _model_type(encoder: ViT) -> str:
  return 'dinov2_with_registers' if encoder.registers else 'dinov2'


def _find(names: Iterable[str]) -> str | None:
  """What the encoder's names begin with."""
  for name in sorted(names):
    prefix, found, _ = name.partition('encoder.layer.0.layer_scale1.lambda1')
    if found:
      return prefix
  return None


def _find_parts(tensors: Tensors, prefix: str) -> _Parts:
  blocks = f'{prefix}encoder.layer.'
  hub = f'{blocks}0.{HUB_ATTENTION[0]}.weight' in tensors
  names = HUB_ATTENTION if hub else MODULE_ATTENTION
  return _Parts(
    prefix,
    count_blocks(list(tensors), blocks, '.'),
    _looks_at_the_class_token_alone(tensors),
    names,
    qkv_bias=f'{blocks}0.{names[0]}.bias' in tensors,
    registers=f'{prefix}embeddings.register_tokens' in tensors,
  )


def _looks_at_the_class_token_alone(tensors: Tensors) -> bool:
  """Whether there is a classifier whose weights on the mean of the patches are all 0."""
  if f'{CLASSIFIER}.weight' not in tensors:
    return False
  weight = tensors[f'{CLASSIFIER}.weight']  # [K, 2 D]
  return weight.ndim == 2 and not weight[:, weight.shape[1] // 2 :].any()


def _head_rule() -> Rule:
  """A head on the class token, theirs with zeros for the mean of the patches behind."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (weight,), ((width, classes),) = arrays, shapes
    if weight.shape != (classes, 2 * width):
      raise ValueError(f'its shape is {list(weight.shape)} and should be {[classes, 2 * width]}')
    return [weight[:, :width].T]

  def write(arrays: Arrays) -> list[np.ndarray]:
    (kernel,) = arrays
    return [np.concatenate([kernel.T, np.zeros_like(kernel.T)], axis=1)]

  return Rule((f'{HEAD}/kernel',), (f'{CLASSIFIER}.weight',), read, write)


def _rules(parts: _Parts) -> Iterator[Rule]:
  prefix = parts.prefix
  yield from embeddings(f'{prefix}embeddings.')
  if parts.registers:
    yield same(f'{ENCODER}/registers', f'{prefix}embeddings.register_tokens')
  for i in range(parts.depth):
    ours, theirs = f'{ENCODER}/block_{i}', f'{prefix}encoder.layer.{i}'
    yield from norm(f'{ours}/norm_1', f'{theirs}.norm1')
    layers = [f'{theirs}.{name}' for name in parts.attention]
    yield from attention(f'{ours}/attention', layers, bias=parts.qkv_bias)
    yield same(f'{ours}/scale_1/scale', f'{theirs}.layer_scale1.lambda1')
    yield from norm(f'{ours}/norm_2', f'{theirs}.norm2')
    yield from mlp(f'{ours}/mlp', f'{theirs}.mlp')
    yield same(f'{ours}/scale_2/scale', f'{theirs}.layer_scale2.lambda1')
  yield from norm(f'{ENCODER}/norm', f'{prefix}layernorm')
  if parts.head:
    yield _head_rule()
    yield same(f'{HEAD}/bias', f'{CLASSIFIER}.bias')
