"""DeepCluster: tell apart the clusters of one's own features, which are found anew at times."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch, l2_normalize
from vit_jax.losses import classification
from vit_jax.models.head import linear_head
from vit_jax.objectives import inputs
from vit_jax.sharding import constrain


class DeepCluster(nn.Module):
  """An encoder and a linear head over clusters. Caron et al. 2018, arXiv:1807.05520.

  The clusters are in the collection `clusters`, where `hooks.recluster.Recluster` puts them; the
  step leaves them as they are. To keep a few large clusters from becoming all there is, the paper
  draws images uniformly over clusters, or equivalently weights each by the inverse of the size of
  its own (Section 3.3, 'Trivial parametrization'). Here it is the weight, N / (clusters in use *
  size), whose mean over the data is 1: which images a batch has must not depend on the clusters.

  Attributes:
    encoder: images to `Features`.
    num_clusters: K.
    num_examples: one more than the largest `id` of the training examples.
    pca: dimensions that features are whitened to before they are clustered; that of the features
      where it is smaller.
    augment: device transforms in training, such as `'flip | sobel(p=1)'`; what is clustered is as
      in evaluation.
    eval_augment: device transforms in evaluation.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  num_clusters: int
  num_examples: int
  pca: int = 256
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Makes the head; raises ValueError where a number is below its least."""
    for name, least in (('num_clusters', 2), ('num_examples', 1), ('pca', 1)):
      if getattr(self, name) < least:
        raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
    self.codebook = Codebook(self.num_clusters, self.num_examples, self.pca)
    # Zeros, to which the hook resets it: the numbers of new clusters mean nothing to the old head.
    self.head = linear_head(self.num_clusters)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics.

    In training the target is the cluster that the example's `id` was assigned to; one that was in
    no clustering has loss 0. In evaluation, which is of any images, it is the nearest centre of the
    example's own features, and examples are not weighted.

    Args:
      batch: `image [B, H, W, C]` uint8, `id [B]`.
      train: whether to augment and to drop.

    Returns:
      The mean loss; `loss [B]`, weighted in training; `accuracy [B]`; `baseline [B]`, that of
      naming the cluster with the most training examples always; and of the last clustering
      `nmi_previous` and `nmi_labels`, its normalised mutual information with the one before and
      with the labels (0 where there is none), and `clusters_used`, the clusters that are not empty.
    """
    features = self._encode(batch, train=train)
    logits = constrain(self.head(features), 'batch', 'classes')
    target, weight, report = self.codebook(features, batch['id'], train)
    loss = weight * classification.softmax_cross_entropy(logits, target)
    accuracy = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return jnp.mean(loss), {'loss': loss, 'accuracy': accuracy, **report}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of `image [B, H, W, C]`, as in evaluation."""
    return self._encode(batch, train=False)

  def _encode(self, batch: Batch, *, train: bool) -> Array:
    image = inputs.augmented(self, batch, train=train)
    image = inputs.normalize(image, self.mean, self.std)
    return self.encoder(image, train=train).pooled.astype(jnp.float32)


class Codebook(nn.Module):
  """The clusters: which one each example is in, and how any features find theirs.

  Until the first clustering, example i is in cluster i modulo K.

  Attributes:
    num_clusters: K.
    num_examples: one more than the largest id.
    pca: dimensions of the centres, at most.
  """

  num_clusters: int
  num_examples: int
  pca: int

  @nn.compact
  def __call__(
    self, features: Array, ids: Array, train: bool
  ) -> tuple[Array, Array, dict[str, Array]]:
    """Each example's cluster and the weight of its loss, `[B]`; and metrics of the clustering.

    Args:
      features: `[B, D]` float32.
      ids: `[B]`.
      train: whether an example's cluster is what it was assigned to; else it is the nearest one.
    """
    k, size = self.num_clusters, features.shape[-1]
    dim = min(self.pca, size)

    def kept(name: str, init: Callable[[], Array]) -> Array:
      return self.variable('clusters', name, init).value

    assignment = kept('assignment', lambda: jnp.arange(self.num_examples, dtype=jnp.int32) % k)
    weight = kept('weight', lambda: jnp.ones(k))
    mean = kept('mean', lambda: jnp.zeros(size))
    projection = kept('projection', lambda: jnp.zeros((size, dim)))
    centers = kept('centers', lambda: jnp.zeros((k, dim)))
    clusterings = kept('clusterings', lambda: jnp.zeros([], jnp.int32))
    report = {
      name: kept(name, lambda: jnp.zeros([]))
      for name in ('nmi_previous', 'nmi_labels', 'clusters_used')
    }
    own = assignment[ids]
    if train:
      target, of_loss = jnp.maximum(own, 0), jnp.where(own < 0, 0, weight[own])
    else:
      near = jnp.argmax(similarity(compress(features, mean, projection), centers), axis=-1)
      target, of_loss = jnp.where(clusterings > 0, near, own), jnp.ones(len(own))
    report['baseline'] = (target == jnp.argmin(weight)).astype(jnp.float32)  # the largest cluster
    return target, of_loss, report


def compress(features: Array, mean: Array, projection: Array) -> Array:
  """What is clustered: whitened features of length 1, `[B, dim]` of `[B, D]`. Section 3.4."""
  return l2_normalize(jnp.matmul(features - mean, projection, precision='highest'))


def similarity(x: Array, centers: Array) -> Array:
  """The larger the nearer, `[B, K]` of `x [B, D]` and `centers [K, D]`: `x c - |c|^2 / 2`."""
  return jnp.matmul(x, centers.T, precision='highest') - jnp.sum(centers**2, axis=-1) / 2
