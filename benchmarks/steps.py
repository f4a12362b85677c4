"""Training steps as the loop runs them: of a config, and of a supervised ViT."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import optim, sharding, state, train
from vit_jax.build import build

CLASSES, SIDE = 1000, 224
ADAMW = dict(
  name='adamw', options=dict(mu_dtype='bfloat16'), learning_rate=1e-3, weight_decay=0.1, clip=1.0,
  schedule='cosine', warmup=dict(steps=100),
)  # fmt: skip


def supervised_step(
  encoder: dict, images: int, mesh: Mesh, optimizer: dict = ADAMW, accumulate: int = 1
):
  """A step on 224 pixels and 1000 classes; to be called, and used, with the mesh set.

  Args:
    encoder: fields of the ViT.
    images: the global batch.
    mesh: the devices.
    optimizer: the config's.
    accumulate: micro-batches that the batch is split into.

  Returns:
    The jitted step, which donates its state; a function that makes the state; and, as shapes with
    shardings, the state and the batch.
  """
  objective = build(
    dict(
      type='objectives.supervised.Supervised',
      num_classes=CLASSES,
      encoder=dict(type='models.vit.ViT', **encoder),
    )
  )
  placed = sharding.batch_sharding(mesh)
  batch = {
    'image': jax.ShapeDtypeStruct((images, SIDE, SIDE, 3), jnp.uint8, sharding=placed),
    'label': jax.ShapeDtypeStruct((images,), jnp.int32, sharding=placed),
  }
  boxed = state.abstract_variables(objective, batch)
  made = optim.build_optimizer(
    optimizer,
    nn.unbox(boxed)['params'],
    total_steps=1000,
    steps=lambda amount: amount['steps'],
    stacked=state.stacked_names(boxed),
  )
  make, like = state.init_state(objective, made.tx, batch, 0, mesh)
  step = jax.jit(train.make_train_step(objective, made.tx, accumulate), donate_argnums=0)
  return step, make, like, batch


def config_step(config, batch: dict):
  """A config's step on one batch, on all devices.

  Args:
    config: with an `objective` and an `optimizer`; 100 steps of warm-up, whatever it says.
    batch: arrays by name.

  Returns:
    A function without arguments that ends when the next step has been computed.
  """
  objective, mesh = build(config.objective), sharding.make_mesh({})
  with jax.set_mesh(mesh):
    boxed = state.abstract_variables(objective, batch)
    made = optim.build_optimizer(
      config.optimizer, nn.unbox(boxed)['params'], total_steps=1000,
      batch_size=len(batch['image']), steps=lambda amount: 100,
    )  # fmt: skip
    make, _ = state.init_state(objective, made.tx, batch, 0, mesh)
    step = jax.jit(train.make_train_step(objective, made.tx), donate_argnums=0)
    held = [make()]

  def one():
    with jax.set_mesh(mesh):
      held[0], metrics = step(held[0], batch)
      assert np.isfinite(metrics['loss'].block_until_ready())

  return one
