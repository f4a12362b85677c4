"""What the arrays of OpenAI's CLIP and of open_clip's models are called, in both directions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.adapters.mapping import (
  ENCODER,
  Rule,
  conv,
  dense,
  flat,
  fused,
  linear,
  norm,
  same,
)
from vit_jax.adapters.two_towers import LOG_SCALE, LOGIT_BIAS, PROJECTION, TEXT

VISUAL = 'visual.'
QKV = ('query', 'key', 'value')


class TextParts(NamedTuple):
  """What a file has beside its image tower.

  Attributes:
    depth: blocks of the text tower.
    prefix: what its names begin with: '' in CLIP's files, 'text.' in those of models whose text
      tower is a module of its own.
    projection_bias: whether its projection has a bias; with it, it is a module too.
    sigmoid: whether there is a bias of the logits.
  """

  depth: int
  prefix: str = ''
  projection_bias: bool = False
  sigmoid: bool = False


def vit_rules(depth: int, *, pre_norm: bool = True) -> Iterator[Rule]:
  """The image tower that is a ViT, without its projection."""
  yield conv(f'{ENCODER}/embedding/kernel', f'{VISUAL}conv1.weight')
  yield flat(f'{ENCODER}/cls', f'{VISUAL}class_embedding')
  yield _positions(f'{ENCODER}/pos_embedding', f'{VISUAL}positional_embedding')
  if pre_norm:
    yield from norm(f'{ENCODER}/pre_norm', f'{VISUAL}ln_pre')
  for i in range(depth):
    yield from _block(f'{ENCODER}/block_{i}', f'{VISUAL}transformer.resblocks.{i}')
  yield from norm(f'{ENCODER}/norm', f'{VISUAL}ln_post')


def resnet_rules(blocks: Sequence[int]) -> Iterator[Rule]:
  """The image tower that is a residual network, with its attention pooling."""
  for n in (1, 2, 3):
    yield from _layer(f'conv_root_{n}', f'norm_root_{n}', f'{VISUAL}conv{n}', f'{VISUAL}bn{n}')
  for i, count in enumerate(blocks):
    for j in range(count):
      ours, theirs = f'stage_{i}_block_{j}', f'{VISUAL}layer{i + 1}.{j}'
      for n in (1, 2, 3):
        names = f'{theirs}.conv{n}', f'{theirs}.bn{n}'
        yield from _layer(f'{ours}/conv_{n}', f'{ours}/norm_{n}', *names)
      if not j:  # Positions are averaged in front of it, a layer without arrays.
        names = f'{theirs}.downsample.0', f'{theirs}.downsample.1'
        yield from _layer(f'{ours}/conv_proj', f'{ours}/norm_proj', *names)
  ours, theirs = f'{ENCODER}/attention_pool', f'{VISUAL}attnpool'
  yield _positions(f'{ours}/pos_embedding', f'{theirs}.positional_embedding')
  for name in QKV:
    yield from dense(f'{ours}/attention/{name}', f'{theirs}.{name[0]}_proj')
  yield from dense(f'{ours}/attention/out', f'{theirs}.c_proj', inputs=2)


def projection_rule() -> Rule:
  """The projection of a ViT's class token, `[width, D]` in both."""
  return same(PROJECTION, f'{VISUAL}proj')


def text_rules(parts: TextParts) -> Iterator[Rule]:
  """The text tower, and what both are compared by."""
  prefix = parts.prefix
  yield same(f'{TEXT}/token_embedding/embedding', f'{prefix}token_embedding.weight')
  yield _positions(f'{TEXT}/pos_embedding', f'{prefix}positional_embedding')
  for i in range(parts.depth):
    yield from _block(f'{TEXT}/block_{i}', f'{prefix}transformer.resblocks.{i}')
  yield from norm(f'{TEXT}/norm', f'{prefix}ln_final')
  if parts.projection_bias:
    yield from dense(f'{TEXT}/projection', f'{prefix}text_projection')
  else:
    yield same(f'{TEXT}/projection/kernel', f'{prefix}text_projection')
  yield same(LOG_SCALE, 'logit_scale')
  if parts.sigmoid:
    yield same(LOGIT_BIAS, 'logit_bias')


def _block(ours: str, theirs: str) -> Iterator[Rule]:
  yield from norm(f'{ours}/norm_1', f'{theirs}.ln_1')
  layers = [f'{ours}/attention/{name}' for name in QKV]
  kernel, bias = f'{theirs}.attn.in_proj_weight', f'{theirs}.attn.in_proj_bias'
  yield fused(kernel, *(linear(f'{layer}/kernel', kernel) for layer in layers))
  yield fused(bias, *(flat(f'{layer}/bias', bias) for layer in layers))
  yield from dense(f'{ours}/attention/out', f'{theirs}.attn.out_proj', inputs=2)
  yield from norm(f'{ours}/norm_2', f'{theirs}.ln_2')
  yield from dense(f'{ours}/mlp/fc_1', f'{theirs}.mlp.c_fc')
  yield from dense(f'{ours}/mlp/fc_2', f'{theirs}.mlp.c_proj')


def _positions(ours: str, theirs: str) -> Rule:
  """`[1, N, D]`, theirs `[N, D]`."""
  return same(ours, theirs)._replace(write=lambda arrays: [arrays[0][0]])


def _layer(ours: str, our_norm: str, theirs: str, their_norm: str) -> Iterator[Rule]:
  """A convolution and the BatchNorm behind it."""
  yield conv(f'{ENCODER}/{ours}/kernel', f'{theirs}.weight')
  yield from norm(f'{ENCODER}/{our_norm}', their_norm)
  for name in ('mean', 'var'):
    yield same(f'batch_stats/encoder/{our_norm}/{name}', f'{their_norm}.running_{name}')
  # PyTorch counts batches, and nothing reads the number.
  count = np.zeros((), np.int64)
  yield Rule((), (f'{their_norm}.num_batches_tracked',), lambda *_: [], lambda _: [count])
