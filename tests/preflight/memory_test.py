"""Bytes: an analytic sum is what 8 devices really hold, and what XLA says it is given."""

import jax
import optax
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, sharding
from vit_jax.preflight import compiling, memory

TINY = (
  '--config.objective.encoder.width=64',
  '--config.objective.encoder.depth=2',
  '--config.total.steps=6',
)


def held(tree) -> int:
  """Bytes of a tree's arrays on the first device."""
  device = jax.devices()[0]
  shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
  return sum(s.data.nbytes for s in shards if s.device == device)


def load(root, *overrides):
  config = config_lib.load(str(root / 'configs/vit_digits.py'), [*TINY, *overrides])
  with config.unlocked():
    config.ema = dict(decay=0.9, warmup=False)
  return config


@pytest.mark.parametrize(
  'overrides',
  [
    (),
    ('--config.mesh.data=1', '--config.mesh.fsdp=8'),
    ('--config.mesh.fsdp=2', '--config.mesh.tensor=2'),
    ('--config.sharding=zero1',),
    ('--config.sharding=replicated', '--config.mesh.fsdp=4'),
  ],
)
def test_the_sum_is_what_the_devices_hold(request, overrides):
  made = experiment.setup(load(request.config.rootpath, *overrides))
  with jax.set_mesh(made.mesh):
    make, like = experiment.prepare_state(made)
    real = make()
  parts = memory.of_state(like)
  assert parts['parameters'] == held(real.params) > 0
  assert parts['optimizer'] == held(real.opt_state) > 0
  assert parts['average'] == held(real.ema) == held(like_moments(real))
  assert sum(parts.values()) == held(real)


def like_moments(real):
  """The first moments: as large as the average, and lying as it does."""
  return optax.tree.get(real.opt_state, 'mu')


def test_xla_is_given_the_state_and_the_batch(request):
  """Its arguments, to 1%: what it calls so is the sum of arrays, each padded to 64 bytes or so."""
  made = experiment.setup(load(request.config.rootpath, '--config.mesh.fsdp=2'))
  like, batch = compiling.inputs(made)
  outcome = compiling.compile_step(made)
  given = sum(memory.of_state(like).values()) + sharding.bytes_per_device(batch)
  # What the step does not read is not given: the numbers of the examples.
  given -= sharding.bytes_per_device(batch['id'])
  assert outcome.memory.arguments == pytest.approx(given, rel=0.01)
  # The state takes the place of the one that is donated.
  assert outcome.memory.aliased == pytest.approx(sum(memory.of_state(like).values()), rel=0.01)
  assert outcome.memory.outputs >= outcome.memory.aliased
  assert outcome.needed == outcome.memory.total > given
