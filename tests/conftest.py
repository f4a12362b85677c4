"""Eight simulated CPU devices, and compiled programs kept between runs."""

import importlib.util
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


def _let_torchvision_be_imported() -> None:
  """Declares the operators that torchvision describes to PyTorch when it is imported.

  The package index has it built for GPUs, and beside a CPU build of PyTorch its operators do not
  load. timm and transformers import it, and the models here use none of them.
  """
  if not all(map(importlib.util.find_spec, ('torch', 'torchvision'))):
    return
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    for name in ('nms', 'qnms'):
      schema = '(Tensor boxes, Tensor scores, float threshold) -> Tensor'
      torch.library.define(f'torchvision::{name}', schema)


_let_torchvision_be_imported()


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
