"""Few-shot transfer: least squares from frozen features to the classes of a few examples each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.substitute import BadExample
from vit_jax.evaluators import apply
from vit_jax.evaluators.representation import BASELINES, Encode, Examples, Representation
from vit_jax.evaluators.ridge import Ridge


class FewShot(Representation):
  """Accuracy of a linear classifier in closed form, from `shots` examples of each class.

  The protocol of arXiv:2010.11929, Sec. 4.1, and arXiv:2106.04560, with the choices of the code
  released with them: features are standardised over the drawn examples, a constant feature of 100
  is the bias, the targets are 1 for an example's class and -1 for all others, l2 is 2^10 unless it
  is chosen, and the class of the largest output is the answer. See `ridge.Ridge`.

  Examples are drawn without replacement by (seed, draw): 5 shots are the first 5 of the 10. Classes
  are those that the training source declares (`num_classes`), else those that occur in it. Only
  the drawn examples go through the model; labels are read once, as far as needed.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    train: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    validation: Any = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    shots: Sequence[int] = (5, 10, 25),
    draws: int = 3,
    seed: int = 0,
    l2: float | Sequence[float] = 2.0**10,
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      train: the source or its spec that examples are drawn from.
      source: a source or its spec that is classified; or
      sources: several by name, which comes before their metrics: `google/5shot`.
      validation: a source or its spec that chooses among several `l2`.
      host: host transforms of all sources; they should draw nothing at random.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      shots: examples a class.
      draws: sets of examples, over which the accuracies are averaged.
      seed: of the draws.
      l2: the weight of the squared parameters. Of several, for each number of shots that with the
        best accuracy on `validation`, averaged over the draws; the first of equally good ones.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), a number is out of
        range, an unknown baseline, or there are several `l2` without `validation` or the reverse.
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
    self.validation = None if validation is None else apply.named_sources(validation)['']
    self.shots, self.draws, self.seed = tuple(shots), draws, seed
    self.l2 = (l2,) if isinstance(l2, int | float) else tuple(l2)
    _check_numbers(self.shots, draws, self.l2, validation is not None)
    self._drawn: tuple[np.ndarray, np.ndarray] | None = None

  def measure(self, encode: Encode) -> dict[str, float]:
    """Fits and measures.

    Args:
      encode: from a source to `Examples`.

    Returns:
      `5shot`, the accuracy in [0, 1] from 5 examples a class, and so on; after `<source>/` where
      there are several sources. Where there are several `l2`, also `5shot_l2`, the one chosen.

    Raises:
      ValueError: a class has fewer examples than shots, a label that no example was drawn for, or
        multi-hot labels.
    """
    if self._drawn is None:
      self._drawn = draw(self.train, max(self.shots), self.draws, self.seed)
    classes, drawn = self._drawn  # [K], [draws, K, shots]
    union, places = np.unique(drawn, return_inverse=True)
    places = places.reshape(drawn.shape)
    train = _read(encode, apply.Chosen(self.train, union), 'train', classes)
    validation = None
    if self.validation is not None:
      validation = _read(encode, self.validation, 'validation', classes)
    fits, results = {}, {}
    for shots in self.shots:
      made = [_fit(train, chosen[:, :shots], len(classes)) for chosen in places]
      best = self.l2[0]
      if validation is not None:
        best = max(self.l2, key=lambda l2, f=made: np.mean([_score(x, validation, l2) for x in f]))
        results[f'{shots}shot_l2'] = float(best)
      fits[shots] = made, best
    for name, source in self.sources.items():
      test = _read(encode, source, name, classes)
      for shots, (made, best) in fits.items():
        accuracy = np.mean([_score(fit, test, best) for fit in made])
        results[apply.prefix(name) + f'{shots}shot'] = float(accuracy)
    return results


def draw(source: Any, shots: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws examples of each class, without replacement within a draw.

  Args:
    source: has `label` in its examples; where it declares `num_classes`, no more labels are read
      than needed.
    shots: examples a class.
    draws: how often.
    seed: of all draws.

  Returns:
    The classes [K] in ascending order, and positions in the source [draws, K, shots].

  Raises:
    ValueError: a class has fewer examples.
  """
  labels = _Labels(source)
  declared = getattr(source, 'num_classes', 0)
  if declared:
    classes = np.arange(declared)
  else:
    classes = np.array(sorted({labels[i] for i in range(len(source))} - {None}))
  drawn = np.empty((draws, len(classes), shots), np.int64)
  for k in range(draws):
    found: dict[int, list[int]] = {int(c): [] for c in classes}
    missing = len(classes)
    for i in np.random.default_rng((seed, k)).permutation(len(source)):
      label = labels[int(i)]
      if label in found and len(found[label]) < shots:
        found[label].append(int(i))
        missing -= len(found[label]) == shots
        if not missing:
          break
    for c, positions in found.items():
      if len(positions) < shots:
        name = apply.class_names(source, c + 1)[c]
        raise ValueError(
          f'class {name!r} has {len(positions)} examples in the training source of few_shot, too '
          f'few for {shots} shots; choose fewer shots or a larger split'
        )
    drawn[k] = list(found.values())
  return classes, drawn


def _read(encode: Encode, source: Any, name: str, classes: np.ndarray) -> Examples:
  """The examples of a source; their labels are places in `classes`."""
  examples = encode(source)
  unknown = examples.labels[~np.isin(examples.labels, classes)]
  if len(unknown):
    where = f'source {name!r}' if name else 'the source'
    raise ValueError(f'{where} has label {unknown[0]}, of which the training source has no example')
  return examples._replace(labels=np.searchsorted(classes, examples.labels))


def _fit(train: Examples, positions: np.ndarray, num_classes: int) -> Ridge:
  """The classifier from the examples at `positions`, those of them that decode."""
  rows = np.isin(train.positions, positions)
  return Ridge(train.features[rows], train.labels[rows], num_classes)


def _score(fit: Ridge, test: Examples, l2: float) -> float:
  return fit.accuracy(test.features, test.labels, l2)


class _Labels:
  """The labels of a source, each read once; None where an example is broken."""

  def __init__(self, source: Any):
    self.source, self._known = source, {}

  def __getitem__(self, i: int) -> int | None:
    if i not in self._known:
      try:
        label = self.source[i]['label']
      except BadExample:
        self._known[i] = None
      else:
        if np.ndim(label):
          raise ValueError('few_shot needs one label an image, not multi-hot labels')
        self._known[i] = int(label)
    return self._known[i]


def _check_numbers(
  shots: tuple[int, ...], draws: int, l2: tuple[float, ...], validated: bool
) -> None:
  if not shots or min(shots) < 1 or draws < 1:
    raise ValueError(f'shots {shots} and draws {draws} must be at least 1')
  if not l2 or min(l2) <= 0:
    raise ValueError(f'l2 {l2} must be positive')
  if (len(l2) > 1) != validated:
    raise ValueError("several 'l2' need a 'validation' source to choose by, and only they do")
