"""Runs of a benchmark, several at a time, each in a process on a core of its own."""

import concurrent.futures
import os
import queue
import subprocess
import sys
import time


def run_all(script, out, names, jobs):
  """Runs `python script child OUT NAME` for each name, `jobs` at a time, and prints how each ended.

  Args:
    script: the benchmark.
    out: its folder; `run/NAME.log` in it has what a run printed.
    names: of the runs.
    jobs: cores.
  """
  cores = queue.Queue()
  for core in sorted(os.sched_getaffinity(0))[:jobs]:
    cores.put(core)

  def run(name):
    core = cores.get()
    begun = time.perf_counter()
    log = out / 'run' / f'{name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as file:
      done = subprocess.run(
        ['taskset', '-c', str(core), sys.executable, script, 'child', str(out), name],
        stdout=file,
        stderr=subprocess.STDOUT,
        check=False,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      )
    cores.put(core)
    print(f'{name}: exit {done.returncode}, {time.perf_counter() - begun:.0f} s', flush=True)

  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    list(pool.map(run, names))
