"""Where a run shows its progress: a bar in a terminal or notebook, plain lines in a log file."""

import collections
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from vit_jax.tables import number, scalar, split

LOG_SECONDS = 10.0  # Between two lines in a log file.
DRAW_SECONDS = 0.1  # Between two drawings of the bar.
NOT_SHOWN = ('images_per_second', 'grad_norm', 'learning_rate', 'data_wait')


class Console:
  """A progress bar in a terminal or notebook, plain lines elsewhere."""

  def __init__(self, stream: TextIO, total: int, start: int, batch_size: int):
    """Prepares for a run of steps `start` to `total`; nothing is printed yet."""
    self._stream, self._total, self._start, self._batch = stream, total, start, batch_size
    self._marks: collections.deque[tuple[float, int]] = collections.deque()  # (seconds, step)
    self._first: tuple[float, int] | None = None
    self._drawn = -math.inf
    self._live = stream.isatty() or (stream is sys.stdout and _in_notebook())
    self._bar = None

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Shows `step`, some of `values`, images a second and time left, unless it just has."""
    now = time.monotonic()
    if self._marks and self._marks[-1][1] >= self._total:
      return  # The end has been shown.
    if self._marks:  # Steps still in flight may be reported after a later one.
      step = max(step, self._marks[-1][1])
    # Counting from the first call leaves the compilation before it out of the rate.
    self._first = self._first or (now, step)
    self._marks.append((now, step))
    while len(self._marks) > 2 and self._marks[1][0] < now - LOG_SECONDS:
      self._marks.popleft()
    every = DRAW_SECONDS if self._live else LOG_SECONDS
    if now - self._drawn < every and step < self._total:
      return
    self._drawn = now
    facts = '  '.join(self._facts(now, step, values))
    if not self._live:
      print(f'step {step:,}/{self._total:,}  {facts}', file=self._stream, flush=True)
      return
    bar = self._open()
    bar.n = min(step, self._total)
    bar.set_description_str(facts, refresh=False)
    bar.refresh()
    if step >= self._total:
      self.close()  # What is printed from here on stands below it.

  def _facts(self, now: float, step: int, values: Mapping[str, float]) -> list[str]:
    values = {split(name).metric: value for name, value in values.items()}
    rate = values.get('images_per_second')
    names = [n for n in ('loss', 'accuracy') if n in values]
    names += [n for n in values if n not in (*names, *NOT_SHOWN)]
    facts = [f'{n.replace("_", " ")} {number(scalar(values[n]))}' for n in names[:3]]
    then, before = self._marks[0]
    if rate is None and step > before:
      rate = self._batch * (step - before) / max(now - then, 1e-9)
    if rate is not None:
      facts.append(f'{float(rate):,.0f} images/s')
    then, before = self._first
    if step > before:  # The whole run's pace, evaluations included.
      left = (self._total - step) * (now - then) / (step - before)
      facts.append(f'{clock(left)} left' if step < self._total else f'{clock(now - then)} taken')
    return facts

  def _open(self) -> Any:
    if self._bar is None:
      # Not tqdm.auto: it warns in notebooks without ipywidgets, and the text bar works in them.
      from tqdm.std import tqdm

      class Bar(tqdm):
        monitor_interval = 0  # No watching thread: every drawing is ours.

      layout = 'step {n:,}/{total:,} {percentage:3.0f}% |{bar}| {desc}'
      self._bar = Bar(
        total=self._total,
        initial=self._start,
        file=self._stream,
        bar_format=layout,
        dynamic_ncols=True,
        delay=1e-9,  # The first drawing is ours as well.
      )
    return self._bar

  def message(self, text: str) -> None:
    """Prints `text`, above the bar if there is one."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the bar as it is and goes to the next line."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def clock(seconds: float) -> str:
  """125 is '2:05', 7325 is '2:02:05'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def _in_notebook() -> bool:
  ipython = sys.modules.get('IPython')
  shell = ipython.get_ipython() if ipython is not None else None
  return shell is not None and getattr(shell, 'kernel', None) is not None
