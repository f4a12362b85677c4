"""What the arrays of timm's Vision Transformers are called, in both directions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.adapters.mapping import (
  ENCODER,
  HEAD,
  Arrays,
  Rule,
  Shapes,
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

QKV = ('query', 'key', 'value')
BACKBONE = 'patch_embed.backbone'


class Parts(NamedTuple):
  """What a file has.

  Attributes:
    depth: blocks.
    pooling: of our ViT.
    cls: whether there is a class token. Where the head does not look at it, it is a register here.
    registers: other tokens beside the patches.
    prefix: how many positions there are before those of the patches: of all these tokens, or 0.
    patch_bias: whether the patches have a bias, and
    qkv_bias: queries, keys and values.
    zero_patch_bias: whether ours have one where theirs have none.
    qk_norm: whether queries and keys have a LayerNorm.
    layer_scale: whether branches are scaled.
    pre_norm: whether there is a LayerNorm before the first block.
    last_norm: the name of the last one.
    head: whether there is a head.
    resnet: blocks a stage of the ResNet below; None for none.
  """

  depth: int
  pooling: str
  cls: bool
  registers: int = 0
  prefix: int = 0
  patch_bias: bool = True
  qkv_bias: bool = True
  zero_patch_bias: bool = False
  qk_norm: bool = False
  layer_scale: bool = False
  pre_norm: bool = False
  last_norm: str = 'norm'
  head: bool = False
  resnet: tuple[int, ...] | None = None


def first_layer(resnet: Sequence[int] | None) -> str:
  """The layer that sees pixels."""
  if resnet is None:
    return 'patch_embed.proj'
  return f'{BACKBONE}.stem.conv' if resnet else f'{BACKBONE}.conv'


def rules_of(parts: Parts) -> Iterator[Rule]:
  """The rules of a file with these parts."""
  if parts.resnet is not None:
    yield from _resnet(parts.resnet)
  yield conv(f'{ENCODER}/embedding/kernel', 'patch_embed.proj.weight')
  if parts.patch_bias:
    yield same(f'{ENCODER}/embedding/bias', 'patch_embed.proj.bias')
  elif parts.zero_patch_bias:
    yield zeros(f'{ENCODER}/embedding/bias')
  yield _tokens(parts)
  if parts.pre_norm:
    yield from norm(f'{ENCODER}/pre_norm', 'norm_pre')
  for i in range(parts.depth):
    yield from _block(f'{ENCODER}/block_{i}', f'blocks.{i}', parts)
  yield from norm(f'{ENCODER}/norm', parts.last_norm)
  if parts.pooling == 'map':
    yield from _map_head(f'{ENCODER}/map_head', 'attn_pool')
  if parts.head:
    yield from dense(HEAD, 'head')


def _block(ours: str, theirs: str, parts: Parts) -> Iterator[Rule]:
  yield from norm(f'{ours}/norm_1', f'{theirs}.norm1')
  layers = [f'{ours}/attention/{name}' for name in QKV]
  yield from _fused(layers, f'{theirs}.attn.qkv', bias=parts.qkv_bias)
  if parts.qk_norm:
    for name in QKV[:2]:
      yield _norm_without_bias(f'{ours}/attention/{name}_norm', f'{theirs}.attn.{name[0]}_norm')
  yield from dense(f'{ours}/attention/out', f'{theirs}.attn.proj', inputs=2)
  yield from norm(f'{ours}/norm_2', f'{theirs}.norm2')
  yield from mlp(f'{ours}/mlp', f'{theirs}.mlp')
  if parts.layer_scale:
    for number in (1, 2):
      yield same(f'{ours}/scale_{number}/scale', f'{theirs}.ls{number}.gamma')


def _map_head(ours: str, theirs: str) -> Iterator[Rule]:
  query, *others = (f'{ours}/attention/{name}' for name in QKV)
  yield same(f'{ours}/probe', f'{theirs}.latent')
  yield from dense(query, f'{theirs}.q')
  yield from _fused(others, f'{theirs}.kv')
  yield from dense(f'{ours}/attention/out', f'{theirs}.proj', inputs=2)
  yield from norm(f'{ours}/norm', f'{theirs}.norm')
  yield from mlp(f'{ours}/mlp', f'{theirs}.mlp')


def _fused(ours: Sequence[str], theirs: str, *, bias: bool = True) -> Iterator[Rule]:
  """Dense layers of the same inputs, theirs in one."""
  yield fused(f'{theirs}.weight', *(linear(f'{name}/kernel', theirs) for name in ours))
  if bias:
    yield fused(f'{theirs}.bias', *(flat(f'{name}/bias', theirs) for name in ours))
  else:
    yield from (zeros(f'{name}/bias') for name in ours)


def _norm_without_bias(ours: str, theirs: str) -> Rule:
  """A LayerNorm that has no bias here, and there one of zeros."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    scale, bias = arrays
    if np.any(bias):
      raise ValueError('it has a bias that is not 0, and the norms of queries and keys have none')
    return same(ours, theirs).read([scale], shapes)

  def write(arrays: Arrays) -> list[np.ndarray]:
    return [arrays[0], np.zeros_like(arrays[0])]

  return Rule((f'{ours}/scale',), (f'{theirs}.weight', f'{theirs}.bias'), read, write)


def _tokens(parts: Parts) -> Rule:
  """Learned positions, and the tokens before the patches.

  Theirs have a position each, or none has. Ours has one for the class token that the head looks at,
  and none for registers: a register's is added to it.
  """
  seen = int(parts.pooling == 'token')
  registers = parts.cls + parts.registers - seen
  ours = ['cls'] * seen + ['registers'] * (registers > 0) + ['pos_embedding']
  theirs = ['cls_token'] * parts.cls + ['reg_token'] * (parts.registers > 0) + ['pos_embed']

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    _, length, width = shapes[-1]
    lengths = {'cls_token': 1, 'reg_token': parts.registers}
    for name, x in zip(theirs, arrays, strict=True):
      shape = 1, lengths.get(name, length - seen + parts.prefix), width
      if x.shape != shape:
        raise ValueError(f'the shape of {name!r} is {list(x.shape)} and should be {list(shape)}')
    *tokens, positions = arrays
    rows, patches = positions[:, : parts.prefix], positions[:, parts.prefix :]
    tokens = np.concatenate([rows[:, :0], *tokens], 1)
    rows = rows if parts.prefix else np.zeros_like(tokens)  # [1, cls + registers, D]
    positions = np.concatenate([rows[:, :seen], patches], 1)
    read = tokens[:, :seen], tokens[:, seen:] + rows[:, seen:], positions
    return [x for x in read if x.shape[1]]

  def write(arrays: Arrays) -> list[np.ndarray]:
    *tokens, positions = arrays
    rows, patches = positions[:, :seen], positions[:, seen:]
    tokens = np.concatenate([rows[:, :0], *tokens], 1)
    rows = np.concatenate([rows, np.zeros_like(tokens[:, seen:])], 1)  # [1, cls + registers, D]
    if not parts.prefix:
      tokens, rows = tokens + rows, rows[:, :0]
    positions = np.concatenate([rows, patches], 1)
    written = tokens[:, : parts.cls], tokens[:, parts.cls :], positions
    return [x for x in written if x.shape[1]]

  return Rule(tuple(f'{ENCODER}/{name}' for name in ours), tuple(theirs), read, write)


def _resnet(blocks: Sequence[int]) -> Iterator[Rule]:
  """The ResNet below a hybrid; without stages it is its first layers alone."""
  ours, first = f'{ENCODER}/resnet', first_layer(blocks)
  yield conv(f'{ours}/conv_root/kernel', f'{first}.weight')
  yield from norm(f'{ours}/norm_root', f'{first.removesuffix("conv")}norm')
  for i, count in enumerate(blocks):
    for j in range(count):
      mine, theirs = f'{ours}/stage_{i}_block_{j}', f'{BACKBONE}.stages.{i}.blocks.{j}'
      for number in (1, 2, 3):
        yield conv(f'{mine}/conv_{number}/kernel', f'{theirs}.conv{number}.weight')
        yield from norm(f'{mine}/norm_{number}', f'{theirs}.norm{number}')
      if not j:
        yield conv(f'{mine}/conv_proj/kernel', f'{theirs}.downsample.conv.weight')
        yield from norm(f'{mine}/norm_proj', f'{theirs}.downsample.norm')
