"""All that preflight finds out about a config on a topology, as plain data."""

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections

from vit_jax import experiment, sharding
from vit_jax.build import build
from vit_jax.data.stand_in import StandIn
from vit_jax.experiment import Experiment
from vit_jax.preflight import advice, chips, compiling, flops, hlo, memory, topologies
from vit_jax.preflight.chips import Chip
from vit_jax.preflight.compiling import Outcome
from vit_jax.reasons import reason

FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


def verdict(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  limit: int | None = None,
  image: tuple[int, int, int] | None = None,
  largest_batch: bool = False,
  compare: bool = False,
  advise: bool = True,
  progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """Compiles the step of `config` for `topology`, and says what it needs and whether it fits.

  Args:
    config: the recipe.
    topology: a name of `topologies.devices`.
    limit: bytes of a device to judge by; None is what the device has.
    image: height, width and channels of the images of a source that cannot be opened; None is a
      photograph as JPEG.
    largest_batch: whether to look for the largest batch that fits where the config's own does.
    compare: whether to compile `advice.choices` too where it does.
    advise: whether to do both where it does not.
    progress: told what is being compiled.

  Returns:
    What JSON can hold; bytes, FLOPs and seconds. `summary.text` writes it for people.

  Raises:
    ValueError: an unknown topology, or something in the config that cannot be.
    ImportError: a TPU slice without `libtpu`, or GPUs that are not there without JAX's plugin.
  """
  devices = topologies.devices(topology)
  source, missing = open_source(config, image)
  made = experiment.setup(config, devices=devices, source=source)
  chip = chips.chip_of(devices[0].device_kind)
  like, batch = compiling.inputs(made)
  with jax.set_mesh(made.mesh):
    layers = flops.by_layer(made.objective, like, batch, made.optimizer.frozen)
  progress(f'compiling the step of {config.batch_size:,} examples for {len(devices)} devices ...')
  outcome = compiling.compile_step(made, limit)

  def measure(changed: ml_collections.ConfigDict) -> Outcome:
    return compiling.compile_step(experiment.setup(changed, devices=devices, source=source), limit)

  found = {
    **_facts(made, topology, missing),
    'bytes': {**memory.of_state(like), 'batch': sharding.bytes_per_device(batch)},
    'flops': {
      'forward': flops.total(layers).forward,
      'step': flops.total(layers).step,
      'layers': {path: list(layer) for path, layer in layers.items()},
    },
    **_numbers(outcome, chip, flops.total(layers).step, len(devices)),
  }
  bad = outcome.fits is False
  if outcome.limit is not None and ((bad and advise) or largest_batch):
    fixed = sum(found['bytes'].values()) - found['bytes']['batch']
    step = advice.batch_step(config, made.mesh)
    largest = advice.largest_batch(config, measure, outcome, step, fixed, progress)
    found['largest_batch'] = largest._asdict()
  if (bad and advise) or compare:
    numbers = functools.partial(
      _numbers, chip=chip, model_flops=flops.total(layers).step, devices=len(devices)
    )
    found['choices'] = list(_choices(config, measure, numbers, progress))
  return found


def open_source(
  config: ml_collections.ConfigDict, image: tuple[int, int, int] | None = None
) -> tuple[Any, str]:
  """The config's source, or one that stands in for it, and then why; see `StandIn`."""
  try:
    return build(config.data.source), ''
  except OSError as e:
    host = config.data.host
    text = 'tokenize' in host or 'caption' in host
    return StandIn(config.objective.get('num_classes') or 0, text, image), reason(e).partition(';')[
      0
    ]


def _facts(made: Experiment, topology: str, missing: str) -> dict[str, Any]:
  config, device = made.config, made.mesh.devices.flat[0]
  return {
    'topology': topology,
    'devices': made.mesh.size,
    'device': device.device_kind,
    'objective': config.objective.type,
    'batch_size': config.batch_size,
    'batch': {name: list(x.shape) for name, x in made.batch_spec.items()},
    'accumulate': made.accumulate,
    'mesh': dict(made.mesh.shape),
    'sharding': made.sharding,
    'missing_data': missing,
    'examples': len(made.source),
    'steps': made.total_steps,
    'jax': jax.__version__,
    'flags': {name: os.environ[name] for name in FLAGS if os.environ.get(name)},
  }


def _numbers(outcome: Outcome, chip: Chip | None, model_flops: int, devices: int) -> dict[str, Any]:
  """What a compiled step has shown, and what follows from it."""
  numbers = {
    'fits': outcome.fits,
    'needed': outcome.needed,
    'limit': outcome.limit,
    'compile_seconds': round(outcome.seconds, 1),
  }
  if outcome.memory is None:
    return numbers
  numbers |= {
    'memory': outcome.memory._asdict(),
    'xla_flops': outcome.flops,
    'cycles': outcome.cycles,
    'custom_calls': outcome.custom_calls,
    'loops_counted_once': outcome.endless,
    'collectives': _summed(outcome.collectives),
  }
  if chip is None:
    return numbers
  ideal, state = compiling.least_seconds(outcome, chip, model_flops / devices)
  numbers['at_least'] = {'flops_seconds': ideal, 'state_seconds': state}
  seconds = compiling.predicted_seconds(outcome, chip)
  if seconds:
    compute, links = seconds
    numbers['uncalibrated'] = {
      'compute_seconds': compute,
      'links_seconds': links,
      'mfu': ideal / compute,
      'mfu_without_overlap': ideal / (compute + links),
    }
  return numbers


def _summed(found: Iterable[hlo.Collective]) -> list[dict[str, Any]]:
  """Collectives by kind and number of devices: how many a step, and their bytes in a step."""
  rows: dict[tuple[str, int], dict[str, Any]] = {}
  for one in found:
    row = rows.setdefault((one.kind, one.group), {'count': 0, 'bytes': 0, 'sent': 0})
    row['count'] += one.count
    row['bytes'] += one.count * one.bytes
    row['sent'] += round(one.sent)
  return [{'kind': kind, 'group': group, **row} for (kind, group), row in sorted(rows.items())]


def _choices(
  config: ml_collections.ConfigDict,
  measure: advice.Measure,
  numbers: Callable[[Outcome], dict[str, Any]],
  progress: Callable[[str], None],
) -> Iterable[dict[str, Any]]:
  """What each of `advice.choices` needs, or why it cannot be."""
  for choice in advice.choices(config):
    progress(f'compiling with {choice.label} ...')
    try:
      outcome = measure(choice.config)
    except ValueError as e:
      yield {'choice': choice.label, 'impossible': str(e)}
      continue
    yield {'choice': choice.label, **numbers(outcome)}
