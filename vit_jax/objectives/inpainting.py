"""Inpainting: the pixels of what was cut out of an image, told from what surrounds it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.choices import check_choice
from vit_jax.models.decoder import Decoder
from vit_jax.objectives import inputs

MASKS = ('center', 'blocks')


class Inpainting(nn.Module):
  """An encoder and a decoder. Context encoders, Pathak et al. 2016, arXiv:1604.07379.

  By the reconstruction loss of Section 3.2 alone. The adversarial one, which makes what fills a
  hole look sharper, is left out, as it is where the paper trains features to be used elsewhere.

  Attributes:
    encoder: images to `Features` with a grid: a ViT or a ResNet.
    decoder: from these back to pixels.
    mask: `center`, one block in the middle; or `blocks`, several at random places, which may
      overlap, so that features do not wait for a border at a fixed place (Section 3.3).
    area: the share of the image that is predicted, of `blocks` at most.
    blocks: how many blocks `blocks` cuts out, all of one size.
    overlap: pixels along each border of a predicted block that stay visible, so that what is
      predicted fits what surrounds it. The paper's 7 are of 128.
    overlap_weight: of these pixels in the loss; of all others it is 1.
    augment: device transforms in training.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel. It fills the holes.
    std: likewise.
  """

  encoder: nn.Module
  decoder: Decoder = Decoder()
  mask: str = 'center'
  area: float = 0.25
  blocks: int = 5
  overlap: int = 4
  overlap_weight: float = 10.0
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Raises ValueError for an unknown mask, or a number out of its range."""
    check_choice('mask', self.mask, MASKS)
    if not 0 < self.area < 1:
      raise ValueError(f'area is a share of the image between 0 and 1, not {self.area}')
    if self.blocks < 1:
      raise ValueError(f'blocks must be at least 1, got {self.blocks}')
    if self.overlap < 0 or self.overlap_weight < 0:
      raise ValueError(
        f'overlap and its weight must be 0 or more, got {self.overlap} and {self.overlap_weight}'
      )

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; in evaluation `id [B]`, which its holes are drawn by.
      train: whether to augment, to draw new holes, to drop, and to take the statistics of the
        batch.

    Returns:
      The mean loss; `loss [B]`, the weighted mean of squared errors of normalised pixels; `hole
      [B]`, their mean over what is not visible; and `baseline [B]`, the same of the mean colour of
      all that is visible.

    Raises:
      ValueError: an image too small for its blocks, or one that the decoder cannot give.
    """
    image, hole, weights = self._task(batch, train=train)
    error = jnp.square(self._fill(image, hole, train=train) - image).mean(-1)  # [B, H, W]
    visible = 1 - hole[..., None]
    color = _mean(image, visible, keepdims=True)  # [B, 1, 1, C]
    loss = _mean(error, weights)
    baseline = _mean(jnp.square(color - image).mean(-1), hole)
    return jnp.mean(loss), {'loss': loss, 'hole': _mean(error, hole), 'baseline': baseline}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of the whole `image [B, H, W, C]`."""
    image = inputs.normalize(inputs.view(batch, self.eval_augment, None), self.mean, self.std)
    return self.encoder(image, train=False).pooled

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """What is seen in evaluation and what is made of it, `[B, H, W, C]` in [0, 1] by its title."""
    image, hole, _ = self._task(batch, train=False)
    filled = self._fill(image, hole, train=False)
    hole = hole[..., None]
    columns = {
      'image': image,
      'masked': image * (1 - hole),
      'hole filled': jnp.where(hole > 0, filled, image),
    }
    return {title: inputs.denormalize(x, self.mean, self.std) for title, x in columns.items()}

  def _task(self, batch: Batch, *, train: bool) -> tuple[Array, Array, Array]:
    """Normalised images `[B, H, W, C]`; what is cut out, and the loss's weights, `[B, H, W]`."""
    image = inputs.augmented(self, batch, train=train)
    # A key of its own: holes must not follow from what an augmentation drew.
    keys = inputs.example_keys(batch, self.make_rng('augment') if train else None)
    hole, predicted = self._cut(keys, image.shape[1:3])
    weights = jnp.where(hole, 1.0, jnp.where(predicted, self.overlap_weight, 0.0))
    return inputs.normalize(image, self.mean, self.std), hole.astype(jnp.float32), weights

  def _cut(self, keys: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """What is cut out, and what is predicted, `[B, H, W]` bool, of images of a size."""
    count = 1 if self.mask == 'center' else self.blocks
    side = tuple(int(pixels * (self.area / count) ** 0.5) for pixels in size)
    inner = tuple(pixels - 2 * self.overlap for pixels in side)
    if min(inner) < 1:
      raise ValueError(
        f'an overlap of {self.overlap} leaves nothing to cut out of blocks of {side[0]}x{side[1]}, '
        f'which images of {size[0]}x{size[1]} have; choose less overlap, fewer blocks or more area'
      )
    free = jnp.array(size) - jnp.array(side)
    if self.mask == 'center':
      corners = jnp.broadcast_to(free // 2, (keys.shape[0], 1, 2))
    else:
      draw = jax.vmap(lambda key: jax.random.randint(key, (count, 2), 0, free + 1))
      corners = draw(keys)  # [B, n, 2]
    return cover(corners + self.overlap, inner, size), cover(corners, side, size)

  def _fill(self, image: Array, hole: Array, *, train: bool) -> Array:
    """The whole image `[B, H, W, C]` float32 as predicted from what `hole` leaves of it."""
    features = self.encoder(image * (1 - hole[..., None]), train=train)
    return self.decoder(features, image.shape[-1], image.shape[1:3]).astype(jnp.float32)


def cover(corners: Array, side: tuple[int, ...], size: tuple[int, ...]) -> Array:
  """The pixels that any of some blocks covers.

  Args:
    corners: `[B, n, 2]` int, row and column of each block's first pixel.
    side: height and width of the blocks.
    size: `(H, W)` of the image.

  Returns:
    `[B, H, W]` bool.
  """
  offsets = (jnp.arange(pixels) - corners[..., i, None] for i, pixels in enumerate(size))
  rows, columns = (  # [B, n, H], [B, n, W]
    (offset >= 0) & (offset < pixels) for offset, pixels in zip(offsets, side, strict=True)
  )
  return (rows[..., :, None] & columns[..., None, :]).any(1)


def _mean(x: Array, weights: Array, *, keepdims: bool = False) -> Array:
  """Weighted means over rows and columns."""
  total = jnp.sum(x * weights, (1, 2), keepdims=keepdims)
  return total / jnp.sum(weights, (1, 2), keepdims=keepdims)
