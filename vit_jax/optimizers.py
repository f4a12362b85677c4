"""The optimizers that a config can name, assembled from optax's parts.

  name        weight decay                          published form
  'sgd'       L2, in the gradient                   arXiv:1706.02677, Sec. 3
  'adamw'     decoupled                             arXiv:1711.05101, Algorithm 2
  'lamb'      decoupled, before the trust ratio     arXiv:1904.00962, Algorithm 2
  'lars'      L2, in the gradient                   arXiv:1708.03888; as in SimCLR, arXiv:2002.05709
  'lion'      decoupled                             arXiv:2302.06675, Algorithm 2
  'adafactor' decoupled                             arXiv:1804.04235, as ViT-G: arXiv:2106.04560

Decoupled decay is `-learning_rate(step) * weight_decay * p`, so the coefficients of papers that
state it per step must be divided by their peak learning rate. The keyword-only arguments are the
`options` of a config. Trust ratios, clipping by parameter and factored moments see each layer of
stacked parameters (those of scanned blocks) by itself: a scan trains as the loop does.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import rules
from vit_jax.choices import check_choice

DTYPES = ('float32', 'bfloat16')  # Of what an optimizer keeps of the gradients.


class Parts(NamedTuple):
  """What optimizers are assembled with.

  Attributes:
    decay: adds weight decay.
    rate: scales by -learning rate.
    by_layer: from a transformation to one that sees each layer of stacked parameters by itself.
  """

  decay: optax.GradientTransformation
  rate: optax.GradientTransformation
  by_layer: Callable[[optax.GradientTransformation], optax.GradientTransformation]


def _sgd(parts: Parts, *, momentum=0.9, nesterov=False, accumulator_dtype=None):
  """SGD; weight decay is an L2 term: it enters the gradient, after clipping and before momentum.

  As in the ImageNet recipes (Sec. 3, arXiv:1706.02677) and PyTorch. Decoupled is `adamw`'s form.
  """
  if not momentum:
    return optax.chain(parts.decay, parts.rate)
  trace = optax.trace(momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype)
  return optax.chain(parts.decay, _in_float32(trace), parts.rate)


def _adamw(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, nesterov=False, mu_dtype=None):
  """AdamW; weight decay is decoupled: `-learning_rate(step) * weight_decay * p`, as in PyTorch.

  Algorithm 2, arXiv:1711.05101, has only the schedule's share of the peak in that term: its
  coefficient divided by the peak is ours.
  """
  adam = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov, mu_dtype=mu_dtype)
  return optax.chain(_in_float32(adam), parts.decay, parts.rate)


def _lamb(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-6, mu_dtype=None):
  """LAMB: Adam's step r with decoupled decay, times |p| / |r + weight_decay * p|.

  Algorithm 2, arXiv:1904.00962, with the identity as its phi. Biases and 1-D
  parameters have no trust ratio and by default no decay, as in the code published with it.
  """
  adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
  return optax.chain(_in_float32(adam), parts.decay, _trust_ratio(parts, 1.0), parts.rate)


def _lars(parts: Parts, *, eta=1e-3, momentum=0.9, nesterov=False, accumulator_dtype=None):
  """LARS: SGD whose gradient g + weight_decay * p is scaled by eta * |p| / |g + weight_decay * p|.

  Algorithm 1, arXiv:1708.03888, with the learning rate inside of the momentum, as there; the
  denominator is the norm of the sum where Eq. 6 has the sum of the norms, as in SimCLR's code
  (arXiv:2002.05709), whose `eta` is the default. Biases and 1-D parameters have no trust ratio,
  so no `eta` either, and by default no decay. Where a norm is 0 the ratio is 1.
  """
  trace = optax.trace(momentum, nesterov=nesterov, accumulator_dtype=accumulator_dtype)
  velocity = _in_float32(trace) if momentum else optax.identity()
  return optax.chain(parts.decay, _trust_ratio(parts, eta), parts.rate, velocity)


def _lion(parts: Parts, *, b1=0.9, b2=0.99, mu_dtype=None):
  """Lion: the sign of a mean of gradients, with decoupled decay. Algorithm 2, arXiv:2302.06675."""
  lion = optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype)
  return optax.chain(_in_float32(lion), parts.decay, parts.rate)


def _adafactor(
  parts: Parts,
  *,
  b1=0.9,
  mu_dtype='bfloat16',
  decay_rate=0.8,
  b2_cap=0.999,
  clipping_threshold=1.0,
  min_dim_size_to_factor=32,
  eps=1e-30,
):
  """Adafactor as ViT-G was trained with it. Sec. 3.4, arXiv:2106.04560.

  The second moment is a product of row and column means over the two largest axes (Algorithm 4,
  arXiv:1804.04235) where both have at least `min_dim_size_to_factor` entries; 32, so that heads of
  64 features count. Its decay is min(b2_cap, 1 - (step + 1)^-decay_rate), Sec. 7.2 there. The
  update of a parameter is divided by max(1, its RMS / clipping_threshold), Sec. 6; a threshold of
  0 is none. Then momentum, a mean without bias correction, kept in `mu_dtype`. Steps are neither
  relative nor scaled by the parameter's norm.
  """
  factored = optax.scale_by_factored_rms(
    decay_rate=decay_rate,
    min_dim_size_to_factor=min_dim_size_to_factor,
    epsilon=eps,
    decay_rate_fn=lambda step, power: jnp.minimum(b2_cap, 1 - (step + 1.0) ** -power),
  )
  none = optax.identity()
  clip = optax.clip_by_block_rms(clipping_threshold) if clipping_threshold else none
  mean = optax.ema(b1, debias=False, accumulator_dtype=mu_dtype)
  momentum = _in_float32(mean) if b1 else none
  return optax.chain(parts.by_layer(optax.chain(factored, clip)), momentum, parts.decay, parts.rate)


# name -> f(parts, **options)
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': _sgd,
  'adamw': _adamw,
  'lamb': _lamb,
  'lars': _lars,
  'lion': _lion,
  'adafactor': _adafactor,
}


def check_options(name: str, options: Mapping[str, Any]) -> None:
  """Raises ValueError for an optimizer that is none, an option it has not, or a wrong value."""
  build = OPTIMIZERS[check_choice('optimizer', name, OPTIMIZERS)]
  defaults = inspect.getfullargspec(build).kwonlydefaults or {}
  for option, value in options.items():
    check_choice(f'option of {name!r}', option, defaults)
    if option.endswith('_dtype'):
      check_choice(option, value, DTYPES)
    elif not isinstance(defaults[option], bool):
      rules.check_number(f'optimizer.options.{option}', value)


def by_layer(
  tx: optax.GradientTransformation, rows: Sequence[rules.Row], stacked: Collection[str]
) -> optax.GradientTransformation:
  """`tx`, which sees each layer of stacked parameters by itself.

  Args:
    tx: what treats a parameter as one, such as a trust ratio.
    rows: the parameters.
    stacked: names of those with layers along their first axis.
  """
  layers = {row.name: row.shape[0] for row in rows if row.name in stacked}
  # Towers of different depths cannot share a loop.
  depths = {layers[row.name] for row in rows if row.name in stacked and not row.frozen}
  if not depths:
    return tx
  each = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
  labels = functools.partial(
    jax.tree_util.tree_map_with_path,
    lambda path, _: _label(layers.get(rules.name(path))),
  )
  return optax.partition({_label(None): tx, **{_label(n): each for n in depths}}, labels)


def _label(layers: int | None) -> str:
  return f'layers_{layers}' if layers else 'whole'


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx`, whose state may be kept in bfloat16 and enters its sums in float32.

  optax multiplies in the dtype of the state: a decay of 0.99 would be 0.988, its product rounded.
  """

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state)
    after = tx.update(updates, wide, params)
    return jax.tree.map(lambda x, before: x.astype(before.dtype), after, (updates, state))

  return optax.GradientTransformation(tx.init, update)


def _trust_ratio(parts: Parts, eta: float) -> optax.GradientTransformation:
  """Scales an update by eta * |parameter| / |update|; leaves biases and 1-D parameters alone."""

  def is_scaled(path: Any, update: Any) -> bool:
    # By name too: attention's biases have a row for each head.
    return update.ndim > 1 and rules.name(path).split('/')[-1] != 'bias'

  return parts.by_layer(
    optax.masked(
      optax.scale_by_trust_ratio(trust_coefficient=eta),
      functools.partial(jax.tree_util.tree_map_with_path, is_scaled),
    )
  )
