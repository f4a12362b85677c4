"""Model FLOPs: what a step must compute, by layer, however it is compiled.

Counted are matrix products and convolutions, as is usual where utilisation is reported (Appendix B
of PaLM, arXiv:2204.02311): of the forward pass, and of the backward pass one more for each operand
that a gradient goes to. So the first layer does not send one to the pixels and a frozen tower costs
its forward pass alone. What `remat` or `Chunked` computes again does not count.
"""

import collections
import math
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend import core

from vit_jax import rules
from vit_jax.arrays import Array, Batch
from vit_jax.state import TrainState, streams


class Flops(NamedTuple):
  """Of one layer: in the forward pass, and in a whole step, over the global batch."""

  forward: int
  step: int


Layers = dict[str, Flops]


def by_layer(
  objective: nn.Module, like: TrainState, batch: Batch, frozen: Collection[str] = ()
) -> Layers:
  """FLOPs of a training step by the path of the module that computes them, such as 'encoder/head'.

  To be called with the mesh set: a loss may go over its devices.

  Args:
    objective: the method.
    like: shapes of the state.
    batch: shapes of a global batch.
    frozen: names of the parameters that are not trained.
  """

  def loss(params: Any, model_state: Any, batch: Batch, rng: Array) -> Array:
    (loss, _), _ = objective.apply(
      {'params': params, **model_state},
      batch,
      train=True,
      rngs=streams(rng),
      mutable=list(model_state),
    )
    return loss

  closed = jax.make_jaxpr(loss)(like.params, like.model_state, batch, like.rng)
  trained = [rules.name(path) not in frozen for path, _ in jax.tree.leaves_with_path(like.params)]
  others = len(closed.jaxpr.invars) - len(trained)
  layers: Layers = collections.defaultdict(lambda: Flops(0, 0))
  _walk(closed.jaxpr, trained + [False] * others, 1, '', layers)
  top = type(objective).__name__
  named: Layers = collections.defaultdict(lambda: Flops(0, 0))
  for path, flops in layers.items():
    _add(named, _module(path, top), flops)
  return dict(named)


def total(layers: Layers) -> Flops:
  """The sum over all layers."""
  return Flops(sum(f.forward for f in layers.values()), sum(f.step for f in layers.values()))


def _add(layers: Layers, path: str, flops: Flops) -> None:
  before = layers[path]
  layers[path] = Flops(before.forward + flops.forward, before.step + flops.step)


def _module(path: str, top: str) -> str:
  """'CLIP/CLIP._see/image/block_0' is 'image/block_0': modules, without their methods."""
  parts = [part for part in re.sub(r'\w+\(|\)', '', path).split('/') if part]
  parts = [part for part in parts if part.isidentifier() and part != top]
  return '/'.join(parts) or '(loss, augmentation)'


def _walk(
  jaxpr: core.Jaxpr, active: Sequence[bool], times: int, path: str, layers: Layers
) -> list[bool]:
  """Adds a program's products to `layers`; says which outputs a gradient comes through.

  Args:
    jaxpr: the program.
    active: of each input, whether it depends on what is trained.
    times: how often the program runs, on arrays of its shapes.
    path: of the modules around it.
    layers: the sums.
  """
  known = dict(zip(jaxpr.invars, active, strict=True))

  def reached(var: Any) -> bool:
    return not isinstance(var, core.Literal) and known.get(var, False)

  for eqn in jaxpr.eqns:
    inputs = [reached(var) for var in eqn.invars]
    here = f'{path}/{eqn.source_info.name_stack}'
    outputs = _equation(eqn, inputs, times, here, layers)
    for var, out in zip(eqn.outvars, outputs, strict=True):
      known[var] = out and jax.numpy.issubdtype(var.aval.dtype, jax.numpy.inexact)
  return [reached(var) for var in jaxpr.outvars]


def _equation(
  eqn: Any, inputs: list[bool], times: int, path: str, layers: Layers
) -> Sequence[bool]:
  """Adds one equation's products; says which of its outputs a gradient comes through."""
  name, params = eqn.primitive.name, eqn.params
  if name in ('dot_general', 'conv_general_dilated'):
    forward = times * (_dot if name == 'dot_general' else _convolution)(eqn)
    _add(layers, path, Flops(forward, forward * (1 + sum(inputs[:2]))))
  elif name == 'stop_gradient':
    return [False]
  elif name in ('scan', 'while'):
    return _loop(name, params, inputs, times, path, layers)
  elif name == 'cond':
    return _branches(params, inputs[1:], times, path, layers)
  elif name == 'shard_map':
    return _walk(params['jaxpr'], inputs, times * _shards(params), path, layers)
  else:
    inner = params.get('jaxpr', params.get('call_jaxpr'))
    if inner is not None:  # jit, remat, custom_jvp, custom_vjp
      return _walk(getattr(inner, 'jaxpr', inner), inputs, times, path, layers)
  return [any(inputs)] * len(eqn.outvars)


def _dot(eqn: Any) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
  """Each output is a sum over the kernel's inputs; those that fall on the padding count too."""
  kernel = eqn.invars[1].aval.shape
  outputs = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  return 2 * math.prod(eqn.outvars[0].aval.shape) * (math.prod(kernel) // outputs)


def _loop(
  name: str, params: dict[str, Any], inputs: list[bool], times: int, path: str, layers: Layers
) -> list[bool]:
  """Adds all turns of a loop's body."""
  if name == 'scan':
    body, consts, carry = params['jaxpr'], params['num_consts'], params['num_carry']
    times *= params['length']
  else:  # Of unknown length it counts once; none of our models has products in one.
    inputs = inputs[params['cond_nconsts'] :]
    body, consts = params['body_jaxpr'], params['body_nconsts']
    carry = len(inputs) - consts
  while True:
    inner: Layers = collections.defaultdict(lambda: Flops(0, 0))
    outputs = _walk(body.jaxpr, inputs, times, path, inner)
    before = inputs[consts : consts + carry]
    after = [a or b for a, b in zip(before, outputs[:carry], strict=True)]
    if after == before:
      break
    # A gradient that comes to one turn's end comes to the next one's start.
    inputs = [*inputs[:consts], *after, *inputs[consts + carry :]]
  for name, flops in inner.items():
    _add(layers, name, flops)
  return outputs


def _branches(
  params: dict[str, Any], inputs: list[bool], times: int, path: str, layers: Layers
) -> list[bool]:
  """The branch with the most FLOPs; of those by platform, the one without tricks: the default."""
  branches = params['branches']
  if params.get('branches_platforms'):
    branches = branches[-1:]
  walked = []
  for branch in branches:
    inner: Layers = collections.defaultdict(lambda: Flops(0, 0))
    walked.append((inner, _walk(branch.jaxpr, inputs, times, path, inner)))
  for name, flops in max((inner for inner, _ in walked), key=lambda x: total(x).step).items():
    _add(layers, name, flops)
  return [any(outputs) for outputs in zip(*(o for _, o in walked), strict=True)]


def _shards(params: dict[str, Any]) -> int:
  """Devices that compute different parts, by the mesh axes that inputs are split over."""
  specs = [axis for spec in params['in_specs'] for axis in spec if axis is not None]
  axes = {name for axis in specs for name in (axis if isinstance(axis, tuple) else (axis,))}
  return math.prod(params['mesh'].shape[axis] for axis in axes)
