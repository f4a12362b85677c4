"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.choices import check_choice
from vit_jax.evaluators import apply, logistic
from vit_jax.evaluators.representation import BASELINES, Encode, Examples, Representation

OPTIMIZERS = {'lbfgs': logistic.fit, 'sgd': logistic.sgd}
STRENGTHS = tuple(float(f'1e{i}') for i in range(-6, 3))
RESOLUTION = 1e-6  # a standard deviation below so much of the mean is float32's rounding


class LinearProbe(Representation):
  """Accuracy of a linear classifier that is trained on the features of `train`.

  With 'lbfgs' the protocol of Appendix B.8 of SimCLR, arXiv:2002.05709, and A.3 of CLIP,
  arXiv:2103.00020: the l2 with the best accuracy on `validation`, then a fit to both together (see
  `logistic.choose`). With 'sgd' that of SimCLR's Appendix B.6, except that there is no augmentation
  (see `logistic.sgd`).

  Features are standardised by the mean and the standard deviation over `train`, so that an l2 means
  the same for every encoder. Classes are those that occur in `train` (with `refit` in `validation`
  too); an example of another is counted as wrong.
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
    l2: float | Sequence[float] | None = None,
    refit: bool = True,
    standardise: bool = True,
    optimizer: str = 'lbfgs',
    optimizer_options: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      train: the source or its spec that the classifier is trained on.
      source: a source or its spec that is classified; or
      sources: several by name, which comes before their metrics: `google/accuracy`.
      validation: a source or its spec that chooses among several `l2`.
      l2: the weight of the squared parameters beside the mean loss, or several to choose from; None
        is 1e-6, 1e-5, ..., 1e2 for 'lbfgs', and 0 for 'sgd'.
      refit: whether to train once more on `train` and `validation`, when the l2 is chosen.
      standardise: whether to standardise features.
      optimizer: 'lbfgs' or 'sgd'.
      optimizer_options: further arguments of `logistic.fit` or `logistic.sgd`, such as
        `dict(epochs=30)`. Where features have many dimensions, standardised ones are larger than
        those that SimCLR's learning rate was made for.
      host: host transforms of all sources; they should draw nothing at random.
      batch_size: examples a batch of features; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), an unknown optimizer,
        option or baseline, a negative l2, or several `l2` without `validation` or the reverse.
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
    self.optimizer = check_choice('optimizer', optimizer, OPTIMIZERS)
    options = dict(optimizer_options or {})
    known = inspect.getfullargspec(OPTIMIZERS[optimizer]).kwonlydefaults
    for option in options:
      check_choice(f'option of {optimizer!r}', option, [name for name in known if name != 'mesh'])
    self.solve = functools.partial(OPTIMIZERS[optimizer], mesh=mesh, **options)
    if l2 is None:
      l2 = STRENGTHS if optimizer == 'lbfgs' else 0.0
    self.l2 = (l2,) if isinstance(l2, int | float) else tuple(l2)
    if not self.l2 or min(self.l2) < 0:
      raise ValueError(f'l2 {self.l2} must be at least 0')
    if (len(self.l2) > 1) != (validation is not None):
      raise ValueError("several 'l2' need a 'validation' source to choose by, and only they do")
    self.refit, self.standardise = refit, standardise

  def measure(self, encode: Encode) -> dict[str, float]:
    """Trains and classifies.

    Args:
      encode: from a source to its features.

    Returns:
      `<source>/accuracy`, in [0, 1]; `l2`, the one used; `gradient`, the largest entry of the
      objective's gradient where the optimizer stopped; and for 'lbfgs' `converged`, whether that is
      below its tolerance, 1.0 or 0.0: where it is 0, more `max_steps` may give another accuracy.

    Raises:
      ValueError: there are not two classes.
    """
    judged, l2, made = self.judge(encode)
    results = {
      apply.prefix(name) + 'accuracy': float(np.mean(right)) for name, (right, _) in judged.items()
    }
    results |= {'l2': l2, 'gradient': made.gradient}
    if self.optimizer == 'lbfgs':
      results['converged'] = float(made.converged)
    return results

  def judge(
    self, encode: Encode
  ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], float, logistic.Fit]:
    """Trains and classifies, example by example: what paired comparisons need.

    Args:
      encode: from a source to its features.

    Returns:
      Of each source whether its examples [N] were classified rightly, and their ids [N]; the l2;
      and the fit.

    Raises:
      ValueError: there are not two classes.
    """
    train = encode(self.train)
    mean, scale = _scale(train.features) if self.standardise else (0, 1)

    def standardised(examples: Examples) -> Examples:
      return examples._replace(features=(examples.features - mean) / scale)

    train = standardised(train)
    validation = None if self.validation is None else standardised(encode(self.validation))
    classes, l2, made = self._fit(train, validation)
    judged = {}
    for name, source in self.sources.items():
      test = standardised(encode(source))
      right = classes[logistic.predict(test.features, made.weights)] == test.labels
      judged[name] = right, test.ids
    return judged, l2, made

  def _fit(
    self, train: Examples, validation: Examples | None
  ) -> tuple[np.ndarray, float, logistic.Fit]:
    """The classes [K] that the weights' columns are of, the l2, and the fit."""
    classes = _classes(train)
    labelled = train.features, np.searchsorted(classes, train.labels)
    if validation is None:
      return classes, float(self.l2[0]), self.solve(*labelled, len(classes), self.l2[0])
    judged = validation.features, _places(validation.labels, classes)
    l2, made = logistic.choose(
      labelled, judged, len(classes), self.l2, mesh=self.mesh, solve=self.solve
    )
    if self.refit:
      both = Examples(*map(np.concatenate, zip(train, validation, strict=True)))
      known, classes = classes, _classes(both)
      start = np.zeros((len(made.weights), len(classes)), np.float32)
      start[:, np.searchsorted(classes, known)] = made.weights
      labels = np.searchsorted(classes, both.labels)
      made = self.solve(both.features, labels, len(classes), l2, start)
    return classes, float(l2), made


def _classes(examples: Examples) -> np.ndarray:
  classes = np.unique(examples.labels)
  if len(classes) < 2:
    raise ValueError(f'linear_probe needs two classes; all labels of train are {classes[0]}')
  return classes


def _places(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Where each label stands in `classes`, ascending; -1 where it does not."""
  places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
  return np.where(classes[places] == labels, places, -1)


def _scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means [D] and standard deviations [D], float32; 1 for a feature that does not vary."""
  mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
  varies = std > RESOLUTION * np.abs(mean)
  return mean.astype(np.float32), np.where(varies, std, 1).astype(np.float32)
