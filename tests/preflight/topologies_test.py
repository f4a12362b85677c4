import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from vit_jax.preflight import chips, topologies

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="pip install 'jax[tpu]' compiles for TPUs"
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
  for known in ('v5e:1x1 ... 16x16', 'v5p:2x2x1', 'cpu:N', 'gpu'):
    assert known in text


@pytest.mark.parametrize(
  'name', ['v5e:3x5', 'v5e:32x32', 'v5e-3', 'v5e', 'v6e:2x2x2', 'v5e:16x16x']
)
def test_an_unknown_slice_lists_those_of_its_kind(name):
  text = mistake(name)
  assert name[:3] + ':2x4' in text and name[:3] + ':16x16' in text


@pytest.mark.skipif('gpu' in str(jax.devices()).lower(), reason='there is a GPU')
def test_without_a_gpu_there_is_none():
  text = mistake('gpu')
  assert 'needs a GPU' in text and 'v5e:1x1' in text


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is here')
def test_without_libtpu_the_error_says_how_to_get_it():
  with pytest.raises(ImportError, match=rf"pip install 'jax\[tpu\]=={jax.__version__}'"):
    topologies.devices('v5e:2x4')


@pytest.mark.parametrize(
  ('name', 'same'),
  [
    ('v5litepod-256', ('v5e', '16x16')),
    ('v5e-8', ('v5e', '2x4')),
    ('V6E:4x4', ('v6e', '4x4')),
    ('v4-8', ('v4', '2x2x1')),  # cores, two a chip
    ('v5p-128', ('v5p', '4x4x4')),
    ('v5p:8x8x12', ('v5p', '8x8x12')),
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


def test_chips_by_what_they_call_themselves():
  assert chips.chip_of('TPU v5 lite') is chips.CHIPS['v5e']
  assert chips.chip_of('TPU v5') is chips.CHIPS['v5p']
  assert chips.chip_of('TPU v6 lite') is chips.CHIPS['v6e']
  assert chips.chip_of('NVIDIA H100 80GB HBM3') is chips.CHIPS['h100']
  assert chips.chip_of('cpu') is None
  assert chips.memory_limit(jax.devices()[0]) is None
  assert set(topologies.FAMILIES) <= set(chips.CHIPS)


@pytest.mark.parametrize(('name', 'products'), [('v5e', 4), ('v5p', 8)])
def test_clocks_are_those_of_the_published_peaks(name, products):
  chip = chips.CHIPS[name]
  assert 2 * products * 128**2 * chip.clock == pytest.approx(chip.flops, rel=0.005)
