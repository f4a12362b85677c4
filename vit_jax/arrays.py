"""The two types that everything here is written in."""

import jax

Array = jax.Array
# Arrays whose leading axis is the global batch: image, label, id, ... and in evaluation `_mask`.
Batch = dict[str, Array]
