"""Masked autoencoding: the pixels of most patches of an image, told from the few others."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.models.masked_decoder import MaskedDecoder
from vit_jax.models.patches import cut_patches, join_patches
from vit_jax.models.vit import ViT
from vit_jax.objectives import inputs


class MaskedAutoencoder(nn.Module):
  """A ViT on the visible patches alone, and a small decoder. MAE, He et al. 2021, arXiv:2111.06377.

  Attributes:
    encoder: a ViT that reads pixels: each token must be of its own patch, so no stem. A class
      token, or whatever is pooled by attention, is read by the decoder too.
    mask_ratio: the share of patches that are hidden, others for each example.
    norm_pixels: whether the pixels of a patch are predicted after their own mean was taken off and
      they were divided by their own standard deviation ("Reconstruction target", Section 4.1).
    decoder_width: features of a token in the decoder; a multiple of 4.
    decoder_depth: its blocks.
    decoder_num_heads: its attention heads. These three are the paper's; their cost, on all
      patches, does not shrink with the encoder.
    augment: device transforms in training.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  mask_ratio: float = 0.75
  norm_pixels: bool = True
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_num_heads: int = 16
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Makes the decoder; raises ValueError for an encoder or a number that cannot be."""
    encoder = self.encoder
    if not isinstance(encoder, ViT):
      raise ValueError(
        f'masked autoencoding needs an encoder that can read some patches alone, models.vit.ViT, '
        f'not {type(encoder).__name__}'
      )
    if encoder.stem:
      raise ValueError(
        f'a {type(encoder.stem).__name__} lets visible patches see hidden ones; masked autoencoding'
        ' needs a ViT without conv_stem and without ResNet'
      )
    if encoder.pre_logits:
      raise ValueError('masked autoencoding has no use for pre_logits, layers of a supervised head')
    if not 0 < self.mask_ratio < 1:
      raise ValueError(f'mask_ratio is a share of the patches in (0, 1), not {self.mask_ratio}')
    self.decoder = MaskedDecoder(
      self.decoder_width,
      self.decoder_depth,
      self.decoder_num_heads,
      scan=encoder.scan,
      remat=encoder.remat,
      attention=encoder.attention,
      activation=encoder.activation,
      ln_eps=encoder.ln_eps,
      dtype=jnp.dtype(encoder.dtype),
    )

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; in evaluation `id [B]`, which hidden patches are drawn by.
      train: whether to augment, to hide other patches, and to drop.

    Returns:
      The mean loss; `loss [B]`, the mean squared error over the hidden patches; and `baseline
      [B]`, that of a single colour everywhere, the mean of what is to be predicted over the visible
      patches.

    Raises:
      ValueError: an image that the patch does not divide, or of too few patches.
    """
    image, keep = self._task(batch, train=train)
    error = jnp.square(self.predict(image, keep, train=train) - self._target(image)[0])  # [B, N, P]
    visible = _visible(keep, error.shape[1])
    loss = _mean(error.mean(-1), ~visible)
    return jnp.mean(loss), {'loss': loss, 'baseline': self._baseline(image, visible)}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of the whole `image [B, H, W, C]`."""
    image = inputs.normalize(inputs.view(batch, self.eval_augment, None), self.mean, self.std)
    return self.encoder(image, train=False).pooled

  def predict(self, image: Array, keep: Array, *, train: bool) -> Array:
    """The pixels of every patch as told from some.

    Args:
      image: `[B, H, W, C]`, normalised.
      keep: `[B, K]` int, the visible patches, counted row by row, in ascending order.
      train: whether to drop features.

    Returns:
      `[B, N, P]` float32, P in the order of `cut_patches`, normalised where `norm_pixels`.
    """
    features = self.encoder(image, train=train, keep=keep)
    # Without it nothing would be learned of what is pooled by more than a mean.
    others = None if self.encoder.pooling == 'mean' else features.pooled[:, None]
    h, w = self._grid(image)
    outputs = math.prod(self.encoder.patch) * image.shape[-1]
    visible = _visible(keep, h * w)
    return self.decoder(features.tokens, others, visible, (h, w), outputs, train).astype(
      jnp.float32
    )

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """What is seen in evaluation and what is made of it, `[B, H, W, C]` in [0, 1] by its title."""
    image, keep = self._task(batch, train=False)
    target, mean, std = self._target(image)
    visible = _visible(keep, target.shape[1])[..., None]
    pixels = target * std + mean
    told = self.predict(image, keep, train=False) * std + mean
    columns = {
      'image': image,
      'visible': self._join(jnp.where(visible, pixels, 0), image),
      # As in the published code. Of one colour a patch is right in any case.
      'filled, mean\nand std given' if self.norm_pixels else 'filled': self._join(
        jnp.where(visible, pixels, told), image
      ),
    }
    return {title: inputs.denormalize(x, self.mean, self.std) for title, x in columns.items()}

  def _task(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
    """Normalised images `[B, H, W, C]`, and the patches that are visible, `[B, K]`, ascending."""
    image = inputs.augmented(self, batch, train=train)
    # A key of its own: what is hidden must not follow from what an augmentation drew.
    keys = inputs.example_keys(batch, self.make_rng('augment') if train else None)
    patches = math.prod(self._grid(image))
    count = round(patches * (1 - self.mask_ratio))
    if not 0 < count < patches:
      raise ValueError(
        f'a mask_ratio of {self.mask_ratio} leaves {count} of {patches} patches visible; some must '
        'be visible, and some hidden'
      )
    noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
    keep = jnp.sort(jax.lax.top_k(noise, count)[1], axis=1)
    return inputs.normalize(image, self.mean, self.std), keep

  def _grid(self, image: Array) -> tuple[int, int]:
    (height, width), (p, q) = image.shape[1:3], self.encoder.patch
    if height % p or width % q:
      raise ValueError(f'image {height}x{width} is not divisible by patch {p}x{q}')
    return height // p, width // q

  def _target(self, image: Array) -> tuple[Array, Array | float, Array | float]:
    """What is predicted, `[B, N, P]`, and by what mean and deviation its pixels were normalised."""
    pixels = cut_patches(image, self.encoder.patch)  # [B, h, w, P]
    pixels = pixels.reshape(image.shape[0], -1, pixels.shape[-1])
    if not self.norm_pixels:
      return pixels, 0.0, 1.0
    mean = pixels.mean(-1, keepdims=True)
    # As in the published code; a patch of one colour becomes 0.
    std = jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + 1e-6)
    return (pixels - mean) / std, mean, std

  def _join(self, pixels: Array, image: Array) -> Array:
    """From `[B, N, P]` to an image like `image`."""
    grid = pixels.reshape(image.shape[0], *self._grid(image), -1)
    return join_patches(grid, self.encoder.patch)

  def _baseline(self, image: Array, visible: Array) -> Array:
    """The loss, `[B]`, of the mean colour of what is visible."""
    target = self._target(image)[0]
    target = target.reshape(*target.shape[:2], -1, image.shape[-1])  # [B, N, P / C, C]
    color = _mean(target.mean(2), visible[..., None])[:, None, None]  # [B, 1, 1, C]
    return _mean(jnp.square(target - color).mean((2, 3)), ~visible)


def _visible(keep: Array, patches: int) -> Array:
  """Whether each patch is kept, `[B, N]` bool."""
  return (keep[..., None] == jnp.arange(patches)).any(1)


def _mean(x: Array, weights: Array) -> Array:
  """Weighted means over the patches."""
  return jnp.sum(x * weights, axis=1) / jnp.sum(weights, axis=1)
