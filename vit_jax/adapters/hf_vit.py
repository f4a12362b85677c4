"""`ViTModel` and `ViTForImageClassification` of transformers, in and out.

The names on the Hub are those of 2021; since version 5 the modules are called otherwise, and files
may have either. `ViTMAEModel` and `ViTMSNModel` are the same encoder by the same names, as are the
DeiT checkpoints without distillation, which were published as ViT.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.adapters.hf_config import OTHERS, UNREAD, Defaults, find_config, write_config
from vit_jax.adapters.hf_layout import Where, make_layout
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
  Rule,
  conv,
  dense,
  norm,
  same,
)
from vit_jax.adapters.tensors import Tensors
from vit_jax.models.vit import ViT

# Of `ViTConfig`, `ViTMAEConfig` and `ViTMSNConfig`.
KNOWN = {
  'vit': Defaults('gelu', 1e-12),
  'vit_mae': Defaults('gelu', 1e-12),
  'vit_msn': Defaults('gelu', 1e-6),
}
NO_PLACE = {
  'pooling': ('token',),
  'positions': ('learned',),
  'registers': (0,),
  'layer_scale': (None,),
  'qk_norm': (False,),
  'pre_norm': (False,),
}


class Names(NamedTuple):
  """What the parts of a ViT are called."""

  blocks: str
  attention: Sequence[str]  # query, key, value, out
  fc_1: str
  fc_2: str


HUB_ATTENTION = (
  'attention.attention.query', 'attention.attention.key', 'attention.attention.value',
  'attention.output.dense',
)  # fmt: skip
MODULE_ATTENTION = (
  'attention.q_proj', 'attention.k_proj', 'attention.v_proj', 'attention.o_proj',
)  # fmt: skip
HUB = Names('encoder.layer', HUB_ATTENTION, 'intermediate.dense', 'output.dense')
MODULES = Names('layers', MODULE_ATTENTION, 'mlp.fc1', 'mlp.fc2')


class _Parts(NamedTuple):
  prefix: str  # 'vit.', or nothing for the encoder alone
  depth: int
  names: Names = HUB
  qkv_bias: bool = True
  pooler: bool = False
  head: bool = False


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names holds a ViT of this format."""
  return _find(set(names)) is not None


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names, shapes and 'config.json'.

  Without that file, exact GELU and an epsilon of 1e-12 are the defaults of `ViTConfig`, and heads
  are those of the published size of this shape. A pooler beside a classifier, of which nothing in
  transformers sees the output, is left out; one alone is `pre_logits`.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: the JSON files beside it, by name.

  Raises:
    ValueError: an array is missing, or one makes it another architecture; a fact that nobody says.
  """
  prefix, names = _find(set(tensors))
  parts = _find_parts(tensors, prefix, names)
  rules = list(_rules(parts))
  inside = f'{prefix}embeddings.', f'{prefix}{names.blocks}.'
  refuse_arrays(tensors, inside, rules, OTHERS, UNREAD)
  config = find_config(tensors.path, files, KNOWN, ('hidden_act', 'layer_norm_eps'))
  if parts.pooler and config.get('pooler_act') not in (None, 'tanh'):
    raise ValueError(f'{tensors.path}: config.json has a pooler_act that is not tanh')
  pooler = f'{prefix}pooler.dense.bias'
  return make_layout(
    tensors,
    facts,
    files,
    config,
    Where(
      f'{prefix}embeddings.patch_embeddings.projection.weight',
      f'{prefix}embeddings.position_embeddings',
      f'{prefix}{names.blocks}.0.{names.fc_1}.weight',
      'classifier.bias' if parts.head else None,
    ),
    rules,
    depth=parts.depth,
    processor='ViTImageProcessor',
    position_resize='bicubic_plain',
    pre_logits=shape_of(tensors, pooler)[0] if parts.pooler else None,
  )


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT is called on the Hub: of `ViTForImageClassification`, or without head `ViTModel`.

  Raises:
    ValueError: it has parts that the format has no place for.
  """
  head = num_classes is not None
  only = {'pre_logits': (None,)} if head else {}
  refuse_fields("transformers' ViT", encoder, {**NO_PLACE, **only})
  pooler = encoder.pre_logits is not None
  return list(_rules(_Parts('vit.' if head else '', encoder.size.depth, pooler=pooler, head=head)))


def export_config(
  encoder: ViT, size: tuple[int, int], channels: int, labels: Sequence[str]
) -> dict[str, Any]:
  """The 'config.json' of a ViT; arguments as of `write_config`.

  A `ViTModel` without pooler is opened by `from_pretrained(folder, add_pooling_layer=False)`.
  """
  architecture = 'ViTForImageClassification' if labels else 'ViTModel'
  config = write_config(encoder, 'vit', architecture, size, channels, labels)
  config['qkv_bias'] = True
  if encoder.pre_logits is not None:
    config |= {'pooler_output_size': encoder.pre_logits, 'pooler_act': 'tanh'}
  return config


def embeddings(prefix: str) -> Iterator[Rule]:
  """Patches, class token and positions, as ViT and DINOv2 have them."""
  yield conv(f'{ENCODER}/embedding/kernel', f'{prefix}patch_embeddings.projection.weight')
  yield same(f'{ENCODER}/embedding/bias', f'{prefix}patch_embeddings.projection.bias')
  yield same(f'{ENCODER}/cls', f'{prefix}cls_token')
  yield same(f'{ENCODER}/pos_embedding', f'{prefix}position_embeddings')


def attention(ours: str, theirs: Sequence[str], *, bias: bool = True) -> Iterator[Rule]:
  """The four layers of an attention; `bias` is of the first three."""
  for name, other in zip(('query', 'key', 'value'), theirs, strict=False):
    yield from dense(f'{ours}/{name}', other, bias=bias)
  yield from dense(f'{ours}/out', theirs[3], inputs=2)


def _find(names: set[str]) -> tuple[str, Names] | None:
  """Where the encoder's names begin, and which they are."""
  for name in sorted(names):
    prefix, found, _ = name.partition('embeddings.patch_embeddings.projection.weight')
    if not found or f'{prefix}embeddings.cls_token' not in names:
      continue
    for known in (HUB, MODULES):
      if f'{prefix}{known.blocks}.0.layernorm_before.weight' in names:
        return prefix, known
  return None


def _find_parts(tensors: Tensors, prefix: str, names: Names) -> _Parts:
  blocks = f'{prefix}{names.blocks}.'
  head = 'classifier.weight' in tensors
  return _Parts(
    prefix,
    count_blocks(list(tensors), blocks, '.'),
    names,
    qkv_bias=f'{blocks}0.{names.attention[0]}.bias' in tensors,
    pooler=f'{prefix}pooler.dense.weight' in tensors and not head,
    head=head,
  )


def _rules(parts: _Parts) -> Iterator[Rule]:
  prefix, names = parts.prefix, parts.names
  yield from embeddings(f'{prefix}embeddings.')
  for i in range(parts.depth):
    ours, theirs = f'{ENCODER}/block_{i}', f'{prefix}{names.blocks}.{i}'
    yield from norm(f'{ours}/norm_1', f'{theirs}.layernorm_before')
    layers = [f'{theirs}.{name}' for name in names.attention]
    yield from attention(f'{ours}/attention', layers, bias=parts.qkv_bias)
    yield from norm(f'{ours}/norm_2', f'{theirs}.layernorm_after')
    yield from dense(f'{ours}/mlp/fc_1', f'{theirs}.{names.fc_1}')
    yield from dense(f'{ours}/mlp/fc_2', f'{theirs}.{names.fc_2}')
  yield from norm(f'{ENCODER}/norm', f'{prefix}layernorm')
  if parts.pooler:
    yield from dense(f'{ENCODER}/pre_logits', f'{prefix}pooler.dense')
  if parts.head:
    yield from dense(HEAD, 'classifier')
