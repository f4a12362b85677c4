"""From a config to optax: the optimizer, its schedule, and what each parameter gets.

The fields of `config.optimizer` with their defaults; a field that is None has its default:

  name            (required) a name of `OPTIMIZERS`: 'sgd', 'adamw', 'lamb', 'lars', ...
  learning_rate   (required) the peak, reached when the warm-up ends
  scaling         'none'     'linear' or 'sqrt': the peak is B / 256 or sqrt(B) times that, with
                             B = `batch_size`; SimCLR's are 0.3 and 0.075 (App. B.1,
                             arXiv:2002.05709), 'linear' is Sec. 2.1, arXiv:1706.02677
  options         {}         of the optimizer: dict(b2=0.95) for AdamW, dict(momentum=0.95) for SGD
  schedule        'cosine'   'cosine', 'linear', 'rsqrt' or 'constant'
  warmup          none       an amount, dict(epochs=5): linear from 0 to the peak
  cooldown        none       an amount: linear to the end value over the last steps, any schedule
  end_value       0.0        where cosine, linear and a cool-down end, as a share of the peak
  timescale       10k steps  an amount, for 'rsqrt' alone: the time to fall to 0.71 of the peak
  weight_decay    0.0        the coefficient; its form is the optimizer's, see `optimizers`
  decay           kernels: 1 rules (pattern, factor on `weight_decay`); unmatched: 0
  multiplier      ()         rules (pattern, factor on the whole update, decay too); unmatched: 1
  freeze          ()         patterns: no gradient, update or optimizer state, no part in a norm
  clip            none       largest global norm of the gradient, before anything else sees it

A pattern is a regular expression that must match a parameter's whole name, such as
`encoder/block_0/attention/query/kernel`; in a tuple of rules the first match counts. The rest
follows: layer-wise learning rates are one `multiplier` rule a block; warm-up, plateau, decay (WSD,
arXiv:2404.06395) is 'constant' with a cool-down; a head that decays more (Sec. 3.1,
arXiv:2106.04560) is `decay=(('head/kernel', 100.0), ('.*/kernel', 1.0))`. By default only kernels
decay: no biases, scales, position embeddings, class tokens or embedding tables.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import rules, units
from vit_jax.choices import check_choice
from vit_jax.optimizers import OPTIMIZERS, Parts, by_layer, check_options
from vit_jax.rules import Row, describe

__all__ = ['OPTIMIZERS', 'Optimizer', 'Row', 'build_optimizer', 'build_schedule', 'describe']

SCHEDULES = ('cosine', 'linear', 'rsqrt', 'constant')
SCALINGS: dict[str, Callable[[int], float]] = {
  'none': lambda batch_size: 1.0,
  'linear': lambda batch_size: batch_size / 256,
  'sqrt': math.sqrt,
}
DEFAULTS = {
  'name': None,
  'learning_rate': None,
  'scaling': 'none',
  'options': {},
  'schedule': 'cosine',
  'warmup': None,
  'cooldown': None,
  'end_value': 0.0,
  'timescale': {'steps': 10_000},  # The default of big_vision, whose recipes use it.
  'weight_decay': 0.0,
  'decay': None,
  'multiplier': (),
  'freeze': (),
  'clip': None,
}


class Optimizer(NamedTuple):
  """`tx.update` takes the parameters too; `schedule` maps steps, any shape, to learning rates."""

  tx: optax.GradientTransformation
  schedule: optax.Schedule
  table: list[Row]

  @property
  def frozen(self) -> frozenset[str]:
    """Names of the parameters that `tx` leaves as they are, whatever their gradients."""
    return frozenset(row.name for row in self.table if row.frozen)


def build_optimizer(
  config: Mapping[str, Any],
  params: Any,
  *,
  total_steps: int,
  steps: Callable[[Mapping[str, Any]], int],
  stacked: Collection[str] = (),
  batch_size: int | None = None,
) -> Optimizer:
  """Builds what `config.optimizer` says.

  The state holds everything an update depends on, the schedule's step too: restored, it goes on
  exactly. What is frozen decides the state's structure.

  A run that is shorter than its warm-up and cool-down together has both cut in proportion.

  Args:
    config: the fields above, a mapping or ConfigDict.
    params: nested dict of arrays or of `jax.ShapeDtypeStruct`, unboxed.
    total_steps: steps of the whole run, where the schedule ends.
    steps: converts an amount, `dict(epochs=5)`: `units.steps` with its keywords bound.
    stacked: names of parameters that hold a layer in each row, as those of a scan do.
    batch_size: examples a step, over all devices; None will do where nothing is scaled by it.

  Raises:
    ValueError: an unknown name, field, option or unit, a value out of its range, a pattern that is
      no regular expression or that decides nothing, everything frozen, or no batch size to scale
      by.
  """
  fields = _fields(config)
  amounts = {}  # in steps
  for field in ('warmup', 'cooldown', 'timescale'):
    amount = fields[field]
    if amount is not None:
      units.unit(amount, f'optimizer.{field}')  # Its errors name the field.
    amounts[field] = 0 if amount is None else steps(amount)
  # A trial run, `--config.total.epochs=1`, keeps the recipe's form: both are cut in proportion.
  ramps = amounts['warmup'] + amounts['cooldown']
  if ramps > total_steps:
    for field in ('warmup', 'cooldown'):
      amounts[field] = amounts[field] * total_steps // ramps
  schedule = build_schedule(
    _peak(fields, batch_size),
    schedule=fields['schedule'],
    total_steps=total_steps,
    end_value=fields['end_value'],
    **amounts,
  )
  table = _table(fields, params)
  by_name = {row.name: row for row in table}
  decay = _per_parameter(lambda u, p, row: u + row.decay * p if row.decay else u, by_name)
  multiplier = _per_parameter(
    lambda u, _, row: u * row.multiplier if row.multiplier != 1 else u, by_name
  )
  parts = Parts(
    decay=decay,
    rate=optax.scale_by_learning_rate(schedule),
    by_layer=functools.partial(by_layer, rows=table, stacked=stacked),
  )
  tx = optax.chain(
    optax.identity() if fields['clip'] is None else optax.clip_by_global_norm(fields['clip']),
    OPTIMIZERS[fields['name']](parts, **fields['options']),
    multiplier,
  )
  if any(row.frozen for row in table):
    tx = optax.partition({'train': tx, 'freeze': optax.set_to_zero()}, _labels(by_name))
  return Optimizer(tx, schedule, table)


def build_schedule(
  learning_rate: float,
  *,
  schedule: str,
  total_steps: int,
  warmup: int = 0,
  cooldown: int = 0,
  end_value: float = 0.0,
  timescale: int = 10_000,
) -> optax.Schedule:
  """A schedule with linear warm-up and cool-down.

  The share of the peak, with x from 0 at the warm-up's end to 1 at `total_steps`:

    cosine    end_value + (1 - end_value) * (1 + cos(pi * x)) / 2      Eq. 5, arXiv:1608.03983
    linear    end_value + (1 - end_value) * (1 - x)
    rsqrt     1 / sqrt(1 + (step - warmup) / timescale)                Sec. 3.5, arXiv:2106.04560
    constant  1

  Warm-up multiplies it by step / warmup, so that step 0 has 0 and step `warmup` the peak; a
  cool-down multiplies what is above `end_value` by (total_steps - step) / cooldown. From
  `total_steps` on the value stays.

  Args:
    learning_rate: the peak.
    schedule: a name of `SCHEDULES`.
    total_steps: in steps, as are `warmup`, `cooldown` and `timescale`.
    warmup: length of the linear start, 0 for none.
    cooldown: length of the linear end, 0 for none.
    end_value: a share of the peak; 'rsqrt' and 'constant' come to it by a cool-down only.
    timescale: for 'rsqrt' only.

  Raises:
    ValueError: an unknown schedule, or lengths that do not fit.
  """
  if total_steps < 1:
    raise ValueError(f'a schedule needs at least 1 step, got total_steps={total_steps}')
  if warmup + cooldown > total_steps:
    raise ValueError(
      f'warm-up and cool-down must fit into the run: {warmup} + {cooldown} steps of {total_steps}'
    )
  if schedule == 'rsqrt' and timescale < 1:
    raise ValueError(f"schedule 'rsqrt' needs a timescale of at least 1 step, got {timescale}")
  span = max(total_steps - warmup, 1)
  shapes = {
    'cosine': optax.cosine_decay_schedule(1.0, span, alpha=end_value),
    'linear': optax.linear_schedule(1.0, end_value, span),
    'rsqrt': lambda step: jax.lax.rsqrt(1 + jnp.asarray(step, jnp.float32) / timescale),
    'constant': optax.constant_schedule(1.0),
  }
  shape = shapes[check_choice('schedule', schedule, SCHEDULES)]

  def learning_rate_at(step):
    step = jnp.minimum(step, total_steps)
    share = shape(jnp.maximum(step - warmup, 0))
    if cooldown:
      share = end_value + (share - end_value) * jnp.minimum((total_steps - step) / cooldown, 1)
    if warmup:
      share *= jnp.minimum(step / warmup, 1)
    return jnp.broadcast_to(jnp.asarray(learning_rate * share, jnp.float32), jnp.shape(step))

  return learning_rate_at


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with its defaults, each value checked."""
  what = "optimizer field (an optimizer's own go in options=dict(...))"
  for field in dict(config):
    check_choice(what, field, DEFAULTS)
  fields = {**DEFAULTS, **_without_none(config)}
  options = fields['options'] = _without_none(fields['options'])
  check_options(fields['name'], options)
  check_choice('schedule', fields['schedule'], SCHEDULES)
  check_choice('scaling', fields['scaling'], SCALINGS)
  rules.check_number('optimizer.learning_rate', fields['learning_rate'], positive=True)
  rules.check_number('optimizer.weight_decay', fields['weight_decay'])
  rules.check_number('optimizer.end_value', fields['end_value'])
  if fields['clip'] is not None:
    rules.check_number('optimizer.clip', fields['clip'], positive=True)
  return fields


def _peak(fields: Mapping[str, Any], batch_size: int | None) -> float:
  """The learning rate, scaled by the batch size."""
  scaling = fields['scaling']
  if scaling != 'none' and batch_size is None:
    raise ValueError(f"optimizer.scaling {scaling!r} needs a batch_size; give it, or choose 'none'")
  return fields['learning_rate'] * SCALINGS[scaling](batch_size)


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in dict(config).items() if value is not None}


def _table(fields: Mapping[str, Any], params: Any) -> list[Row]:
  leaves = [(rules.name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
  names = [name for name, _ in leaves]
  if fields['decay'] is None:
    decay = {name: float(name.split('/')[-1] == 'kernel') for name in names}
  else:
    decay = rules.values('optimizer.decay', fields['decay'], names, default=0.0)
  multiplier = rules.values(
    'optimizer.multiplier', fields['multiplier'], names, default=1.0, positive=True
  )
  frozen = rules.match('optimizer.freeze', fields['freeze'], names)
  if names and len(frozen) == len(names):
    raise ValueError(f'optimizer.freeze leaves nothing to train: {fields["freeze"]}')
  table = []
  for name, leaf in leaves:
    share = 0.0 if name in frozen else 1.0
    factors = share * multiplier[name], share * decay[name] * fields['weight_decay']
    table.append(Row(name, tuple(leaf.shape), math.prod(leaf.shape), *factors, name in frozen))
  return table


def _per_parameter(f: Callable[..., Any], rows: Mapping[str, Row]) -> optax.GradientTransformation:
  """Applies `f(update, parameter, row)`; by name, since `optax.partition` takes leaves out."""
  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(
      lambda path, u, p: f(u, p, rows[rules.name(path)]), updates, params
    )
  )


def _labels(rows: Mapping[str, Row]) -> Callable[[Any], Any]:
  return functools.partial(
    jax.tree_util.tree_map_with_path,
    lambda path, _: 'freeze' if rows[rules.name(path)].frozen else 'train',
  )
