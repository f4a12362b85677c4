"""Several processes that train one model: how they find each other, and what becomes of them."""

import contextlib
import functools
import math
import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.reasons import reason

# EX_TEMPFAIL of sysexits.h: the run is not finished, and the same command goes on with it.
UNFINISHED = 75

# What a failed collective or the coordination service says of a process that is gone.
SIGNS = ('Gloo', 'NCCL', 'onnection closed by peer', 'onnection reset by peer', 'oordination')

# Of this process among several, once they are known to be several.
number: int | None = None


class LostProcessError(ConnectionError):
  """Another process of this run is gone: none can go on without it."""

  exit_code = UNFINISHED


def initialize(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  *,
  start_timeout: float,
  heartbeat_timeout: float,
  heeds_notice: bool = False,
) -> None:
  """Joins the other processes of this run, where there are others; before any device is used.

  Without arguments the environment says: SLURM's `srun`, an indexed Job of Kubernetes, a Cloud TPU
  slice. A single process does nothing, and so does `processes=1`. Process 0 prints one line.

  Args:
    coordinator: address of process 0, 'host:port', the same for all.
    processes: how many there are.
    process: the number of this one, from 0.
    start_timeout: seconds within which all have come.
    heartbeat_timeout: seconds without a sign of life after which a process counts as gone.
    heeds_notice: whether this command asks `Interrupt.stops`; SIGTERM does not end it then.

  Raises:
    ValueError: arguments that do not fit together.
    ConnectionError: not all came in time, or the coordinator cannot be reached.
  """
  global number
  method = 'deactivate'  # Nothing is to be found out.
  if coordinator is None and processes is None and process is None:
    method = detect(os.environ)
    if method is None:
      return
  else:
    _check(coordinator, processes, process)
    if processes == 1:
      return
    number = process
  jax.config.update('jax_enable_preemption_service', heeds_notice)
  _join(method, (coordinator, processes, process), start_timeout, heartbeat_timeout)
  if jax.process_count() == 1:
    return
  number = jax.process_index()
  sys.excepthook = functools.partial(_end_by, sys.excepthook)
  local, total = jax.local_device_count(), jax.device_count()
  if number == 0:
    print(f'process 0 of {jax.process_count()}, {local} local devices of {total}', flush=True)


def detect(environment: Mapping[str, str]) -> str | None:
  """Who may have started several processes: 'slurm', 'k8s' or 'tpu'; None for nobody.

  Args:
    environment: `os.environ`.
  """
  tasks = environment.get('SLURM_STEP_NUM_TASKS') or environment.get('SLURM_NTASKS') or '1'
  if 'SLURM_PROCID' in environment and int(tasks) > 1:
    return 'slurm'
  if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment:
    return 'k8s'
  # Importing JAX has found TPU chips, or set this variable where there are none.
  if (jax.config.jax_platforms or '').startswith('tpu') and 'TPU_SKIP_MDS_QUERY' not in environment:
    return 'tpu'
  return None


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
  if processes == 1 and not process:
    return
  given = {'coordinator': coordinator, 'processes': processes, 'process': process}
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise ValueError(
      f'--{missing[0]} is missing: several processes need --coordinator HOST:PORT, --processes N '
      'and --process I'
    )
  if processes < 1 or not 0 <= process < processes:
    raise ValueError(
      f'--process {process} of --processes {processes}: the {processes} processes are numbered '
      f'0 to {processes - 1}'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'--coordinator {coordinator!r} is no HOST:PORT, such as 10.0.0.2:8476')


def _join(
  method: str,
  place: tuple[str | None, int | None, int | None],
  start_timeout: float,
  heartbeat_timeout: float,
) -> None:
  """Initialises JAX's service; `place` is coordinator, processes and process, where given."""
  coordinator, processes, process = place
  until = time.monotonic() + start_timeout
  apart = (
    f'the processes did not come together in {start_timeout:g} s; start all of them, with the same '
    'coordinator and number of processes'
  )
  try:
    if process:
      _wait_for(coordinator, f'process {process} of {processes}', until)
    with _last_words(apart):  # JAX does not raise, it ends the process.
      jax.distributed.initialize(
        *place,
        cluster_detection_method=method if method != 'tpu' else None,
        initialization_timeout=max(1, round(until - time.monotonic())),
        heartbeat_timeout_seconds=round(heartbeat_timeout),
      )
  except (OSError, RuntimeError, ValueError) as e:
    # A TPU of no slice, such as a notebook's: its machine tells of no others.
    if method != 'tpu' or not isinstance(e, ValueError):
      raise ConnectionError(f'{apart} ({reason(e)})') from e


def _wait_for(coordinator: str, who: str, until: float) -> None:
  """Returns when process 0 listens, and says that it waits: JAX would be silent to the end."""
  host, _, port = coordinator.rpartition(':')
  tell = time.monotonic() + 10
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as e:
      now, why = time.monotonic(), reason(e)
      if now > until:
        raise TimeoutError(f'process 0 does not answer at {coordinator}: {why}') from None
      if now > tell:
        tell = math.inf
        print(
          f'{who} waits for process 0 at {coordinator}, {until - now:.0f} s at most ({why})',
          file=sys.stderr,
          flush=True,
        )
      time.sleep(min(1.0, until - now))


def gather(value: int) -> list[int]:
  """What each process gives here, by its number; all of them must call it.

  Args:
    value: of up to 64 bits.
  """
  if jax.process_count() == 1:
    return [value]
  halves = np.array([value]).view(np.int32)  # JAX has no more bits.
  return multihost_utils.process_allgather(halves).view(np.int64)[:, 0].tolist()


def differing(value: str) -> list[int]:
  """The processes whose `value` is not that of process 0; all of them must call it."""
  values = gather(zlib.crc32(value.encode()))
  return [process for process, other in enumerate(values) if other != values[0]]


def check_shared(file: Path, patience: float = 10.0) -> None:
  """Raises ValueError on every process where one does not see a `file` that process 0 has written.

  Args:
    file: which process 0 has written before it calls this.
    patience: seconds that a file system of a network may take to show it.
  """
  if jax.process_count() == 1:
    return
  gather(0)  # From here on it is there.
  until = time.monotonic() + patience
  while not file.exists() and time.monotonic() < until:
    time.sleep(0.2)
  for process, seen in enumerate(gather(int(file.exists()))):
    if not seen:
      raise ValueError(
        f'process {process} does not see {file}, which process 0 has written; '
        'all processes need one folder that they share as workdir'
      )


def is_loss(error: BaseException | None) -> bool:
  """Whether an error, or what it came of, means that another process of this run is gone."""
  if jax.process_count() == 1:
    return False
  while error is not None:
    jaxs = isinstance(error, jax.errors.JaxRuntimeError)
    if jaxs and any(sign in str(error) for sign in SIGNS):
      return True
    error = error.__cause__ or error.__context__
  return False


# Reads a word, or learns by the end of its input that there will be none.
CHILD = """
read -r word && exit
step=$(ls "$2" 2>/dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1)
echo "vit_jax: $1${step:+ after step $step}" >&2
"""


@contextlib.contextmanager
def _last_words(text: str, steps: Path | str = '') -> Iterator[None]:
  """Has a child process print a sentence if this one ends within, which no code here would see.

  JAX ends a process at once where another one is gone, with a page about its own insides.

  Args:
    text: the sentence.
    steps: a folder whose folders are named by steps; the last of them is put behind the sentence.
  """
  command = ['sh', '-c', CHILD, 'sh', text, str(steps)]
  # In a session of its own: Ctrl-C is not for it.
  child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  try:
    yield
  finally:
    child.communicate(b'over\n')


@contextlib.contextmanager
def guarded(steps: Path | None = None) -> Iterator[None]:
  """Says in one sentence what to do, where another process of this run is gone.

  Args:
    steps: of a run that can go on, the folder whose folders are named by the steps it has saved.

  Raises:
    LostProcessError: in the place of what tells that another process is gone.
  """
  if number is None:  # Not asked of JAX, which would start the devices.
    yield
    return
  way_out = 'the same command goes on with the run' if steps else 'start the same command again'
  text = f'process {number} of {jax.process_count()} ended without a word: killed, or by JAX'
  try:
    with _last_words(f'{text} since another one is gone; {way_out}', steps or ''):
      yield
  except Exception as e:
    if not is_loss(e):
      raise
    saved = [int(path.name) for path in steps.glob('*') if path.name.isdigit()] if steps else []
    after = f' after step {max(saved)}' if saved else ''
    raise LostProcessError(f'another process is gone ({reason(e)}); {way_out}{after}') from e


def leave(code: int) -> NoReturn:
  """Ends this process of several with `code` at once: Python's own exit waits for the others."""
  sys.stdout.flush()
  sys.stderr.flush()
  if number == 0:
    time.sleep(2)  # The others lose their connection with it, and may have the same to say.
  os._exit(code)


def _end_by(hook: Callable[..., None], *exc: Any) -> None:
  hook(*exc)
  leave(1)
