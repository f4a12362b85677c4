"""What `allocator.keep_freed_memory` gives: training steps on CPUs with it and without.

python benchmarks/allocator.py

Each run is a process of its own, for the setting is one of the process. A cell is the median of
runs that alternate; a run's figure is the median of its steps after the first ten.
"""

import statistics
import subprocess
import sys
import time

from vit_jax import allocator

CASES = ('configs/vit_emoji.py', 'configs/vit_fashion_mnist.py')
REPEATS, STEPS, WARM_UP = 3, 60, 10


def child(path, keep):
  """Prints the median time of a step, in milliseconds."""
  if keep == 'with':
    allocator.keep_freed_memory()
  import jax

  from vit_jax import config, experiment, sharding, train
  from vit_jax.data import pipeline

  made = experiment.setup(config.load(path))
  with jax.set_mesh(made.mesh):
    make, _ = experiment.prepare_state(made)
    state = make()
    step = jax.jit(train.make_train_step(made.objective, made.optimizer.tx), donate_argnums=0)
    data = pipeline.TrainPipeline(
      made.source,
      host=made.config.data.host,
      batch_size=made.config.batch_size,
      seed=0,
      sharding=sharding.batch_sharding(made.mesh),
      stop_step=STEPS,
    )
    times = []
    with data:
      for batch in data:
        begun = time.perf_counter()
        state, metrics = step(state, batch)
        metrics['loss'].block_until_ready()
        times.append(time.perf_counter() - begun)
  print(1000 * statistics.median(times[WARM_UP:]))


def main():
  from vit_jax import tables

  rows = []
  for path in CASES:
    times = {'without': [], 'with': []}
    for _ in range(REPEATS):
      for keep, values in times.items():
        command = [sys.executable, __file__, path, keep]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        values.append(float(done.stdout.split()[-1]))
    a, b = (statistics.median(values) for values in times.values())
    rows.append((path, f'{a:.1f}', f'{b:.1f}', f'{a / b:.2f}'))
  print(tables.table(rows, ('', 'without, ms', 'with, ms', 'times faster')))


if __name__ == '__main__':
  child(*sys.argv[1:]) if sys.argv[1:] else main()
