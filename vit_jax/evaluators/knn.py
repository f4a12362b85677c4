"""Nearest neighbours: an image has the class that the training images most like it vote for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.evaluators import apply
from vit_jax.evaluators.neighbors import nearest
from vit_jax.evaluators.representation import BASELINES, Encode, Representation

BLOCK = 1024  # images whose votes are counted at a time


class KNN(Representation):
  """Accuracy of the weighted vote of the k nearest training images, by frozen features.

  The protocol of Wu et al. 2018, arXiv:1805.01978, Sec. 3.4: the similarity s is the cosine of two
  features, a neighbour's vote weighs exp(s / temperature), k = 200 and the temperature is 0.07.
  DINO, arXiv:2104.14294, reports the best of `k=(10, 20, 100, 200)` at the same temperature.

  The search is exact. Of training images that are equally similar the first is the nearer one, of
  classes with equal votes the lower one is the answer.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    train: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    k: int | Sequence[int] = 200,
    temperature: float | None = 0.07,
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      train: the source or its spec in which neighbours are looked for.
      source: a source or its spec that is classified; or
      sources: several by name, which comes before their metrics: `google/accuracy`.
      host: host transforms of all sources; they should draw nothing at random.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      k: neighbours that vote, or several such numbers.
      temperature: of the weights; None gives every neighbour one vote.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), a k is not between 1 and
        the number of training images, the temperature is not positive, or an unknown baseline.
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
    self.train = apply.named_sources(train)['']
    self.sources = apply.named_sources(source, sources)
    self.names = {k: 'accuracy'} if isinstance(k, int) else {one: f'{one}nn' for one in k}
    for one in self.names or (0,):
      if not 1 <= one <= len(self.train):
        raise ValueError(f'k is {one}; choose from 1 to {len(self.train)}, the training images')
    if temperature is not None and not temperature > 0:
      raise ValueError(f'temperature {temperature} must be positive, or None for equal votes')
    self.temperature = temperature

  def measure(self, encode: Encode) -> dict[str, float]:
    """The share of right answers.

    Args:
      encode: from a source to `Examples`.

    Returns:
      `accuracy`, or where there are several k `20nn` and so on, in [0, 1]; after `<source>/` where
      there are several sources.

    Raises:
      ValueError: features that are not finite.
    """
    train = encode(self.train)
    classes, labels = np.unique(train.labels, return_inverse=True)
    results = {}
    for name, source in self.sources.items():
      test = encode(source)
      scores, positions = nearest(test.features, train.features, max(self.names), self.mesh)
      for k, metric in self.names.items():
        votes = labels[positions[:, :k]]  # [N, k]
        answers = classes[vote(scores[:, :k], votes, len(classes), self.temperature)]
        results[apply.prefix(name) + metric] = float(np.mean(answers == test.labels))
    return results


def vote(
  scores: np.ndarray, votes: np.ndarray, num_classes: int, temperature: float | None
) -> np.ndarray:
  """The class with the largest sum of exp(score / temperature); the lowest of equal ones.

  Args:
    scores: similarities of the neighbours [N, k], the largest of each row first.
    votes: their classes [N, k], in [0, num_classes).
    num_classes: the number of classes.
    temperature: None gives every neighbour one vote.

  Returns:
    [N] int.
  """
  answers = []
  for start in range(0, len(scores), BLOCK):
    chosen = votes[start : start + BLOCK]
    weights = np.ones(chosen.shape)
    if temperature is not None:
      block = scores[start : start + BLOCK].astype(np.float64)
      # Relative to the nearest one's, which changes no answer and cannot overflow.
      weights = np.exp((block - block[:, :1]) / temperature)
    cells = np.arange(len(chosen))[:, None] * num_classes + chosen
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(chosen) * num_classes)
    answers.append(sums.reshape(-1, num_classes).argmax(1))
  return np.concatenate(answers)
