"""Where numbers and pictures go: `metrics.jsonl`, TensorBoard events, `pictures/`, the console."""

import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vit_jax.console import Console
from vit_jax.tables import final_table, scalar, table

__all__ = ['FILE', 'Writer', 'final_table', 'read', 'table', 'write_atomically']

FILE = 'metrics.jsonl'
# JSON has no such numbers; Python's NaN and Infinity literals would break other readers.
NON_FINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}


class Writer:
  """Writes the numbers and pictures of one run, and shows its progress.

  A run that resumes at `start_step` drops what the killed one wrote about later steps (a run from
  step 0 drops everything): `metrics.jsonl` ends up as if the run had never been killed, but
  for the first line after a resume: its training metrics are means over the steps since.
  """

  def __init__(
    self,
    workdir: str | Path | None,
    *,
    total_steps: int,
    start_step: int = 0,
    batch_size: int,
    console: bool = True,
    primary: bool = True,
    tensorboard: bool = True,
    stream: TextIO | None = None,
  ):
    """Opens the files of `workdir`, which is created; None writes no files.

    Args:
      workdir: a local or mounted folder.
      total_steps: the step at which the run ends.
      start_step: the step at which it begins or resumes.
      batch_size: examples a step over all hosts; turns steps into images a second.
      console: show progress and messages.
      primary: whether this is process 0; all others write and print nothing.
      tensorboard: write an events file into `workdir` too.
      stream: the console, `sys.stdout` unless given.

    Raises:
      ValueError: `workdir` is an address such as gs://..., which cannot be appended to.
    """
    self.folder = Path(workdir) if workdir is not None and primary else None
    self._lines = self._events = None
    if self.folder is not None:
      if '://' in str(workdir):
        raise ValueError(f'metrics need a local or mounted folder as workdir, not {str(workdir)!r}')
      self.folder.mkdir(parents=True, exist_ok=True)
      _prune(self.folder / FILE, start_step)
      self._lines = (self.folder / FILE).open('a', encoding='utf-8')
      if tensorboard:
        self._events = _Events(self.folder, start_step)
    self._console = None
    if console and primary:
      self._console = Console(stream or sys.stdout, total_steps, start_step, batch_size)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line with all `values` of `step`; NaN and infinities are written as strings.

    Args:
      step: steps taken so far.
      values: name to number (or array of one number, which is fetched from the device).
    """
    if 'step' in values:
      raise ValueError("no metric can be called 'step'; it is the line's own field")
    if self._lines is None or not values:
      return
    numbers = {name: scalar(value) for name, value in values.items()}
    line = {'step': int(step)} | {name: _encode(value) for name, value in numbers.items()}
    self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + '\n')
    self._lines.flush()
    if self._events is not None:
      self._events.scalars(int(step), numbers)

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """Saves `pictures/<name>.png`, in place of an earlier one.

    Args:
      step: steps taken so far.
      name: may hold '/', which makes folders: `test/google_confusion`.
      image: [H, W, 3], uint8.

    Raises:
      ValueError: another shape or dtype, or a name that leaves the folder.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise ValueError(f'picture {name!r} must be uint8 [H, W, 3], not {image.dtype} {image.shape}')
    if any(part in ('', '.', '..') for part in name.split('/')) or '\\' in name:
      raise ValueError(f'{name!r} is no picture name; write parts joined by single slashes')
    if self.folder is None:
      return
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    path = self.folder / 'pictures' / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    if self._events is not None:
      self._events.picture(int(step), name, buffer.getvalue(), image.shape)

  def under(self, name: str) -> 'Pictures':
    """A place for the pictures of one evaluator: they are called `<name>/<picture>`."""
    return Pictures(self, name)

  def progress(self, step: int, values: Mapping[str, float]) -> None:
    """Shows step, `values`, images a second and time left; may be called at every step.

    A terminal or notebook shows a bar, a log file a line every ten seconds. Values may live on the
    device: they are fetched only when something is drawn. Loss and accuracy come first, three
    values at most are shown; `images_per_second` among them replaces the writer's own rate.
    """
    if self._console is not None:
      self._console.progress(int(step), values)

  def message(self, text: str) -> None:
    """Prints `text` above the bar."""
    if self._console is not None:
      self._console.message(text)

  def close(self) -> None:
    """Ends the bar and closes the files; a second call does nothing."""
    for part in (self._console, self._events, self._lines):
      if part is not None:
        part.close()
    self._console = self._events = self._lines = self.folder = None

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


class Pictures:
  """Hands pictures on to a `Writer`, with a name before theirs."""

  def __init__(self, writer: Writer, name: str):
    self._writer, self._name = writer, name

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """As `Writer.picture`, which saves it as `pictures/<own name>/<name>.png`."""
    self._writer.picture(step, f'{self._name}/{name}', image)


def read(workdir: str | Path) -> list[dict[str, float]]:
  """Reads a run's metrics: one dict a step, in order of steps, each with its 'step'.

  The lines of one step are merged; where they name the same metric the later one wins (a resumed
  run went back). A torn last line (killed while writing) is dropped.

  Raises:
    FileNotFoundError: the run has written no metrics.
    ValueError: a line before the last one is damaged.
  """
  path = Path(workdir) / FILE
  if not path.exists():
    raise FileNotFoundError(f'{str(workdir)!r} has no {FILE}')
  steps: dict[int, dict[str, float]] = {}
  for line in _parse(path):
    row = {name: NON_FINITE.get(v, v) if isinstance(v, str) else v for name, v in line.items()}
    steps.setdefault(row['step'], {}).update(row)
  return [steps[step] for step in sorted(steps)]


def write_atomically(path: Path, data: bytes) -> None:
  """Writes `data` to `path`, which never holds a half of it, even when killed."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(data)
  os.replace(temporary, path)


class _Events:
  """A TensorBoard events file, written at once: no thread, so a killed run loses nothing."""

  def __init__(self, folder: Path, start_step: int):
    from tensorboardX import RecordWriter
    from tensorboardX.proto import event_pb2, summary_pb2

    self._event, self._summary = event_pb2, summary_pb2
    resumed = any(folder.glob('events.out.tfevents.*'))
    # Microseconds and the process tell runs in one folder apart; readers sort the files by name.
    name = f'events.out.tfevents.{time.time():.6f}.{os.getpid()}'
    self._records = RecordWriter(str(folder / name))
    self._write(file_version='brain.Event:2')
    if resumed:  # Tells TensorBoard to forget the killed run's later steps.
      status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(step=start_step + 1 if start_step else 0, session_log=status)

  def _write(self, **fields: Any) -> None:
    event = self._event.Event(wall_time=time.time(), **fields)
    self._records.write(event.SerializeToString())
    self._records.flush()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    value = self._summary.Summary.Value
    summary = [value(tag=name, simple_value=number) for name, number in values.items()]
    self._write(step=step, summary=self._summary.Summary(value=summary))

  def picture(self, step: int, name: str, png: bytes, shape: tuple[int, ...]) -> None:
    image = self._summary.Summary.Image(
      height=shape[0], width=shape[1], colorspace=3, encoded_image_string=png
    )
    value = self._summary.Summary.Value(tag=name, image=image)
    self._write(step=step, summary=self._summary.Summary(value=[value]))

  def close(self) -> None:
    self._records.close()


def _encode(value: int | float) -> int | float | str:
  if isinstance(value, int) or math.isfinite(value):
    return value
  return next(k for k, v in NON_FINITE.items() if v == value or (v != v and value != value))


def _parse(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics file as they stand, without a torn last one."""
  lines = path.read_bytes().splitlines()
  rows = []
  for i, line in enumerate(lines):
    try:
      row = json.loads(line)
      row['step'] = int(row['step'])
    except (ValueError, TypeError, KeyError):
      if i == len(lines) - 1:
        break
      raise ValueError(f'{str(path)!r}, line {i + 1}: no JSON object with a step') from None
    rows.append(row)
  return rows


def _prune(path: Path, start_step: int) -> None:
  """Drops the lines of steps after `start_step`, and a torn last line."""
  if not path.exists():
    return
  kept = [row for row in _parse(path) if row['step'] <= start_step and start_step]
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in kept)
  write_atomically(path, text.encode())
