"""Zero-shot classification: the nearest of the classes' names, without an example of any."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Array, Batch, l2_normalize
from vit_jax.build import build
from vit_jax.data import prompts as published
from vit_jax.data.texts import check_templates
from vit_jax.data.tokenizers.base import Tokenizer
from vit_jax.evaluators import apply
from vit_jax.evaluators.tally import share

TEMPLATE = 'a photo of a {}.'  # "a good default": Sec. 3.1.4, arXiv:2103.00020


class ZeroShot:
  """Accuracy of the class whose name is nearest. Section 3.1, arXiv:2103.00020 (CLIP).

  A class is the mean of the embeddings of its name in all templates, with length 1 again; an answer
  is the class with the largest cosine to the image. `mean_per_class`, the mean of the classes'
  accuracies, is what CLIP reports of Pets and Flowers.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    tokenizer: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    prompts: str | None = None,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    top: Sequence[int] = (1, 5),
    method: str = 'embeddings',
    text_method: str = 'text_embeddings',
  ):
    """Builds the sources and the tokenizer.

    Args:
      objective: has the two methods.
      mesh: the mesh.
      tokenizer: the objective's tokenizer or its spec, `dict(type='data.tokenizers.clip.ClipBpe')`.
      source: a source or its spec; or
      sources: several by name, which comes before their metrics: `pets/accuracy`.
      host: host transforms of the images.
      batch_size: images a batch, and texts a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      prompts: classes and templates by name, see `data.prompts.load`; the next two come before it.
      classes: the classes' names. None, and without prompts: each source's own `classes`.
      templates: texts with one `{}` each, where the name belongs. None, and without prompts: 'a
        photo of a {}.'
      labels: which of the classes each label of the sources is; answers are among these alone.
        None: label i is class i, and answers are among each source's attribute `subset` where it
        has one (see `data.test_sets`), else among all.
      top: an answer is right among the k nearest; 1 is called `accuracy`, 5 `accuracy@5`. Those
        with more than there are classes are left out.
      method: from a batch of images to embeddings `[B, D]` of length 1.
      text_method: from a batch of `text [B, L]` to embeddings `[B, D]` of length 1.

    Raises:
      ValueError: the objective lacks a method (those it has are listed), no source is given, an
        unknown name of prompts, a source without names of classes, a template without a single
        `{}`, or labels that are none of the classes, name one twice, or contradict their names.
    """
    self.method = apply.method_of(objective, method, evaluator='zero_shot')
    text_method = apply.method_of(objective, text_method, evaluator='zero_shot')
    self.sources = apply.named_sources(source, sources)
    self.tokenizer = build(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
    self.objective, self.mesh, self.top = objective, mesh, tuple(top)
    shards = sharding.batch_shards(mesh)
    self.batch_size = -(-batch_size // shards) * shards
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    known = None if prompts is None else published.load(prompts)
    if known is not None and classes is None:
      classes = known.classes
    if templates is None:
      templates = (TEMPLATE,) if known is None else known.templates
    check_templates(templates)
    self.templates = tuple(templates)
    self.classes, self.columns, self.answers = {}, {}, {}
    for name, one in self.sources.items():
      self.classes[name] = _classes(name, one, classes)
      if labels is None:
        _check_names(name, one, self.classes[name])
      self.columns[name], self.answers[name] = _answers(name, one, self.classes[name], labels)
    self._texts = apply.jit(
      lambda variables, text: objective.apply(variables, {'text': text}, method=text_method), mesh
    )
    self._ranks = apply.jit(self._rank, mesh)

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Evaluates a state.

    Args:
      state: has `params` and `model_state`.
      final: changes nothing.

    Returns:
      By name, after `<source>/` where there are several sources: `accuracy`, `accuracy@5` and
      `mean_per_class`, in [0, 1].

    Raises:
      ValueError: a label that is none of the classes that answers are chosen from, or no example
        has a label.
    """
    del final
    variables = apply.variables_of(state)
    made: dict[tuple[str, ...], np.ndarray] = {}
    results = {}
    for name in self.sources:
      classes = self.classes[name]
      if classes not in made:
        made[classes] = self.classifier(state, classes)
      values = self._measure(variables, name, made[classes][self.answers[name]])
      results |= {apply.prefix(name) + key: value for key, value in values.items()}
    return results

  def classifier(self, state: Any, classes: Sequence[str]) -> np.ndarray:
    """Where a state has classes, in this evaluator's templates, [K, D] float32 of length 1."""
    variables, split = apply.variables_of(state), sharding.batch_sharding(self.mesh)

    def encode(tokens: np.ndarray) -> np.ndarray:
      text = jax.make_array_from_callback(tokens.shape, split, lambda index: tokens[index])
      return self._texts(variables, text)

    return classifier(encode, self.tokenizer, classes, self.templates, batch_size=self.batch_size)

  def _rank(self, variables: Any, batch: Batch, classes: Array, columns: Array) -> Any:
    image = self.objective.apply(variables, batch, method=self.method)
    similarity = jnp.matmul(image, classes.T, precision='highest')
    return ranks(similarity, batch['label'], columns), batch['label'], batch['_mask']

  def _measure(self, variables: Any, name: str, classes: np.ndarray) -> dict[str, float]:
    source, columns = self.sources[name], self.columns[name]
    counts = np.zeros(len(columns) + 1, np.int64)  # how often the label had this rank
    by_class = np.zeros((len(columns), 2), np.int64)  # right answers, and examples
    for batch in apply.batches(source, self.mesh, **self.options):
      rank, label, mask = self._ranks(variables, batch, classes, columns)
      rank, label = rank[mask], label[mask]
      _check_labels(name, label, columns)
      given = _given(label, columns)  # [B, k]
      if getattr(source, 'skip_unlabelled', False):
        rank, given = rank[given.any(-1)], given[given.any(-1)]
      np.add.at(counts, rank, 1)
      by_class += np.stack([given[rank == 0].sum(0), given.sum(0)], axis=1)
    if not by_class.any():
      raise ValueError(f'no example of {_called(name)} has a label')
    values = {}
    for k in self.top:
      if k <= len(columns):
        values['accuracy' if k == 1 else f'accuracy@{k}'] = share(counts[:k].sum(), counts.sum())
    right, examples = by_class[by_class[:, 1] > 0].T
    return values | {'mean_per_class': float((right / examples).mean())}


def classifier(
  encode_texts: Callable[[np.ndarray], Any],
  tokenizer: Tokenizer,
  classes: Sequence[str],
  templates: Sequence[str],
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """A linear classifier of embeddings that is made of texts. Section 3.1.4, arXiv:2103.00020.

  Args:
    encode_texts: from tokens `[batch_size, L]` int32 to embeddings `[batch_size, D]` of length 1.
    tokenizer: from a text to `[L]` int32.
    classes: K names.
    templates: texts with one `{}` each, where the name belongs.
    batch_size: texts a call; the last are filled up, so that all calls have one shape.

  Returns:
    [K, D] float32: of each class the mean over the templates, with length 1 again.
  """
  texts = [template.replace('{}', name) for name in classes for template in templates]
  sums = None
  for start in range(0, len(texts), batch_size):
    tokens = np.stack([tokenizer(text) for text in texts[start : start + batch_size]])
    filled = np.pad(tokens, ((0, batch_size - len(tokens)), (0, 0)), mode='edge')
    made = np.asarray(encode_texts(filled), np.float64)[: len(tokens)]
    if sums is None:
      sums = np.zeros((len(classes), made.shape[-1]))
    np.add.at(sums, np.arange(start, start + len(made)) // len(templates), made)
  return np.asarray(l2_normalize(jnp.asarray(sums / len(templates), jnp.float32)))


def ranks(similarity: Array, label: Array, columns: Array) -> Array:
  """How many answers come before the (best) right one, [B] int: 0 is right, k has no right one.

  Of equally similar answers the first comes first; one that is NaN comes last.

  Args:
    similarity: [B, k], of each image with each answer.
    label: [B] int, or multi-hot [B, L].
    columns: [k] int, the label that each answer is.
  """
  right = _given(label, columns)  # [B, k]
  found = jnp.where(right, similarity, -jnp.inf)
  at, first = found.max(-1, keepdims=True), found.argmax(-1, keepdims=True)
  place = jnp.arange(similarity.shape[-1])
  behind = (similarity < at) | ((similarity == at) & (place >= first))
  return jnp.where(right.any(-1), similarity.shape[-1] - behind.sum(-1), similarity.shape[-1])


def _given(label: Any, columns: Any) -> Any:
  """Which answers are right, [B, k] bool, by labels [B] or [B, L] and the label of each answer."""
  return label[:, columns] > 0 if label.ndim == 2 else label[:, None] == columns


def _classes(name: str, source: Any, given: Sequence[str] | None) -> tuple[str, ...]:
  classes = tuple(getattr(source, 'classes', ()) if given is None else given)
  if not classes:
    raise ValueError(f'{_called(name)} has no names of its classes; give classes or prompts')
  return published.check_texts('classes', classes)


def _answers(
  name: str, source: Any, classes: tuple[str, ...], labels: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
  """Of each answer the label [k] and the class [k], both int32."""
  if labels is None:
    subset = getattr(source, 'subset', None)
    chosen = range(len(classes)) if subset is None else sorted(subset)
    columns = chosen
  else:
    chosen, columns = list(labels), range(len(labels))
  wrong = [i for i in chosen if not 0 <= i < len(classes)]
  if wrong or not len(chosen) or len(set(chosen)) < len(chosen):
    what = f'have {wrong[0]}' if wrong else 'are none or name a class twice'
    raise ValueError(
      f'the labels of {_called(name)} {what}; choose from 0 to {len(classes) - 1}, the classes'
    )
  return np.asarray(columns, np.int32), np.asarray(chosen, np.int32)


def _check_names(name: str, source: Any, classes: tuple[str, ...]) -> None:
  """Raises where the name that a source has for a label is that of another class."""
  named = collections.defaultdict(list)
  for i, one in enumerate(classes):
    named[_plain(one)].append(i)
  for i, one in enumerate(getattr(source, 'classes', ())):
    found = named.get(_plain(one), [i])
    if i not in found:
      raise ValueError(
        f'label {i} of {_called(name)} is {str(one)!r}, which is class {found[0]} of those given; '
        'labels says which class each label is'
      )


def _plain(name: Any) -> str:
  return str(name).lower().replace('_', ' ')


def _check_labels(name: str, label: np.ndarray, columns: np.ndarray) -> None:
  if label.ndim == 2:
    if label.shape[-1] <= columns.max():
      raise ValueError(
        f'{_called(name)} has multi-hot labels over {label.shape[-1]} classes, and answers are up '
        f'to class {columns.max()}'
      )
    return
  wrong = label[~np.isin(label, columns)]
  if wrong.size:
    raise ValueError(
      f'{_called(name)} has label {wrong[0]}, which is none of the {len(columns)} that have a '
      f'class, from {columns[0]} to {columns[-1]}'
    )


def _called(name: str) -> str:
  return f'source {name!r}' if name else 'the source'
