"""Parquet files, such as those of a Hugging Face data set that is on disk. Nothing is downloaded.

An image costs a read of the whole row group that it is in, so a shuffled epoch reads each group
about once an example. What is read more than once is better converted: `vit_jax prepare`.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data import columns, files
from vit_jax.data.substitute import BadExample


class Parquet:
  """`source[i]` has `image` (encoded bytes), `label`, `text`, as far as asked for, and `id`.

  Picklable: a worker opens the files itself, and keeps the row group that it last read.
  """

  def __init__(
    self,
    path: str,
    split: str | None = None,
    image_key: str | None = 'image',
    label_key: str | None = 'label',
    text_key: str | None = None,
    root: str | None = None,
    classes: Sequence[str] | None = None,
  ):
    """Reads the files' descriptions and the labels.

    Args:
      path: a file, a folder of `train-00000-of-00004.parquet`, or a pattern; a file's split is its
        name without the number.
      split: 'train', 'train[:90%]', 'train+test' (`data/splits.py`); None is the only split there
        is, else 'train'.
      image_key: the column of the images: bytes, paths, or Hugging Face's {bytes, path}; None for
        data without images.
      label_key: the column of the labels, integers or strings; None for data without labels.
      text_key: the column of the captions; None for data without.
      root: the folder that paths start from; None is the file's own.
      classes: names of the labels, by number; None is what Hugging Face noted in the files, else
        the sorted different strings in all files at `path`, and no names for integers.

    Raises:
      FileNotFoundError: no file at `path`; the error lists what there is.
      ValueError: an unknown column or split, a column of another type, a label that is missing or
        no class, a file that is damaged, or pyarrow is missing.
    """
    self._files = files.find_files(path, ('.parquet',))
    self._keys, self._root = {'image': image_key, 'text': text_key}, root
    self._cache: tuple[tuple[int, int] | None, Any] = None, None
    keys = {'image_key': image_key, 'label_key': label_key, 'text_key': text_key}
    self._group_ends, labels = [], []
    for file in self._files:
      opened = _open(file)
      schema = opened.schema_arrow
      columns.check_columns(file, keys, schema.names)
      _check_types(file, schema, image_key, text_key)
      groups = range(opened.metadata.num_row_groups)
      ends = np.cumsum([0, *(opened.metadata.row_group(g).num_rows for g in groups)])[1:]
      self._group_ends.append(ends)
      if label_key is not None:
        labels.append(_read_labels(file, opened, label_key))
        classes = _noted_classes(schema, label_key) if classes is None else classes
    names = [files.split_name(file) for file in self._files]
    counts = [int(ends[-1]) if len(ends) else 0 for ends in self._group_ends]
    self._rows = files.Rows(path, names, counts, split)
    self.selection = self._rows.selection
    self.classes, self._labels = (), None
    if label_key is not None:
      try:
        numbers, self.classes = columns.number_labels(labels, classes)
      except ValueError as e:
        raise ValueError(f'column {label_key!r} of {path}: {e}') from None
      self._labels = self._rows.choose(numbers)
    self.num_classes = len(self.classes)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    row = self._rows[i]
    ends = self._group_ends[row.file]
    group = int(np.searchsorted(ends, row.index, side='right'))
    table = self._read(row.file, group)
    at = row.index - (int(ends[group - 1]) if group else 0)
    values = {f: table.column(k)[at].as_py() for f, k in self._keys.items() if k is not None}
    example = {'id': np.int64(row.id)}
    if 'image' in values:
      example['image'] = self._image(row, values['image'])
    if self._labels is not None:
      example['label'] = self._labels[i]
    if 'text' in values:
      example['text'] = values['text'] or ''
    return example

  def name(self, i: int) -> str:
    """A name for messages: 'train-00000-of-00004.parquet[17]', the row in the file."""
    row = self._rows[i]
    return f'{os.path.basename(self._files[row.file])}[{row.index}]'

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {'_cache': (None, None)}

  def _read(self, file: int, group: int) -> Any:
    """The two columns of a row group."""
    if self._cache[0] != (file, group):
      keys = list(dict.fromkeys(key for key in self._keys.values() if key is not None))
      try:
        # One group has few columns: threads would only take the other workers' time.
        table = _open(self._files[file]).read_row_group(group, columns=keys, use_threads=False)
      except (ValueError, OSError) as e:  # pyarrow's own errors are kinds of these
        raise _damaged(self._files[file], e) from None
      self._cache = (file, group), table
    return self._cache[1]

  def _image(self, row: files.Row, value: Any) -> bytes:
    if isinstance(value, dict):
      value = value['path'] if value['bytes'] is None else value['bytes']
    if value is None:
      raise BadExample(f'{self._files[row.file]} has no image in row {row.index}')
    if isinstance(value, str):
      return columns.read_image(self._root, self._files[row.file], value)
    return value


def _open(file: str) -> Any:
  try:
    import pyarrow.parquet as pq
  except ImportError:
    raise ValueError(
      'pyarrow, which reads Parquet, is not installed: pip install pyarrow'
    ) from None
  try:
    return pq.ParquetFile(file)
  except FileNotFoundError:
    raise
  except (ValueError, OSError) as e:
    raise _damaged(file, e) from None


def _damaged(file: str, error: Exception) -> ValueError:
  reason = str(error).partition('\n')[0]
  return ValueError(f'cannot read {file}, it is damaged or no Parquet: {reason}')


def _check_types(file: str, schema: Any, image_key: str | None, text_key: str | None) -> None:
  import pyarrow.types as types

  def is_text(t):
    return types.is_string(t) or types.is_large_string(t)

  def is_image(t):
    if types.is_struct(t):
      return {t.field(k).name for k in range(t.num_fields)} >= {'bytes', 'path'}
    return types.is_binary(t) or types.is_large_binary(t) or is_text(t)

  kinds = (
    ('image_key', image_key, is_image, 'bytes, a path or {bytes, path}'),
    ('text_key', text_key, is_text, 'text'),
  )
  for argument, key, fits, wanted in kinds:
    if key is not None and not fits(schema.field(key).type):
      there = ', '.join(repr(f.name) for f in schema if fits(f.type))
      raise ValueError(
        f'column {key!r} of {file} is {schema.field(key).type}, not {wanted}; '
        f'set {argument} to one of {there or "none that fits"}, or to None'
      )


def _read_labels(file: str, opened: Any, key: str) -> list[str] | np.ndarray:
  """The labels of a file as they stand: strings, or [rows] integers."""
  import pyarrow.types as types

  try:
    column = opened.read(columns=[key]).column(key)
  except (ValueError, OSError) as e:
    raise _damaged(file, e) from None
  if types.is_dictionary(column.type):  # pandas' categories
    column = column.cast(column.type.value_type)
  if column.null_count:
    raise ValueError(f'column {key!r} of {file} is empty in {column.null_count} rows')
  if types.is_string(column.type) or types.is_large_string(column.type):
    return column.to_pylist()
  if types.is_integer(column.type) or types.is_boolean(column.type):
    return column.to_numpy().astype(np.int64)
  raise ValueError(
    f'column {key!r} of {file} is {column.type}, not an integer or a string; '
    'set label_key, or None for no label'
  )


def _noted_classes(schema: Any, key: str) -> tuple[str, ...] | None:
  """The names of a Hugging Face `ClassLabel`, from the description in the file."""
  noted = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
  names = noted.get('info', {}).get('features', {}).get(key, {}).get('names')
  return tuple(names) if names else None
