"""SLIP: CLIP, and two views of one image agree too."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.losses import contrastive
from vit_jax.models.projection import Projection
from vit_jax.objectives import inputs
from vit_jax.objectives.clip import CLIP


class SLIP(CLIP):
  """CLIP with SimCLR on its image tower. Mu et al. 2021, arXiv:2112.12750.

  In the paper a third view is compared with the text; here it is each of the two, so that an image
  is encoded twice and no more.

  Attributes:
    head: what SimCLR's loss is computed on, of the pooled features.
    temperature: of that loss.
    self_weight: its weight beside the loss of the pairs; 1 in the paper.
  """

  head: nn.Module = Projection()
  temperature: float = 0.1
  self_weight: float = 1.0

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics.

    Args:
      batch: `views [B, 2, H, W, C]` uint8, or `image [B, H, W, C]`, of which both views are then
        made on the device; `text [B, L]` int32.
      train: whether to augment and to drop.

    Returns:
      The mean loss; `loss [B]`; those of CLIP, means over the views; and `views_accuracy [B]`, the
      share of views that are nearer to their own than to any other's.
    """
    rng = self.make_rng('augment') if train and self.augment else None
    views = inputs.views(batch, self.augment if train else self.eval_augment, rng, 2)
    size, count = views.shape[:2]
    views = inputs.normalize(views.reshape(-1, *views.shape[2:]), self.mean, self.std)
    features = self.image(views, train=train).pooled  # [2 B, D]
    z = self.head(features, train).reshape(size, count, -1)
    alike, accuracy = contrastive.nt_xent(z, self.temperature)
    text = self.text(batch['text'], train=train).pooled
    images = self._project(features).reshape(size, count, -1)
    compared = [self._compare(images[:, i], text) for i in range(count)]
    metrics = {name: sum(one[name] for one in compared) / count for name in compared[0]}
    metrics['loss'] += self.self_weight * alike
    return jnp.mean(metrics['loss']), {**metrics, 'views_accuracy': accuracy}
