"""What the columns of a table mean: the image that a path names, and the numbers of labels."""

import os
from collections.abc import Sequence

import numpy as np

from vit_jax.choices import listed


def check_columns(file: str, wanted: dict[str, str | None], there: Sequence[str]) -> None:
  """Raises ValueError where `file` lacks a column; `wanted` is by the name of the argument."""
  if wanted['image_key'] is None and wanted['text_key'] is None:
    raise ValueError(f'{file}: image_key and text_key are both None; set one of {listed(there)}')
  for key, column in wanted.items():
    if column is not None and column not in there:
      raise ValueError(
        f'{file} has no column {column!r}; set {key} to one of {listed(there)}, or to None'
      )


def read_image(root: str | None, file: str, path: str) -> bytes:
  """The encoded image at `path`, which is relative to `root`, else to the folder of `file`."""
  with open(image_path(root, file, path), 'rb') as image:
    return image.read()


def image_path(root: str | None, file: str, path: str) -> str:
  """Where the image is that `file` names; an absolute path is itself."""
  return os.path.join(os.path.expanduser(root) if root else os.path.dirname(file), path)


def number_labels(
  columns: Sequence[Sequence[str] | np.ndarray], classes: Sequence[str] | None
) -> tuple[list[np.ndarray], tuple[str, ...]]:
  """The label column of each file as numbers, and the names of the classes.

  Args:
    columns: strings, which become positions in `classes`; or integers, which stay.
    classes: the names in the order of their numbers; None is the sorted distinct strings of all
      files, and no names for integers.

  Returns:
    Labels, [rows] int32 of each file; the classes.

  Raises:
    ValueError: a label that is no class, or no int32.
  """
  strings = any(not isinstance(column, np.ndarray) for column in columns)
  if not strings:
    values = np.concatenate(columns) if columns else np.zeros(0, np.int32)
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if classes is not None and not 0 <= low <= high < len(classes):
      raise ValueError(f'labels are {low} to {high}, and there are {len(classes)} classes')
    if not -(2**31) <= low <= high < 2**31:
      raise ValueError(f'labels are {low} to {high}, which int32 does not hold')
    return [column.astype(np.int32) for column in columns], tuple(classes or ())
  columns = [list(map(str, column)) for column in columns]
  found = {label for column in columns for label in column}
  classes = tuple(sorted(found) if classes is None else classes)
  numbers = {name: number for number, name in enumerate(classes)}
  if unknown := sorted(found - numbers.keys()):
    raise ValueError(f'unknown labels {listed(unknown)}; classes has {listed(classes)}')
  return [np.array([numbers[v] for v in column], np.int32) for column in columns], classes
