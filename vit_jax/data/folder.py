"""A folder of pictures, `root/split/class/*.jpg`, the layout that most collections come in."""

import operator
import os
import pathlib
from typing import Any

import numpy as np

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp')
# Ids are split * _STRIDE + position: reading one split does not list the others. They fit in int32.
_STRIDE = 1 << 26


class Folder:
  """`folder[i]` has `image` (the file's bytes), `label` and `id`; `folder.name(i)` is the path.

  Order and labels come from sorted names. Every split has the labels of `train`, if there is one.
  """

  def __init__(self, root: str, split: str = 'train'):
    """Lists the files; none is opened.

    Args:
      root: folder of folders `split/class`.
      split: name of the split's folder; '' where `root` holds the classes' folders itself.

    Raises:
      FileNotFoundError: `root` or the split is missing, or holds no picture; the error lists what
        there is.
      ValueError: a class that `train` lacks.
    """
    base = pathlib.Path(root).expanduser()
    if not base.is_dir():
      there = _folders(base.parent) if base.parent.is_dir() else []
      raise FileNotFoundError(f'no folder {base}; {base.parent} has {_listed(there)}')
    names = _folders(base)
    if split and split not in names:
      raise FileNotFoundError(f'no split {split!r} in {base}; choose from {_listed(names)}')
    names.sort(key=lambda name: (name != 'train', name))
    self._first_id = names.index(split) * _STRIDE if split else 0
    self.directory = str(base / split)
    classes = _folders(base / split)
    known = _folders(base / 'train') if split and 'train' in names else classes
    if unknown := sorted(set(classes) - set(known)):
      raise ValueError(
        f'{self.directory} has classes that train lacks: {_listed(unknown)}; '
        f'choose from {_listed(known)}'
      )
    self.classes = tuple(known)
    self.num_classes = len(known)
    files = [_pictures(base / split / name) if name in classes else [] for name in known]
    if not any(files):
      there = sorted(p.name for p in (base / split).iterdir())
      raise FileNotFoundError(
        f'no picture {self.directory}/CLASS/*.{{{",".join(e[1:] for e in EXTENSIONS)}}}; '
        f'{self.directory} has {_listed(there)}'
      )
    # Arrays, not lists of paths: a million names travel to each worker.
    self._files = np.array([os.fsencode(file) for names in files for file in names])
    self._labels = np.repeat(np.arange(len(known), dtype=np.int32), [len(names) for names in files])

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, i: int) -> dict[str, Any]:
    with open(self.name(i), 'rb') as file:
      image = file.read()
    return {'image': image, 'label': self._labels[i], 'id': np.int64(self._first_id + int(i))}

  def name(self, i: int) -> str:
    """The file's path."""
    if not 0 <= operator.index(i) < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    return os.path.join(
      self.directory, self.classes[self._labels[i]], os.fsdecode(bytes(self._files[i]))
    )


def _folders(path: pathlib.Path) -> list[str]:
  with os.scandir(path) as entries:
    return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != '.')


def _pictures(path: pathlib.Path) -> list[str]:
  with os.scandir(path) as entries:
    return sorted(
      entry.name
      for entry in entries
      if entry.name[0] != '.' and entry.name.lower().endswith(EXTENSIONS) and entry.is_file()
    )


def _listed(names: list[str], limit: int = 8) -> str:
  shown = ', '.join(repr(name) for name in names[:limit])
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return (shown or 'nothing') + more
