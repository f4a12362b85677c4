"""What preflight compiles is the step that training runs."""

import importlib.util
import subprocess
import sys

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, sharding, state, train
from vit_jax.preflight import compiling, flops, hlo
from vit_jax.preflight.compiling import Outcome, too_large

TINY = (
  '--config.objective.encoder.width=32',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=64',
  '--config.total.steps=6',
)


def load(root, *overrides, **encoder):
  config = config_lib.load(str(root / 'configs/vit_digits.py'), [*TINY, *overrides])
  with config.unlocked():
    config.objective.encoder.update(encoder)
    config.objective.augment = ''
  return config


@pytest.fixture
def root(request):
  return request.config.rootpath


def total(outcome: Outcome, kind: str) -> int:
  return sum(c.count * c.bytes for c in outcome.collectives if c.kind == kind)


def parameters(made) -> int:
  _, like = experiment.prepare_state(made)
  return sum(leaf.size * 4 for leaf in jax.tree.leaves(like.params))


def test_memory_and_collectives_are_those_of_the_step_by_hand(root):
  made = experiment.setup(load(root, '--config.mesh.fsdp=2'))
  outcome = compiling.compile_step(made)
  # By hand: no function of preflight's, and real arrays in the place of shapes.
  placed = sharding.batch_sharding(made.mesh)
  with jax.set_mesh(made.mesh):
    make, like = state.init_state(
      made.objective, made.optimizer.tx, made.batch_spec, made.config.seed, made.mesh
    )
    step = jax.jit(
      train.make_train_step(made.objective, made.optimizer.tx),
      donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, like), sharding.replicated(made.mesh)),
    )
    batch = {
      name: jax.device_put(jax.numpy.zeros(x.shape, x.dtype), placed)
      for name, x in made.batch_spec.items()
    }
    compiled = step.lower(make(), batch).compile()
  stats = compiled.memory_analysis()
  assert outcome.memory == (
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
  )
  assert outcome.flops == compiled.cost_analysis()['flops']
  assert list(outcome.collectives) == hlo.collectives(compiled.as_text())
  assert outcome.cycles == 0 and outcome.fits is None


def test_data_parallel_sends_the_gradient_of_every_parameter_once(root):
  made = experiment.setup(load(root))
  outcome = compiling.compile_step(made)
  assert {c.kind for c in outcome.collectives} == {'all-reduce'}
  # And metrics: the loss, its norm, the accuracy.
  assert parameters(made) <= total(outcome, 'all-reduce') <= parameters(made) + 64
  assert {c.group for c in outcome.collectives} == {8}


def test_fsdp_gathers_every_split_parameter(root):
  made = experiment.setup(load(root, '--config.mesh.data=1', '--config.mesh.fsdp=8'))
  _, like = experiment.prepare_state(made)
  split = sum(
    leaf.size * 4 for leaf in jax.tree.leaves(like.params) if not leaf.sharding.is_fully_replicated
  )
  outcome = compiling.compile_step(made)
  assert split > parameters(made) / 2
  # Once forward, and at most once more backward.
  assert 0.9 * split <= total(outcome, 'all-gather') <= 2.2 * split


def test_a_scan_has_the_collectives_and_flops_of_the_loop(root):
  outcomes, layers = [], []
  for scan in (False, True):
    made = experiment.setup(load(root, depth=4, scan=scan))
    outcomes.append(compiling.compile_step(made))
    like, batch = compiling.inputs(made)
    with jax.set_mesh(made.mesh):
      layers.append(flops.total(flops.by_layer(made.objective, like, batch)))
  loop, scanned = outcomes
  assert total(scanned, 'all-reduce') == pytest.approx(total(loop, 'all-reduce'), rel=0.03)
  assert layers[0] == layers[1]
  assert scanned.flops < 0.7 * loop.flops  # XLA counts a body once, which is why ours is there.


def test_micro_batches_count_as_often_as_they_run(root):
  # Under FSDP each of them gathers the parameters anew, or all do so once.
  mesh = ('--config.mesh.data=1', '--config.mesh.fsdp=8')
  config = load(root, *mesh)
  with config.unlocked():
    config.accumulate = 4
  outcome = compiling.compile_step(experiment.setup(config))
  assert outcome.endless == 0
  assert any(c.count in (4, 1) for c in outcome.collectives)
  assert max(c.count for c in outcome.collectives) <= 4


def test_a_limit_decides_what_fits(root):
  made = experiment.setup(load(root))
  needed = compiling.compile_step(made).needed
  assert compiling.compile_step(made, limit=needed).fits is True
  assert compiling.compile_step(made, limit=needed - 1).fits is False


@pytest.mark.parametrize(
  ('message', 'sizes'),
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
      'Used 24.35G of 15.75G hbm. Exceeded hbm capacity by 8.60G.\n\nTotal hbm usage >= 24.60G:',
      (24.35 * 2**30, 15.75 * 2**30),
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
      '(804.00G) exceeds available HBM (30.75G).',
      (804 * 2**30, 30.75 * 2**30),
    ),
    ('Used 512.00M of 1.00G hbm', (2**29, 2**30)),
  ],
)
def test_what_xla_says_of_a_program_that_is_too_large(message, sizes):
  assert too_large(message) == tuple(map(round, sizes))


def test_an_error_without_sizes_says_none():
  assert too_large('RESOURCE_EXHAUSTED: out of memory') == (None, None)


ON_A_TPU = """
import sys
from vit_jax.preflight import topologies
topologies.set_environment('v5e:2x4')
import re
import jax
from vit_jax import config as config_lib
from vit_jax import experiment, sharding, state, train
from vit_jax.preflight import chips, compiling

config = config_lib.load(sys.argv[1], sys.argv[2:])
devices = topologies.devices('v5e:2x4')
made = experiment.setup(config, devices=devices)
outcome = compiling.compile_step(made)
placed = sharding.batch_sharding(made.mesh)
with jax.set_mesh(made.mesh):
  _, like = state.init_state(
    made.objective, made.optimizer.tx, made.batch_spec, config.seed, made.mesh
  )
  step = jax.jit(
    train.make_train_step(made.objective, made.optimizer.tx),
    donate_argnums=0,
    out_shardings=(jax.tree.map(lambda x: x.sharding, like), sharding.replicated(made.mesh)),
  )
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    for name, x in made.batch_spec.items()
  }
  compiled = step.lower(like, batch).compile()
stats = compiled.memory_analysis()
text = compiled.as_text()
assert ' while(' not in text
assert outcome.cycles == sum(map(int, re.findall(r'"estimated_cycles":"(\\d+)"', text))) > 1e5
assert outcome.memory.temporaries == stats.temp_size_in_bytes > 0
assert outcome.memory.arguments == stats.argument_size_in_bytes
assert outcome.fits and outcome.limit == chips.CHIPS['v5e'].memory
parameters = sum(leaf.size * 4 for leaf in jax.tree.leaves(like.params))
reduced = [c for c in outcome.collectives if c.kind == 'all-reduce']
assert parameters <= sum(c.bytes for c in reduced) <= parameters + 64, reduced
compute, links = compiling.predicted_seconds(outcome, chips.CHIPS['v5e'])
assert compute == outcome.cycles / 1.5e9 and 0 < links < compute
ideal, read = compiling.least_seconds(outcome, chips.CHIPS['v5e'], 197e12)
assert ideal == 1 and 0 < read < compute

# The same with 1000 times the images needs more than the chip has, and says how much.
with config.unlocked():
  config.batch_size = 1 << 22
large = compiling.compile_step(experiment.setup(config, devices=devices))
assert large.fits is False and large.memory is None
assert large.limit == chips.CHIPS['v5e'].memory < large.needed
"""


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="pip install 'jax[tpu]' compiles for TPUs"
)
def test_memory_and_cycles_of_a_tpu_are_those_of_the_step_by_hand(root):
  argv = [str(root / 'configs/vit_digits.py'), *TINY, '--config.objective.augment=']
  done = subprocess.run(
    [sys.executable, '-c', ON_A_TPU, *argv], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


ON_GPUS = """
import sys
from vit_jax.preflight import topologies
topologies.set_environment('h100:8')
import jax
from vit_jax import config as config_lib
from vit_jax import experiment
from vit_jax.preflight import chips, compiling

config = config_lib.load(sys.argv[1], sys.argv[2:])
made = experiment.setup(config, devices=topologies.devices('h100:8'))
outcome = compiling.compile_step(made)
_, like = experiment.prepare_state(made)
leaves = jax.tree.leaves(like.params)
split = sum(leaf.size * 4 for leaf in leaves if not leaf.sharding.is_fully_replicated)
assert outcome.fits and outcome.limit == int(0.75 * chips.CHIPS['h100'].memory)
assert outcome.memory.temporaries > 0 and outcome.cycles == 0
total = {kind: sum(c.bytes for c in outcome.collectives if c.kind == kind)
         for kind in ('all-gather', 'reduce-scatter')}
# Every split parameter is gathered once or twice; some gradients are reduced whole instead.
assert split <= total['all-gather'] <= 2.2 * split, (split, total)
assert 0.9 * split <= total['reduce-scatter'] <= split, (split, total)
"""


@pytest.mark.skipif(importlib.util.find_spec('jax_plugins') is None, reason='no jax-cuda13-plugin')
def test_memory_and_collectives_of_gpus_that_are_not_there(root):
  mesh = ('--config.mesh.data=1', '--config.mesh.fsdp=8')
  argv = [str(root / 'configs/vit_digits.py'), *TINY, *mesh, '--config.objective.augment=']
  done = subprocess.run(
    [sys.executable, '-c', ON_GPUS, *argv], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
