"""Eight simulated CPU devices, and compiled programs kept between runs."""

import importlib.util
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent import futures
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

import jax  # noqa: E402  after the variables above


@pytest.fixture(autouse=True)
def _programs_fit_in_memory():
  """Drops compiled programs before their memory maps reach what Linux allows a process (65,530).

  Past that XLA fails ("Failed to materialize symbols") and the process dies. One program takes
  tens of maps, and pytest keeps every one that its thousands of tests compile.
  """
  yield
  maps = Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 20_000:
    jax.clear_caches()


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


@pytest.fixture(scope='session')
def run_processes():
  """A function that runs a command in several processes that share 8 devices, to their end.

  Args:
    command: in it the words ADDRESS, COUNT and NUMBER stand for the address of the first process,
      how many there are, and which one it is.
    count: of processes.
    devices: of all of them together.
    check: whether all must exit with 0.
    environment: more variables.

  Returns:
    A `subprocess.CompletedProcess` of each.
  """

  def run(
    command: Sequence[str],
    *,
    count: int = 2,
    devices: int = 8,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
  ) -> list[subprocess.CompletedProcess]:
    words = {'ADDRESS': f'localhost:{free_port()}', 'COUNT': str(count)}
    variables = {
      **os.environ,
      'PYTHONPATH': str(Path(__file__).parents[1]),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices // count}',
      **(environment or {}),
    }
    processes = []
    try:
      for i in range(count):
        argv = list(command)
        for word, value in (*words.items(), ('NUMBER', str(i))):
          argv = [argument.replace(word, value) for argument in argv]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen(argv, env=variables, **pipes))
      # All at once: a pipe that nobody reads stops its process, and with it the others.
      with futures.ThreadPoolExecutor(count) as pool:
        outputs = list(pool.map(lambda process: process.communicate(timeout=300), processes))
    finally:
      for process in processes:
        process.kill()
        process.wait()
    done = [
      subprocess.CompletedProcess(process.args, process.returncode, *output)
      for process, output in zip(processes, outputs, strict=True)
    ]
    for process in done:
      assert not check or process.returncode == 0, process.stdout + process.stderr
    return done

  return run


def free_port() -> int:
  """A port that nothing listens at."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]
