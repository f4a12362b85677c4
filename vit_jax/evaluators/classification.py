"""Classification: accuracy, loss, calibration, what is taken for what, the worst mistakes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.arrays import Array, Batch
from vit_jax.evaluators import apply
from vit_jax.evaluators.tally import Tally, calibration_error, share
from vit_jax.losses import classification as losses


class Classification:
  """Accuracy and loss of an objective's logits on one source or several, so also on other styles.

  With labels `[B]` the loss is the softmax cross-entropy in nats, and `calibration_error` the
  expected calibration error of the largest probability of the softmax, in 15 bins (Guo et al. 2017,
  arXiv:1706.04599). With multi-hot labels `[B, K]` an
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
    classes: Sequence[int] | None = None,
    skip_unlabelled: bool | None = None,
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
      classes: labels that answers are chosen from; other logits are ignored, as if the model had
        only these classes. None is each source's own attribute `subset` where it has one, else
        all.
      skip_unlabelled: leaves out examples whose multi-hot label is empty, instead of counting them
        as wrong. None is each source's own attribute `skip_unlabelled` where it has one, else no.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), no source is given, or
        `classes` names none or one twice.
    """
    self.method = apply.method_of(objective, method, evaluator='classification')
    self.sources = apply.named_sources(source, sources)
    self.mesh, self.writer = mesh, writer
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self.top, self.per_class = tuple(top), per_class
    self.skips = {
      name: getattr(source, 'skip_unlabelled', False)
      if skip_unlabelled is None
      else skip_unlabelled
      for name, source in self.sources.items()
    }
    self.subsets = {
      name: _subset(getattr(source, 'subset', None) if classes is None else classes)
      for name, source in self.sources.items()
    }

    def examples(variables: Any, batch: Batch, *, subset: tuple[int, ...] | None) -> Any:
      logits = objective.apply(variables, batch, method=self.method)
      label, num_classes = batch['label'], logits.shape[-1]
      if subset is not None:
        logits, label = _restrict(logits, label, subset)
      given = {'given': batch['label']}  # for the message about labels that do not fit
      return _examples(logits, label) | given, batch['_mask'], jnp.asarray(num_classes)

    # One program for all sources with the same classes.
    self._examples = {
      subset: apply.jit(functools.partial(examples, subset=subset), mesh)
      for subset in set(self.subsets.values())
    }

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Evaluates a state.

    Args:
      state: has `step`, `params` and `model_state`.
      final: whether this is the last run: adds the accuracies by class and draws the pictures.

    Returns:
      By name, after `<source>/` where there are several sources: `accuracy`, `top5`, `loss`,
      `calibration_error` (with multi-hot labels `mean_average_precision` instead), and in the last
      run `class/<class>`; shares are in [0, 1].

    Raises:
      ValueError: a label that is no number of a logit or not among `classes`, or no example has a
        label.
    """
    results = {}
    for name, source in self.sources.items():
      tally = self._count(state, name, source, pictures=final and self.writer is not None)
      values = tally.results(self.top)
      subset = self.subsets[name] or range(tally.num_classes)
      names = apply.class_names(source, max(subset) + 1)
      classes = [names[i] for i in subset]
      if final and self.per_class:
        seen = np.flatnonzero(tally.by_class[:, 0])
        values |= {f'class/{classes[i]}': share(*tally.by_class[i, ::-1]) for i in seen}
      results |= {apply.prefix(name) + key: value for key, value in values.items()}
      if final and self.writer is not None:
        self._draw(int(state.step), name, tally, classes)
    return results

  def _count(self, state: Any, name: str, source: Any, *, pictures: bool) -> Tally:
    tally, subset = None, self.subsets[name]
    variables = apply.variables_of(state)
    for batch in apply.batches(source, self.mesh, **self.options):
      examples, mask, num_classes = self._examples[subset](variables, batch)
      _check_labels(examples.pop('given')[mask], int(num_classes), subset, name)
      if self.skips[name] and examples['label'].ndim == 2:
        mask = mask & (examples['label'] > 0).any(-1)
      examples = {key: value[mask] for key, value in examples.items()}
      if tally is None:
        tally = Tally(len(subset) if subset else int(num_classes), square=pictures)
      wrong = tally.add(examples)
      if pictures and tally.mistakes_among(wrong, examples):
        images = apply.fetch(batch['image'], self.mesh)[mask]
        tally.keep_mistakes(wrong, examples, images)
    if not tally.count:
      raise ValueError(f'no example of {_called(name)} has a label')
    return tally

  def _draw(self, step: int, name: str, tally: Tally, classes: list[str]) -> None:
    from vit_jax.plots import calibration, confusion, images

    title = f'{name}: ' if name else ''
    if tally.bins is not None:
      error = calibration_error(tally.bins)
      title_ = f'{title}expected calibration error {100 * error:.1f} %'
      picture = calibration.calibration(tally.bins, title=title_)
      self.writer.picture(step, apply.prefix(name) + 'calibration', picture)
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


def _subset(classes: Sequence[int] | None) -> tuple[int, ...] | None:
  if classes is None:
    return None
  subset = tuple(sorted(int(i) for i in classes))
  if not subset or len(set(subset)) < len(subset):
    raise ValueError(f'classes {list(classes)} are empty or name one twice')
  return subset


def _restrict(logits: Array, label: Array, subset: tuple[int, ...]) -> tuple[Array, Array]:
  """Logits [B, k] and labels [B] or [B, k] of the k classes of `subset` alone, in its order."""
  num_classes, chosen = logits.shape[-1], jnp.asarray(subset)
  if not 0 <= subset[0] <= subset[-1] < num_classes:
    wrong = subset[0] if subset[0] < 0 else subset[-1]
    raise ValueError(
      f'classes has {wrong}, but the model gives {num_classes} logits, for 0 to {num_classes - 1}'
    )
  if label.ndim == 2 and label.shape[-1] == num_classes:
    return logits[:, chosen], label[:, chosen]
  # Of labels outside of the subset, which are an error on the host, any place will do.
  return logits[:, chosen], jnp.searchsorted(chosen, label) if label.ndim == 1 else label


def _check_labels(
  label: np.ndarray, num_classes: int, subset: tuple[int, ...] | None, name: str
) -> None:
  if label.ndim != 1 or not label.size:
    return
  if not 0 <= label.min() <= label.max() < num_classes:
    worst = label.max() if label.max() >= num_classes else label.min()
    raise ValueError(
      f'{_called(name)} has label {worst}, but the model gives {num_classes} logits, for labels '
      f'0 to {num_classes - 1}'
    )
  if subset is not None and not np.isin(label, subset).all():
    worst = label[~np.isin(label, subset)][0]
    raise ValueError(
      f'{_called(name)} has label {worst}, which is none of the {len(subset)} classes that answers '
      'are chosen from'
    )


def _called(name: str) -> str:
  return f'source {name!r}' if name else 'the source'
