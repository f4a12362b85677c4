"""CLIP and SigLIP of transformers, in and out. arXiv:2103.00020, 2303.15343.

From a file of both towers, both are read (`hf_clip_text`), or, where the caller asks for the image
tower, that alone: the other is reported as unused then, as are CLIP's `visual_projection` and both
methods' temperature. A tower alone has names that begin with 'vision_model.', or since version 5
with nothing.

CLIP's `last_hidden_state` is before the last LayerNorm, which is of the class token alone; `tokens`
here are after it. The pooled features are the same.

`SiglipForImageClassification` classifies by the mean of the tokens, and is read so, as is a SigLIP
without attention pooling. CLIP's classifier takes their mean before the LayerNorm, and is reported
as unused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.adapters import hf_clip_text
from vit_jax.adapters.hf_config import OTHERS, UNREAD, Defaults, find_config, write_config
from vit_jax.adapters.hf_layout import Where, make_layout
from vit_jax.adapters.layout import Facts, Layout, count_blocks, refuse_arrays, refuse_fields
from vit_jax.adapters.mapping import (
  ENCODER,
  HEAD,
  Rule,
  conv,
  dense,
  flat,
  fused,
  linear,
  mlp,
  norm,
  same,
  zeros,
)
from vit_jax.adapters.tensors import Tensors
from vit_jax.models.vit import ViT

PREFIXES = ('vision_model.', '')
# Of `CLIPVisionConfig` and `SiglipVisionConfig`.
CLIP = {kind: Defaults('quick_gelu', 1e-5) for kind in ('clip', 'clip_vision_model')}
SIGLIP = {kind: Defaults('gelu_pytorch_tanh', 1e-6) for kind in ('siglip', 'siglip_vision_model')}
NO_PLACE = {
  'positions': ('learned',),
  'registers': (0,),
  'pre_logits': (None,),
  'layer_scale': (None,),
  'qk_norm': (False,),
}


class _Parts(NamedTuple):
  prefix: str
  depth: int
  cls: bool  # CLIP's; with it comes the LayerNorm before the blocks, and no bias of the patches
  map_head: bool = False
  head: bool = False


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names holds a tower of this format."""
  return _find(set(names)) is not None


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names, shapes and 'config.json'.

  Without that file the caller has to say the activation, in which CLIPs differ, and the epsilon;
  heads are those of the published size of this shape.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: the JSON files beside it, by name.

  Raises:
    ValueError: an array is missing, or one makes it another architecture; a fact that nobody says.
  """
  prefix = _find(set(tensors))
  cls = f'{prefix}embeddings.class_embedding' in tensors
  head = 'classifier.weight' in tensors and not cls
  map_head = f'{prefix}head.probe' in tensors and not head
  depth = count_blocks(list(tensors), f'{prefix}encoder.layers.', '.')
  rules = list(_rules(_Parts(prefix, depth, cls, map_head, head)))
  refuse_arrays(tensors, (f'{prefix}embeddings.', f'{prefix}encoder.'), rules, OTHERS, UNREAD)
  image = make_layout(
    tensors,
    facts,
    files,
    find_config(tensors.path, files, CLIP if cls else SIGLIP),
    Where(
      f'{prefix}embeddings.patch_embedding.weight',
      f'{prefix}embeddings.position_embedding.weight',
      f'{prefix}encoder.layers.0.mlp.fc1.weight',
      'classifier.bias' if head else None,
    ),
    rules,
    depth=depth,
    processor='CLIPImageProcessor' if cls else 'SiglipImageProcessor',
    pooling='token' if cls else 'map' if map_head else 'mean',
    position_resize='bicubic_plain',
    patch_bias=False if cls else None,
    pre_norm=cls or None,
  )
  # Whoever wants the images' alone need not know what the texts' is.
  if not hf_clip_text.matches(tensors) or facts.get('tower') == 'image':
    return image
  return hf_clip_text.add_text(tensors, facts, files, image, clip=cls)


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT is called on the Hub: with `pre_norm` CLIP's tower, with pooling 'map' SigLIP's.

  Raises:
    ValueError: it has parts that the format has no place for.
  """
  cls = encoder.pre_norm
  name = f"transformers' {'CLIP' if cls else 'SigLIP'}"
  only = {'pooling': ('token' if cls else 'map',), 'pre_norm': (cls,)}
  refuse_fields(name, encoder, {**NO_PLACE, **only})
  if num_classes is not None:
    raise ValueError(f"{name} has no head on the pooled features; 'vit_jax' and 'timm' have one")
  rules = list(_rules(_Parts(PREFIXES[0], encoder.size.depth, cls, map_head=not cls)))
  if cls and encoder.patch_bias:
    rules.append(zeros(f'{ENCODER}/embedding/bias'))
  return rules


def export_config(
  encoder: ViT, size: tuple[int, int], channels: int, labels: Sequence[str]
) -> dict[str, Any]:
  """The 'config.json' of a tower; arguments as of `write_config`.

  Raises:
    ValueError: images or patches are no squares.
  """
  if size[0] != size[1] or encoder.patch[0] != encoder.patch[1]:
    raise ValueError(f"transformers' CLIP and SigLIP take squares, not {size} and {encoder.patch}")
  kind, name = ('clip', 'CLIP') if encoder.pre_norm else ('siglip', 'Siglip')
  return write_config(encoder, f'{kind}_vision_model', f'{name}VisionModel', size, channels, labels)


def _find(names: set[str]) -> str | None:
  """What the tower's names begin with."""
  for prefix in PREFIXES:
    needed = ('embeddings.patch_embedding.weight', 'encoder.layers.0.layer_norm1.weight')
    if all(prefix + name in names for name in needed):
      cls = f'{prefix}embeddings.class_embedding' in names
      if cls == (f'{prefix}pre_layrnorm.weight' in names):
        return prefix
  return None


def _rules(parts: _Parts) -> Iterator[Rule]:
  prefix = parts.prefix
  patches = f'{prefix}embeddings.patch_embedding'
  yield conv(f'{ENCODER}/embedding/kernel', f'{patches}.weight')
  if parts.cls:
    yield flat(f'{ENCODER}/cls', f'{prefix}embeddings.class_embedding')
    yield from norm(f'{ENCODER}/pre_norm', f'{prefix}pre_layrnorm')
  else:
    yield same(f'{ENCODER}/embedding/bias', f'{patches}.bias')
  positions = same(f'{ENCODER}/pos_embedding', f'{prefix}embeddings.position_embedding.weight')
  yield positions._replace(write=lambda arrays: [arrays[0][0]])  # [1, N, D], theirs [N, D]
  for i in range(parts.depth):
    yield from hf_clip_text.block(f'{ENCODER}/block_{i}', f'{prefix}encoder.layers.{i}')
  yield from norm(f'{ENCODER}/norm', f'{prefix}post_layernorm')
  if parts.map_head:
    yield from _map_head(f'{ENCODER}/map_head', f'{prefix}head')
  if parts.head:
    yield from dense(HEAD, 'classifier')


def _map_head(ours: str, theirs: str) -> Iterator[Rule]:
  yield same(f'{ours}/probe', f'{theirs}.probe')
  kernel, bias = f'{theirs}.attention.in_proj_weight', f'{theirs}.attention.in_proj_bias'
  layers = [f'{ours}/attention/{name}' for name in ('query', 'key', 'value')]
  yield fused(kernel, *(linear(f'{layer}/kernel', kernel) for layer in layers))
  yield fused(bias, *(flat(f'{layer}/bias', bias) for layer in layers))
  yield from dense(f'{ours}/attention/out', f'{theirs}.attention.out_proj', inputs=2)
  yield from norm(f'{ours}/norm', f'{theirs}.layernorm')
  yield from mlp(f'{ours}/mlp', f'{theirs}.mlp')
