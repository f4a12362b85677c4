"""What is printed before the first step."""

from pathlib import Path

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, workdirs

CONFIG = str(Path(__file__).parents[1] / 'configs/vit_digits.py')


def opening(*flags, devices=None, step=0):
  made = experiment.setup(config_lib.load(CONFIG, flags), devices=devices)
  with jax.set_mesh(made.mesh):
    _, like = experiment.prepare_state(made)
  return workdirs.opening(made, step, like).splitlines()


def test_one_device_is_told_of_no_sharding():
  lines = opening(devices=jax.devices()[:1])
  assert lines[0].split() == ['parameter', 'shape', 'size', 'multiplier', 'decay']
  assert not [line for line in lines if 'a device' in line]
  assert 'starting' in lines[-1]


@pytest.mark.parametrize(
  ('word', 'kernel', 'held'),
  [
    # float32 [64, 128] in each of the blocks; AdamW keeps two as large.
    ('fsdp', 'fsdp,tensor', 4),
    ('zero1', '-,tensor', 2),
    ('replicated', '-,tensor', 2),
  ],
)
def test_several_devices_are_told_what_each_holds(word, kernel, held):
  mesh = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')
  lines = opening(*mesh, f'--config.sharding={word}', step=7)
  assert max(map(len, lines[:-1])) <= 110
  assert lines[0].split() == ['parameter', 'shape', 'size', 'decay', 'sharding', 'a', 'device']
  (line,) = (line.split() for line in lines if 'mlp/fc_1/kernel' in line)
  count, size = int(line[2]), int(line[4].replace(',', ''))
  assert line[-3] == kernel
  assert float(line[-2]) == pytest.approx(count * size * 4 / held / 1000, rel=0.01)
  (total,) = (line for line in lines if line.startswith('a device holds'))
  assert total.endswith(f'{word!r} on data=2, fsdp=2, tensor=2')
  assert 'parameters' in total and 'optimizer' in total
  assert 'resuming after step 7' in lines[-1]
