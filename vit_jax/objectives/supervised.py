"""Supervised classification: cross-entropy of a linear head on an encoder."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.augment import mix
from vit_jax.losses import classification
from vit_jax.models.head import linear_head
from vit_jax.objectives import inputs
from vit_jax.sharding import constrain


class Supervised(nn.Module):
  """An encoder and a linear head, trained on labels (Dosovitskiy et al. 2020, arXiv:2010.11929).

  Attributes:
    encoder: images to `Features`.
    num_classes: K, outputs of the head.
    loss: 'softmax' for one label an image, 'sigmoid' for labels that do not exclude each other.
    label_smoothing: share of a target spread over all classes, in training only.
    head_bias: the head's bias at the start. With 'sigmoid' and many classes, -log(K) or so (-10 for
      ImageNet-21k) starts the loss near its floor instead of at K log 2.
    augment: device transforms in training, such as `'color_distort(0.5) | blur'`.
    mix: mixes the examples of a batch in training, such as `'mixup(0.2) | cutmix(p=0.5)'`.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  num_classes: int
  loss: str = 'softmax'
  label_smoothing: float = 0.0
  head_bias: float = 0.0
  augment: str = ''
  mix: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Makes the head; raises ValueError for an unknown loss or no class."""
    if self.loss not in classification.LOSSES:
      options = ', '.join(map(repr, classification.LOSSES))
      raise ValueError(f'unknown loss {self.loss!r}; choose from {options}')
    if self.num_classes < 1:
      raise ValueError(f'num_classes must be at least 1, got {self.num_classes}')
    self.head = linear_head(self.num_classes, bias=self.head_bias)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; `label [B]` class numbers or `[B, K]` multi-hot.
      train: whether to augment, to mix, to smooth labels and to drop.

    Returns:
      The mean loss, and `loss [B]` and `accuracy [B]` (whether the first answer is a label, where
      examples were mixed one of theirs).
    """
    image, target = self.view(batch, train=train)
    logits = self.classify(image, train=train)  # [B, K]
    loss = classification.LOSSES[self.loss](
      logits, target, smoothing=self.label_smoothing if train else 0.0
    )
    best = jnp.argmax(logits, axis=-1)
    accuracy = jnp.take_along_axis(target, best[:, None], axis=-1)[:, 0] > 0
    return jnp.mean(loss), {'loss': loss, 'accuracy': accuracy.astype(jnp.float32)}

  def view(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
    """What is looked at, and what should be seen.

    Args:
      batch: as of a call.
      train: whether to augment and to mix.

    Returns:
      Images `[B, H, W, C]` float32 on the scale [0, 1], and targets `[B, K]` float32, unsmoothed.
    """
    image = self._image(batch, train=train)
    target = classification.targets(batch['label'], self.num_classes)  # [B, K]
    if train and self.mix:
      image, target = mix.compose(self.mix)(self.make_rng('augment'), image, target)
    return image, target

  def classify(self, image: Array, *, train: bool) -> Array:
    """Logits `[B, K]` float32 of `image [B, H, W, C]`, float on the scale [0, 1]."""
    logits = self.head(self._encode(image, train=train).astype(jnp.float32))
    return constrain(logits, 'batch', 'classes')

  def logits(self, batch: Batch) -> Array:
    """Logits `[B, K]` of `image [B, H, W, C]`, float32, as in evaluation."""
    return self.classify(self._image(batch, train=False), train=False)

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of `image [B, H, W, C]`, as in evaluation."""
    return self._encode(self._image(batch, train=False), train=False)

  def _image(self, batch: Batch, *, train: bool) -> Array:
    return inputs.augmented(self, batch, train=train)

  def _encode(self, image: Array, *, train: bool) -> Array:
    return self.encoder(inputs.normalize(image, self.mean, self.std), train=train).pooled
