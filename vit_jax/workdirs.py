"""What a run leaves in its workdir, apart from metrics and checkpoints."""

import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np

from vit_jax import config as config_lib
from vit_jax import metrics, optim, report, rules, sharding, tables
from vit_jax.checkpoint import read_json, write_json

if TYPE_CHECKING:
  from vit_jax.experiment import Experiment
  from vit_jax.state import TrainState

MAX_CLASSES = 1000  # `run.json` is read by people too.
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def check(workdir: str | Path, config: ml_collections.ConfigDict) -> None:
  """Raises ValueError where `workdir` is no folder or holds another config's run (names why)."""
  if '://' in str(workdir):
    raise ValueError(f'workdir must be a local or mounted folder, not {str(workdir)!r}')
  saved = _read_config(workdir)
  if saved is None:
    if any((Path(workdir) / 'checkpoints').glob('*')):
      raise ValueError(
        f'{workdir} has checkpoints but no config.json, which says what they are of; '
        'choose another workdir'
      )
    return
  rows = config_lib.differences(saved, config)
  if rows:
    more = f' and {len(rows) - 3} more' if len(rows) > 3 else ''
    raise ValueError(
      f'{workdir} holds a run of another config ({"; ".join(rows[:3])}{more}); '
      'give that config again to go on with it, or choose another workdir'
    )


def saved_config(workdir: str | Path) -> ml_collections.ConfigDict:
  """The config that made a run.

  Raises:
    FileNotFoundError: `workdir` is no run's.
  """
  saved = _read_config(workdir)
  if saved is None:
    raise FileNotFoundError(f"{workdir} is no run's folder: it has no config.json")
  return ml_collections.ConfigDict(_tuples(saved))


def _read_config(workdir: str | Path) -> dict[str, Any] | None:
  file = Path(workdir) / 'config.json'
  saved = read_json(file)
  if file.exists() and not isinstance(saved, dict):
    raise ValueError(f'{file} holds no config; restore it, or choose another workdir')
  return saved


def start(workdir: str | Path, made: 'Experiment') -> None:
  """Writes `config.json`, `parameters.json` and `run.json`."""
  if jax.process_index():
    return
  workdir = Path(workdir)
  write_json(workdir / 'config.json', config_lib.plain(made.config))
  rows = [row._asdict() for row in made.optimizer.table]
  write_json(workdir / 'parameters.json', rows)
  before = read_json(workdir / 'run.json') or {}
  write_json(
    workdir / 'run.json',
    {
      'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
      'started': before.get('started') or time.strftime('%Y-%m-%d %H:%M:%S'),
      'seconds': before.get('seconds', 0),
      'parameters': sum(row['size'] for row in rows),
      'steps': made.total_steps,
      'examples': len(made.source),
      'batch': {name: list(x.shape) for name, x in made.batch_spec.items()},
      'classes': classes_of(made.source),
      'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'processes': jax.process_count(),
      'versions': {
        'python': platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
      },
    },
  )


def classes_of(source: Any) -> list[str]:
  """Names of a source's classes, to know answers by without the data; none of more than 1,000."""
  names = [str(name) for name in getattr(source, 'classes', ())]
  return names if len(names) <= MAX_CLASSES else []


def opening(made: 'Experiment', step: int, like: 'TrainState') -> str:
  """What is printed before the first step: the parameters, what is done to which, and where.

  Args:
    made: the run.
    step: after which it begins.
    like: shapes and shardings of its state.
  """
  config = made.config
  count = sum(int(np.prod(row.shape)) for row in made.optimizer.table)
  begin = f'resuming after step {step:,} of' if step else 'starting'
  parts = f' ({made.accumulate} micro-batches)' if made.accumulate > 1 else ''
  return (
    f'{_parameters(made, like)}\n'
    f'{config.objective.type}: {count:,} parameters; {len(made.source):,} examples in batches of '
    f'{config.batch_size}{parts} on {jax.device_count()} x {jax.devices()[0].device_kind}; '
    f'{begin} {made.total_steps:,} steps'
  )


def _parameters(made: 'Experiment', like: 'TrainState') -> str:
  """The table of the parameters; of several devices, with what one of them holds of the state."""
  if made.mesh.size == 1:
    return optim.describe(made.optimizer.table)
  params = {rules.name(path): leaf for path, leaf in jax.tree.leaves_with_path(like.params)}
  parts = {
    'parameters': like.params,
    'optimizer': like.opt_state,
    'ema': like.ema,
    'model state': like.model_state,
  }
  sizes = {name: sharding.bytes_per_device(part) for name, part in parts.items()}
  held = ', '.join(f'{name} {tables.memory(size)}' for name, size in sizes.items() if size)
  axes = ', '.join(f'{axis}={size}' for axis, size in made.mesh.shape.items())
  return (
    f'{optim.describe(made.optimizer.table, params)}\n'
    f'a device holds {tables.memory(sum(sizes.values()))}: {held}; {made.sharding!r} on {axes}'
  )


def summary(step: int, results: Mapping[str, float]) -> str:
  """One line an evaluator, as it goes: `step 500  validation: google/accuracy 0.512  ...`."""
  evals: dict[str, list[str]] = {}
  for name, value in results.items():
    head, _, rest = name.partition('/')
    evals.setdefault(head, []).append(f'{rest} {tables.number(value)}')
  return '\n'.join(f'step {step:,}  {head}: ' + '  '.join(row) for head, row in evals.items())


def results(workdir: str | Path) -> dict[str, float]:
  """The metrics of a run's last step; empty where it has none."""
  if not (Path(workdir) / metrics.FILE).exists():
    return {}
  rows = metrics.read(workdir)
  return {k: v for k, v in rows[-1].items() if k != 'step'} if rows else {}


def add_seconds(workdir: str | Path, seconds: float) -> None:
  """Adds to the time that a run has taken, in `run.json`."""
  if jax.process_index():
    return
  file = Path(workdir) / 'run.json'
  about = read_json(file)
  write_json(file, {**about, 'seconds': round(about['seconds'] + seconds, 1)})


def finish(workdir: str | Path, writer: metrics.Writer) -> None:
  """Writes the report of a finished run, and prints its last evaluation and where the report is."""
  if jax.process_index():
    return
  table = metrics.final_table(results(workdir))
  writer.message(f'{table}\n\nReport: {report.write_report(workdir)}')


def _tuples(value: Any) -> Any:
  """Lists back to tuples, as configs have them."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(v) for v in value)
  return value
