"""On CPUs freed memory stays with the process: a large array's pages are made once, not anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax import allocator

ROOT = Path(__file__).parents[1]
# Page faults of making and dropping 64 MB ten times; a page is 4 kB.
FAULTS = """
import resource, sys
import numpy as np
{before}
from vit_jax import allocator
done = allocator.keep_freed_memory()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  np.ones(2**23)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(before: str = '', **environment: str) -> tuple[bool, int]:
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
  code = FAULTS.format(before=before)
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  )
  kept, count = done.stdout.split()
  return kept == 'True', int(count)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc alone has these options')
def test_a_large_array_is_made_of_the_pages_of_the_one_before():
  kept, count = faults(JAX_PLATFORMS='cpu')
  assert kept
  kept, before = faults(JAX_PLATFORMS='tpu')
  assert not kept
  assert count < before / 10, (count, before)


def test_once_jax_is_imported_it_is_too_late():
  kept, _ = faults('import jax', JAX_PLATFORMS='cpu')
  assert not kept


@pytest.mark.parametrize(('told', 'expected'), [('cpu', True), ('cuda', False), ('tpu,cpu', False)])
def test_the_environment_says_where_jax_computes(told, expected, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', told)
  assert allocator._on_cpu() is expected


def test_an_accelerators_plugin_leaves_the_allocator_alone(monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(allocator.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(allocator.importlib.metadata, 'entry_points', lambda group: ())
  assert allocator._on_cpu()
  monkeypatch.setattr(allocator.importlib.util, 'find_spec', lambda name: name)
  assert not allocator._on_cpu()
  monkeypatch.setattr(allocator.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(allocator.importlib.metadata, 'entry_points', lambda group: (group,))
  assert not allocator._on_cpu()
