"""Few labels: the whole encoder is trained on with a new head, on a share of the labels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vit_jax import optim, sharding, units
from vit_jax.arrays import Array, Batch
from vit_jax.choices import check_choice
from vit_jax.data import pipeline
from vit_jax.data.spec import batch_spec
from vit_jax.data.subset import Subset
from vit_jax.evaluators import apply
from vit_jax.losses import classification
from vit_jax.state import TrainState, abstract_variables, init_state, stacked_names

BASELINES = ('random',)
ONE_LABEL = 'fine_tuning needs one label an image, not multi-hot labels'


class FineTuning:
  """Accuracy after training encoder and new linear head on few labels; at the end of a run only.

  Section 6 and Appendix B.5 of SimCLR, arXiv:2002.05709: SGD with Nesterov's momentum of 0.9, a
  learning rate of 0.05 times the batch size / 256, no warm-up, no weight decay, 60 epochs
  with 1 % of the labels and 30 with 10 %, augmentation by crops and flips alone; the learning rate
  falls to 0 by a cosine, as in the code released with the paper.

  It differs in two things. The head starts from zeros. And what is trained is `features`, the
  encoder as in evaluation: BatchNorm keeps the statistics it came with, nothing is dropped. Only
  parameters that it reads are trained, on copies: the state stays as it is. Beside it, `_random`
  is the same training from what the encoder's own training would start from.

  Labels are drawn by `data.subset.Subset`. Classes are those that `train` declares or has; an
  example of another is counted as wrong. Patterns in `optimizer` are of the names
  `model/<parameter>` and `head/kernel`.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    train: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    shares: Sequence[float] = (0.01, 0.1),
    per_class: Sequence[int] = (),
    epochs: float | Sequence[float] = (60, 30),
    train_host: str,
    host: str = 'decode',
    batch_size: int = 256,
    optimizer: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Builds the sources and the optimizer; reads one example.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      train: the source or its spec that labels are drawn from, one an example.
      source: a source or its spec that is classified; or
      sources: several by name, which comes before their metrics: `google/1pct_accuracy`.
      shares: of the labels of each class, at least one example of each.
      per_class: examples of each class, beside the shares.
      epochs: passes over the drawn examples, one for all, or one for each of `shares` and then of
        `per_class`.
      train_host: host transforms in training, such as
        'decode | random_resized_crop(32, min_area=0.2) | flip'.
      host: host transforms of what is classified.
      batch_size: examples a batch. Where fewer are drawn, a batch has some of them several times.
      optimizer: the fields of `optim` in place of the paper's.
      seed: of the labels, the order and the transforms.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      baselines: 'random', or none.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), a field is out of its
        range, multi-hot labels, or the devices do not divide the batch.
    """
    self.method = apply.method_of(objective, method, evaluator='fine_tuning')
    self.objective, self.mesh = objective, mesh
    self.train = apply.named_sources(train)['']
    self.sources = apply.named_sources(source, sources)
    self.draws = _draws(shares, per_class, epochs)
    self.train_host, self.batch_size, self.seed = train_host, batch_size, seed
    self.baselines = tuple(check_choice('baseline', name, BASELINES) for name in baselines)
    self.random_seed = random_seed
    self.optimizer = optimizer or {
      'name': 'sgd',
      'learning_rate': 0.05,
      'scaling': 'linear',
      'options': {'momentum': 0.9, 'nesterov': True},
    }
    self.workers = dict(num_workers=num_workers, max_bad_share=max_bad_share)
    self.options = dict(host=host, batch_size=batch_size, **self.workers)
    pipeline.check_batch_size(batch_size, sharding.batch_sharding(mesh))
    self.batch_spec = batch_spec(self.train, train_host, batch_size)
    if 'label' not in self.batch_spec or len(self.batch_spec['label'].shape) != 1:
      raise ValueError(ONE_LABEL)
    # What is wrong with the optimizer should be known before hours of training, not after.
    self._build_optimizer(Classifier(objective, 2, self.method), 1, 1)

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Trains and classifies.

    Args:
      state: has `params` and `model_state`.
      final: whether this is the last run; nothing is done in any other, since it takes long.

    Returns:
      `1pct_accuracy`, in [0, 1], of 1 % of the labels, `5shot_accuracy` of 5 examples of each
      class, after `<source>/` where there are several sources; and the same with `_random` behind.

    Raises:
      ValueError: multi-hot labels.
      FloatingPointError: the loss is not finite.
    """
    if not final:
      return {}
    results = {}
    for name, fields, epochs in self.draws:
      subset = Subset(self.train, seed=self.seed, **fields)
      classes = max(int(getattr(self.train, 'num_classes', 0)), int(subset.labels.max()) + 1)
      module = Classifier(self.objective, classes, self.method)
      answers = apply.jit(functools.partial(_answers, module), self.mesh)
      for suffix, trained in self._train(module, subset, epochs, state, name):
        for source_name, source in self.sources.items():
          metric = f'{apply.prefix(source_name)}{name}_accuracy{suffix}'
          results[metric] = self._accuracy(answers, trained, source)
    return results

  def _train(
    self, module: Classifier, subset: Subset, epochs: float, state: Any, name: str
  ) -> Iterator[tuple[str, TrainState]]:
    """What is behind the metrics' names, and the trained state: from `state`, and at random."""
    total = units.steps(
      {'epochs': epochs}, batch_size=self.batch_size, num_examples=len(subset), name='epochs'
    )
    tx = self._build_optimizer(module, total, len(subset))
    make, like = init_state(module, tx, self.batch_spec, self.random_seed, self.mesh)
    step = _make_step(module, tx, like)
    for suffix in ('', *(f'_{baseline}' for baseline in self.baselines)):
      with jax.set_mesh(self.mesh):
        start = make() if suffix else _start(make(), like, state)
        trained, loss = self._steps(step, start, subset, total)
      if not math.isfinite(loss):
        raise FloatingPointError(
          f'the loss of fine_tuning is {loss} for {name}{suffix}; lower the learning rate'
        )
      yield suffix, trained

  def _steps(
    self, step: Callable[..., Any], state: TrainState, subset: Subset, total: int
  ) -> tuple[TrainState, float]:
    """The state after all steps, and the loss of the last batch."""
    loss = None
    with pipeline.TrainPipeline(
      subset,
      host=self.train_host,
      batch_size=self.batch_size,
      seed=self.seed,
      sharding=sharding.batch_sharding(self.mesh),
      stop_step=total,
      **self.workers,
    ) as data:
      for batch in data:
        before = loss
        state, loss = step(state, batch)
        jax.block_until_ready(before)  # The host runs no more than one step ahead.
    return state, float(loss)

  def _accuracy(self, answers: Callable[..., Any], state: TrainState, source: Any) -> float:
    right = count = 0
    variables = apply.variables_of(state)
    for batch in apply.batches(source, self.mesh, **self.options):
      answer, label, mask = answers(variables, batch)
      if label.ndim != 1:
        raise ValueError(ONE_LABEL)
      right += int(np.sum((answer == label) & mask))
      count += int(np.sum(mask))
    return right / count

  def _build_optimizer(
    self, module: Classifier, total: int, num_examples: int
  ) -> optax.GradientTransformation:
    variables = abstract_variables(module, self.batch_spec)
    steps = functools.partial(
      units.steps, batch_size=self.batch_size, num_examples=num_examples, name='optimizer'
    )
    return optim.build_optimizer(
      self.optimizer,
      nn.unbox(variables)['params'],
      total_steps=total,
      steps=steps,
      stacked=stacked_names(variables),
      batch_size=self.batch_size,
    ).tx


class Classifier(nn.Module):
  """A linear head of zeros on what a method of `model` gives, as in evaluation.

  Attributes:
    model: the objective.
    num_classes: K.
    method: from a batch to features `[B, D]`.
  """

  model: nn.Module
  num_classes: int
  method: str

  def setup(self) -> None:
    """Makes the head."""
    self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The mean cross-entropy, and no metric; `train` changes nothing."""
    losses = classification.softmax_cross_entropy(self.logits(batch), batch['label'])
    return jnp.mean(losses), {}

  def logits(self, batch: Batch) -> Array:
    """Logits `[B, K]`, float32."""
    features = getattr(self.model, self.method)(batch)
    if features.ndim != 2:
      raise ValueError(
        f'fine_tuning needs features [B, D]; {self.method!r} gives {list(features.shape)}'
      )
    return self.head(features.astype(jnp.float32))


def _make_step(
  module: Classifier, tx: optax.GradientTransformation, like: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Array]]:
  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
    def loss_fn(params: Any) -> Array:
      return module.apply({'params': params, **state.model_state}, batch, train=True)[0]

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), loss

  shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _start(made: TrainState, like: TrainState, state: Any) -> TrainState:
  """`made` with copies of what the model reads of `state`, since steps donate their start."""
  given = {'params': state.params, **state.model_state}
  read = {'params': like.params, **like.model_state}
  pairs = {name: (tree['model'], given[name]) for name, tree in read.items() if 'model' in tree}
  copies = {name: jax.tree.map(jnp.copy, _part(*pair)) for name, pair in pairs.items()}
  params = {**made.params, 'model': copies.pop('params')}
  return made.replace(params=params, model_state={n: {'model': c} for n, c in copies.items()})


def _part(like: Any, given: Any) -> Any:
  """Those leaves of `given` that `like` has too."""
  if not isinstance(like, Mapping):
    return given
  return {name: _part(value, given[name]) for name, value in like.items()}


def _answers(module: Classifier, variables: Any, batch: Batch) -> tuple[Array, Array, Array]:
  logits = module.apply(variables, batch, method='logits')
  return jnp.argmax(logits, axis=-1), batch['label'], batch['_mask']


def _draws(
  shares: Sequence[float], per_class: Sequence[int], epochs: float | Sequence[float]
) -> list[tuple[str, dict[str, Any], float]]:
  """The name, the fields of `Subset` and the epochs of each training."""
  if any(not 0 < share <= 1 for share in shares) or any(n < 1 for n in per_class):
    raise ValueError(
      f'shares {tuple(shares)} must be above 0 and at most 1, per_class {tuple(per_class)} at'
      ' least 1'
    )
  draws = [(f'{100 * share:g}pct', {'share': share}) for share in shares]
  draws += [(f'{number}shot', {'per_class': number}) for number in per_class]
  lengths = [epochs] * len(draws) if isinstance(epochs, int | float) else list(epochs)
  if not draws or len(lengths) != len(draws) or min(lengths) <= 0:
    raise ValueError(
      f'epochs {epochs} must be positive, one for all or one for each of the {len(draws)} shares'
      ' and per_class'
    )
  return [(name, fields, length) for (name, fields), length in zip(draws, lengths, strict=True)]
