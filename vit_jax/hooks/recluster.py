"""DeepCluster's other half: clusters are found anew in the features as they are now."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.evaluators import apply
from vit_jax.kmeans import kmeans
from vit_jax.objectives.deepcluster import compress
from vit_jax.whitening import map_rows, pca_whiten

# No step has this number, so that none draws from the key of clusterings.
CLUSTERING = 2**31 - 1


class Recluster:
  """Clusters the features of all training images. Caron et al. 2018, arXiv:1807.05520.

  As in Section 3.4 there, features are whitened by PCA and brought to length 1, and k-means finds
  the clusters. The head starts again from zeros, since clusters have new numbers, and so does what
  the optimizer keeps of it; but Adam's count of steps, by which it makes up for moments of zero, is
  that of all parameters and goes on, so the head's first steps are larger with a b2 near 1: with
  0.95 by a tenth at most, with 0.999 up to 6.5 times. All that is found is in the state, so a run
  that is stopped in the middle of an epoch goes on exactly.

  The host holds the features of all images in float32, `4 N D` bytes: 10.5 GB for ImageNet and a
  ResNet-50; the devices together hold them once for the covariance, then the whitened ones.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    source: Any,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    iterations: int = 20,
    start: str = 'kmeans++',
  ):
    """Builds the source.

    Args:
      objective: has `num_clusters`, `num_examples` and the method, as `DeepCluster` has.
      mesh: the mesh.
      source: the training examples or their spec.
      host: host transforms; they should draw nothing at random.
      batch_size: examples a batch.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      iterations: of k-means.
      start: of k-means, see `kmeans.kmeans`.

    Raises:
      ValueError: the objective has no clusters or lacks the method, or there are more clusters
        than examples.
    """
    if not hasattr(objective, 'num_clusters'):
      raise ValueError(
        f'Recluster finds the clusters of objectives.deepcluster.DeepCluster; '
        f'{type(objective).__name__} has none'
      )
    self.objective, self.mesh = objective, mesh
    self.source = apply.named_sources(source)['']
    if objective.num_clusters > len(self.source):
      raise ValueError(
        f'num_clusters is {objective.num_clusters}; choose at most {len(self.source)}, the examples'
        ' of the source'
      )
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self.iterations, self.start = iterations, start
    method = apply.method_of(objective, method, evaluator='Recluster')

    def encode(variables: Any, batch: Any) -> Any:
      features = objective.apply(variables, batch, method=method).astype(jnp.float32)
      return features, {name: batch[name] for name in ('_mask', 'id', 'label') if name in batch}

    self._encode = apply.jit(encode, mesh)

  def __call__(self, step: int, state: Any) -> Any:
    """The state with new clusters and a new head.

    Args:
      step: the number of the step after which this is; it decides where k-means starts.
      state: the state.

    Raises:
      ValueError: an id is not below the objective's `num_examples`, features are not finite, or
        there are fewer examples than dimensions to whiten to.
    """
    old = apply.fetch(state.model_state['clusters']['codebook'], self.mesh)
    dim = old['projection'].shape[1]
    if dim >= len(self.source):
      raise ValueError(
        f'pca is {dim}; choose at most {len(self.source) - 1}, one less than the examples of the'
        ' source'
      )
    features, ids, labels = self._read(state)
    whitening = pca_whiten(features, dim, self.mesh)
    points = map_rows(compress, features, self.mesh, *whitening)
    del features
    key = jax.random.fold_in(apply.fetch(state.rng, self.mesh), CLUSTERING)
    found = kmeans(
      points,
      self.objective.num_clusters,
      self.mesh,
      rng=jax.random.fold_in(key, step),
      start=self.start,
      iterations=self.iterations,
    )
    before = old['assignment'][ids] if old['clusterings'] else None
    new = {
      **_memberships(found.assignment, ids, old),
      'mean': whitening.mean,
      'projection': whitening.projection,
      'centers': found.centers,
      'clusterings': old['clusterings'] + 1,
      'nmi_previous': _agreement(before, found.assignment),
      'nmi_labels': _agreement(labels, found.assignment),
    }
    return self._replace(state, {name: np.asarray(new[name], old[name].dtype) for name in old})

  def _read(self, state: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Features [N, D] and ids [N] of all that decode, and labels [N] where each has one."""
    variables, count = apply.variables_of(state), 0
    features, parts = None, []
    for batch in apply.batches(self.source, self.mesh, **self.options):
      values, rest = self._encode(variables, batch)
      mask = rest.pop('_mask').astype(bool)
      if features is None:  # Filled batch by batch: to join them at the end would take it twice.
        features = np.empty((len(self.source), values.shape[1]), np.float32)
      features[count : count + mask.sum()] = values[mask]
      count += int(mask.sum())
      parts.append({name: value[mask] for name, value in rest.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ids, labels = whole['id'], whole.get('label')
    size = self.objective.num_examples
    if ids.min() < 0 or ids.max() >= size:
      raise ValueError(
        f'ids are {ids.min()} to {ids.max()}; set num_examples, now {size}, to at least'
        f' {ids.max() + 1}'
      )
    if not np.isfinite(features[:count]).all():
      raise ValueError('features of some examples are not finite, so they have no clusters')
    return features[:count], ids, labels if labels is not None and labels.ndim == 1 else None

  def _replace(self, state: Any, codebook: dict[str, np.ndarray]) -> Any:
    """The state with these clusters and a head of zeros, placed as it was."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(self.mesh):
      return jax.jit(_replaced, out_shardings=placed)(state, codebook)


def _replaced(state: Any, codebook: Any) -> Any:
  def reset(path: Any, leaf: Any) -> Any:
    # A moment's path ends with that of its parameter: [0].mu['head']['kernel'].
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return jnp.zeros_like(leaf) if 'head' in names and 'encoder' not in names else leaf

  parts = {name: getattr(state, name) for name in ('params', 'opt_state', 'ema')}
  parts = {name: jax.tree.map_with_path(reset, part) for name, part in parts.items()}
  clusters = {**state.model_state['clusters'], 'codebook': codebook}
  return state.replace(model_state={**state.model_state, 'clusters': clusters}, **parts)


def _memberships(own: np.ndarray, ids: np.ndarray, old: dict[str, np.ndarray]) -> dict[str, Any]:
  """Which cluster each id is in, -1 for none, and the weight of each cluster's examples."""
  assignment = np.full_like(old['assignment'], -1)
  assignment[ids] = own
  sizes = np.bincount(own, minlength=len(old['weight']))
  used = np.count_nonzero(sizes)
  weight = len(own) / (used * np.maximum(sizes, 1))
  return {'assignment': assignment, 'weight': weight, 'clusters_used': used}


def _agreement(partition: np.ndarray | None, own: np.ndarray) -> float:
  """The normalised mutual information of two partitions; 0 where the first knows nothing."""
  from sklearn import metrics

  if partition is None:
    return 0.0
  known = partition >= 0
  if not known.any():
    return 0.0
  return metrics.normalized_mutual_info_score(partition[known], own[known])
