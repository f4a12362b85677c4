"""How the C library keeps memory, for computing on CPUs."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
  """Has the C library keep freed memory for the next allocation, where JAX will compute on CPUs.

  XLA allocates a step's temporary arrays anew at each step. glibc maps large ones from the kernel
  and gives them back, so that every page is made and cleared again: a fifth of the time of a small
  ViT's step on 2 cores (`benchmarks/allocator.py`). To be called before JAX is imported: its
  threads would have arenas of their own by then.

  Returns:
    Whether it was done: not with an accelerator's plugin, another C library, or JAX at work.
  """
  if 'jax' in sys.modules or not _on_cpu():
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # no glibc: macOS, musl, Windows
    return False
  options = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST}
  done = [mallopt(option, value) == 1 for option, value in options.items()]
  return all(done)


def _on_cpu() -> bool:
  """Whether JAX will compute on CPUs: it was told to, or can do nothing else."""
  told = os.environ.get('JAX_PLATFORMS')
  if told:
    return told == 'cpu'
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return not plugins and importlib.util.find_spec('libtpu') is None
