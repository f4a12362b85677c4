import importlib.util
import os
import subprocess
import sys
import types

import jax
import pytest

from vit_jax.preflight import chips, gpus, topologies

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="pip install 'jax[tpu]' compiles for TPUs"
)
needs_plugin = pytest.mark.skipif(
  importlib.util.find_spec('jax_plugins') is None, reason='no jax-cuda13-plugin'
)


def mistake(name: str) -> str:
  with pytest.raises(ValueError) as error:
    topologies.devices(name)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_simulated_devices_are_those_of_this_process():
  assert topologies.devices('cpu:8') == jax.devices()
  assert topologies.devices('cpu:3') == jax.devices()[:3]
  assert 'needs 9 devices and this process has 8' in mistake('cpu:9')


@pytest.mark.parametrize('name', ['v3:2x2', 'tpu', 'cpu', 'cpu:0', 'cpu:x', 'v', '', 'gpu:x'])
def test_an_unknown_topology_lists_those_there_are(name):
  text = mistake(name)
  assert text.startswith(f'unknown topology {name!r}')
  for known in ('v5e:1x1 ... 16x16', 'v5p:2x2x1', 'a100-40gb:N, a100-80gb:N', 'cpu:N', 'gpu'):
    assert known in text


@pytest.mark.parametrize(
  'name', ['v5e:3x5', 'v5e:32x32', 'v5e-3', 'v5e', 'v6e:2x2x2', 'v5e:16x16x']
)
def test_an_unknown_slice_lists_those_of_its_kind(name):
  text = mistake(name)
  assert name[:3] + ':2x4' in text and name[:3] + ':16x16' in text


@pytest.mark.parametrize('name', ['h100', 'h100:0', 'h100:12', 'a100-80gb:9', 'h200-x', 'h100:2x4'])
def test_gpus_fill_a_machine_or_several(name):
  assert mistake(name).endswith('takes 1 to 8 GPUs, or a multiple of 8')


@pytest.mark.skipif('gpu' in str(jax.devices()).lower(), reason='there is a GPU')
def test_without_a_gpu_there_is_none():
  text = mistake('gpu')
  assert 'needs a GPU' in text and 'v5e:1x1' in text


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is here')
def test_without_libtpu_the_error_says_how_to_get_it():
  with pytest.raises(ImportError, match=rf"pip install 'jax\[tpu\]=={jax.__version__}'"):
    topologies.devices('v5e:2x4')


@pytest.mark.skipif(importlib.util.find_spec('jax_plugins') is not None, reason='a plugin is here')
def test_without_the_plugin_the_error_says_how_to_get_it():
  with pytest.raises(ImportError, match=rf'pip install jax-cuda13-plugin=={jax.__version__} '):
    topologies.devices('h100:8')


@pytest.mark.parametrize(
  ('name', 'same'),
  [
    ('v5litepod-256', ('v5e', '16x16')),
    ('v5e-8', ('v5e', '2x4')),
    ('V6E:4x4', ('v6e', '4x4')),
    ('v4-8', ('v4', '2x2x1')),  # cores, two a chip
    ('v5p-128', ('v5p', '4x4x4')),
    ('v5p:8x8x12', ('v5p', '8x8x12')),
    ('A100-80GB:16', ('a100-80gb', '16')),
    ('h100-8', ('h100', '8')),
  ],
)
def test_the_names_of_the_cloud(name, same):
  assert topologies._split(name) == same


def test_an_environment_of_its_own_and_no_other(monkeypatch):
  monkeypatch.setattr(os, 'environ', {'XLA_FLAGS': '--xla_dump_to=/tmp/x'})
  topologies.set_environment('cpu:4')
  assert os.environ['XLA_FLAGS'].split() == [
    '--xla_dump_to=/tmp/x',
    '--xla_force_host_platform_device_count=4',
  ]
  assert not any(name.startswith('TPU') for name in os.environ)
  monkeypatch.setattr(os, 'environ', {'XLA_FLAGS': '--xla_gpu_enable_triton_gemm=true'})
  topologies.set_environment('h100:8')
  assert os.environ['JAX_PLATFORMS'] == 'cpu'
  # What the user has set comes last, and wins.
  assert os.environ['XLA_FLAGS'].split() == [gpus.FLAGS, '--xla_gpu_enable_triton_gemm=true']
  topologies.set_environment('v5e:2x2')
  assert os.environ['TPU_ACCELERATOR_TYPE'] == 'v5litepod-8'
  assert os.environ['JAX_PLATFORMS'] == 'cpu'


@needs_libtpu
def test_every_kind_of_slice_has_one_device_a_chip():
  """In a process of its own: libtpu stays loaded in the one that asks."""
  code = """
from vit_jax.preflight import chips, topologies
topologies.set_environment('v5e:2x4')
for name, family in topologies.FAMILIES.items():
  for shape in family.shapes:
    found = topologies.devices(f'{name}:{shape}')
    sides = [int(side) for side in shape.split('x')]
    count = sides[0] * sides[1] * (sides[2] if len(sides) > 2 else 1)
    assert len(found) == count, (name, shape, len(found))
    assert chips.chip_of(found[0].device_kind) is chips.CHIPS[name], found[0].device_kind
try:
  topologies.devices('v5p:3x5x7')
except ValueError as e:
  print(e)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('libtpu knows no topology v5p:3x5x7; slices of v5p are 2x2x1, ')


@needs_plugin
def test_every_kind_of_gpu_is_the_chip_of_the_table():
  code = """
from vit_jax.preflight import chips, gpus, topologies
topologies.set_environment('h100:8')
for name in gpus.GPUS:
  for count in (1, 4, 8, 24):
    found = topologies.devices(f'{name}:{count}')
    assert len(found) == count and {d.platform for d in found} == {'gpu'}, found
    assert len({d.process_index for d in found}) == -(-count // 8), found
    assert chips.chip_of(found[0].device_kind) is chips.CHIPS[name], found[0].device_kind
    assert chips.memory_limit(found[0]) == int(0.75 * chips.CHIPS[name].memory)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def gpu(stats):
  return types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H200', memory_stats=stats)


def test_memory_of_a_gpu_is_what_jax_takes_of_it():
  def absent():
    raise jax.errors.JaxRuntimeError('MemoryStats is only supported for addressable PjRt devices.')

  whole = chips.CHIPS['h200'].memory
  assert chips.memory_limit(gpu(lambda: {'bytes_limit': 123})) == 123
  assert chips.memory_limit(gpu(lambda: None)) == whole  # An allocator without a pool.
  assert chips.memory_limit(gpu(absent)) == int(0.75 * whole)


def test_chips_by_what_they_call_themselves():
  assert chips.chip_of('TPU v5 lite') is chips.CHIPS['v5e']
  assert chips.chip_of('TPU v5') is chips.CHIPS['v5p']
  assert chips.chip_of('TPU v6 lite') is chips.CHIPS['v6e']
  assert chips.chip_of('NVIDIA H100 80GB HBM3') is chips.CHIPS['h100']
  assert chips.chip_of('cpu') is None
  assert chips.memory_limit(jax.devices()[0]) is None
  assert set(topologies.FAMILIES) <= set(chips.CHIPS)
  for name, described in gpus.GPUS.items():
    assert chips.chip_of(described.kind) is chips.CHIPS[name]


@pytest.mark.parametrize(('name', 'products'), [('v5e', 4), ('v5p', 8)])
def test_clocks_are_those_of_the_published_peaks(name, products):
  chip = chips.CHIPS[name]
  assert 2 * products * 128**2 * chip.clock == pytest.approx(chip.flops, rel=0.005)
