"""What a pipeline's batches will look like, without starting it."""

from typing import Any

import jax
import numpy as np

from vit_jax import compose
from vit_jax.data import transforms
from vit_jax.data.substitute import Load


def batch_spec(source: Any, host: str, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a global batch; reads and transforms one example.

  Args:
    source: random access.
    host: the host transforms.
    batch_size: of the global batch.

  Raises:
    ValueError: an empty source, unknown transforms, or no example that decodes.
  """
  if len(source) == 0:
    raise ValueError(f'{source!r} has no examples; choose another split or path')
  load = Load(source, compose.build(host, transforms))
  example = load(0, np.random.default_rng(0))
  del example['_bad']
  return {
    key: jax.ShapeDtypeStruct(
      (batch_size, *np.shape(value)), jax.dtypes.canonicalize_dtype(np.asarray(value).dtype)
    )
    for key, value in example.items()
  }
