"""A profiler's trace of some steps of a run, and where the time of such a step goes."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vit_jax.tables import table

FOLDER = 'profile'
PARTS = ('waiting for data', 'transfer', 'device')


class Profile:
  """Traces the steps of a window, and measures the parts of each; all other steps run untouched.

  Within the window every part is waited for, so that it can be told from the next: the device is
  idle while the host starts the next step, as it is not otherwise. Data and transfers still run
  ahead, so what is shown of them is what they keep the step waiting.

  Attributes:
    text: the table of the window's parts; empty until the window has ended.
  """

  def __init__(self, window: str | None, workdir: str | Path, *, start: int, total: int):
    """Starts nothing yet.

    Args:
      window: 'first:last', from after step `first` until after step `last`; None for no window.
      workdir: the run's folder; the trace comes into its folder `profile`.
      start: the step that the run begins or resumes after.
      total: the steps of the run.

    Raises:
      ValueError: the window is none, or lies outside the run.
    """
    self.text = ''
    self._steps = range(0)
    self._folder = Path(workdir) / FOLDER
    self._seconds = dict.fromkeys(PARTS, 0.0)
    self._begun: float | None = None
    if window is not None:
      self._steps = range(*parse(window, total))
      if start in self._steps[1:]:
        self._steps = range(start, self._steps.stop)

  @contextlib.contextmanager
  def around(self, step: int, state: Any) -> Iterator[Callable[..., None]]:
    """Gives `done(part, arrays)`, to be called as each part of the step after `step` ends.

    Args:
      step: steps taken so far.
      state: arrays of the steps before, which the window's first step must not be charged with.
    """
    if step not in self._steps:
      yield _untimed
      return
    if step == self._steps.start:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._folder))
      self._begun = time.perf_counter()
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      mark = time.perf_counter()

      def done(part: str, arrays: Any = None) -> None:
        nonlocal mark
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self._seconds[part] += now - mark
        mark = now

      yield done
    if step + 1 == self._steps.stop:
      whole = time.perf_counter() - self._begun
      self.close()
      self.text = self._table(whole)

  def close(self) -> None:
    """Ends a trace that is still being taken."""
    if self._begun is not None:
      self._begun = None
      jax.profiler.stop_trace()

  def _table(self, whole: float) -> str:
    count = len(self._steps)
    parts = {**self._seconds, 'the rest of the host': whole - sum(self._seconds.values())}
    rows = [(name, f'{1e3 * s / count:.2f}', f'{s / whole:.1%}') for name, s in parts.items()]
    rows.append(('together', f'{1e3 * whole / count:.2f}', '100.0%'))
    header = (f'steps {self._steps.start:,} to {self._steps.stop:,}', 'ms a step', 'share')
    return f'{table(rows, header)}\nTrace, for XProf or Perfetto: {self._folder}'


def parse(window: str, total: int) -> tuple[int, int]:
  """'100:110' is (100, 110).

  Raises:
    ValueError: it does not read so, is empty, or goes beyond `total` steps.
  """
  match = re.fullmatch(r'(\d+):(\d+)', str(window))
  if not match or int(match[1]) >= int(match[2]):
    raise ValueError(f"profile.steps is {window!r}; write 'first:last', such as '100:110'")
  first, last = int(match[1]), int(match[2])
  if last > total:
    raise ValueError(f'profile.steps is {window!r}, and the run has only {total:,} steps')
  return first, last


def _untimed(part: str, arrays: Any = None) -> None:
  del part, arrays
