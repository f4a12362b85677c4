"""Eight simulated CPU devices, and compiled programs kept between runs."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

# Before JAX starts.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(Path(tempfile.gettempdir()) / f'vit_jax_tests_{os.getuid()}')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')


@pytest.fixture
def make_disk(tmp_path):
  """A function that mounts a small file system, which only root can."""
  folder = tmp_path / 'disk'

  def make(megabytes: int) -> Path:
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
      pytest.skip('cannot mount a small file system')
    return folder

  yield make
  if folder.is_mount():
    subprocess.run(['umount', '-l', str(folder)], check=True)
