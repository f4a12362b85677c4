"""The training loop. It knows no method by name: a method is an objective and a config."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from vit_jax import config as config_lib
from vit_jax import distributed, experiment, microbatches, rules, sharding, workdirs
from vit_jax.arrays import Array, Batch
from vit_jax.average import Average
from vit_jax.checkpoint import Checkpoints
from vit_jax.data import pipeline
from vit_jax.experiment import Experiment
from vit_jax.interrupt import Interrupt
from vit_jax.metrics import Writer
from vit_jax.profile import Profile
from vit_jax.state import TrainState, streams

# How many steps the host may run ahead of the device.
MAX_IN_FLIGHT = 2


def make_train_step(
  objective: nn.Module,
  tx: optax.GradientTransformation,
  accumulate: int = 1,
  average: Average | None = None,
  frozen: Collection[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """Makes the step `(state, batch) -> (state, metrics)`, the same for every method; not yet jitted.

  The metrics are scalars over the global batch: the loss, the norm of its gradient by what is
  trained, and what the objective reports, averaged.

  Args:
    objective: the method.
    tx: the optimizer.
    accumulate: micro-batches that a batch is split into; `microbatches.check` says where it may be.
    average: of the parameters, kept in `state.ema`; None for none.
    frozen: names of parameters that `tx` leaves as they are: constants of the loss, whose gradients
      are zero and cost nothing.
  """

  def freeze(path: Any, leaf: Array) -> Array:
    return jax.lax.stop_gradient(leaf) if rules.name(path) in frozen else leaf

  def gradient(
    params: Any, model_state: Any, batch: Batch, rng: Array
  ) -> tuple[Any, dict[str, Array], Any]:
    def loss_fn(params: Any) -> tuple[Array, Any]:
      (loss, metrics), new = objective.apply(
        {'params': jax.tree.map_with_path(freeze, params), **model_state},
        batch,
        train=True,
        rngs=streams(rng),
        mutable=list(model_state),
      )
      return loss, (metrics, new)

    (loss, (metrics, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    metrics = {name: jnp.mean(value) for name, value in metrics.items()}
    return grads, {**metrics, 'loss': loss}, new

  gradient = microbatches.accumulate(gradient, accumulate)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    rng = jax.random.fold_in(state.rng, state.step)
    grads, metrics, model_state = gradient(state.params, state.model_state, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      ema=average.update(state.ema, params, state.step) if average else state.ema,
    )
    return state, {**metrics, 'grad_norm': optax.tree.norm(grads)}

  return step


def jit_step(made: Experiment, like: TrainState) -> Any:
  """The step of a run as the loop calls it: jitted, donating its state, which stays as it lies.

  Args:
    made: the run.
    like: shapes and shardings of the state.
  """
  optimizer = made.optimizer
  step = make_train_step(
    made.objective, optimizer.tx, made.accumulate, made.average, optimizer.frozen
  )
  placed = jax.tree.map(lambda leaf: leaf.sharding, like)
  return jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding.replicated(made.mesh)))


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | Path) -> TrainState:
  """Trains what `config` describes; goes on exactly where the run in `workdir` stopped.

  SIGTERM and an interrupt (Ctrl-C, a notebook's stop button) end the step at work, save and return.
  A run leaves `config.json`, `parameters.json`, `run.json`, `metrics.jsonl`, `checkpoints/`,
  `pictures/`, TensorBoard events and `report.html`.

  Args:
    config: the recipe (`config.FIELDS` says what it holds).
    workdir: the run's folder.

  Returns:
    The state: `int(state.step)` is less than the total where the run was interrupted.

  Raises:
    ValueError: something in the config cannot be, or `workdir` holds another config's run.
    FloatingPointError: the loss or its gradient is not finite; names the step.
    OSError: a checkpoint cannot be written.
  """
  begun = time.monotonic()
  workdirs.check(workdir, config)
  made = experiment.setup(config)
  save_every = made.steps((config.get('checkpoint') or {}).get('every'), 'checkpoint.every')
  with jax.set_mesh(made.mesh), experiment.open_checkpoints(workdir, config) as checkpoints:
    _check_alike(config, workdir, checkpoints)
    make, like = experiment.prepare_state(made)
    start = checkpoints.latest or 0
    window = (config.get('profile') or {}).get('steps')
    profile = Profile(window, workdir, start=start, total=made.total_steps)
    loop = Loop(made, like, checkpoints, save_every, profile)
    jax.eval_shape(loop.train_step, like, made.batch_spec)  # Mistakes that only training meets.
    state, origin = experiment.first_state(made, make, like, checkpoints)
    # Only now: a run that cannot start leaves no trace.
    workdirs.start(workdir, made)
    distributed.check_shared(Path(workdir) / 'run.json')
    with Writer(
      workdir,
      total_steps=made.total_steps,
      start_step=start,
      batch_size=config.batch_size,
      primary=jax.process_index() == 0,
    ) as writer:
      loop.attach(writer)
      stopped_by = ''
      if start >= made.total_steps:
        writer.message(f'This run is finished: {start} of {made.total_steps} steps are done.')
        loop.evaluate_late(state, start, workdirs.results(workdir))
      else:
        writer.message(workdirs.opening(made, start, like) + origin)
        if checkpoints.latest is None:
          state = loop.prepare(state)
        state, stopped_by = loop.run(state, start)
      seconds = 0.0 if start >= made.total_steps else time.monotonic() - begun
      workdirs.add_seconds(workdir, seconds)
      if stopped_by:
        writer.message(
          f'Stopped by {stopped_by} after step {int(state.step)} of {made.total_steps}, and saved; '
          'the same command goes on from there.'
        )
      else:
        workdirs.finish(workdir, writer)
      return state


def _check_alike(
  config: ml_collections.ConfigDict, workdir: str | Path, checkpoints: Checkpoints
) -> None:
  """Raises ValueError where processes would not train the same, or not from the same step."""
  for process in distributed.differing(config_lib.to_json(config)):
    raise ValueError(
      f'process {process} has another config than process 0; start all with the same command'
    )
  for process in distributed.differing(str(checkpoints.latest)):
    raise ValueError(
      f'process {process} sees other checkpoints in {workdir} than process 0; '
      'all processes need one folder that they share as workdir'
    )


class Loop:
  """Steps, and what happens between them: log, hooks, evaluation, checkpoints."""

  def __init__(
    self,
    made: Experiment,
    like: TrainState,
    checkpoints: Checkpoints,
    save_every: int | None,
    profile: Profile,
  ):
    """Builds the step, the evaluators and the hooks; touches no file.

    Args:
      made: the run.
      like: shapes and shardings of the state.
      checkpoints: where to save.
      save_every: steps between two checkpoints; None saves at the end only.
      profile: the steps to trace.
    """
    config = made.config
    self.made, self.checkpoints, self.save_every = made, checkpoints, save_every
    self.profile = profile
    self.log_every = made.steps((config.get('log') or {}).get('every'), 'log.every') or 50
    self.evals = experiment.build_evals(made)
    self.hooks = experiment.build_periodic(made, 'hooks')
    self.train_step = jit_step(made, like)
    self.unread: list[tuple[int, dict[str, Array]]] = []  # metrics still on the device
    self.window: list[dict[str, float]] = []  # metrics since the last log
    self.seconds = 0.0  # time in steps since the last log, without evaluation and saving
    self.stopped_by = ''  # what ends this run early, on every process

  def attach(self, writer: Writer) -> None:
    """Says where metrics and the evaluators' pictures go."""
    self.writer = writer
    for name, (evaluator, _) in self.evals.items():
      evaluator.writer = writer.under(name)

  def prepare(self, state: TrainState) -> TrainState:
    """A new run's state after every hook, as at step 0: what is needed from the first step on."""
    for name, (hook, _) in self.hooks.items():
      self.writer.message(f'hooks.{name} prepares the first step')
      state = hook(0, state)
    return state

  def run(self, state: TrainState, step: int) -> tuple[TrainState, str]:
    """Trains from `step` to the end, or until a signal; returns the state and the signal's name."""
    total = self.made.total_steps
    in_flight: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()
    with (
      Interrupt() as interrupt,
      self._open_data(step, total) as data,
      contextlib.closing(self.profile),
    ):
      while step < total:
        if interrupt.stops(step):
          self.stopped_by = interrupt.requested
          break
        begun = time.monotonic()
        with self.profile.around(step, state) as done:
          batch = self._next(data, interrupt)
          if batch is None:
            break
          done('waiting for data')
          done('transfer', batch)
          state, metrics = self.train_step(state, batch)
          done('device', metrics)
        step += 1
        self.unread.append((step, metrics))
        in_flight.append((step, metrics))
        if len(in_flight) > MAX_IN_FLIGHT:
          done, values = in_flight.popleft()
          values['loss'].block_until_ready()
          self.writer.progress(done, values)
        if step == total or step % self.log_every == 0:
          self._read()
          self.seconds += time.monotonic() - begun
          self._log(step, data)
        else:
          self.seconds += time.monotonic() - begun
        state = self._between_steps(state, step)
      if self.stopped_by:
        self._save(state, step, {})
      self.checkpoints.wait()
      self._report_bad(data)
    return state, self.stopped_by

  def _report_bad(self, data: pipeline.TrainPipeline) -> None:
    """Says how many examples did not decode, of those that all hosts have read."""
    count, drawn = (sum(distributed.gather(n)) for n in (data.bad.count, data.bad.drawn))
    if count:
      names = ', '.join(data.bad.names) or 'named by other processes'
      self.writer.message(f'{count} of {drawn} examples did not decode and were replaced: {names}')

  def _next(self, data: pipeline.TrainPipeline, interrupt: Interrupt) -> Batch | None:
    """The next batch; None where a signal to the whole process group took the workers too."""
    try:
      return next(data)
    except RuntimeError:
      if interrupt.requested and jax.process_count() == 1:
        self.stopped_by = interrupt.requested
        return None
      raise

  def _between_steps(self, state: TrainState, step: int) -> TrainState:
    last = step == self.made.total_steps
    if self.profile.text:
      self.writer.message(self.profile.text)
      self.profile.text = ''
    for hook, every in self.hooks.values():
      if every and step % every == 0 and not last:  # Hooks prepare the next step.
        self._read()  # What is not finite is named by its step, and not by what a hook meets.
        state = hook(step, state)
    # Evaluate before the state is donated to the next step.
    try:
      results = experiment.run_evals(self.evals, state, None if last else step)
    except Exception:
      # What went wrong in an evaluator must not cost the training; to save takes every process.
      if jax.process_count() == 1:
        self._save(state, step, {})
        self.checkpoints.wait()
      raise
    if results:
      self.writer.scalars(step, results)
    if results and not last:
      self.writer.message(workdirs.summary(step, results))
    if last or (self.save_every and step % self.save_every == 0):
      self._save(state, step, results)
    return state

  def evaluate_late(self, state: TrainState, step: int, known: Mapping[str, float]) -> None:
    """Runs what a finished run has no results of: evaluators that failed, or are new."""
    done = {name.split('/')[0] for name in known}
    late = {name: value for name, value in self.evals.items() if name not in done}
    if late:
      self.writer.scalars(step, experiment.run_evals(late, state))

  def _save(self, state: TrainState, step: int, results: Mapping[str, float]) -> None:
    self._read()  # A state that is not finite must never become the last good one.
    self.checkpoints.save(step, state, results)

  def _read(self) -> None:
    """Reads the metrics that are on the device; raises at the first that is not finite."""
    for step, row in jax.device_get(self.unread):
      for name in ('loss', 'grad_norm'):
        if not math.isfinite(row[name]):
          latest = self.checkpoints.latest
          good = 'none was saved' if latest is None else f'the last good one is step {latest}'
          raise FloatingPointError(f'{name} is {row[name]} at step {step}; of checkpoints, {good}')
      self.window.append({name: float(value) for name, value in row.items()})
    self.unread = []

  def _log(self, step: int, data: pipeline.TrainPipeline) -> None:
    rows, batch_size = self.window, self.made.config.batch_size
    values = {f'train/{name}': math.fsum(r[name] for r in rows) / len(rows) for name in rows[0]}
    values['train/learning_rate'] = float(self.made.optimizer.schedule(step - 1))
    values['train/images_per_second'] = len(rows) * batch_size / self.seconds
    values['train/data_wait'] = min(1.0, data.wait_seconds / self.seconds)
    self.writer.scalars(step, values)
    self.writer.progress(step, rows[-1])
    self.window, self.seconds, data.wait_seconds = [], 0.0, 0.0

  def _open_data(self, step: int, total: int) -> pipeline.TrainPipeline:
    config = self.made.config
    return pipeline.TrainPipeline(
      self.made.source,
      host=config.data.host,
      batch_size=config.batch_size,
      seed=config.seed,
      sharding=sharding.batch_sharding(self.made.mesh),
      start_step=step,
      stop_step=total,
      num_workers=config.data.get('num_workers') or 0,
      max_bad_share=config.data.get('max_bad_share', 0.01),
    )
