"""Compiled programs kept between runs: a command that ran before starts without compiling.

CPU time to the first step of `configs/vit_emoji.py`: 18.0 s with an empty cache, 6.0 s with the
programs of a run before (jax 0.10.2; by the clock of two busy cores 36 and 12 s).
"""

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

from vit_jax.reasons import reason

# What compiles faster is not worth a file.
MIN_SECONDS = 0.3


def enable() -> Path | None:
  """Has JAX keep compiled programs in a folder for this platform, and take them from there.

  The folder is `xla/<platform>-<jax version>` in `$VIT_JAX_CACHE`, by default `~/.cache/vit_jax`.
  JAX's own variables decide where they are set: JAX_COMPILATION_CACHE_DIR names another folder (for
  many hosts one that they share: only process 0 writes), JAX_ENABLE_COMPILATION_CACHE=0 keeps
  nothing. The cache is trusted: programs in it are run. Starts the devices.

  Returns:
    The folder; None where JAX has been told otherwise, or where it cannot be written, which is one
    line on stderr.
  """
  import jax

  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return None
  root = Path(os.environ.get('VIT_JAX_CACHE') or '~/.cache/vit_jax').expanduser()
  folder = root / 'xla' / f'{_machine(jax.default_backend())}-{jax.__version__}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as e:
    print(f'vit_jax: compiled programs are not kept, since {reason(e)}', file=sys.stderr)
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
  return folder


def _machine(backend: str) -> str:
  """The platform's name; of a CPU with what it is able to do, since programs are made for that.

  A home folder can be shared by machines with different CPUs, which JAX's key does not tell apart.
  """
  if backend != 'cpu':
    return backend
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  features = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  able = ' '.join(sorted(features.split())) or platform.processor()
  return f'cpu-{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:8]}'
