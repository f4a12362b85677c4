"""The command, in processes of its own: it decides how JAX starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/vit_digits.py')
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.objective.augment=',
)


def preflight(*argv: str, config: str = CONFIG) -> subprocess.CompletedProcess:
  outside = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  return subprocess.run(
    [sys.executable, '-m', 'vit_jax', 'preflight', '--config', config, *argv],
    env={**outside, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])},
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_text_json_and_a_section_of_the_report(tmp_path):
  file, workdir = tmp_path / 'found.json', tmp_path / 'run'
  done = preflight(
    *('--topology', 'cpu:4', '--json', str(file), '--workdir', str(workdir)),
    *('--memory', '0.0001', '--no-advice', '--config.batch_size=32', *TINY),
  )
  assert done.returncode == 3, done.stderr
  assert done.stdout.startswith('objectives.supervised.Supervised, 32 examples a step on 4 x cpu')
  assert 'DOES NOT FIT' in done.stdout
  found = json.loads(file.read_text())
  assert found['devices'] == 4 and found['batch_size'] == 32 and found['config'] == CONFIG
  assert '--config.batch_size=32' in found['overrides']
  html = (workdir / 'report.html').read_text()
  assert '<h2>Preflight</h2>' in html and 'DOES NOT FIT' in html and 'all-reduce' in html
  assert json.loads((workdir / 'preflight.json').read_text()) == found
  assert done.stderr.splitlines() == [
    'compiling the step of 32 examples for 4 devices ...',
    f'Report: {workdir / "report.html"}',
  ]


def test_json_alone_and_other_devices(tmp_path):
  done = preflight('--topology', 'cpu:16', '--json', '-', '--config.mesh.fsdp=4', *TINY)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found['mesh'] == {'data': 4, 'fsdp': 4, 'tensor': 1}
  assert found['fits'] is None


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--topology', 'v5e:3x5'], "unknown topology 'v5e:3x5'; slices of v5e are v5e:1x1, "),
    (['--topology', 'v9:2x2'], "unknown topology 'v9:2x2'; choose from v4:2x2x1 ... "),
    (['--topology', 'cpu:8', '--image', '28x28'], '--image is HEIGHTxWIDTHxCHANNELS'),
    (['--topology', 'cpu:8', '--memory', '0'], '--memory is a number of GiB above 0'),
    (['--topology', 'cpu:6', '--config.batch_size=64'], 'choose 60 or 66'),
    (['--topology', 'cpu:6', '--config.mesh.fsdp=4'], 'there are 6'),
  ],
)
def test_a_mistake_is_one_sentence(argv, message):
  done = preflight(*argv)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('vit_jax: error: ') and message in line
  assert done.stdout == ''
