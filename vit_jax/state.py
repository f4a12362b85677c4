"""The state of training, and its initialisation straight into its shards."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vit_jax import rules
from vit_jax import sharding as sharding_lib
from vit_jax.arrays import Array, Batch


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes, and the key that it does not.

  Attributes:
    step: how many updates have been made, a scalar int32.
    params: the objective's parameters.
    model_state: its other collections (batch statistics, a teacher, clusters), often `{}`.
    opt_state: the optimizer's.
    rng: the key that every step folds its number into; it never changes.
    ema: an average of `params` over the steps, where one is asked for; see `average`.
  """

  step: Array
  params: Any
  model_state: Any
  opt_state: Any
  rng: Array
  ema: Any = None


def streams(rng: Array) -> dict[str, Array]:
  """The named keys that a model draws from: one for dropout, one for augmentations."""
  dropout, augment = jax.random.split(rng)
  return {'dropout': dropout, 'augment': augment}


def init_variables(objective: nn.Module, batch_spec: Any, rng: Array) -> Any:
  """The objective's variables, boxed with their logical axes.

  Args:
    objective: the Linen module.
    batch_spec: shapes and dtypes of a *global* batch; a loss over the mesh fails on a batch of one.
    rng: a key.
  """
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch_spec)
  params_rng, others = jax.random.split(rng)
  return objective.init({'params': params_rng, **streams(others)}, batch, train=False)


def abstract_variables(objective: nn.Module, batch_spec: Any) -> Any:
  """Shapes, dtypes and logical axes of the objective's variables; computes nothing."""
  # The key is made inside, so that nothing touches a device.
  return jax.eval_shape(
    lambda: init_variables(objective, batch_spec, jax.random.PRNGKey(0)),
  )


def stacked_names(variables: Any) -> frozenset[str]:
  """Names of the parameters that hold a layer in each row: their first axis is 'layers'.

  Args:
    variables: boxed, as `abstract_variables` returns them.
  """
  boxes = jax.tree.leaves_with_path(
    variables.get('params', {}), is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
  )
  return frozenset(
    rules.name(path) for path, box in boxes if tuple(getattr(box, 'names', ()))[:1] == ('layers',)
  )


def init_state(
  objective: nn.Module,
  tx: optax.GradientTransformation,
  batch_spec: Batch,
  seed: int,
  mesh: Mesh,
  *,
  ema: bool = False,
  sharding: str = 'fsdp',
) -> tuple[Callable[[], TrainState], TrainState]:
  """Prepares the first state.

  Args:
    objective: the Linen module.
    tx: the optimizer.
    batch_spec: shapes and dtypes of a global batch.
    seed: decides parameters and, later, all augmentation and dropout.
    mesh: the mesh.
    ema: whether to keep an average of the parameters; it starts as a copy of them.
    sharding: what is split over the mesh, a key of `sharding.SHARDINGS`.

  Returns:
    A jitted function that makes the state, each leaf directly in its shards, and a tree like it of
    `jax.ShapeDtypeStruct` with shardings, for restoring instead.
  """

  def make() -> TrainState:
    init_rng, rng = jax.random.split(jax.random.PRNGKey(seed))
    # Unboxed: neither the optimizer nor Orbax should see Linen's boxes.
    variables = nn.unbox(init_variables(objective, batch_spec, init_rng))
    params = variables.pop('params', {})
    return TrainState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      model_state=variables,
      opt_state=tx.init(params),
      rng=rng,
      ema=params if ema else None,
    )

  abstract = jax.eval_shape(make)
  shardings = state_shardings(objective, batch_spec, abstract, mesh, sharding)
  like = jax.tree.map(
    lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), abstract, shardings
  )
  return jax.jit(make, out_shardings=shardings), like


def state_shardings(
  objective: nn.Module,
  batch_spec: Batch,
  abstract: TrainState,
  mesh: Mesh,
  sharding: str = 'fsdp',
) -> TrainState:
  """Shardings of a state: what is kept of parameters is split as they are, or as the word says.

  A factored moment lacks one axis of its parameter; steps and keys are whole everywhere.

  Args:
    objective: the Linen module.
    batch_spec: shapes and dtypes of a global batch.
    abstract: shapes and dtypes of the state.
    mesh: the mesh.
    sharding: a key of `sharding.SHARDINGS`.

  Raises:
    ValueError: an unknown word.
  """
  boxed = abstract_variables(objective, batch_spec)
  variables = sharding_lib.parameter_shardings(boxed, mesh, sharding)
  params = variables.pop('params', {})
  over = sharding_lib.SHARDINGS[sharding].moments
  axes = sharding_lib.logical_axes(boxed).get('params', {})
  by_path = {
    tuple(map(str, path)): (leaf.shape, tuple(names))
    for (path, leaf), names in zip(
      jax.tree.leaves_with_path(abstract.params), jax.tree.leaves(axes), strict=True
    )
  }
  whole = sharding_lib.replicated(mesh)

  def place(path: Any, leaf: Any) -> Any:
    # A moment's path ends with the path of its parameter: [0].mu['encoder']['cls'].
    keys = tuple(map(str, path))
    for start in range(len(keys)):
      shape, names = by_path.get(keys[start:], ((), ()))
      kept = _kept_axes(names, shape, leaf.shape)
      if kept:
        return sharding_lib.place(kept, leaf.shape, mesh, over)
    return whole

  return TrainState(
    step=whole,
    params=params,
    model_state=variables,
    opt_state=jax.tree.map_with_path(place, abstract.opt_state),
    rng=whole,
    ema=jax.tree.map_with_path(place, abstract.ema),
  )


def _kept_axes(
  names: Sequence[str | None], shape: tuple[int, ...], kept: tuple[int, ...]
) -> Sequence[str | None]:
  """The names of the axes of `kept`, which is `shape` or lacks one of it; none where it is not."""
  if shape == kept:
    return names
  for i in range(len(shape)):  # Of axes of one size any will do: it is a question of speed.
    if shape[:i] + shape[i + 1 :] == kept:
      return (*names[:i], *names[i + 1 :])
  return ()
