"""Classification: accuracy, loss, what is taken for what, and the most confident mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.arrays import Array, Batch
from vit_jax.evaluators import apply
from vit_jax.losses import classification as losses

MISTAKES = 24  # in the picture
MAX_CONFUSION = 1000  # classes; K * K counts are kept for the picture


class Classification:
  """Accuracy and loss of an objective's logits on one source or several, so also on other styles.

  With labels `[B]` the loss is the softmax cross-entropy in nats. With multi-hot labels `[B, K]` an
  answer is right where it is among the labels, the loss is the sigmoid cross-entropy summed over
  the classes, and the mean average precision over the classes that occur is added, for which all
  scores, `[N, K]` float32, are kept.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    writer: Any = None,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'logits',
    top: Sequence[int] = (1, 5),
    per_class: bool = True,
  ):
    """Builds the sources.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      writer: takes the pictures of the last run; None draws none.
      source: a source or its spec; or
      sources: several by name, which comes before their metrics: `google/accuracy`.
      host: host transforms.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to logits `[B, K]`.
      top: an answer is right among the k best; 1 is called `accuracy`, 5 `top5`. Those with k >= K
        are left out.
      per_class: the last run adds `class/<class>`, the accuracy among the examples of each class.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), or no source is given.
    """
    self.method = apply.method_of(objective, method, evaluator='classification')
    self.sources = apply.named_sources(source, sources)
    self.mesh, self.writer = mesh, writer
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self.top, self.per_class = tuple(top), per_class

    def examples(variables: Any, batch: Batch) -> dict[str, Array]:
      logits = objective.apply(variables, batch, method=self.method)
      num_classes = jnp.asarray(logits.shape[-1])
      return _examples(logits, batch['label']), batch['_mask'], num_classes

    self._examples = apply.jit(examples, mesh)

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Evaluates a state.

    Args:
      state: has `step`, `params` and `model_state`.
      final: whether this is the last run: adds the accuracies by class and draws the pictures.

    Returns:
      By name, after `<source>/` where there are several sources: `accuracy`, `top5`, `loss`, with
      multi-hot labels `mean_average_precision`, and in the last run `class/<class>`; shares are in
      [0, 1].

    Raises:
      ValueError: a label that is no number of a logit.
    """
    results = {}
    for name, source in self.sources.items():
      tally = self._count(state, name, source, pictures=final and self.writer is not None)
      values = tally.results(self.top)
      classes = apply.class_names(source, tally.num_classes)
      if final and self.per_class:
        seen = np.flatnonzero(tally.by_class[:, 0])
        values |= {f'class/{classes[i]}': _share(*tally.by_class[i, ::-1]) for i in seen}
      results |= {apply.prefix(name) + key: value for key, value in values.items()}
      if final and self.writer is not None:
        self._draw(int(state.step), name, tally, classes)
    return results

  def _count(self, state: Any, name: str, source: Any, *, pictures: bool) -> _Tally:
    tally = None
    variables = apply.variables_of(state)
    for batch in apply.batches(source, self.mesh, **self.options):
      examples, mask, num_classes = self._examples(variables, batch)
      examples = {key: value[mask] for key, value in examples.items()}
      if tally is None:
        tally = _Tally(int(num_classes), square=pictures)
      _check_labels(examples['label'], tally.num_classes, name)
      wrong = tally.add(examples)
      if pictures and tally.mistakes_among(wrong, examples):
        images = apply.fetch(batch['image'], self.mesh)[mask]
        tally.keep_mistakes(wrong, examples, images)
    return tally

  def _draw(self, step: int, name: str, tally: _Tally, classes: list[str]) -> None:
    from vit_jax.plots import confusion, images

    title = f'{name}: ' if name else ''
    if tally.confusion is not None:
      right, total = np.trace(tally.confusion), tally.count
      title_ = f'{title}{right} of {total} right ({100 * right / total:.1f} %)'
      picture = confusion.confusion(tally.confusion, classes, title=title_)
      self.writer.picture(step, apply.prefix(name) + 'confusion', picture)
    if tally.mistakes:
      captions = [m.caption(classes) for m in tally.mistakes]
      picture = images.grid(
        [m.image for m in tally.mistakes],
        captions,
        columns=6,
        side=160,
        title=f'{title}the {len(captions)} most confident mistakes of {tally.count} examples',
      )
      self.writer.picture(step, apply.prefix(name) + 'mistakes', picture)


def _examples(logits: Array, label: Array) -> dict[str, Array]:
  """What is asked of each example, from logits [B, K] and labels [B] or [B, K].

  Returns:
    `label`, `predicted` [B], its `probability` [B], `loss` [B], and `rank`
    [B]: how many classes come before the (best) label. Of equal logits the lower class comes first;
    a label with a NaN comes last.
  """
  logits = logits.astype(jnp.float32)
  k = logits.shape[-1]
  if label.ndim == 2 and label.shape[-1] != k:
    raise ValueError(f'labels are multi-hot over {label.shape[-1]} classes, the logits are {k}')
  predicted = jnp.argmax(logits, axis=-1)
  highest = jnp.take_along_axis(logits, predicted[:, None], axis=-1)[:, 0]
  if label.ndim == 1:
    best = jnp.clip(label, 0, k - 1)  # what is out of range is an error on the host
    loss = losses.softmax_cross_entropy(logits, best)
    probability = jnp.exp(highest - jax.nn.logsumexp(logits, axis=-1))
  else:
    best = jnp.argmax(jnp.where(label > 0, logits, -jnp.inf), axis=-1)
    loss = losses.sigmoid_cross_entropy(logits, label)
    probability = jax.nn.sigmoid(highest)
  at = jnp.take_along_axis(logits, best[:, None], axis=-1)  # [B, 1]
  behind = (logits < at) | ((logits == at) & (jnp.arange(k) >= best[:, None]))  # [B, K]
  rank = k - behind.sum(-1)
  if label.ndim == 2:
    rank = jnp.where((label > 0).any(-1), rank, k)  # without a label no answer is right
  values = dict(predicted=predicted, probability=probability, loss=loss, rank=rank, label=label)
  return values if label.ndim == 1 else {**values, 'logits': logits}


def _check_labels(label: np.ndarray, num_classes: int, name: str) -> None:
  if label.ndim == 1 and label.size and not 0 <= label.min() <= label.max() < num_classes:
    worst = label.max() if label.max() >= num_classes else label.min()
    where = f'source {name!r}' if name else 'the source'
    raise ValueError(
      f'{where} has label {worst}, but the model gives {num_classes} logits, for labels 0 to '
      f'{num_classes - 1}'
    )


@dataclasses.dataclass(frozen=True)
class _Mistake:
  probability: float
  index: int  # in the order of the source, which decides between equals
  predicted: int
  truth: tuple[int, ...]
  image: np.ndarray

  def caption(self, classes: list[str]) -> str:
    truth = ', '.join(classes[i] for i in self.truth) or 'nothing'
    return f'said {classes[self.predicted]}\nis {truth}\n{100 * self.probability:.1f} % sure'


class _Tally:
  """Sums and counts over the examples seen, on the host in float64 and int64."""

  def __init__(self, num_classes: int, *, square: bool):
    self.num_classes = num_classes
    self.count, self.loss = 0, 0.0
    self.ranks = np.zeros(num_classes + 1, np.int64)  # how often the label had this rank
    self.by_class = np.zeros((num_classes, 2), np.int64)  # examples, and those answered rightly
    self.square = square and num_classes <= MAX_CONFUSION
    self.confusion: np.ndarray | None = None  # [true, predicted]
    self.scores: list[tuple[np.ndarray, np.ndarray]] = []  # of multi-hot labels
    self.mistakes: list[_Mistake] = []  # most confident first

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
        _Mistake(probability, start + int(i), predicted, tuple(map(int, truth)), images[i])
      )
    self.mistakes.sort(key=lambda m: (-m.probability, m.index))
    del self.mistakes[MISTAKES:]

  def results(self, top: Sequence[int]) -> dict[str, float]:
    values = {}
    for k in top:
      if k < self.num_classes:
        name = 'accuracy' if k == 1 else f'top{k}'
        values[name] = _share(self.ranks[:k].sum(), self.count)
    values['loss'] = float(self.loss / self.count)
    if self.scores:
      scores, labels = (np.concatenate(parts) for parts in zip(*self.scores, strict=True))
      values['mean_average_precision'] = mean_average_precision(scores, labels)
    return values


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


def _share(part: Any, whole: Any) -> float:
  return float(part) / float(whole)
