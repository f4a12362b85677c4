"""Low-rank adaptation: kernels change by products of two thin matrices. Hu et al. 2021.

arXiv:2106.09685. Nothing is frozen here: a config says so, `freeze=('encoder/encoder/.*',)`.
"""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from vit_jax import rules
from vit_jax.arrays import Array
from vit_jax.models.features import Features

init = nn.initializers
logical = nn.with_logical_partitioning

# Layers whose kernels have one axis of inputs, whatever the number of axes.
ONE_INPUT = ('query', 'key', 'value')
# What evaluators read of an encoder.
OF_THE_ENCODER = ('attention', 'grid', 'patch', 'pooling', 'positions', 'size')


class LoRA(nn.Module):
  """An encoder with some kernels W replaced by W + (alpha / rank) A B. Eq. 3, arXiv:2106.09685.

  B is zero at the start, so that the outputs are then those of the encoder. Its parameters are
  under `encoder`, called as without this; the factors of its kernel `block_0/mlp/fc_1/kernel` are
  `lora/block_0/mlp/fc_1/kernel/a` and `.../b`.

  A is `[*inputs, rank]` and B `[rank, *outputs]`. Kernels of `query`, `key` and `value` have one
  axis of inputs, the first; of all others every axis but the last is an input. Where the kernels
  of a scan are stacked, so are the factors: A is `[layers, *inputs, rank]`.

  The sum is computed once a step and takes the kernel's place: no activation is added, and the
  gradient of W, as large as without this, goes to A and B. What evaluators read of an encoder is
  the one inside.

  Attributes:
    encoder: whose kernels are adapted.
    kernels: regular expressions, each for the whole name of a kernel of the encoder, such as
      'block_.*/attention/(query|value)/kernel'; with `scan`, 'blocks/attention/...'.
    rank: of the products.
    alpha: the factor of the products, times `rank`.

  Raises:
    ValueError: when built, for a rank below 1, an alpha that is not positive, or no pattern; when
      initialised, for a pattern that matches nothing, or something that is no kernel.
  """

  encoder: nn.Module
  kernels: Sequence[str]
  rank: int = 8
  alpha: float = 16.0

  def __post_init__(self) -> None:
    if self.rank < 1:
      raise ValueError(f'rank must be at least 1, got {self.rank}')
    rules.check_number('alpha', self.alpha, positive=True)
    if not self.kernels:
      raise ValueError("kernels must be patterns, ('block_.*/kernel',), got none")
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, *, train: bool, **kwargs: Any) -> Features:
    """The encoder's features, with the same arguments."""

    def encode(encoder: nn.Module, x: Array) -> Features:
      return encoder(x, train=train, **kwargs)

    if self.is_initializing():
      # Which kernels there are is known only after this.
      features = encode(self.encoder, x)
      self.param('lora', self._factors)
      return features
    lora = self.variables['params']['lora']

    def merged(variables: dict[str, Any]) -> dict[str, Any]:
      params = {'encoder': variables['params'], 'lora': lora}
      return {'params': merge(params, alpha=self.alpha)}

    return nn.map_variables(encode, 'params', trans_in_fn=merged)(self.encoder, x)

  def _factors(self, key: Array) -> dict[str, Any]:
    """The first A and B of every kernel, boxed with their logical axes, nested by its name."""
    params = traverse_util.flatten_dict(self.encoder.variables['params'], sep='/')
    names = sorted(_match(self.kernels, list(params)))
    factors = {}
    for name, key_of_one in zip(names, jax.random.split(key, len(names)), strict=True):
      box = params[name]
      shape = nn.unbox(box).shape
      axes = getattr(box, 'names', (None,) * len(shape))
      a, b = _factors_of(name, shape, axes, self.rank, key_of_one)
      factors.update({f'{name}/a': a, f'{name}/b': b})
    return traverse_util.unflatten_dict(factors, sep='/')

  @nn.nowrap
  def clone(self, **updates: Any) -> 'LoRA':
    """A copy with other fields: of this, or by a name that this lacks, of the encoder."""
    own, theirs = ({field.name for field in dataclasses.fields(m)} for m in (self, self.encoder))
    inner = {name: updates.pop(name) for name in theirs - own if name in updates}
    if inner:
      updates['encoder'] = self.encoder.clone(**inner)
    return super().clone(**updates)

  @nn.nowrap
  def __getattr__(self, name: str) -> Any:
    # No properties: of their AttributeError Linen makes an error that `hasattr` lets through.
    return getattr(self.encoder, name) if name in OF_THE_ENCODER else super().__getattr__(name)

  def pixel_kernel(self, params: Any) -> Array:
    """The kernel that sees pixels, adapted where it is; `params` are this module's."""
    return self.encoder.pixel_kernel(merge(params, alpha=self.alpha))


def merge(params: Any, *, alpha: float) -> dict[str, Any]:
  """The parameters of an encoder that gives without `LoRA` what it gave with it.

  Args:
    params: of a `LoRA`, `encoder` and `lora`, unboxed.
    alpha: its field.

  Returns:
    The nested dict `encoder`, every W that has factors replaced by W + (alpha / rank) A B.
  """
  encoder = traverse_util.flatten_dict(params['encoder'], sep='/')
  factors = traverse_util.flatten_dict(params['lora'], sep='/')
  for name in [name.removesuffix('/a') for name in factors if name.endswith('/a')]:
    a, b = factors[f'{name}/a'], factors[f'{name}/b']
    encoder[name] = encoder[name] + alpha / a.shape[-1] * _product(a, b, encoder[name].ndim)
  return traverse_util.unflatten_dict(encoder, sep='/')


def _product(a: Array, b: Array, ndim: int) -> Array:
  """`[*inputs, rank]` times `[rank, *outputs]`; of each layer where that makes `ndim` axes."""
  # It is a small product: exact on devices whose default is less than float32.
  product = functools.partial(jnp.tensordot, axes=1, precision='highest')
  stacked = a.ndim + b.ndim - 2 > ndim
  return (jax.vmap(product) if stacked else product)(a, b)


def _factors_of(
  name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], rank: int, key: Array
) -> tuple[Any, Any]:
  """The first A and B of a kernel: A is Gaussian, with variance 1 / inputs, and B zero.

  Args:
    name: of the kernel.
    shape: of the kernel.
    axes: the logical names of its axes; the factors' follow.
    rank: of A B.
    key: of A.
  """
  stacked = int(axes[:1] == ('layers',))
  layer = name.removesuffix('/kernel').rpartition('/')[2]
  middle = stacked + 1 if layer in ONE_INPUT else len(shape) - 1  # Outputs begin here.
  gaussian = init.variance_scaling(
    1.0,
    'fan_in',
    'normal',
    in_axis=range(stacked, middle),
    out_axis=-1,
    batch_axis=range(stacked),
  )
  a_init = logical(gaussian, (*axes[:middle], None))
  b_init = logical(init.zeros, (*axes[:stacked], None, *axes[middle:]))
  return (
    a_init(key, (*shape[:middle], rank)),
    b_init(key, (*shape[:stacked], rank, *shape[middle:])),
  )


def _match(patterns: Sequence[str], names: Sequence[str]) -> dict[str, int]:
  """`rules.match`; raises ValueError for a name that is no kernel's too."""
  matched = rules.match('kernels', patterns, names)
  kernels = [name for name in names if name.split('/')[-1] == 'kernel']
  for name, i in matched.items():
    if name not in kernels:
      near = difflib.get_close_matches(name, kernels, n=5, cutoff=0.0)
      raise ValueError(
        f'kernels: {patterns[i]!r} matches {name!r}, which is no kernel; the closest are '
        + ', '.join(map(repr, near))
      )
  return matched
