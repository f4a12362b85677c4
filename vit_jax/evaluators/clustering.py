"""Clustering: how far the clusters of frozen features are the classes, which they never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.arrays import l2_normalize
from vit_jax.evaluators import apply
from vit_jax.evaluators.representation import BASELINES, Encode, Examples, Representation


class Clustering(Representation):
  """Agreement of k-means clusters with the labels of one source or several, each on its own.

  Clusters are the best of `starts` runs of scikit-learn's k-means (k-means++, Lloyd's iterations)
  in features of length 1, as many as there are classes. `nmi` is the normalised mutual information
  (Strehl & Ghosh 2002) by the arithmetic mean of the two entropies, `ari` the adjusted Rand index
  (Hubert & Arabie 1985): 1 where the two partitions are the same. By chance `ari` is 0, but `nmi`
  is above 0, the more so the more clusters there are: compare it with the baselines.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    k: int | None = None,
    normalize: bool = True,
    starts: int = 10,
    seed: int = 0,
    purity: bool = False,
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      source: a source or its spec; or
      sources: several by name, which comes before their metrics: `google/nmi`.
      host: host transforms; they should draw nothing at random.
      batch_size: examples a batch.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      k: clusters; None is the number of classes that occur in the source.
      normalize: scales every feature vector to length 1; False takes them as they are.
      starts: runs of k-means, of which the one with the least squared distances counts.
      seed: of k-means.
      purity: adds `purity`, the share of examples whose class is the most frequent one of their
        cluster; it grows with k.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), a source has fewer
        examples than k, k or `starts` is below 1, or an unknown baseline.
    """
    super().__init__(
      objective,
      mesh,
      host=host,
      batch_size=batch_size,
      num_workers=num_workers,
      max_bad_share=max_bad_share,
      method=method,
      baselines=baselines,
      random_seed=random_seed,
    )
    self.sources = apply.named_sources(source, sources)
    if starts < 1:
      raise ValueError(f'starts is {starts}; it must be at least 1')
    fewest = min(map(len, self.sources.values()))
    if k is not None and not 1 <= k <= fewest:
      raise ValueError(f'k is {k}; choose from 1 to {fewest}, the examples of the smallest source')
    self.k, self.normalize, self.purity = k, normalize, purity
    self.starts, self.seed = starts, seed

  def measure(self, encode: Encode) -> dict[str, float]:
    """Clusters each source and compares with its labels.

    Args:
      encode: from a source to `Examples`.

    Returns:
      `nmi`, `ari` and, if asked for, `purity`; after `<source>/` where there are several sources.
    """
    from sklearn import metrics

    results = {}
    for name, source in self.sources.items():
      examples = encode(source)
      clusters = self._clusters(examples)
      labels = examples.labels
      values = {
        'nmi': metrics.normalized_mutual_info_score(labels, clusters, average_method='arithmetic'),
        'ari': metrics.adjusted_rand_score(labels, clusters),
      }
      if self.purity:
        counts = metrics.cluster.contingency_matrix(labels, clusters)  # [classes, k]
        values['purity'] = counts.max(0).sum() / len(labels)
      results |= {apply.prefix(name) + key: float(value) for key, value in values.items()}
    return results

  def _clusters(self, examples: Examples) -> np.ndarray:
    """The cluster of each example, [N]."""
    from sklearn.cluster import KMeans

    features = examples.features
    if self.normalize:
      features = np.asarray(l2_normalize(features))
    k = len(np.unique(examples.labels)) if self.k is None else self.k
    return KMeans(k, n_init=self.starts, random_state=self.seed).fit_predict(features)
