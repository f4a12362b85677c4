"""Compiled programs are kept between runs, unless that is not wanted or cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
CODE = """
  import jax, jax.numpy as jnp
  import vit_jax.train
  from vit_jax import compilation_cache

  assert jax.config.jax_compilation_cache_dir in (None, {given!r})  # Importing sets nothing.
  hits = []
  jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
  print(compilation_cache.enable())
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))[0, 0])
  print(hits.count('/jax/compilation_cache/cache_hits'))
"""


def run(**variables) -> tuple[str, str]:
  """The folder that was chosen and how many programs came from it, and what stderr says."""
  cleared = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
  variables = {name: str(value) for name, value in variables.items()}
  code = CODE.format(given=variables.get('JAX_COMPILATION_CACHE_DIR'))
  done = subprocess.run(
    [sys.executable, '-c', code.replace('\n  ', '\n')],
    env={**cleared, 'PYTHONPATH': str(ROOT), **variables},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  folder, _, hits = done.stdout.split()
  return folder, int(hits), done.stderr


def test_a_second_run_finds_what_the_first_compiled(tmp_path):
  folder, hits, stderr = run(VIT_JAX_CACHE=tmp_path)
  assert Path(folder).parent == tmp_path / 'xla'
  assert Path(folder).name.startswith('cpu-') and folder.endswith(f'-{jax.__version__}')
  assert list(Path(folder).glob('jit_*')) and (hits, stderr) == (0, '')
  again, hits, stderr = run(VIT_JAX_CACHE=tmp_path)
  assert again == folder and hits > 0
  assert stderr == ''


def test_variables_of_jax_decide(tmp_path):
  own = tmp_path / 'own'
  assert run(VIT_JAX_CACHE=tmp_path / 'a', JAX_COMPILATION_CACHE_DIR=own)[0] == 'None'
  assert list(own.glob('jit_*'))
  assert run(VIT_JAX_CACHE=tmp_path / 'a', JAX_ENABLE_COMPILATION_CACHE='0')[0] == 'None'
  assert not (tmp_path / 'a').exists()


@pytest.mark.parametrize('root', ['/dev/null/cache', '/proc/cache'])
def test_a_folder_that_cannot_be_written_is_one_line(root):
  folder, hits, stderr = run(VIT_JAX_CACHE=root)
  assert (folder, hits) == ('None', 0)
  (line,) = stderr.splitlines()
  assert line.startswith('vit_jax: compiled programs are not kept, since ')
  assert f"'{root}" in line
