"""CLIP: an image and its text agree, and differ from all others."""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch, l2_normalize
from vit_jax.choices import check_choice
from vit_jax.losses import image_text
from vit_jax.objectives import inputs

LOSSES = ('softmax', 'sigmoid')


class CLIP(nn.Module):
  """Two encoders into one space. Radford et al. 2021, arXiv:2103.00020.

  With `loss='sigmoid'` it is SigLIP, arXiv:2303.15343; with the parameters `image/.*` frozen by the
  optimizer and taken from a checkpoint it is LiT, arXiv:2111.07991; with `models.chunked.Chunked`
  around the encoders, batches may be larger than memory.

  Attributes:
    image: images to `Features`.
    text: tokens to `Features`, whose `pooled [B, D]` are the texts' embeddings.
    projection: D, outputs of a linear layer without bias on the images' pooled features; None where
      these have D already.
    loss: 'softmax' of each image over all texts and of each text over all images; or 'sigmoid' of
      every pair.
    scale: what cosine similarities are multiplied by at the start; its logarithm is learned. None:
      1 / 0.07 for 'softmax', 10 for 'sigmoid'.
    max_scale: what it may grow to; None: without bound.
    bias: what 'sigmoid' adds to them at the start; it is learned.
    augment: device transforms of images in training, such as `'color_distort(0.5) | blur'`.
    eval_augment: device transforms in evaluation.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  image: nn.Module
  text: nn.Module
  projection: int | None = None
  loss: str = 'softmax'
  scale: float | None = None
  max_scale: float | None = 100.0
  bias: float = -10.0
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  couples_batch: ClassVar[bool] = True  # every pair is told from all others

  def setup(self) -> None:
    """Raises ValueError for an unknown loss, or a scale that cannot be."""
    check_choice('loss', self.loss, LOSSES)
    scale = self.scale
    if scale is None:
      scale = 1 / 0.07 if self.loss == 'softmax' else 10.0
    if scale <= 0:
      raise ValueError(f'scale must be positive, got {scale}')
    if self.max_scale is not None and self.max_scale < scale:
      raise ValueError(f'max_scale {self.max_scale} is below the scale {scale} of the start')
    self.log_scale = self.param('log_scale', nn.initializers.constant(math.log(scale)), ())
    if self.loss == 'sigmoid':
      self.logit_bias = self.param('logit_bias', nn.initializers.constant(self.bias), ())
    if self.projection is not None:
      self.image_projection = nn.Dense(
        self.projection,
        use_bias=False,
        # By the width's inverse root, as published.
        kernel_init=nn.with_logical_partitioning(
          nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'), ('embed', None)
        ),
      )

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics.

    Args:
      batch: `image [B, H, W, C]` uint8 and `text [B, L]` int32, the tokens of one text an image.
      train: whether to augment and to drop.

    Returns:
      The mean loss; `loss [B]`; `image_to_text [B]`, whether an image is nearer to its own text
      than to any other, and `text_to_image [B]`, the reverse; and the `scale`.
    """
    image = self._project(self._see(batch, train=train))
    metrics = self._compare(image, self.text(batch['text'], train=train).pooled)
    return jnp.mean(metrics['loss']), metrics

  def features(self, batch: Batch) -> Array:
    """What the image encoder pools, `[B, D']` of `image [B, H, W, C]`, before the projection."""
    return self._see(batch, train=False)

  def embeddings(self, batch: Batch) -> Array:
    """Where `image [B, H, W, C]` lie in the common space, `[B, D]` float32 of length 1."""
    return l2_normalize(self._project(self._see(batch, train=False)))

  def text_embeddings(self, batch: Batch) -> Array:
    """Where `text [B, L]` lie in the common space, `[B, D]` float32 of length 1."""
    return l2_normalize(self.text(batch['text'], train=False).pooled)

  def similarity(self, image: Array, text: Array) -> Array:
    """The logits `[N, M]` of embeddings `[N, D]` and `[M, D]` of length 1."""
    logits = self._scale() * jnp.matmul(image, text.T, precision='highest')
    return logits + self.logit_bias if self.loss == 'sigmoid' else logits

  def _see(self, batch: Batch, *, train: bool) -> Array:
    image = inputs.augmented(self, batch, train=train)
    return self.image(inputs.normalize(image, self.mean, self.std), train=train).pooled

  def _project(self, pooled: Array) -> Array:
    return pooled if self.projection is None else self.image_projection(pooled)

  def _compare(self, image: Array, text: Array) -> dict[str, Array]:
    """The metrics of `__call__`, of embeddings `[B, D]` of any length."""
    scale = self._scale()
    if self.loss == 'softmax':
      loss, to_text, to_image = image_text.cross_entropy(image, text, scale)
    else:
      loss, to_text, to_image = image_text.sigmoid(image, text, scale, self.logit_bias)
    return {'loss': loss, 'image_to_text': to_text, 'text_to_image': to_image, 'scale': scale}

  def _scale(self) -> Array:
    limit = math.inf if self.max_scale is None else math.log(self.max_scale)
    return jnp.exp(_clip(self.log_scale, limit))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clip(x: Array, limit: float) -> Array:
  """`min(x, limit)`, with the gradient of x, but for one that would move it further beyond."""
  return jnp.minimum(x, limit)


_clip.defvjp(
  lambda x, limit: (jnp.minimum(x, limit), x),
  lambda limit, x, g: (jnp.where((x >= limit) & (g < 0), 0.0, g),),
)
