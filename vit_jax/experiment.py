"""An experiment: what a config describes, built."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from jax.sharding import Mesh

from vit_jax import config as config_lib
from vit_jax import init_from, microbatches, optim, sharding, units, workdirs
from vit_jax.adapters.layout import innermost
from vit_jax.average import SUFFIX, Average, AveragedEvaluator, build_average
from vit_jax.build import build
from vit_jax.checkpoint import Checkpoints
from vit_jax.choices import check_choice
from vit_jax.data import pipeline
from vit_jax.data.spec import batch_spec
from vit_jax.state import TrainState, abstract_variables, init_state, stacked_names

# Evaluators or hooks by name, each with its period in steps; None is at the end only.
Periodic = dict[str, tuple[Any, int | None]]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a config describes, built.

  Attributes:
    config: the config.
    mesh: the devices.
    source: the training examples.
    objective: the method.
    batch_spec: shapes and dtypes of a global training batch.
    optimizer: transformation, schedule and table of parameters.
    total_steps: length of the training.
    accumulate: micro-batches that a step's batch is split into.
    average: of the parameters over the steps; None for none.
    sharding: what is split over the mesh, a key of `sharding.SHARDINGS`.
  """

  config: ml_collections.ConfigDict
  mesh: Mesh
  source: Any
  objective: nn.Module
  batch_spec: dict[str, jax.ShapeDtypeStruct]
  optimizer: optim.Optimizer
  total_steps: int
  accumulate: int
  average: Average | None
  sharding: str = 'fsdp'

  def steps(self, amount: Mapping[str, Any] | None, name: str) -> int | None:
    """A number of steps, epochs or examples as steps of this run; None stays None."""
    if not amount or all(value is None for value in amount.values()):
      return None
    return units.steps(
      amount, batch_size=self.config.batch_size, num_examples=len(self.source), name=name
    )


def setup(
  config: ml_collections.ConfigDict,
  *,
  devices: list[jax.Device] | None = None,
  source: Any = None,
) -> Experiment:
  """Builds what a config describes, and computes nothing yet.

  Args:
    config: the recipe.
    devices: to lay the mesh over, which need not be there to be used; all of this run's by default.
    source: of examples, in the place of `config.data.source`.

  Raises:
    ValueError: whatever in the config cannot be, with the choices.
  """
  config_lib.check(config)
  split = check_choice('sharding', config.get('sharding') or 'fsdp', sharding.SHARDINGS)
  mesh = sharding.make_mesh(config.get('mesh') or {}, devices)
  pipeline.check_batch_size(config.batch_size, sharding.batch_sharding(mesh))
  source = build(config.data.source) if source is None else source
  objective = build(config.objective)
  spec = batch_spec(source, config.data.host, config.batch_size)
  check_labels(source, objective)
  steps = functools.partial(units.steps, batch_size=config.batch_size, num_examples=len(source))
  total_steps = steps(config.total, name='total')
  with jax.set_mesh(mesh):
    variables = abstract_variables(objective, spec)
  accumulate = config.get('accumulate') or 1
  microbatches.check(accumulate, objective, variables, config.batch_size, mesh)
  optimizer = optim.build_optimizer(
    config.optimizer,
    nn.unbox(variables)['params'],
    total_steps=total_steps,
    steps=steps,
    stacked=stacked_names(variables),
    batch_size=config.batch_size,
  )
  average = build_average(config.get('ema'))
  return Experiment(
    config, mesh, source, objective, spec, optimizer, total_steps, accumulate, average, split
  )


def prepare_state(made: Experiment) -> tuple[Callable[[], TrainState], TrainState]:
  """A function that makes the first state, and a tree like it; see `state.init_state`."""
  return init_state(
    made.objective,
    made.optimizer.tx,
    made.batch_spec,
    made.config.seed,
    made.mesh,
    ema=made.average is not None,
    sharding=made.sharding,
  )


def first_state(
  made: Experiment, make: Callable[[], TrainState], like: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, str]:
  """The state that a run goes on from: its own last one, else another run's weights, else new.

  Args:
    made: the run.
    make: makes a new state, and
    like: is a tree like it, both of `prepare_state`.
    checkpoints: of the run.

  Returns:
    The state, and a line that says which weights it starts from; empty where it says nothing.
  """
  if checkpoints.latest is not None:
    return checkpoints.restore(like), ''
  state, text = new_state(made, make)
  return state, text and f'\n{text}'


def new_state(made: Experiment, make: Callable[[], TrainState]) -> tuple[TrainState, str]:
  """The state before a run's first step, and a text that says which weights it starts from.

  Args:
    made: the run.
    make: makes a new state, of `prepare_state`.
  """
  fields = made.config.get('init_from')
  return init_from.init_from(make(), fields, _grid(made)) if fields else (make(), '')


def _grid(made: Experiment) -> tuple[int, int] | None:
  """Patches that the positions are of, `(height, width)`: as stated, else those of an image."""
  stated = innermost(made.config.objective).get('grid')
  patch = getattr(getattr(made.objective, 'encoder', None), 'patch', None)
  images = made.batch_spec.get('views', made.batch_spec.get('image'))
  if stated or patch is None or images is None:
    return stated and tuple(stated)
  height, width = images.shape[-3:-1]
  return height // patch[0], width // patch[1]


def check_labels(source: Any, objective: Any) -> None:
  """Raises ValueError where a source has more classes than an objective has outputs for."""
  classes = len(getattr(source, 'classes', ()))
  outputs = getattr(objective, 'num_classes', classes)
  if classes > outputs:
    raise ValueError(
      f'the source has {classes} classes and objective.num_classes is {outputs}; '
      f'set it to at least {classes}'
    )


def open_checkpoints(workdir: str | Path, config: ml_collections.ConfigDict) -> Checkpoints:
  """The checkpoints of `workdir`, kept as `config.checkpoint` says."""
  fields = dict(config.get('checkpoint') or {})
  fields.pop('every', None)
  plain = config_lib.plain(config)
  return build({'type': 'checkpoint.Checkpoints', **fields}, workdir=workdir, config=plain)


def build_periodic(made: Experiment, field: str) -> Periodic:
  """Evaluators or hooks by name, each with its period in steps; None runs at the end only.

  Args:
    made: the run.
    field: of the config, 'evals' or 'hooks'.
  """
  built = {}
  for name, spec in (made.config.get(field) or {}).items():
    spec = spec.to_dict()
    every = made.steps(spec.pop('every', None), f'{field}.{name}.every')
    built[name] = build(spec, objective=made.objective, mesh=made.mesh), every
  return built


def build_evals(made: Experiment) -> Periodic:
  """The evaluators by name. Their pictures go to their attribute `writer`, None until it is set.

  Where parameters are averaged, `<name>_ema` stands beside each that reads the state (one that does
  not has an attribute `reads_state` that is False).

  Raises:
    ValueError: `checkpoint.best` is a metric of none of those that run in training, or a name is
      that of another's average.
  """
  evals: Periodic = {}
  given = build_periodic(made, 'evals')
  for name, (evaluator, every) in given.items():
    evals[name] = evaluator, every
    if made.average and getattr(evaluator, 'reads_state', True):
      if name + SUFFIX in given:
        raise ValueError(
          f'evals.{name + SUFFIX} has the name of what evals.{name} gives of the averaged'
          ' parameters; choose another'
        )
      evals[name + SUFFIX] = AveragedEvaluator(evaluator), every
  best = (made.config.get('checkpoint') or {}).get('best')
  often = [name for name, (_, every) in evals.items() if every]
  if best and best.split('/')[0] not in often:
    raise ValueError(
      f'checkpoint.best is {best!r}, of no evaluator that has `every`; choose a metric of '
      + (', '.join(map(repr, often)) or 'such a one, or None')
    )
  return evals


def run_evals(evals: Periodic, state: TrainState, step: int | None = None) -> dict[str, float]:
  """Runs the evaluators that are due at `step`; all of them, and for the last time, at None."""
  results = {}
  for name, (evaluator, every) in evals.items():
    if step is None or (every and step % every == 0):
      values = evaluator.run(state, final=step is None)
      results.update({f'{name}/{key}': value for key, value in values.items()})
  return results


def evaluate(
  workdir: str | Path, step: str | int = 'last', overrides: Sequence[str] = ()
) -> dict[str, float]:
  """Runs the evaluators of a run on one of its checkpoints.

  Args:
    workdir: the run's folder.
    step: a step, 'last' or 'best'.
    overrides: flags as on the command line, such as '--config.mesh.data=1' on another machine.

  Returns:
    `<eval name>/<metric>` to value, as at the end of training; `<eval name>_ema/<metric>` is that
    of the averaged parameters.

  Raises:
    FileNotFoundError: no run, or no such checkpoint.
    ValueError: a step that is none, or a wrong override.
  """
  config = config_lib.override(workdirs.saved_config(workdir), overrides)
  made = setup(config)
  with jax.set_mesh(made.mesh), open_checkpoints(workdir, config) as checkpoints:
    _, like = prepare_state(made)
    state = checkpoints.restore(like, checkpoints.find(step))
    return run_evals(build_evals(made), state)
