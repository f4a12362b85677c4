"""Tables as text: a CSV or TSV whose rows name images, labels and captions."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data import columns, files

_INTEGER = re.compile(r'0|-?[1-9]\d*')


class Csv:
  """`source[i]` has `image` (the file's bytes), `label`, `text`, as far as asked for, and `id`.

  The first line names the columns, the encoding is UTF-8. A `.csv` is separated by commas and
  quoted as RFC 4180 says; a `.tsv` by tabs, with no quoting. Only where each row starts is kept, 8
  bytes a row: rows are read again from the file when they are asked for.
  """

  def __init__(
    self,
    path: str,
    split: str | None = None,
    image_key: str | None = 'path',
    label_key: str | None = 'label',
    text_key: str | None = None,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    delimiter: str | None = None,
  ):
    """Reads through the tables once; no image is opened.

    Args:
      path: a file, a folder of `train.csv`, `test.csv`, or a pattern; a file's split is its name.
      split: 'train', 'photos[:90%]', 'train+test' (`data/splits.py`); None is the only split there
        is, else 'train'.
      image_key: the column of the images' paths; None for data without images.
      label_key: the column of the labels, numbers or names; None for data without labels.
      text_key: the column of the captions; None for data without.
      root: the folder that the paths start from; None is the table's own.
      classes: names of the labels, by number; None is the sorted different names in all tables at
        `path`, and no names where every label is a number.
      delimiter: one character; None is a tab in a `.tsv`, else a comma.

    Raises:
      FileNotFoundError: no table at `path`; the error lists what there is.
      ValueError: an unknown column, split or label, or a row that cannot be read.
    """
    self._files = files.find_files(path, ('.csv', '.tsv'))
    self._root, self._delimiter = root, delimiter
    keys = {'image_key': image_key, 'label_key': label_key, 'text_key': text_key}
    scans = [_scan(file, delimiter, keys) for file in self._files]
    # In a column of each file's own; a row that is read later is read with these.
    self._columns = [{field: k for field, k in scan[0].items() if k is not None} for scan in scans]
    # What was scanned must still be there when a row is read.
    self._sizes = [os.path.getsize(file) for file in self._files]
    starts = [scan[1] for scan in scans]
    names = [files.split_name(file) for file in self._files]
    self._rows = files.Rows(path, names, [len(s) for s in starts], split)
    self.selection = self._rows.selection
    self._starts = self._rows.choose(starts)
    labels, self.classes = _labels([scan[2] for scan in scans], label_key, classes, path)
    self._labels = None if label_key is None else self._rows.choose(labels)
    self.num_classes = len(self.classes)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    row, values = self._read(i)
    example = {'id': np.int64(row.id)}
    if 'image' in values:
      example['image'] = columns.read_image(self._root, self._files[row.file], values['image'])
    if self._labels is not None:
      example['label'] = self._labels[i]
    if 'text' in values:
      example['text'] = values['text']
    return example

  def name(self, i: int) -> str:
    """The image's path; without images 'captions.csv[17]'."""
    row, values = self._read(i)
    file = self._files[row.file]
    if 'image' in values:
      return columns.image_path(self._root, file, values['image'])
    return f'{os.path.basename(file)}[{row.index}]'

  def _read(self, i: int) -> tuple[files.Row, dict[str, str]]:
    """The row of example i, and its text by field."""
    row = self._rows[i]
    file = self._files[row.file]
    if os.path.getsize(file) != self._sizes[row.file]:
      raise ValueError(f'{file} has changed since it was opened; start again')
    _, _, cells = next(_rows(file, self._delimiter, int(self._starts[i])))
    return row, {field: cells[k] for field, k in self._columns[row.file].items()}


def _rows(file: str, delimiter: str | None, start: int = 0) -> Iterator[tuple[int, int, list[str]]]:
  """(first byte, last line, cells) of each row from the byte `start` on; blank lines are none."""
  position = start

  def lines():
    nonlocal position
    for line in stream:
      # Spreadsheets start the file with a byte order mark.
      text = line.decode('utf-8' if position else 'utf-8-sig')
      position += len(line)
      yield text

  tabs = delimiter is None and file.lower().endswith('.tsv')
  with open(file, 'rb') as stream:
    stream.seek(start)
    # The reader takes a line at a time, so that `position` is where the next row starts.
    reader = csv.reader(
      lines(),
      delimiter=delimiter or ('\t' if tabs else ','),
      quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
      strict=True,
    )
    while True:
      first = position
      try:
        cells = next(reader, None)
      except UnicodeDecodeError:
        raise ValueError(f'{file}, line {reader.line_num + 1}: this is not UTF-8') from None
      except csv.Error as e:
        raise ValueError(f'{file}, line {reader.line_num}: {e}') from None
      if cells is None:
        return
      if cells:
        yield first, reader.line_num, cells


def _scan(
  file: str, delimiter: str | None, keys: dict[str, str | None]
) -> tuple[dict[str, int | None], np.ndarray, list[str]]:
  """Where a file's columns are and its rows start, [rows] int64; its labels as they stand."""
  rows = _rows(file, delimiter)
  _, _, header = next(rows, (0, 0, []))
  columns.check_columns(file, keys, header)
  image, label, text = [None if k is None else header.index(k) for k in keys.values()]
  starts, labels = [], []
  for start, line, cells in rows:
    if len(cells) != len(header):
      raise ValueError(f'{file}, line {line}: {len(cells)} columns, and {len(header)} have names')
    for key, k in (('path', image), ('label', label)):
      if k is not None and not cells[k]:
        raise ValueError(f'{file}, line {line}: the {key} is empty')
    starts.append(start)
    if label is not None:
      labels.append(cells[label])
  return {'image': image, 'text': text}, np.array(starts, np.int64), labels


def _labels(
  labels: list[list[str]], key: str | None, classes: Sequence[str] | None, path: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
  """`number_labels`, where what is a number everywhere is no name unless `classes` has it."""
  if key is None:
    return [], ()
  names = {label for column in labels for label in column}
  if not names <= set(classes or ()) and all(map(_INTEGER.fullmatch, names)):
    labels = [np.array([int(label) for label in column], np.int64) for column in labels]
  try:
    return columns.number_labels(labels, classes)
  except ValueError as e:
    raise ValueError(f'column {key!r} of {path}: {e}') from None
