"""Sums and counts over classified examples, and what is computed of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MISTAKES = 24  # in the picture
MAX_CONFUSION = 1000  # classes; K * K counts are kept for the picture
BINS = 15  # of the calibration error, arXiv:1706.04599, Sec. 5


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A wrong answer, for the picture."""

  probability: float
  index: int  # in the order of the source, which decides between equals
  predicted: int
  truth: tuple[int, ...]
  image: np.ndarray

  def caption(self, classes: list[str]) -> str:
    """What was said, what it is and how sure the answer was: three lines."""
    truth = ', '.join(classes[i] for i in self.truth) or 'nothing'
    return f'said {classes[self.predicted]}\nis {truth}\n{100 * self.probability:.1f} % sure'


class Tally:
  """Sums and counts over the examples seen, on the host in float64 and int64."""

  def __init__(self, num_classes: int, *, square: bool):
    self.num_classes = num_classes
    self.count, self.loss = 0, 0.0
    self.ranks = np.zeros(num_classes + 1, np.int64)  # how often the label had this rank
    self.by_class = np.zeros((num_classes, 2), np.int64)  # examples, and those answered rightly
    self.square = square and num_classes <= MAX_CONFUSION
    self.confusion: np.ndarray | None = None  # [true, predicted]
    self.bins: np.ndarray | None = None  # [BINS, 3], of labels that exclude each other
    self.scores: list[tuple[np.ndarray, np.ndarray]] = []  # of multi-hot labels
    self.mistakes: list[Mistake] = []  # most confident first

  def add(self, examples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Adds examples without padding; returns which answers are wrong, [B] bool."""
    label, predicted, right = examples['label'], examples['predicted'], examples['rank'] == 0
    self.count += len(label)
    self.loss += examples['loss'].astype(np.float64).sum()
    np.add.at(self.ranks, examples['rank'], 1)
    if label.ndim == 2:
      self.by_class[:, 0] += (label > 0).sum(0)
      self.by_class[:, 1] += ((label > 0) & right[:, None]).sum(0)
      self.scores.append((examples['logits'], label > 0))
      return ~right
    np.add.at(self.by_class, (label, 0), 1)
    np.add.at(self.by_class, (label[right], 1), 1)
    bins = confidence_bins(examples['probability'], right)
    self.bins = bins if self.bins is None else self.bins + bins
    if self.square:
      if self.confusion is None:
        self.confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
      np.add.at(self.confusion, (label, predicted), 1)
    return ~right

  def mistakes_among(self, wrong: np.ndarray, examples: Mapping[str, np.ndarray]) -> bool:
    """Whether one of these mistakes is confident enough to be kept."""
    if len(self.mistakes) < MISTAKES:
      return bool(wrong.any())
    return bool((examples['probability'][wrong] > self.mistakes[-1].probability).any())

  def keep_mistakes(
    self, wrong: np.ndarray, examples: Mapping[str, np.ndarray], images: np.ndarray
  ) -> None:
    """Keeps the most confident of the mistakes so far; of equal ones, the first."""
    start = self.count - len(wrong)  # broken examples are not counted, which leaves the order
    for i in np.flatnonzero(wrong):
      label = examples['label'][i]
      truth = np.flatnonzero(label > 0) if np.ndim(label) else [label]
      probability, predicted = float(examples['probability'][i]), int(examples['predicted'][i])
      self.mistakes.append(
        Mistake(probability, start + int(i), predicted, tuple(map(int, truth)), images[i])
      )
    self.mistakes.sort(key=lambda m: (-m.probability, m.index))
    del self.mistakes[MISTAKES:]

  def results(self, top: Sequence[int]) -> dict[str, float]:
    """The metrics by name; `top` as of `Classification`."""
    values = {}
    for k in top:
      if k < self.num_classes:
        name = 'accuracy' if k == 1 else f'top{k}'
        values[name] = share(self.ranks[:k].sum(), self.count)
    values['loss'] = float(self.loss / self.count)
    if self.bins is not None:
      values['calibration_error'] = calibration_error(self.bins)
    if self.scores:
      scores, labels = (np.concatenate(parts) for parts in zip(*self.scores, strict=True))
      values['mean_average_precision'] = mean_average_precision(scores, labels)
    return values


def confidence_bins(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
  """Sums over equally wide bins of confidence; bin m of M is (m/M, (m+1)/M].

  Args:
    confidence: [N] in [0, 1], the probability of the answer.
    right: [N] bool.
    bins: M.

  Returns:
    [M, 3] float64: examples, the sum of their confidence, right answers. NaNs are in the last bin.
  """
  confidence = confidence.astype(np.float64)
  index = np.ceil(np.nan_to_num(confidence, nan=1.0) * bins).astype(int) - 1
  sums = np.zeros((bins, 3))
  columns = np.stack([np.ones_like(confidence), confidence, right], axis=1)
  np.add.at(sums, np.clip(index, 0, bins - 1), columns)
  return sums


def calibration_error(bins: np.ndarray) -> float:
  """Expected calibration error: how far confidence is from accuracy. Eq. 3, arXiv:1706.04599.

  The distance of the two means in a bin, averaged over the examples: 0 where of the answers that
  are 80 % sure 80 % are right.

  Args:
    bins: [M, 3], see `confidence_bins`.
  """
  count, confidence, right = bins.T
  return float(np.abs(confidence - right).sum() / count.sum())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Average precision, averaged over the classes that occur; NaN where none does.

  Of one class it is the mean, over its examples, of the precision among all examples of at least
  their score.

  Args:
    scores: [N, K] float.
    labels: [N, K] bool.
  """
  precisions = []
  for score, label in zip(scores.T, labels.T, strict=True):
    if not label.any():
      continue
    order = np.argsort(-score, kind='stable')
    score, label = score[order], label[order]
    last = np.searchsorted(-score, -score, side='right')  # examples of at least this score
    precision = np.cumsum(label)[last - 1] / last
    precisions.append(precision[label].mean())
  return float(np.mean(precisions)) if precisions else float('nan')


def share(part: Any, whole: Any) -> float:
  """`part / whole` as a Python float."""
  return float(part) / float(whole)
