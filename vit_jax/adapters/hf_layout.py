"""From the shapes in a file of transformers, and the JSON files beside it, to a `Layout`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.adapters.hf_config import Config, class_names
from vit_jax.adapters.hf_images import read_preprocessing
from vit_jax.adapters.layout import Facts, Layout, shape_of, supervised, vit_spec
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.models.vit import Size


class Where(NamedTuple):
  """Names of the arrays whose shapes say the sizes.

  Attributes:
    kernel: of the patches.
    positions: the learned ones.
    fc_1: the kernel of the first MLP's first layer.
    head: the bias of the head; None for none.
  """

  kernel: str
  positions: str
  fc_1: str
  head: str | None = None


def make_layout(
  tensors: Tensors,
  facts: Facts,
  files: Mapping[str, Any],
  config: Config,
  where: Where,
  rules: Sequence[Rule],
  *,
  depth: int,
  processor: str,
  pooling: str = 'token',
  **fields: Any,
) -> Layout:
  """What a file holds.

  Args:
    tensors: its arrays.
    facts: what the caller says.
    files: the JSON files beside it, by name.
    config: what 'config.json' says of images.
    where: which arrays have the sizes.
    rules: of the format.
    depth: blocks.
    processor: the class of the family's image processor.
    pooling: of the ViT.
    **fields: others of the ViT; those that are None are left out.

  Raises:
    ValueError: an array is missing or has another number of axes, or a fact that nobody says.
  """
  kernel, path = shape_of(tensors, where.kernel), tensors.path
  if len(kernel) != 4:
    raise ValueError(f'{where.kernel!r} in {path} is {list(kernel)}, which is no convolution')
  width, channels, *patch = kernel
  mlp_dim = shape_of(tensors, where.fc_1)[0]
  tokens = shape_of(tensors, where.positions)[-2] - (pooling == 'token')
  grid = config.grid(tokens, tuple(patch), facts)
  transformer = config.transformer(facts, width, depth, mlp_dim)
  size = Size(width, depth, mlp_dim, transformer.pop('num_heads'))
  spec = vit_spec(size, tuple(patch), grid, pooling=pooling, **transformer, **fields)
  native = grid[0] * patch[0], grid[1] * patch[1]
  preprocessing, mean, std = read_preprocessing(path, files, native, patch, channels, processor)
  classes = shape_of(tensors, where.head)[0] if where.head else None
  return Layout(
    'transformers',
    supervised(spec, classes, facts.get('mean', mean), facts.get('std', std)),
    preprocessing,
    rules,
    class_names(files, classes, facts) if classes else (),
  )
