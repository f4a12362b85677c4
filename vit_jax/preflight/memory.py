"""Bytes on each device: of what is known before compiling, and of all that XLA lays out."""

from typing import NamedTuple

import jax

from vit_jax.sharding import bytes_per_device
from vit_jax.state import TrainState


class Memory(NamedTuple):
  """What a compiled step holds on each device, in bytes, as XLA lays it out.

  Attributes:
    arguments: the state and the batch.
    outputs: the new state and the metrics.
    aliased: of the outputs, what takes the place of arguments: the donated state.
    temporaries: activations, gradients and whatever else lives within a step.
    code: the program.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    """All of it at once."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def of_compiled(compiled: jax.stages.Compiled) -> Memory:
  """What a compiled program holds on each device."""
  stats = compiled.memory_analysis()
  return Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )


def of_state(like: TrainState) -> dict[str, int]:
  """Bytes of each part of a state on one device: a sum over its arrays, without any padding.

  Args:
    like: arrays, or shapes with shardings.
  """
  return {
    'parameters': bytes_per_device(like.params),
    'optimizer': bytes_per_device(like.opt_state),
    'average': bytes_per_device(like.ema),
    'model state': bytes_per_device(like.model_state),
    'step and key': bytes_per_device((like.step, like.rng)),
  }
