"""A number of anything is `dict(steps=...)`, `dict(epochs=...)` or `dict(examples=...)`.

They are those of training: a step takes `batch_size` examples, an epoch is `num_examples` of them.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

UNITS = ('steps', 'epochs', 'examples')


def unit(amount: Mapping[str, Any], name: str = '') -> tuple[str, float]:
  """The one unit that `amount` is given in, and its value: `('epochs', 0.5)`.

  Args:
    amount: a mapping or ConfigDict with names of `UNITS`, all but one of them None.
    name: the field that holds it, for messages.

  Raises:
    ValueError: another shape, no value or several, an unknown unit, or a value that is no count.
  """
  form = (
    f'{name or "an amount"} must be one of dict(steps=...), dict(epochs=...), dict(examples=...)'
  )
  try:
    given = dict(amount)
  except (TypeError, ValueError):
    raise ValueError(f'{form}, got {amount!r}') from None
  unknown = [key for key in given if key not in UNITS]
  if unknown:
    raise ValueError(f'{form}; unknown unit {unknown[0]!r}')
  given = {key: value for key, value in given.items() if value is not None}
  if len(given) != 1:
    raise ValueError(f'{form}, got {given}')
  ((key, value),) = given.items()
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
    raise ValueError(
      f'{key} of {name or "an amount"} must be a number of at least 0, got {value!r}'
    )
  if key != 'epochs' and value != int(value):
    raise ValueError(f'{key} of {name or "an amount"} must be a whole number, got {value!r}')
  return key, value


def steps(amount: Mapping[str, Any], *, batch_size: int, num_examples: int, name: str = '') -> int:
  """Converts `amount` to a number of optimizer steps.

  Epochs may be fractional and are rounded to the nearest step, a half upwards; examples to the step
  that has taken them all. More than nothing is at least one step.

  Args:
    amount: `dict(steps=100)`, `dict(epochs=0.5)` or `dict(examples=1_000_000)`.
    batch_size: the global batch, in examples.
    num_examples: training examples in one epoch.
    name: the field that holds the amount, for messages.

  Raises:
    ValueError: `amount` is no amount; the field and the choices are named.
  """
  key, value = unit(amount, name)
  if key == 'steps':
    return int(value)
  if batch_size < 1:
    raise ValueError(
      f'{name or "an amount"} in {key} needs a batch size of at least 1, got {batch_size}'
    )
  if key == 'examples':
    return -(-int(value) // batch_size)
  if num_examples < 1:
    raise ValueError(
      f'{name or "an amount"} in epochs needs at least 1 example, got {num_examples}'
    )
  return max(math.floor(value * num_examples / batch_size + 0.5), int(value > 0))
