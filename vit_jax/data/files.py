"""Which files a path means, which split each is of, and in which of them an example stands."""

import glob
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.choices import listed
from vit_jax.data import splits

# 'train-00000-of-00004', 'part-0', '0000': from where a shard is numbered on.
_NUMBER = re.compile(r'(^|[-_.])\d.*')


class Row(NamedTuple):
  """Row `index` of file number `file`; `id` is the example's number in the whole data set."""

  file: int
  index: int
  id: int


class Rows:
  """The chosen rows of some files: `rows[i]` is the `Row` of example i.

  The files of one split follow each other as they are given.
  """

  def __init__(self, path: str, names: Sequence[str], counts: Sequence[int], split: str | None):
    """Reads a split.

    Args:
      path: what the files are called in a message.
      names: the split of each file.
      counts: the number of rows in each file.
      split: as `data/splits.py` has it; None is the only split there is, else 'train'.

    Raises:
      ValueError: an unknown or empty split, or None where there are several and no 'train'.
    """
    self._files = {name: [k for k, n in enumerate(names) if n == name] for name in sorted({*names})}
    self._ends = {
      name: np.cumsum([counts[k] for k in files]) for name, files in self._files.items()
    }
    sizes = {name: int(ends[-1]) for name, ends in self._ends.items()}
    if split is None and len(sizes) > 1 and 'train' not in sizes:
      raise ValueError(f"{path} has several splits; set split to 'all', {listed(list(sizes))}")
    split = split or (next(iter(sizes)) if len(sizes) == 1 else 'train')
    self.selection = splits.Selection(split, sizes)

  def __len__(self) -> int:
    return len(self.selection)

  def __getitem__(self, i: int) -> Row:
    place = self.selection[i]
    ends = self._ends[place.name]
    k = int(np.searchsorted(ends, place.index, side='right'))
    before = int(ends[k - 1]) if k else 0
    return Row(self._files[place.name][k], place.index - before, place.id)

  def choose(self, columns: Sequence[np.ndarray]) -> np.ndarray:
    """One column of the chosen rows, from that of each file."""
    whole = {name: np.concatenate([columns[k] for k in ks]) for name, ks in self._files.items()}
    return np.concatenate([whole[p.name][p.start : p.stop] for p in self.selection.parts])


def find_files(path: str, extensions: tuple[str, ...]) -> list[str]:
  """The files that a path means, sorted, as absolute paths.

  Args:
    path: a file, a folder (its files with one of the extensions) or a pattern such as 'train-*'.
    extensions: with the dot, in lower case.

  Raises:
    FileNotFoundError: there is none; the error lists what is there instead.
  """
  path = os.path.abspath(os.path.expanduser(path))
  if os.path.isdir(path):
    files = [f'{path}/{n}' for n in os.listdir(path) if n[0] != '.']
    files = [f for f in files if f.lower().endswith(extensions) and os.path.isfile(f)]
  else:
    files = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
  if files:
    return sorted(files)
  folder = path if os.path.isdir(path) else os.path.dirname(path)
  there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  wanted = f'{path}/*{" or *".join(extensions)}' if folder == path else path
  raise FileNotFoundError(f'no file {wanted}; {folder} has {listed(there)}')


def split_name(file: str) -> str:
  """The split a file is of, by its name.

  'train-00000-of-00004.parquet' and 'train.csv' are of 'train'; a file that is only numbered is of
  'data'.
  """
  stem = os.path.splitext(os.path.basename(file))[0]
  return re.sub(r'[^\w-]', '-', _NUMBER.sub('', stem)) or 'data'
