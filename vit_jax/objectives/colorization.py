"""Colorization: what colour does each place of a grey image have?"""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.augment import lab
from vit_jax.models.features import Features
from vit_jax.models.hypercolumns import Hypercolumns, resize
from vit_jax.models.patches import cut_patches
from vit_jax.objectives import color_bins, inputs


class Colorization(nn.Module):
  """An encoder of lightness and a classifier of colours. Zhang et al. 2016, arXiv:1603.08511.

  The encoder sees the lightness of an image alone, in three equal channels, so that its parameters
  are those of an encoder of colour images. The classes are bins of Lab's a and b, weighted in
  training by how rare they are: most of what is seen is nearly grey. How rare is learned on the
  way: a running histogram in the collection `statistics`, as BatchNorm keeps its own.

  Attributes:
    encoder: images `[B, H, W, 3]` to `Features`.
    decoder: features to logits at each place.
    scale: pixels of a side of a place, whose colour is their mean; divides height and width.
    neighbors: bins that a colour is shared out to; 1 is the nearest alone.
    sigma: of the Gaussian by which they share, and which smooths the histogram, in units of a, b.
    uniform: lambda of Eq. 4, in (0, 1]; 1 weights all colours alike.
    momentum: of the histogram: the part that a step leaves of it, and with `accumulate` each part
      of a batch. It starts uniform.
    temperature: T of Eq. 5, by which a distribution becomes a colour.
    augment: device transforms in training, such as a background behind transparent drawings.
    light_augment: device transforms of the lightness in training, which leave the colours that are
      asked for: with 'sketch(0.3)' some are guessed from outlines alone. None may move anything.
    eval_augment: device transforms in evaluation.
    mean: what the lightness, scaled to [0, 1], is normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  decoder: nn.Module = Hypercolumns()
  scale: int = 4
  neighbors: int = 5
  sigma: float = 5.0
  uniform: float = 0.5
  momentum: float = 0.99
  temperature: float = 0.38
  augment: str = ''
  light_augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5
  # What the encoder sees, for whoever takes it alone: device transforms after `eval_augment`.
  encoder_view = 'lightness'

  def setup(self) -> None:
    """Makes the histogram; raises ValueError for a field that cannot be."""
    bins = len(color_bins.centers())
    if self.scale < 1:
      raise ValueError(f'scale must be at least 1, got {self.scale}')
    if not 1 <= self.neighbors <= bins:
      raise ValueError(f'neighbors is {self.neighbors}; there are {bins} bins, choose from 1')
    for field in ('sigma', 'temperature'):
      if getattr(self, field) <= 0:
        raise ValueError(f'{field} must be positive, got {getattr(self, field)}')
    if not 0 < self.uniform <= 1:
      raise ValueError(f'uniform must be in (0, 1], got {self.uniform}')
    if not 0 <= self.momentum < 1:
      raise ValueError(f'momentum must be in [0, 1), got {self.momentum}')
    self.prior = self.variable('statistics', 'prior', jnp.full, (bins,), 1 / bins)
    # What the loss asks for on average, whose share of the whole minimises it over all constants.
    self.answer = self.variable('statistics', 'answer', jnp.full, (bins,), 1 / bins)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]`, uint8 or float in [0, 1], of 3 channels after augmentation.
      train: whether to augment, to drop, and to count the colours that are seen.

    Returns:
      The mean loss, Eq. 2; `loss [B]`; `accuracy [B]`, the share of places whose nearest bin is
      the most likely one. In evaluation also, by example, `baseline`, the loss of one distribution
      for all places, the best by the colours seen in training; and the root of the mean squared
      error of a and b over the pixels: `rmse` of the colours that `colorize` gives, and
      `rmse_gray` of no colour at all. Rare colours count for much in the loss and for little in
      `rmse`, in which even grey is hard to beat.

    Raises:
      ValueError: images without colour, or of a size that `scale` does not divide.
    """
    values = self._lab(batch, train=train)
    true = values[..., 1:]
    pixels = cut_patches(true, (self.scale, self.scale))  # [B, h, w, scale * scale * 2]
    colors = jnp.mean(pixels.reshape(*pixels.shape[:3], -1, 2), axis=-2)
    index, share = color_bins.neighbors(colors, self.neighbors, self.sigma)
    logits = self._logits(self._light(batch, values, train=train), train=train)
    nearest = index[..., 0]
    prior = self.prior.value
    # Before this batch is counted: the loss of an example does not depend on the others.
    weight = color_bins.rebalance(prior, self.uniform, self.sigma)
    loss = weight[nearest] * color_bins.cross_entropy(logits, index, share)  # [B, h, w]
    right = color_bins.is_most_likely(logits, nearest).astype(jnp.float32)
    metrics = {'loss': jnp.mean(loss, (1, 2)), 'accuracy': jnp.mean(right, (1, 2))}
    if not train:
      painted = self._colors(logits, true.shape[1:3])
      same = jnp.log(jnp.maximum(self.answer.value, 1e-12))
      constant = weight[nearest] * color_bins.cross_entropy(
        jnp.broadcast_to(same, logits.shape), index, share
      )
      metrics |= {'baseline': jnp.mean(constant, (1, 2))}
      metrics |= {'rmse': _rmse(painted - true), 'rmse_gray': _rmse(true)}
    elif self.is_mutable_collection('statistics'):
      seen = color_bins.histogram(nearest)
      asked = jnp.mean(weight[nearest][..., None] * color_bins.dense(index, share), (0, 1, 2))
      for kept, new in ((self.prior, seen), (self.answer, asked)):
        kept.value = self.momentum * kept.value + (1 - self.momentum) * new
    return jnp.mean(loss), metrics

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of the lightness of `image [B, H, W, C]`."""
    values = self._lab(batch, train=False)
    return self._encode(self._light(batch, values, train=False), train=False).pooled

  def colorize(self, batch: Batch) -> Array:
    """RGB `[B, H, W, 3]` in [0, 1] with the lightness of `image [B, H, W, C]`, its colours guessed.

    A colour is the annealed mean at each place, Eq. 5, interpolated between them.
    """
    return self.pictures(batch)['predicted']

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """What is seen, what is guessed and what is true, each RGB `[B, H, W, 3]` in [0, 1]."""
    values = self._lab(batch, train=False)
    light = values[..., :1]
    logits = self._logits(self._light(batch, values, train=False), train=False)
    painted = self._colors(logits, light.shape[1:3])
    made = {'grey': jnp.zeros_like(painted), 'predicted': painted, 'true': values[..., 1:]}
    return {
      name: lab.lab_to_rgb(jnp.concatenate([light, ab], axis=-1)) for name, ab in made.items()
    }

  def _lab(self, batch: Batch, *, train: bool) -> Array:
    image = inputs.augmented(self, batch, train=train)
    if image.shape[-1] != 3:
      raise ValueError(
        f'colorization learns from RGB images, and these have {image.shape[-1]} channels: '
        "'background' makes RGB of RGBA, and grey images have no colour to learn"
      )
    if any(side % self.scale for side in image.shape[1:3]):
      raise ValueError(
        f'scale {self.scale} does not divide images of {image.shape[1]}x{image.shape[2]}'
      )
    return lab.rgb_to_lab(image)

  def _light(self, batch: Batch, values: Array, *, train: bool) -> Array:
    """What is seen, `[B, H, W, 1]` in [0, 1], of `values [B, H, W, 3]` in Lab."""
    light = values[..., :1] / 100
    if not train or not self.light_augment:
      return light
    return inputs.view({**batch, 'image': light}, self.light_augment, self.make_rng('augment'))

  def _encode(self, light: Array, *, train: bool) -> Features:
    image = jnp.repeat(light, 3, axis=-1)
    return self.encoder(inputs.normalize(image, self.mean, self.std), train=train)

  def _logits(self, light: Array, *, train: bool) -> Array:
    places = tuple(side // self.scale for side in light.shape[1:3])
    features = self._encode(light, train=train)
    logits = self.decoder(features, len(color_bins.centers()), places)
    return logits.astype(jnp.float32)

  def _colors(self, logits: Array, size: tuple[int, int]) -> Array:
    """The a and b, `[B, H, W, 2]`, of `logits [B, h, w, Q]`."""
    return resize(color_bins.annealed_mean(logits, self.temperature), size)


def _rmse(error: Array) -> Array:
  """`[B]` of `[B, H, W, 2]`."""
  # A root has no finite derivative at 0, and a grey image has no error.
  return jnp.sqrt(jnp.maximum(jnp.mean(error**2, (1, 2, 3)), 1e-12))
