"""Signals that ask a run to stop: it ends the step at work, saves and returns."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Interrupt:
  """While entered, notes SIGTERM and the first SIGINT instead of dying of them.

  A second SIGINT interrupts at once, as it would without this. Outside the main thread, where
  Python allows no handlers, it notes nothing.

  Where several processes run, a signal to one must stop all after the same step. That is what JAX's
  preemption service is for, which catches SIGTERM from `jax.distributed.initialize` on: it tells
  the other processes, and picks a step that none of them is past. Here SIGINT is turned into
  SIGTERM then.

  Attributes:
    requested: what stops the run, such as 'SIGTERM'; '' while nothing does.
  """

  def __init__(self):
    self.requested = ''
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Self:
    handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
    if jax.process_count() > 1:
      handlers = {signal.SIGINT: self._hand_on}
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, handlers[number]) for number in handlers}
    return self

  def __exit__(self, *exc: Any) -> None:
    for number, handler in self._before.items():
      # None is a handler that was not set from Python; it cannot be put back.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

  def stops(self, step: int) -> bool:
    """Whether the run ends after `step`; with several processes, all say so of the same step.

    To be asked at every step: a process that is not cannot agree. It costs no communication
    until there is a signal; from then on it takes a second or two, and the steps of that time.
    """
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      self.requested = f'a signal to one of the {jax.process_count()} processes'
    return bool(self.requested)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT and self.requested:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name

  def _hand_on(self, number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.default_int_handler)  # The next one interrupts at once.
    os.kill(os.getpid(), signal.SIGTERM)
