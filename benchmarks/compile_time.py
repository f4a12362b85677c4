"""Seconds from a traced training step to a compiled one: unrolled, as a scan, and from the cache.

python benchmarks/compile_time.py [--model L/16] [--repeats 3]

Each figure is of a process of its own that traces, lowers and compiles the step of a ViT at 224
pixels and a batch of 8 in float32, and runs nothing; the kinds take turns, and a cell is the
median. `cached` compiles it a second time from the persistent cache of the first.

Measured on 2 CPU cores with jax 0.10.2:

L/16              trace, s  compile, s  of unrolled, cold
unrolled, cold         2.3        7.38              1.000
unrolled, cached       2.2        2.51              0.341
scan, cold             0.3        1.90              0.257
scan, cached           0.3        0.12              0.017

For a TPU v5e `tpu_step.py` took 198 s unrolled and 38 s as a scan.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

from vit_jax import tables

BATCH = 8


def child(model, scan, cache):
  """Prints the seconds of tracing and lowering, and of compiling."""
  import jax
  import steps

  from vit_jax import sharding

  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  mesh = sharding.make_mesh({})
  with jax.set_mesh(mesh):
    encoder = dict(variant=model, scan=scan == 'scan')
    step, _, like, batch = steps.supervised_step(encoder, BATCH, mesh)
    begun = time.perf_counter()
    lowered = step.lower(like, batch)
    traced = time.perf_counter()
    lowered.compile()
    print(traced - begun, time.perf_counter() - traced)


def measure(model, scan, cache):
  command = [sys.executable, __file__, '--child', model, scan, cache]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return [float(value) for value in done.stdout.split()[-2:]]


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--model', default='L/16')
  parser.add_argument('--repeats', type=int, default=3)
  options = parser.parse_args()
  times = {(scan, kind): [] for scan in ('unrolled', 'scan') for kind in ('cold', 'cached')}
  for _ in range(options.repeats):
    for scan in ('unrolled', 'scan'):
      with tempfile.TemporaryDirectory() as cache:
        for kind in ('cold', 'cached'):
          times[scan, kind].append(measure(options.model, scan, cache))
          print(scan, kind, *(f'{t:.1f}' for t in times[scan, kind][-1]), flush=True)
  rows = []
  reference = statistics.median(compiled for _, compiled in times['unrolled', 'cold'])
  for (scan, kind), values in times.items():
    traced, compiled = (statistics.median(column) for column in zip(*values, strict=True))
    rows.append(
      (f'{scan}, {kind}', f'{traced:.1f}', f'{compiled:.2f}', f'{compiled / reference:.3f}')
    )
  print(tables.table(rows, (options.model, 'trace, s', 'compile, s', 'of unrolled, cold')))


if __name__ == '__main__':
  child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main()
