"""Processes that take turns, so that what else a machine does falls on all of them."""

import os
import subprocess
import sys
import time


class Contender:
  """A process of its own that does its work once when it is asked.

  Args:
    script: what runs as `python script --child ARGUMENTS`, and there calls `serve`.
    arguments: its arguments.
    threads: that the numerical libraries may use.
  """

  def __init__(self, script: str, arguments: list[str], threads: int):
    flags = f'--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={threads}'
    self.name = ' '.join(arguments)
    self.process = subprocess.Popen(
      [sys.executable, script, '--child', *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}',
        'OMP_NUM_THREADS': str(threads),
        'OMP_WAIT_POLICY': 'passive',  # else the waiting threads of one slow the next
        'TF_CPP_MIN_LOG_LEVEL': '2',
      },
    )

  def once(self) -> float:
    """Does the work; its time in seconds."""
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    answer = self.process.stdout.readline()
    if not answer:
      raise SystemExit(f'{self.name}: the process died')
    return float(answer)

  def close(self) -> None:
    """Ends the process."""
    self.process.stdin.close()
    self.process.wait()


def race(
  script: str, arguments: dict[str, list[str]], *, threads: int, repeats: int, warm_up: int
) -> dict[str, list[float]]:
  """Seconds of each contender by name, `repeats` of them, one after the other in turn."""
  contenders = {name: Contender(script, args, threads) for name, args in arguments.items()}
  for contender in contenders.values():
    for _ in range(warm_up):
      contender.once()
  times = {name: [] for name in contenders}
  for _ in range(repeats):
    for name, contender in contenders.items():
      times[name].append(contender.once())
  for contender in contenders.values():
    contender.close()
  return times


def serve(work, clock=time.perf_counter) -> None:
  """In a contender's process: calls `work()` for each line that comes in, answers with its time."""
  for _ in sys.stdin:
    begun = clock()
    work()
    print(clock() - begun, flush=True)
