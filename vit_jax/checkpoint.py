"""Checkpoints: Orbax, asynchronous; the best and the last stay; a wrong one is one sentence."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from vit_jax import rules
from vit_jax.choices import check_choice
from vit_jax.distributed import is_loss
from vit_jax.reasons import reason
from vit_jax.state import TrainState

# Orbax writes pages to the log about a failure that `Checkpoints` raises as one sentence.
logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)


class Checkpoints:
  """The checkpoints of one workdir. A checkpoint is whole or it is not there."""

  def __init__(
    self,
    workdir: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    keep_last: int = 2,
    keep_best: int = 1,
    best: str | None = None,
    mode: str = 'max',
  ):
    """Opens `workdir/checkpoints`, and makes it with the first save.

    Args:
      workdir: a local folder or `gs://...`.
      config: what made the run, as JSON has it; saved with every state.
      keep_last: how many of the newest to keep, at least 1.
      keep_best: how many of the best to keep.
      best: the metric that decides, such as 'validation/accuracy'; None keeps the last only.
      mode: 'max' or 'min'.

    Raises:
      ValueError: a mode that is neither, or nothing to keep.
    """
    check_choice('checkpoint mode', mode, ('max', 'min'))
    if keep_last < 1 or keep_best < 0:
      raise ValueError(
        f'checkpoint keeps the last {keep_last} and the best {keep_best}; '
        'it must keep at least 1 of the last, and 0 or more of the best'
      )
    self.folder = epath.Path(workdir).absolute() / 'checkpoints'
    self._config = dict(config or {})
    self._best, self._worst = best, -math.inf if mode == 'max' else math.inf
    keep = [policies.LatestN(keep_last)]
    if best:
      # `max_to_keep` with `best_fn` alone would delete the newest.
      keep.append(
        policies.BestN(
          get_metric_fn=lambda m: m['best'],
          reverse=mode == 'min',
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    options = ocp.CheckpointManagerOptions(
      create=False,
      best_fn=(lambda m: m['best']) if best else None,
      best_mode=mode,
      preservation_policy=policies.AnyPreservationPolicy(keep),
    )
    # Named, so that a checkpoint of an earlier process can be looked into before it is restored.
    handlers = {
      'state': ocp.StandardCheckpointHandler(),
      'config': ocp.JsonCheckpointHandler(),
    }
    try:
      self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)
    except Exception as e:
      # It reads the metrics of all checkpoints.
      broken = next(filter(_is_broken, sorted(self.folder.glob('*/metrics/metrics'))), None)
      where = broken.parent.parent if broken else self.folder
      raise ValueError(
        f'checkpoint {where} cannot be read ({_reason(e)}); '
        'remove that folder to go on from another'
      ) from e

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
    # A save under way waits for all processes, and would for one that is gone.
    if not is_loss(error):
      self._manager.close()

  @property
  def latest(self) -> int | None:
    """The newest step that was saved whole."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """Every step at hand, in order."""
    return sorted(self._manager.all_steps())

  def find(self, step: str | int) -> int | None:
    """The number of a step given as a number, 'last' or 'best'; None where nothing was saved.

    Raises:
      ValueError: none of these.
    """
    if step == 'best':
      return self._manager.best_step() if self._best else self.latest
    if step == 'last':
      return self.latest
    if not str(step).isdigit():
      raise ValueError(f"unknown step {step!r}; choose from 'last', 'best', {self.steps}")
    return int(step)

  def save(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
    """Starts to save; returns when the state may be changed again.

    Args:
      step: its number.
      state: global arrays.
      metrics: what the evaluators said of this very state; empty where none ran.

    Raises:
      ValueError: evaluators ran and the metric that decides the best is not among theirs.
      OSError: this save or the one before it failed, such as on a full disk.
    """
    if self.latest is not None and step <= self.latest:
      return
    extra = {}
    if self._best:
      extra['metrics'] = {'best': float(metrics.get(self._best, self._worst))}
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      args = ocp.args.Composite(
        state=ocp.args.StandardSave(_nested(state)), config=ocp.args.JsonSave(self._config)
      )
      self._manager.save(step, args=args, **extra)
    except Exception as e:
      if is_loss(e):
        raise
      raise self._failure(e) from e
    if self._best and metrics and self._best not in metrics:
      self.wait()  # Saved first: what was computed is not lost.
      raise ValueError(
        f'checkpoint.best is {self._best!r}, which no evaluator gives; choose from '
        + ', '.join(map(repr, sorted(metrics)))
      )

  def wait(self) -> None:
    """Returns when all that was saved is on disk.

    Raises:
      OSError: a save failed.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      if is_loss(e):
        raise
      raise self._failure(e) from e

  def restore(self, like: TrainState, step: int | None = None) -> TrainState:
    """Reads a state into the shards that `like` names.

    Args:
      like: shapes, dtypes and shardings (`jax.ShapeDtypeStruct`).
      step: which; the newest by default.

    Raises:
      FileNotFoundError: there is none, or not this one.
      ValueError: its arrays are not those of `like`, or it cannot be read.
    """
    step = self.latest if step is None else step
    if step not in self.steps:
      if not self.steps:
        raise FileNotFoundError(f'{self.folder} has no checkpoints yet')
      have = ', '.join(map(str, self.steps))
      raise FileNotFoundError(f'{self.folder} has no checkpoint of step {step}; it has {have}')
    file = self.folder / str(step)
    others = [s for s in self.steps if s != step]
    way_out = (
      f'remove that folder to go on from step {others[-1]}'
      if others
      else 'remove it or choose another workdir to begin anew'
    )
    try:
      saved = self._manager.item_metadata(step)['state']
      found = {} if saved is None else named(saved.tree)
    except Exception as e:
      raise ValueError(f'checkpoint {file} cannot be read ({_reason(e)}); {way_out}') from e
    wanted = named(like)
    # Orbax casts and, for some shapes, pads silently: compare before restoring.
    for problem in _mismatches(found, wanted):
      raise ValueError(f'checkpoint {file} is not of this model: {problem}; {way_out}')
    try:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(_nested(like)))
      restored = named(self._manager.restore(step, args=args).state)
    except Exception as e:
      raise ValueError(f'checkpoint {file} cannot be read ({_reason(e)}); {way_out}') from e
    return jax.tree.unflatten(jax.tree.structure(like), [restored[name] for name in wanted])

  def _failure(self, error: Exception) -> OSError:
    good = f'the last good one is step {self.latest}' if self.steps else 'none was saved before'
    return OSError(f'cannot save a checkpoint in {self.folder} ({_reason(error)}); {good}')


def find_state(
  workdir: str | Path, step: str | int, kept: Mapping[str, Any] | None
) -> tuple[int, epath.Path]:
  """The number and the folder of a run's state, to be read without its classes.

  Args:
    workdir: the run's folder.
    step: a number, 'last' or 'best'.
    kept: `config.checkpoint` of the run, which says what is best.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ValueError: a step that is none of these.
  """
  kept = kept or {}
  with Checkpoints(workdir, best=kept.get('best'), mode=kept.get('mode') or 'max') as checkpoints:
    number = checkpoints.find(step)
    if number not in checkpoints.steps:
      have = ', '.join(map(str, checkpoints.steps)) or 'none'
      raise FileNotFoundError(f'{workdir} has no checkpoint of step {step!r}; it has {have}')
    return number, checkpoints.folder / str(number) / 'state'


def _is_broken(file: epath.Path) -> bool:
  try:
    json.loads(file.read_text())
  except ValueError:
    return True
  return False


def named(tree: Any) -> dict[str, Any]:
  """Leaves by name: 'params/encoder/cls'."""
  return {rules.name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _nested(state: Any) -> dict[str, Any]:
  # Plain dicts: a checkpoint can be read without the classes of this code or of optax.
  return traverse_util.unflatten_dict(named(state), sep='/')


def _mismatches(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  rows = []
  missing = [n for n in wanted if n not in found]
  unused = [n for n in found if n not in wanted]
  if missing:
    rows.append(f'it lacks {len(missing)} of {len(wanted)} arrays, first {missing[0]!r}')
  if unused:
    rows.append(f'it has {len(unused)} arrays that this run has not, first {unused[0]!r}')
  for name in wanted:
    if name in found:
      a, b = ((tuple(x.shape), str(x.dtype)) for x in (found[name], wanted[name]))
      if a != b:
        rows.append(f'{name!r} is {a[1]}{list(a[0])} there and {b[1]}{list(b[0])} here')
  return rows


def _reason(error: Exception) -> str:
  """What went wrong, in a few words: Orbax and TensorStore write a page."""
  if 'No space left on device' in str(error):
    return 'no space left on device'
  return reason(error)


def read_json(file: str | Path) -> Any:
  """Reads a JSON file of a workdir; None where there is none.

  Raises:
    ValueError: it is not JSON.
  """
  file = epath.Path(file)
  if not file.exists():
    return None
  try:
    return json.loads(file.read_text())
  except ValueError as e:
    raise ValueError(f'{file} is not readable JSON ({e})') from None


def write_json(file: str | Path, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  file = epath.Path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.parent / f'{file.name}.partial'
  partial.write_text(json.dumps(value, indent=2) + '\n')
  partial.replace(file)
