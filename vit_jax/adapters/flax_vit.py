"""The `.npz` checkpoints of google-research/vision_transformer and of big_vision, in and out.

Both are trees of Flax parameters with `/` between names, and differ in the names of a block's parts
and in where the class token gets its position. Big_vision's files may have the optimizer beside the
parameters ('params/...', 'opt/...'), several towers ('params/img/...'), and blocks stacked as a
scan has them; see `big_vision/models/vit.py` and `vit_jax/checkpoint.py` there.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.adapters.layout import (
  Facts,
  Layout,
  Preprocessing,
  count_blocks,
  refuse_fields,
  shape_of,
  square_grid,
  stem_of,
  supervised,
  vit_spec,
)
from vit_jax.adapters.mapping import (
  ENCODER,
  HEAD,
  Arrays,
  Rule,
  Shapes,
  same,
  stack_blocks,
  under,
)
from vit_jax.adapters.tensors import Tensors
from vit_jax.choices import listed
from vit_jax.models.hybrid import stride_of
from vit_jax.models.vit import Size, ViT

NORM = ('scale', 'bias')
DENSE = ('kernel', 'bias')

# Parts of a block: ours, and what either calls them. The published files of vision_transformer have
# the names that Flax gave before Linen; what its code writes now has big_vision's.
PARTS = ('norm_1', 'attention', 'norm_2', 'mlp')
OLD_PARTS = ('LayerNorm_0', 'MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
NEW_PARTS = ('LayerNorm_0', 'MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
# Where positions lie: now, and in older files.
POSITIONS = (
  'pos_embedding', 'Transformer/pos_embedding', 'Transformer/posembed_input/pos_embedding',
)  # fmt: skip


# Fields of a ViT that the published files have no place for, with the only values that they take.
NO_PLACE = {
  'registers': (0,),
  'layer_scale': (None,),
  'qk_norm': (False,),
  'pre_norm': (False,),
  'norm_after_pooling': (False,),
  'conv_stem': ((),),
  'pooling': ('token', 'mean'),
  'positions': ('learned',),
}


def towers(names: Iterable[str]) -> list[str]:
  """Prefixes of the ViTs in a file: '' for one that is all of it, 'params', 'params/img', ..."""
  ends = 'Transformer/encoder_norm/scale'
  found = [name[: -len(ends)] for name in names if re.search(f'(^|/){ends}$', name)]
  # The optimizer keeps its moments under the same names.
  moments = re.compile('opt/(?!target/)')
  return sorted(prefix.rstrip('/') for prefix in found if not moments.match(prefix))


class _Parts(NamedTuple):
  """What a file has, beside the blocks' number."""

  depth: int
  names: Sequence[str] = OLD_PARTS  # of a block's parts
  scanned: bool = False
  positions: str | None = None  # the name of the learned ones
  apart: bool = False  # whether the class token's are not among them
  cls: bool = False
  map_head: bool = False
  pre_logits: bool = False
  head: bool = False
  resnet: tuple[int, ...] | None = None


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is of these formats."""
  return bool(towers(names))


def describe(whole: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names and shapes.

  GELU's approximation by tanh and an epsilon of 1e-6 are both repositories' own, as is the scale
  [-1, 1] of pixels.

  Args:
    whole: the arrays of the file.
    facts: what the caller says.
    files: not used; these repositories have none beside the weights.

  Raises:
    ValueError: several towers, an array that the format has is missing, or a fact that the file
      does not say.
  """
  del files
  prefixes = towers(whole)
  if len(prefixes) > 1:
    raise ValueError(
      f'{whole.path} has several models; choose one of {listed(prefixes)}, such as '
      f'{whole.path}:{prefixes[0]}'
    )
  tensors = whole.select(prefixes[0]) if prefixes[0] else whole
  path, shape = tensors.path, functools.partial(shape_of, tensors)
  parts = _find_parts(tensors)
  first = 'Transformer/encoderblock' + ('' if parts.scanned else '_0')
  _, heads, _ = shape(f'{first}/{parts.names[1]}/query/kernel')[-3:]
  hidden = shape(f'{first}/{parts.names[3]}/Dense_0/kernel')[-1]
  *patch, channels, width = shape('embedding/kernel')
  stride = 1
  if parts.resnet is not None:
    stride, channels = stride_of(parts.resnet), shape('conv_root/kernel')[-2]
  patch = patch[0] * stride, patch[1] * stride
  grid = None
  if parts.positions:
    tokens = shape(parts.positions)[1] - (parts.cls and not parts.apart)
    grid = square_grid(tokens, path, facts)
  spec = vit_spec(
    Size(width, parts.depth, hidden, facts.get('num_heads', heads)),
    patch,
    grid,
    stem='' if parts.resnet is None else stem_of(parts.resnet, path),
    pooling=facts.get('pooling', 'map' if parts.map_head else 'token' if parts.cls else 'mean'),
    positions=None if grid else 'sincos2d',
    position_resize='bilinear_zoom' if grid else None,
    pre_logits=shape('pre_logits/kernel')[1] if parts.pre_logits else None,
    activation=facts.get('activation', 'gelu_tanh'),
    ln_eps=facts.get('ln_eps'),
  )
  half = (0.5,) * channels
  size = (grid[0] * patch[0], grid[1] * patch[1]) if grid else (224, 224)
  return Layout(
    'vision_transformer' if parts.names == OLD_PARTS else 'big_vision',
    supervised(
      spec,
      shape('head/bias')[0] if parts.head else None,
      facts.get('mean', half),
      facts.get('std', half),
    ),
    Preprocessing(size, channels=channels),
    [under(prefixes[0], rule) for rule in _rules(parts)],
    facts.get('classes', ()),
  )


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT is called in the published files of vision_transformer.

  Raises:
    ValueError: it is no ViT, or has parts that the format has no place for.
  """
  if not isinstance(encoder, ViT):
    raise ValueError(f'vision_transformer takes a ViT, not {type(encoder).__name__}')
  refuse_fields('vision_transformer', encoder, NO_PLACE)
  parts = _Parts(
    encoder.size.depth,
    positions=POSITIONS[-1],
    cls=encoder.pooling == 'token',
    pre_logits=encoder.pre_logits is not None,
    head=num_classes is not None,
    resnet=encoder.stem.blocks if encoder.stem else None,
  )
  return list(_rules(parts))


def _find_parts(tensors: Tensors) -> _Parts:
  shape = functools.partial(shape_of, tensors)
  scanned = 'Transformer/encoderblock/LayerNorm_0/scale' in tensors
  published = any(f'/{OLD_PARTS[1]}/' in name for name in tensors)
  positions = next((name for name in POSITIONS if name in tensors), None)
  cls = 'cls' in tensors
  if scanned:
    depth = shape('Transformer/encoderblock/LayerNorm_0/scale')[0]
  else:
    depth = count_blocks(list(tensors), 'Transformer/encoderblock_', '/')
  return _Parts(
    depth,
    OLD_PARTS if published else NEW_PARTS,
    scanned,
    positions,
    # Of square grids, one with a class token has no square number of positions.
    cls and positions is not None and math.isqrt(n := shape(positions)[1]) ** 2 == n,
    cls,
    *(name in tensors for name in ('MAPHead_0/probe', 'pre_logits/kernel', 'head/kernel')),
    _resnet_blocks(tensors) if 'conv_root/kernel' in tensors else None,
  )


def _rules(parts: _Parts) -> Iterator[Rule]:
  yield from _layer('embedding', f'{ENCODER}/embedding', DENSE)
  if parts.resnet is not None:
    yield from _resnet(parts.resnet)
  if parts.apart:
    yield _positions_apart(parts.positions)
  else:
    if parts.positions:
      yield same(f'{ENCODER}/pos_embedding', parts.positions)
    if parts.cls:
      yield same(f'{ENCODER}/cls', 'cls')
  prefix = 'Transformer/encoderblock_'
  blocks = [
    rule
    for i in range(parts.depth)
    for rule in _block(f'{prefix}{i}', f'{ENCODER}/block_{i}', parts.names)
  ]
  yield from stack_blocks(blocks, prefix, prefix.rstrip('_')) if parts.scanned else blocks
  yield from _layer('Transformer/encoder_norm', f'{ENCODER}/norm', NORM)
  if parts.map_head:
    theirs, ours = 'MAPHead_0', f'{ENCODER}/map_head'
    yield same(f'{ours}/probe', f'{theirs}/probe')
    yield from _attention(f'{theirs}/{NEW_PARTS[1]}', f'{ours}/attention')
    yield from _layer(f'{theirs}/LayerNorm_0', f'{ours}/norm', NORM)
    yield from _mlp(f'{theirs}/{NEW_PARTS[3]}', f'{ours}/mlp')
  if parts.pre_logits:
    yield from _layer('pre_logits', f'{ENCODER}/pre_logits', DENSE)
  if parts.head:
    yield from _layer('head', HEAD, DENSE)


def _layer(theirs: str, ours: str, arrays: Sequence[str]) -> Iterator[Rule]:
  for name in arrays:
    yield same(f'{ours}/{name}', f'{theirs}/{name}')


def _block(theirs: str, ours: str, parts: Sequence[str]) -> Iterator[Rule]:
  norm_1, attention, norm_2, mlp = (f'{theirs}/{part}' for part in parts)
  yield from _layer(norm_1, f'{ours}/norm_1', NORM)
  yield from _attention(attention, f'{ours}/attention')
  yield from _layer(norm_2, f'{ours}/norm_2', NORM)
  yield from _mlp(mlp, f'{ours}/mlp')


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
  for name in ('query', 'key', 'value', 'out'):
    yield from _layer(f'{theirs}/{name}', f'{ours}/{name}', DENSE)


def _mlp(theirs: str, ours: str) -> Iterator[Rule]:
  yield from _layer(f'{theirs}/Dense_0', f'{ours}/fc_1', DENSE)
  yield from _layer(f'{theirs}/Dense_1', f'{ours}/fc_2', DENSE)


def _positions_apart(name: str) -> Rule:
  """Positions without the class token's, which big_vision has added to the token itself."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    cls, positions = arrays
    width = shapes[1][-1]
    if positions.shape[-1] != width or cls.size != width:
      raise ValueError(f'its shapes are {list(cls.shape)} and {list(positions.shape)}')
    zero = np.zeros((1, 1, width), positions.dtype)
    return [cls.reshape(shapes[0]), np.concatenate([zero, positions], 1)]

  def write(arrays: Arrays) -> list[np.ndarray]:
    cls, positions = arrays
    return [cls + positions[:, :1], positions[:, 1:]]

  return Rule((f'{ENCODER}/cls', f'{ENCODER}/pos_embedding'), ('cls', name), read, write)


def _resnet(blocks: Sequence[int]) -> Iterator[Rule]:
  """The ResNet below a hybrid; its norms have had shapes [1, 1, 1, D] in some files."""
  ours = f'{ENCODER}/resnet'
  yield same(f'{ours}/conv_root/kernel', 'conv_root/kernel')
  yield from _layer('gn_root', f'{ours}/norm_root', NORM)
  for i, count in enumerate(blocks):
    for j in range(count):
      theirs, mine = f'block{i + 1}/unit{j + 1}', f'{ours}/stage_{i}_block_{j}'
      for number in (1, 2, 3, *(() if j else ('_proj',))):
        short = f'_{number}'.replace('__', '_')
        yield same(f'{mine}/conv{short}/kernel', f'{theirs}/conv{number}/kernel')
        yield from _layer(f'{theirs}/gn{number}', f'{mine}/norm{short}', NORM)


def _resnet_blocks(names: Iterable[str]) -> tuple[int, ...]:
  counts: dict[int, int] = {}
  for name in names:
    match = re.match(r'block(\d+)/unit(\d+)/', name)
    if match:
      stage, unit = map(int, match.groups())
      counts[stage] = max(counts.get(stage, 0), unit)
  return tuple(counts[stage] for stage in sorted(counts))
