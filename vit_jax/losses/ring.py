"""Every device's rows meet those of every other one, a block at a time: no matrix over the batch.

A loss over the global batch compares each row with all others. Here the blocks of the devices go
round: in each of as many turns as there are devices, one compares its own rows with the block that
visits it, in sub-blocks, and passes the visitor on. Memory is what a sub-block takes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.arrays import Array

# From what was gathered, and the rows of a visitor, to what is gathered with them.
Update = Callable[[Any, Any], Any]


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` on each device's rows alone; arrays in and out are split along their first axis.

  Without a mesh it is called as it is: all rows are those of the one device.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function
  return jax.shard_map(function, in_specs=P(sharding.BATCH_AXES), out_specs=P(sharding.BATCH_AXES))


def numbers(rows: int) -> Array:
  """The places of this device's rows in the global batch, `[rows]` int32; inside `over_rows`."""
  own = jnp.arange(rows, dtype=jnp.int32)
  if jax.sharding.get_abstract_mesh().empty:
    return own
  return own + rows * jax.lax.axis_index(sharding.BATCH_AXES)


def walk(update: Update, gathered: Any, own: Any, block: int) -> Any:
  """Lets the rows of every device, this one included, visit; inside `over_rows`.

  Args:
    update: of what is gathered, with at most `block` rows of a visitor: a tree like `own`.
    gathered: to begin with.
    own: a tree of arrays, `[n, ...]`, that the devices show each other. Rows are filled up to a
      multiple of `block` with zeros, integers with -1: a row number says which rows are none.
    block: rows of a sub-block.
  """
  count = jax.tree.leaves(own)[0].shape[0]
  block = min(block, count)
  short = -count % block

  def blocks(x: Array) -> Array:
    fill = -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    x = jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1)), constant_values=fill)
    return x.reshape(-1, block, *x.shape[1:])  # [n / block, block, ...]

  def meet(gathered: Any, visitor: Any) -> Any:
    return jax.lax.scan(lambda g, rows: (update(g, rows), None), gathered, visitor)[0]

  visitor = jax.tree.map(blocks, own)
  turns = sharding.batch_shards(jax.sharding.get_abstract_mesh())
  if turns == 1:
    return meet(gathered, visitor)
  to_next = [(i, (i + 1) % turns) for i in range(turns)]

  def turn(carry: Any, _: None) -> tuple[Any, None]:
    gathered, visitor = carry
    # Sent before it is looked at, so that the next visitor travels meanwhile.
    coming = jax.tree.map(lambda x: jax.lax.ppermute(x, sharding.BATCH_AXES, to_next), visitor)
    return (meet(gathered, visitor), coming), None

  return jax.lax.scan(turn, (gathered, visitor), length=turns)[0][0]
