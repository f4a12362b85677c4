"""SimCLR: views of one image agree, and differ from those of all others."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.losses import contrastive
from vit_jax.models.projection import Projection
from vit_jax.objectives import diagnostics, inputs


class SimCLR(nn.Module):
  """An encoder and a projection head. Chen et al. 2020, arXiv:2002.05709; v2 arXiv:2006.10029.

  With `supervised`, images of one class agree too: SupCon, Khosla et al. 2020, arXiv:2004.11362.

  Attributes:
    encoder: images to `Features`.
    projection: the head that the loss is computed on; none of it is in the features.
    temperature: that cosine similarities are divided by.
    augment: device transforms of every view in training; or a tuple, one for each view.
    views: how many views are made of an image where the host made none.
    supervised: whether `label [B]` says what belongs together.
    features_layer: what `features` gives: 0 the encoder's pooled features, k the output of layer k
      of the projection (Section 3.2, arXiv:2006.10029).
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  projection: Projection = Projection()
  temperature: float = 0.1
  augment: str | Sequence[str] = ''
  views: int = 2
  supervised: bool = False
  features_layer: int = 0
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  couples_batch: ClassVar[bool] = True  # every example is told from all others

  def setup(self) -> None:
    """Raises ValueError for a temperature, a layer or a number of views that cannot be."""
    if self.temperature <= 0:
      raise ValueError(f'temperature must be positive, got {self.temperature}')
    if self.views < 2:
      raise ValueError(f'views must be at least 2, got {self.views}')
    if not 0 <= self.features_layer <= self.projection.layers:
      raise ValueError(
        f'features_layer is {self.features_layer}; choose from 0 to {self.projection.layers}, the'
        " projection's layers"
      )

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics.

    Args:
      batch: `views [B, V, H, W, C]` uint8, or `image [B, H, W, C]`, of which all views are then
        made on the device; `label [B]` where `supervised`.
      train: whether to augment, to drop, and to take the statistics of the batch.

    Returns:
      The mean loss; `loss [B]`; `accuracy [B]`, the share of views that are nearer to their own
      than to any other's; `alignment [B]`; and `feature_std`, `effective_rank` and `uniformity` of
      the embeddings (see `diagnostics.spread`).
    """
    rng = self.make_rng('augment') if train and self.augment else None
    views = inputs.views(batch, self.augment if train else self.eval_augment, rng, self.views)
    size, count = views.shape[:2]
    features = self._encode(views.reshape(-1, *views.shape[2:]), train=train)  # [B * V, D]
    z = self.projection(features, train).reshape(size, count, -1)
    labels = batch['label'] if self.supervised else None
    loss, accuracy = contrastive.nt_xent(z, self.temperature, labels=labels)
    metrics = {'loss': loss, 'accuracy': accuracy, 'alignment': diagnostics.alignment(z)}
    return jnp.mean(loss), {**metrics, **diagnostics.spread(z[:, 0])}

  def features(self, batch: Batch) -> Array:
    """Features `[B, D]` of `image [B, H, W, C]`, as in evaluation; see `features_layer`."""
    return self._project(batch, self.features_layer)

  def embeddings(self, batch: Batch) -> Array:
    """What the loss compares, `[B, dim]` of `image [B, H, W, C]`, as in evaluation."""
    return self._project(batch, None)

  def _project(self, batch: Batch, layer: int | None) -> Array:
    image = inputs.view(batch, self.eval_augment, None)
    return self.projection(self._encode(image, train=False), False, layer)

  def _encode(self, image: Array, *, train: bool) -> Array:
    return self.encoder(inputs.normalize(image, self.mean, self.std), train=train).pooled
