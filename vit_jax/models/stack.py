"""Blocks in a row: one by one or as a scan, with activations kept or computed again."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array
from vit_jax.models.dense import PRODUCT
from vit_jax.models.transformer import Block
from vit_jax.sharding import constrain

_policies = jax.checkpoint_policies
_products = _policies.save_only_these_names(PRODUCT)

# What the backward pass finds in memory; it computes the rest again.
REMAT = {
  'none': None,  # Everything is kept.
  'full': _policies.nothing_saveable,  # A block's input alone.
  # And the results of matrix products,
  'dots': _policies.save_from_both_policies(_policies.dots_saveable, _products),
  'dots_no_batch': _products,  # or of those with weights, so without the attention logits.
}


def apply_blocks(
  x: Array,
  train: bool,
  *,
  depth: int,
  drop_path: float,
  scan: bool,
  remat: str,
  outputs: Sequence[int] = (),
  mask: Array | None = None,
  **fields: Any,
) -> tuple[Array, tuple[Array, ...]]:
  """Applies `depth` blocks; to be called inside a compact method.

  Args:
    x: `[B, L, D]`.
    train: whether to drop features and branches.
    depth: blocks, called `block_0`, ... or, scanned, `blocks` with stacked parameters.
    drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
    scan: whether to compile one block and loop over it, which compiles in constant time. Dropped
      features differ from the loop's, since random numbers are drawn in another order.
    remat: a key of `REMAT`.
    outputs: numbers of blocks, from 0.
    mask: `[B, L]` bool, False on tokens that no token looks at; None for none.
    **fields: of every `Block`.

  Returns:
    The last block's output, `[B, L, D]`, and that of each block in `outputs`.
  """
  x = constrain(x, 'batch', None, None)
  kind = Block
  if remat != 'none':
    kind = nn.remat(Block, policy=REMAT[remat], prevent_cse=not scan, static_argnums=(2,))
  if not scan:
    after = []
    for i in range(depth):
      x = kind(**fields, name=f'block_{i}')(x, train, drop_path * i / max(depth - 1, 1), mask)
      after.append(x)
    return x, tuple(after[i] for i in outputs)

  def body(block: Block, x: Array, rate: Array) -> tuple[Array, Array | None]:
    # A rate of 0 that is known when compiling costs nothing.
    x = block(x, train, rate if drop_path else 0.0, mask)
    return x, x if outputs else None

  loop = nn.scan(
    body,
    variable_axes={'params': 0, 'intermediates': 0},
    split_rngs={'params': True, 'dropout': True},
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  rates = drop_path * jnp.arange(depth) / max(depth - 1, 1)
  x, after = loop(kind(**fields, name='blocks'), x, rates)
  return x, tuple(after[i] for i in outputs)
