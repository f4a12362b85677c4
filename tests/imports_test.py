"""What an import costs, and which way imports point."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vit_jax

PACKAGE = Path(vit_jax.__file__).parent
# Which packages a package must not import: "imports point one way".
FORBIDDEN = {
  'models': {'objectives', 'train', 'experiment', 'data', 'evaluators', 'hooks', 'cli', 'config'},
  'losses': {
    'objectives',
    'train',
    'experiment',
    'models',
    'data',
    'evaluators',
    'hooks',
    'cli',
    'config',
  },
  'augment': {
    'objectives',
    'train',
    'experiment',
    'models',
    'data',
    'evaluators',
    'hooks',
    'cli',
    'config',
  },
  'objectives': {'train', 'experiment', 'evaluators', 'hooks', 'cli', 'config', 'data'},
  'data': {'objectives', 'models', 'train', 'experiment', 'evaluators', 'hooks', 'cli', 'config'},
  'evaluators': {'objectives', 'train', 'experiment', 'hooks', 'cli', 'config'},
  'hooks': {'train', 'experiment', 'cli', 'config'},
  'preflight': {'objectives', 'evaluators', 'hooks', 'adapters', 'cli'},
  'adapters': {'objectives', 'train', 'experiment', 'evaluators', 'hooks', 'cli', 'data'},
}


def run(code: str) -> str:
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONPATH': str(PACKAGE.parent)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.mark.smoke
def test_the_package_and_its_command_line_import_nothing_large():
  large = ('jax', 'flax', 'optax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'grain',
           'matplotlib', 'PIL', 'sklearn', 'numpy')  # fmt: skip
  code = f'import sys, vit_jax, vit_jax.cli; print([m for m in {large!r} if m in sys.modules])'
  assert run(code) == '[]'


@pytest.mark.smoke
def test_the_loop_and_what_it_builds_start_no_device_and_need_nothing_optional():
  optional = ('tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'sklearn', 'torch')
  code = f"""
import sys, pkgutil, importlib
import vit_jax, vit_jax.train
for package in 'models losses objectives augment evaluators hooks data adapters preflight'.split():
  path = importlib.import_module('vit_jax.' + package).__path__
  for info in pkgutil.iter_modules(path):
    importlib.import_module(f'vit_jax.{{package}}.{{info.name}}')
import jax._src.xla_bridge as bridge
print([m for m in {optional!r} if m in sys.modules], dict(bridge._backends))
"""
  assert run(code) == '[] {}'


def imported(file: Path) -> set[str]:
  """The parts of vit_jax that a file imports, wherever in it: {'models', 'config'}."""
  names = []
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return {n.split('.')[1] for n in names if n.startswith('vit_jax.')}


@pytest.mark.parametrize('package', FORBIDDEN)
def test_imports_point_one_way(package):
  files = list((PACKAGE / package).rglob('*.py'))
  assert files
  for file in files:
    assert imported(file) & FORBIDDEN[package] == set(), file.name
  assert (PACKAGE / 'train.py').exists()


def test_nothing_imports_a_config_and_the_loop_knows_no_method():
  for file in PACKAGE.rglob('*.py'):
    text = file.read_text()
    assert 'import configs' not in text
    assert 'from configs' not in text
  for name in ('train', 'experiment'):
    file = PACKAGE / f'{name}.py'
    assert imported(file) & {'objectives', 'models', 'evaluators', 'hooks'} == set()
