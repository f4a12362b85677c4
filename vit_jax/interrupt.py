"""Signals that ask a run to stop: it ends the step at work, saves and returns."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupt:
  """While entered, notes SIGTERM and the first SIGINT instead of dying of them.

  A second SIGINT interrupts at once, as it would without this. Outside the main thread, where
  Python allows no handlers, it notes nothing.

  Attributes:
    requested: the signal's name, or '' while there was none.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested = ''
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
    return self

  def __exit__(self, *exc: Any) -> None:
    for number, handler in self._before.items():
      # None is a handler that was not set from Python; it cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT and self.requested:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
