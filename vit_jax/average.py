"""An exponential moving average of the parameters, and its evaluation beside them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from vit_jax.arrays import Array
from vit_jax.state import TrainState

SUFFIX = '_ema'  # `validation_ema/accuracy` is that of the average.


class Average(NamedTuple):
  """How parameters are averaged.

  Attributes:
    decay: the share of the average that a step keeps, below 1: 0.9999 remembers 10,000 steps.
    warmup: whether it is at most (1 + step) / (10 + step), from step 0 on, so that the first
      parameters are soon forgotten.
  """

  decay: float
  warmup: bool = False

  def update(self, ema: Any, params: Any, step: Array) -> Any:
    """The average after a step: `decay * ema + (1 - decay) * params`.

    Args:
      ema: the average before.
      params: the parameters after the step.
      step: steps taken before it.
    """
    new = 1 - self.decay  # The share of the new parameters; exact while it is a Python number.
    if self.warmup:
      new = jnp.maximum(new, 9 / (10 + step))  # 1 - (1 + step) / (10 + step)
    return optax.incremental_update(params, ema, new)


def build_average(fields: Mapping[str, Any] | None) -> Average | None:
  """What `config.ema` says; None where it or its decay is None or absent."""
  given = {name: value for name, value in dict(fields or {}).items() if value is not None}
  return Average(**given) if 'decay' in given else None


class AveragedEvaluator:
  """An evaluator of the average; shares what `evaluator` has read and compiled.

  The other collections, such as batch statistics, are those of the parameters.

  Attributes:
    writer: where its pictures go.
  """

  def __init__(self, evaluator: Any):
    """Takes the evaluator of the parameters."""
    self.evaluator, self.writer = evaluator, None

  def run(self, state: TrainState, *, final: bool = False) -> dict[str, float]:
    """As the evaluator's own, of `state.ema` in place of `state.params`."""
    writer = getattr(self.evaluator, 'writer', None)
    self.evaluator.writer = self.writer
    try:
      return self.evaluator.run(state.replace(params=state.ema), final=final)
    finally:
      self.evaluator.writer = writer
