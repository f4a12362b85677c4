"""A batch larger than memory through an encoder, for losses that need all of it at once."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import microbatches
from vit_jax.arrays import Array
from vit_jax.models.features import Features


class Chunked(nn.Module):
  """An encoder that takes a batch in chunks: GradCache, Gao et al. 2021, arXiv:2101.06983.

  In training the activations of one chunk at a time are in memory: the features of all chunks are
  computed first, and where the loss has sent back their gradients, each chunk is encoded again for
  its own. Loss and gradient are those of the whole batch (dropped features are other ones), at the
  cost of a second forward pass. It serves every objective whose loss compares the examples of a
  batch, where `config.accumulate` cannot. Parameters are called as without this.

  Attributes:
    encoder: of images or texts.
    chunks: how many; a device's share of the batch must be a multiple.

  Raises:
    ValueError: when built, for fewer than one chunk; when initialised, for an encoder that
      normalises by the statistics of a batch, which would be those of a chunk; in training, for a
      batch that does not divide.
  """

  encoder: nn.Module
  chunks: int = 4

  def __post_init__(self) -> None:
    if self.chunks < 1:
      raise ValueError(f'chunks must be at least 1, got {self.chunks}')
    super().__post_init__()

  def setup(self) -> None:
    """Takes the encoder's names for its own."""
    nn.share_scope(self, self.encoder)

  def __call__(self, x: Array, *, train: bool) -> Features:
    """The encoder's features of `x [B, ...]`."""
    if not train or self.is_initializing():
      features = self.encoder(x, train=train)
      if 'batch_stats' in self.encoder.variables:
        raise ValueError(
          f'chunks is {self.chunks}, but {type(self.encoder).__name__} normalises by the statistics'
          ' of a batch, and would take those of a chunk; choose an encoder without BatchNorm'
        )
      return features
    encoder, params = self.encoder.clone(parent=None), self.encoder.variables['params']
    rng = self.make_rng('dropout') if self.has_rng('dropout') else jax.random.key(0)

    @jax.checkpoint
    def encode(row: tuple[Array, Any]) -> Features:
      i, x = row
      rngs = {'dropout': jax.random.fold_in(rng, i)}
      return encoder.apply({'params': params}, x, train=True, rngs=rngs)

    microbatches.check_rows('chunks', self.chunks, x.shape[0], jax.sharding.get_abstract_mesh())
    rows = jnp.arange(self.chunks), microbatches.split(x, self.chunks)
    return microbatches.join(jax.lax.map(encode, rows))
