"""The step of a config, compiled for devices that need not be there."""

import dataclasses
import re
import time

import jax

from vit_jax import experiment, sharding, train
from vit_jax.arrays import Batch
from vit_jax.experiment import Experiment
from vit_jax.preflight import hlo, memory
from vit_jax.preflight.chips import Chip, memory_limit
from vit_jax.preflight.memory import Memory
from vit_jax.state import TrainState

# What XLA says of a program that a TPU's memory does not hold: before and after it has laid it out.
_SIZE = r'([\d.]+)([KMGT]?)'
_TOO_LARGE = (
  re.compile(rf'Used {_SIZE} of {_SIZE} hbm'),
  re.compile(rf'memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)'),
)
_POWERS = {'': 0, 'K': 1, 'M': 2, 'G': 3, 'T': 4}


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What compiling a step has shown, for each device.

  Attributes:
    seconds: that compiling took.
    fits: whether it fits in the device's memory; None where that is not known.
    needed: bytes; None where XLA does not say.
    limit: bytes that the device has for a program; None where it is not known.
    memory: what is needed for what; None of a program that a TPU does not hold.
    collectives: by kind and number of devices.
    cycles: XLA's estimate of compute; 0 where it makes none.
    custom_calls: how often a step runs each kernel that `cycles` leaves out, by name.
    endless: loops of unknown length, whose bodies count once.
    flops: XLA's count, a loop's body once.
  """

  seconds: float
  fits: bool | None
  needed: int | None
  limit: int | None
  memory: Memory | None = None
  collectives: tuple[hlo.Collective, ...] = ()
  cycles: int = 0
  custom_calls: dict[str, int] = dataclasses.field(default_factory=dict)
  endless: int = 0
  flops: float | None = None


def inputs(made: Experiment) -> tuple[TrainState, Batch]:
  """Shapes with shardings of a step's state and batch."""
  placed = sharding.batch_sharding(made.mesh)
  with jax.set_mesh(made.mesh):
    _, like = experiment.prepare_state(made)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    for name, x in made.batch_spec.items()
  }
  return like, batch


def compile_step(made: Experiment, limit: int | None = None) -> Outcome:
  """Compiles the step that training would run, and reads what came of it.

  Args:
    made: the run, on the devices to compile for.
    limit: bytes of a device to judge by; None is what the device has.
  """
  like, batch = inputs(made)
  device = made.mesh.devices.flat[0]
  begun = time.perf_counter()
  with jax.set_mesh(made.mesh):
    lowered = train.jit_step(made, like).lower(like, batch)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      needed, has = too_large(str(e))
      return Outcome(time.perf_counter() - begun, False, needed, limit or has)
  seconds = time.perf_counter() - begun
  held = memory.of_compiled(compiled)
  program = hlo.Program(compiled.as_text())
  return Outcome(
    seconds=seconds,
    fits=_fits(device, held.total, limit),
    needed=held.total,
    limit=limit or memory_limit(device),
    memory=held,
    collectives=tuple(program.collectives()),
    cycles=program.cycles(),
    custom_calls=program.custom_calls(),
    endless=program.endless,
    flops=(compiled.cost_analysis() or {}).get('flops'),
  )


def _fits(device: jax.Device, needed: int, limit: int | None) -> bool | None:
  """Whether a program that could be compiled fits; None where the device's memory is not known."""
  if limit is None and device.platform == 'tpu':
    return True  # XLA would have refused.
  limit = limit or memory_limit(device)
  return None if limit is None else needed <= limit


def too_large(message: str) -> tuple[int | None, int | None]:
  """Bytes that a program needs, and bytes there are, by XLA's error; None where it does not say."""
  found = next(filter(None, (pattern.search(message) for pattern in _TOO_LARGE)), None)
  if not found:
    return None, None
  used, used_unit, has, has_unit = found.groups()
  return (
    round(float(used) * 1024 ** _POWERS[used_unit]),
    round(float(has) * 1024 ** _POWERS[has_unit]),
  )


def least_seconds(outcome: Outcome, chip: Chip, model_flops: float) -> tuple[float, float]:
  """What no step takes less than: its model FLOPs at the peak, its arguments read and written once.

  Args:
    outcome: the compiled step.
    chip: each device.
    model_flops: of one device.
  """
  return model_flops / chip.flops, 2 * outcome.memory.arguments / chip.bandwidth


def predicted_seconds(outcome: Outcome, chip: Chip | None) -> tuple[float, float] | None:
  """Seconds of compute by XLA's cycles, and those that the links take at best; None without cycles.

  Neither is calibrated: no kernel, no waiting, no overlap is in them.
  """
  if not outcome.cycles or chip is None or chip.clock is None:
    return None
  sent = sum(collective.sent for collective in outcome.collectives)
  return outcome.cycles / chip.clock, sent / chip.links
