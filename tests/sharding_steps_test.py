"""The training step on meshes: the same numbers, the state in its parts, its collectives.

Those of TPUs are compiled by libtpu, for chips that are not there.
"""

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from vit_jax import optim, sharding
from vit_jax.build import build
from vit_jax.checkpoint import Checkpoints
from vit_jax.preflight import hlo
from vit_jax.state import init_state, init_variables
from vit_jax.train import make_train_step

ROOT = Path(__file__).parents[1]
BATCH, K = 16, 5
MESHES = {
  'one': dict(),
  'data': dict(data=8),
  'data x fsdp': dict(data=4, fsdp=2),
  'data x tensor': dict(data=4, tensor=2),
  'all': dict(data=2, fsdp=2, tensor=2),
}
VIT = dict(type='models.vit.ViT', patch_size=4, width=32, depth=1, num_heads=2, mlp_dim=64)
TEXT = dict(
  type='models.text.TextTransformer', vocab_size=64, end_id=63, context=4, width=32, depth=1,
  num_heads=2, projection=32,
)  # fmt: skip


def supervised(encoder):
  return dict(type='objectives.supervised.Supervised', num_classes=K, encoder=encoder)


SGD = optax.sgd(0.1, momentum=0.9)  # After a step its momentum is the gradient.


def spec_of(batch_size):
  shapes = {
    'image': ((batch_size, 8, 8, 3), 'uint8'),
    'label': ((batch_size,), 'int32'),
    'text': ((batch_size, 4), 'int32'),
  }
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def make_batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8),
    'label': rng.integers(0, K, BATCH).astype(np.int32),
    'text': rng.integers(0, 63, (BATCH, 4)).astype(np.int32),
  }


def make_step(objective, tx, mesh, word, batch_size=BATCH):
  """The jitted step as the loop has it, a function that makes the first state, and one like it."""
  make, like = init_state(objective, tx, spec_of(batch_size), 0, mesh, ema=True, sharding=word)
  places = jax.tree.map(lambda x: x.sharding, like), sharding.replicated(mesh)
  step = jax.jit(make_train_step(objective, tx), donate_argnums=0, out_shardings=places)
  return step, make, like


def compiled_text(objective, mesh, word, batch_size=BATCH):
  with jax.set_mesh(mesh):
    step, _, like = make_step(objective, SGD, mesh, word, batch_size)
    batch = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))
      for name, x in spec_of(batch_size).items()
    }
    return step.lower(like, batch).compile().as_text()


def mesh_of(name):
  shape = MESHES[name]
  return sharding.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


def held(tree):
  """The bytes that the first device really holds."""
  shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
  return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


@functools.cache
def take_steps(mesh_name, word):
  """Losses of two steps, the gradient of the first, and what a device holds of the state."""
  mesh = mesh_of(mesh_name)
  with jax.set_mesh(mesh):
    step, make, _ = make_step(build(supervised(VIT)), SGD, mesh, word)
    state, batch = make(), jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    # A head of zeros would hide the encoder's gradients.
    state = state.replace(params=jax.tree.map(lambda p: p + 0.1, state.params))
    sizes = {name: held(getattr(state, name)) for name in ('params', 'opt_state', 'ema')}
    state, first = step(state, batch)
    gradient = jax.device_get(state.opt_state)
    state, second = step(state, batch)
    after = {name: held(getattr(state, name)) for name in ('params', 'opt_state', 'ema')}
  assert after == sizes
  return [float(row['loss']) for row in (first, second)], gradient, sizes


# -- The same numbers.


@pytest.mark.parametrize(
  ('mesh', 'word'),
  [
    *((mesh, word) for mesh in MESHES if mesh != 'one' for word in ('fsdp', 'zero1')),
    ('data x fsdp', 'replicated'),
    ('all', 'replicated'),
  ],
)
def test_losses_and_gradients_are_those_of_one_device(mesh, word):
  losses, gradient, _ = take_steps('one', 'fsdp')
  assert losses[1] < losses[0] - 0.01
  scale = max(np.abs(x).max() for x in jax.tree.leaves(gradient))
  assert scale > 0.1
  other, split, _ = take_steps(mesh, word)
  np.testing.assert_allclose(other, losses, rtol=1e-5)
  for (path, a), b in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(split), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * scale, err_msg=str(path))


# -- The state in its parts.


def test_what_a_device_holds_under_each_word():
  _, _, whole = take_steps('one', 'fsdp')
  for word, (mesh, params, moments) in {
    'fsdp': ('data x fsdp', 2, 2),
    'zero1': ('data x fsdp', 1, 8),
    'replicated': ('data x fsdp', 1, 1),
  }.items():
    _, _, sizes = take_steps(mesh, word)
    for part, over in (('params', params), ('opt_state', moments), ('ema', moments)):
      share = sizes[part] * over / whole[part]
      assert 1 <= share < 1.05, (word, part)
  # ZeRO-1 of data parallelism alone.
  _, _, sizes = take_steps('data', 'zero1')
  assert sizes['params'] == whole['params']
  assert sizes['opt_state'] * 8 < 1.05 * whole['opt_state']
  _, _, sizes = take_steps('data', 'fsdp')
  assert sizes == whole


OPTIMIZERS = {
  'bfloat16': ('adamw', dict(mu_dtype='bfloat16')),
  'factored': ('adafactor', dict(min_dim_size_to_factor=2, mu_dtype='float32')),
  'trust ratio': ('lamb', {}),
}


def update(name, mesh_name, word):
  """An optimizer's second update by random gradients, and what a device holds of its state."""
  kind, options = OPTIMIZERS[name]
  mesh, objective = mesh_of(mesh_name), build(supervised(VIT))
  with jax.set_mesh(mesh):
    _, like = init_state(objective, SGD, spec_of(BATCH), 0, mesh, sharding=word)
    fields = {'name': kind, 'learning_rate': 0.1, 'weight_decay': 0.1, 'options': options}
    tx = optim.build_optimizer(fields, like.params, total_steps=10, steps=dict).tx
    _, like = init_state(objective, tx, spec_of(BATCH), 0, mesh, sharding=word)
    places = jax.tree.map(lambda x: x.sharding, (like.params, like.opt_state))
    rng = np.random.default_rng(0)
    params, *gradients = (
      jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like.params)
      for _ in range(3)
    )
    params = jax.device_put(params, places[0])
    state = jax.jit(tx.init, out_shardings=places[1])(params)
    step = jax.jit(tx.update, out_shardings=places)
    for gradient in gradients:
      updates, state = step(jax.device_put(gradient, places[0]), state, params)
  return jax.device_get(updates), held(state)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_bfloat16_and_factored_moments_and_trust_ratios_under_each_word(name):
  expected, whole = update(name, 'one', 'fsdp')
  for word, parts in (('fsdp', 2), ('zero1', 8), ('replicated', 1)):
    updates, size = update(name, 'data x fsdp', word)
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Of factored moments many are too small to be split.
    assert 1 <= size * parts / whole < (1.25 if name == 'factored' else 1.05), word


@pytest.mark.parametrize(('saved', 'opened'), [('fsdp', 'zero1'), ('zero1', 'replicated')])
def test_a_checkpoint_of_one_word_opens_under_another(saved, opened, tmp_path):
  mesh, objective = mesh_of('data x fsdp'), build(supervised(VIT))
  with jax.set_mesh(mesh):
    _, make, _ = make_step(objective, SGD, mesh, saved)
    step, _, like = make_step(objective, SGD, mesh, opened)
    state = make()
    state = state.replace(opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(1, state, {})
      checkpoints.wait()
      again = checkpoints.restore(like)
    assert held(again.opt_state) != held(state.opt_state)
    for a, b, leaf in zip(*map(jax.tree.leaves, (again, state, like)), strict=True):
      assert a.sharding == leaf.sharding
      np.testing.assert_array_equal(a, b)
    batch = jax.device_put(make_batch(), sharding.batch_sharding(mesh))
    assert np.isfinite(step(again, batch)[1]['loss'])


# -- What XLA makes of it.

CASES = {
  'vit': (
    supervised(dict(VIT, depth=2, scan=True, remat='full', pooling='map', dropout=0.1)),
    'all',
    'fsdp',
  ),
  'zero1': (supervised(VIT), 'all', 'zero1'),
  'resnet': (
    supervised(dict(type='models.resnet.ResNet', blocks=(1, 1), width=8, small_stem=True)),
    'data x fsdp',
    'fsdp',
  ),
  'clip': (dict(type='objectives.clip.CLIP', image=VIT, text=TEXT, projection=32), 'all', 'fsdp'),
}

# Prints a line for each case as it is compiled; XLA writes what it cannot do to stderr.
SCRIPT = """
import json, sys
sys.path.insert(0, 'tests')
import sharding_steps_test as steps
from vit_jax.build import build
for name in json.loads(sys.argv[1]):
  spec, mesh, word = steps.CASES[name]
  steps.compiled_text(build(spec), steps.mesh_of(mesh), word)
  print(name)
"""
# A table that is split by features, looked up as it lies.
CONTROL = """
import jax, jax.numpy as jnp
from vit_jax import sharding
mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
def f(table, text):
  return sharding.constrain(jnp.take(table, text, axis=0), 'batch', None, None)
placed = sharding.place((None, 'embed'), (64, 32), mesh, ('fsdp',))
args = [
  jax.ShapeDtypeStruct((64, 32), 'float32', sharding=placed),
  jax.ShapeDtypeStruct((16, 4), 'int32', sharding=sharding.batch_sharding(mesh)),
]
with jax.set_mesh(mesh):
  jax.jit(f).lower(*args).compile()
"""


def run(script, *args, **env):
  """Standard output and error of a process that compiles anew."""
  done = subprocess.run(
    [sys.executable, '-c', script, *args],
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': '0', **env},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, done.stderr


def test_xla_gathers_nothing_that_it_did_not_mean_to():
  _, control = run(CONTROL)
  assert 'full rematerialization' in control
  out, err = run(SCRIPT, json.dumps(list(CASES)))
  assert out.splitlines() == list(CASES)
  assert 'rematerialization' not in err, err


def parameter_bytes(objective):
  variables = jax.eval_shape(lambda: init_variables(objective, spec_of(BATCH), jax.random.key(0)))
  return sum(4 * x.size for x in jax.tree.leaves(variables['params']))


def test_data_parallelism_reduces_all_gradients_at_once():
  # A class token and its position have one gradient, which is sent once.
  objective = build(supervised(dict(VIT, pooling='mean')))
  found = hlo.collectives(compiled_text(objective, mesh_of('data'), 'fsdp'))
  assert {c.kind for c in found} == {'all-reduce'}
  # CPUs send a number for each residual stream too: `compute_gradient_once` asks whether it is NaN.
  (gradients,) = (c for c in found if c.bytes > 4)
  assert (gradients.count, gradients.group) == (1, 8)
  size = parameter_bytes(objective)
  assert size <= gradients.bytes < 1.01 * size  # With the loss and the metrics.


def test_a_contrastive_step_exchanges_twice_as_much_for_twice_the_batch():
  """In a ring: of batches that are too large for the matrix of all pairs."""
  objective = build(CASES['clip'][0])
  texts = [compiled_text(objective, mesh_of('data'), 'fsdp', size) for size in (4096, 8192)]
  sizes = [sum(c.count * c.bytes for c in hlo.collectives(text)) for text in texts]
  fixed = parameter_bytes(objective)
  small, large = (size - fixed for size in sizes)
  assert small > 4096 * 32 * 4
  assert 1.9 < large / small < 2.1


# Of a slice of 8 chips, in a process of its own: libtpu stays loaded in the one that asks.
ON_TPUS = """
import json, sys
from vit_jax.preflight import hlo, topologies
topologies.set_environment('v5e:2x4')
sys.path.insert(0, 'tests')
import sharding_steps_test as steps
from vit_jax import sharding
from vit_jax.build import build
devices, objective = topologies.devices('v5e:2x4'), build(steps.supervised(steps.LARGER))
for shape in json.loads(sys.argv[1]):
  mesh = sharding.make_mesh(shape, devices)
  print(json.dumps(hlo.collectives(steps.compiled_text(objective, mesh, 'fsdp', 64))))
"""
LARGER = dict(VIT, width=256, num_heads=8, mlp_dim=1024, pooling='mean', dtype='bfloat16')


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="pip install 'jax[tpu]' compiles for TPUs"
)
def test_the_collectives_of_tpus():
  shapes = [dict(data=8), dict(data=2, tensor=4), dict(fsdp=8)]
  out, err = run(ON_TPUS, json.dumps(shapes))
  assert 'rematerialization' not in err
  data, tensor, fsdp = ([hlo.Collective(*c) for c in json.loads(row)] for row in out.splitlines())
  size = parameter_bytes(build(supervised(LARGER)))
  # One of the gradients that are in bfloat16, one of the others.
  assert [(c.kind, c.count, c.group) for c in data] == 2 * [('all-reduce', 1, 8)]
  assert size / 2 <= sum(c.bytes for c in data) < 1.02 * size
  # Of attention and of the MLP, forth and back; heads never meet.
  tokens = 32 * 4 * 256 * 2  # [B, L, D] in bfloat16
  assert [c.kind for c in tensor if c.bytes == tokens] == 4 * ['all-reduce']
  assert sum(c.bytes for c in tensor if c.kind == 'all-gather') < tokens / 10
  # Every kernel in bfloat16, at least once.
  gathered = sum(c.count * c.bytes for c in fsdp if c.kind == 'all-gather')
  assert size / 2 <= gathered <= 2 * size
  # And the gradients of those that are not small go to where each part of them is kept.
  scattered = sum(c.count * c.bytes for c in fsdp if c.kind == 'reduce-scatter')
  assert size / 4 < scattered <= size / 2
