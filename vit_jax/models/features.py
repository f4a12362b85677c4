"""What every encoder returns."""

import flax.struct

from vit_jax.arrays import Array


@flax.struct.dataclass
class Features:
  """The output of an encoder: no head, nothing that belongs to one method.

  Attributes:
    pooled: `[B, D]`, one vector an example.
    tokens: `[B, N, D]`; for images the `h * w` patch tokens, row by row, without class token.
    blocks: tokens `[B, N, D]` after the blocks that were asked for, where a model offers that.
    stages: feature maps by resolution `[B, h_i, w_i, D_i]`, where the architecture has them.
    mask: `[B, N]`, for sequences: False on padding.
    grid: `(h, w)` with `h * w == N`, for images. Static.
  """

  pooled: Array
  tokens: Array
  blocks: tuple[Array, ...] = ()
  stages: tuple[Array, ...] = ()
  mask: Array | None = None
  grid: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
