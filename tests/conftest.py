"""Eight simulated CPU devices, and compiled programs kept between runs."""

import importlib.util
import os
import socket
import subprocess
import sys
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


@pytest.fixture
def run_two_processes(tmp_path):
  """A function that runs a script in two processes of 4 devices each, to their end.

  The script's arguments are the address of the first, its own number, and `tmp_path`.
  """

  def run(script: str) -> None:
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    environment = {
      **os.environ,
      'PYTHONPATH': str(Path(__file__).parents[1]),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
      'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    }
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', script, address, str(i), str(tmp_path)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for i in range(2)
    ]  # fmt: skip
    for process in processes:
      out, _ = process.communicate(timeout=300)
      assert process.returncode == 0, out

  return run
