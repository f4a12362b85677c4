"""Retrieval: do the images most like a query have its label, such as one drawing in two styles?"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.evaluators import apply
from vit_jax.evaluators.neighbors import Ids, nearest
from vit_jax.evaluators.ranking import average_precision
from vit_jax.evaluators.representation import BASELINES, Encode, Examples, Representation


class Retrieval(Representation):
  """Recall@k and mean average precision of queries against candidates, by frozen features.

  Candidates are ranked by the cosine of features; those with the label of the query are relevant.
  `recall@k` is the share of queries with at least one relevant candidate among the first k (Oh Song
  et al. 2016, arXiv:1511.06452, Sec. 5), the first one of equally similar ones coming first.
  `mAP` is the mean over the queries of the average precision over the whole ranking; equally
  similar candidates share the rank of their last, as in scikit-learn. A labelling such as
  `Emoji(label='name')` makes it retrieval across styles.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    queries: Any,
    candidates: Any = None,
    same_ids: bool | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    k: Sequence[int] = (1, 5, 10),
    mean_average_precision: bool = True,
    skip_unanswerable: bool = False,
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      queries: a source or its spec, or several by name, which comes before their metrics:
        `openmoji/recall@1`.
      candidates: the source or its spec that is searched; None is each source of queries itself.
      same_ids: whether a candidate with the `id` of a query is the query itself, which it must not
        find. None: yes where `candidates` is None or the very source of the queries. Say True where
        two specs describe sources with common examples.
      host: host transforms of all sources; they should draw nothing at random.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      k: numbers of candidates among which a relevant one must be.
      mean_average_precision: adds `mAP`, for which every ranking is sorted as a whole.
      skip_unanswerable: leaves out the queries without any relevant candidate, and says in
        `unanswerable` how many there are, instead of an error.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), a k is not between 1 and
        the number of candidates, or an unknown baseline.
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
    several = isinstance(queries, Mapping) and 'type' not in queries
    self.queries = apply.named_sources(*(None, queries) if several else (queries,))
    self.candidates = None if candidates is None else apply.named_sources(candidates)['']
    searched = self.queries.values() if self.candidates is None else [self.candidates]
    fewest = min(map(len, searched)) - (self.candidates is None)
    self.k = tuple(k)
    for one in self.k or (0,):
      if not 1 <= one <= fewest:
        raise ValueError(f'k is {one}; choose from 1 to {fewest}, the candidates')
    self.same_ids, self.skip_unanswerable = same_ids, skip_unanswerable
    self.mean_average_precision = mean_average_precision

  def measure(self, encode: Encode) -> dict[str, float]:
    """Searches for every query.

    Args:
      encode: from a source to `Examples`.

    Returns:
      `recall@1` and so on, `mAP` and, if they may be left out, `unanswerable`, the number of
      queries without a relevant candidate; after `<source>/` where there are several sources.

    Raises:
      ValueError: a query without a relevant candidate, or features that are not finite.
    """
    common = None if self.candidates is None else encode(self.candidates)
    results = {}
    for name, source in self.queries.items():
      own = common is None or source is self.candidates
      queries = common if source is self.candidates else encode(source)
      candidates = queries if common is None else common
      same = own if self.same_ids is None else self.same_ids
      values = self._judge(name, queries, candidates, same)
      results |= {apply.prefix(name) + key: value for key, value in values.items()}
    return results

  def _judge(
    self, name: str, queries: Examples, candidates: Examples, same: bool
  ) -> dict[str, float]:
    answerable = _relevant(queries, candidates, same) > 0  # [Q]
    missing = int((~answerable).sum())
    if missing == len(answerable) or (missing and not self.skip_unanswerable):
      where = f' of {name!r}' if name else ''
      raise ValueError(
        f'{missing} of {len(answerable)} queries{where} have no candidate with their label, the '
        f'first label {queries.labels[~answerable][0]}; skip_unanswerable=True leaves some out'
      )
    queries = Examples(*(array[answerable] for array in queries))
    ids: Ids | None = (queries.ids, candidates.ids) if same else None
    _, found = nearest(queries.features, candidates.features, max(self.k), self.mesh, ids=ids)
    right = candidates.labels[found] == queries.labels[:, None]  # [Q, k]
    results = {f'recall@{k}': float(right[:, :k].any(1).mean()) for k in self.k}
    if self.mean_average_precision:
      labels = queries.labels, candidates.labels
      values = average_precision(queries.features, candidates.features, labels, self.mesh, ids=ids)
      results['mAP'] = float(values.mean(dtype=np.float64))
    return results | ({'unanswerable': float(missing)} if self.skip_unanswerable else {})


def _relevant(queries: Examples, candidates: Examples, same: bool) -> np.ndarray:
  """How many candidates each query should find, [Q]: not itself, where `same` ids say so."""
  of_label = collections.Counter(candidates.labels.tolist())
  itself = collections.Counter(
    zip(candidates.ids.tolist(), candidates.labels.tolist(), strict=True)
  )
  pairs = zip(queries.ids.tolist(), queries.labels.tolist(), strict=True)
  return np.array([of_label[label] - same * itself[id_, label] for id_, label in pairs])
