"""Jigsaw for a ViT: each patch, without a position, says which place of the image it is from."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.losses import classification
from vit_jax.models.head import linear_head
from vit_jax.models.patches import cut_patches, join_patches
from vit_jax.objectives import inputs
from vit_jax.sharding import constrain


class JigsawPositions(nn.Module):
  """A ViT on a bag of patches, and a linear head that tells each one's place.

  Chen et al. 2022, arXiv:2207.11971 (Jigsaw-ViT), and Zhai et al. 2022, arXiv:2207.07611 (MP3).
  Patches without positions have no order, so nothing needs to be shuffled. They must not overlap,
  or neighbours are told by the pixels that they share.

  Attributes:
    encoder: a ViT with `positions='none'` and without `conv_stem`.
    keep: the share of patches that is seen, other ones for each image: with fewer of them, edges
      that go on in a neighbour help less.
    augment: device transforms in training, such as `'color_distort(0.5) | blur'`.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  keep: float = 0.5
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Raises ValueError for an encoder that knows places, or a share that cannot be."""
    encoder = self.encoder
    if getattr(encoder, 'positions', None) != 'none' or encoder.stem:
      raise ValueError(
        "JigsawPositions needs a ViT with positions 'none' and without a stem, since positions are"
        f' the answer and pixels that patches share give it away; got {type(encoder).__name__} with'
        f' positions {getattr(encoder, "positions", None)!r}'
      )
    if not 0 < self.keep <= 1:
      raise ValueError(f'keep is a share above 0 and at most 1, not {self.keep}')

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; in evaluation `id [B]` too.
      train: whether to augment and to drop, and to draw anew which patches are seen.

    Returns:
      The mean loss, and `loss [B]` and `accuracy [B]`, means over the patches that are seen.
    """
    _, seen, logits = self._place(batch, train=train)
    correct = (jnp.argmax(logits, axis=-1) == seen).astype(jnp.float32)
    target = jax.nn.one_hot(seen, logits.shape[-1])  # [B, K, N]
    loss = classification.softmax_cross_entropy(logits, target).mean(axis=1)
    return jnp.mean(loss), {'loss': loss, 'accuracy': correct.mean(axis=1)}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of `image [B, H, W, C]`, as in evaluation."""
    image = inputs.view(batch, self.eval_augment, None)
    return self.encoder(inputs.normalize(image, self.mean, self.std), train=False).pooled

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """Images `[B, H, W, C]` in [0, 1]: whole, the patches that are seen, and these as placed."""
    image, seen, logits = self._place(batch, train=False)
    whole = cut_patches(image, self.encoder.patch)  # [B, h, w, P]
    patches = whole.reshape(len(image), -1, whole.shape[-1])  # [B, N, P]
    found = jnp.take_along_axis(patches, seen[..., None], axis=1)  # [B, K, P]

    def put(places: Array) -> Array:
      blank = jnp.full_like(patches, 0.5)
      row = jnp.arange(len(image))[:, None]
      return join_patches(blank.at[row, places].set(found).reshape(whole.shape), self.encoder.patch)

    return {'image': image, 'seen': put(seen), 'as placed': put(jnp.argmax(logits, axis=-1))}

  @nn.compact
  def _place(self, batch: Batch, *, train: bool) -> tuple[Array, Array, Array]:
    """Images, numbers of the patches that are seen `[B, K]`, and a logit a place `[B, K, N]`."""
    image = inputs.augmented(self, batch, train=train)
    p, q = self.encoder.patch
    places = (image.shape[1] // p) * (image.shape[2] // q)
    keys = inputs.example_keys(batch, self.make_rng('augment') if train else None)
    seen = jax.vmap(lambda key: jax.random.permutation(key, places))(keys)
    seen = seen[:, : max(1, round(self.keep * places))]
    features = self.encoder(
      inputs.normalize(image, self.mean, self.std), train=train, keep=seen
    ).tokens.astype(jnp.float32)  # [B, K, D]
    # Zeros: the loss starts at its chance value, log N.
    logits = linear_head(places, name='head')(features)
    return image, seen, constrain(logits, 'batch', None, 'classes')
