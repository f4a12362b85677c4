"""IDX files: MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747).

Read as published: four files in one directory, compressed or not, `train-images-idx3-ubyte.gz`,
`train-labels-idx1-ubyte.gz` and the same for `t10k`, the test set; some mirrors write
`train-images.idx3-ubyte`. Debian's package `dataset-fashion-mnist` installs those of Fashion-MNIST
in /usr/share/datasets/fashion-mnist. Nothing is ever downloaded.
"""

import functools
import gzip
import math
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

from vit_jax.choices import check_choice
from vit_jax.data import splits

_CLASSES = {
  'mnist': tuple('0123456789'),
  'fashion_mnist': (
    *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
    *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
  ),
}
_DIRECTORIES = {'fashion_mnist': '/usr/share/datasets/fashion-mnist'}
_FILES = {'train': 'train', 'test': 't10k'}


class Idx:
  """`idx[i]` has `image` [H, W, 1] uint8, `label` int32 and `id` (0..59999 train, then test)."""

  def __init__(self, dataset: str, split: str = 'train', directory: str | None = None):
    """Reads the files, once in each process.

    Args:
      dataset: 'mnist' or 'fashion_mnist': gives the classes' names.
      split: 'train', 'test', or slices: hold out by 'train[:55000]' and 'train[55000:]'.
      directory: where the files are; None is where Debian installs them (Fashion-MNIST alone).

    Raises:
      ValueError: an unknown dataset or split, or a file that is truncated or damaged (it is named).
      FileNotFoundError: no directory or a file is missing; the names expected are listed.
    """
    check_choice('dataset', dataset, _CLASSES)
    directory = directory or _DIRECTORIES.get(dataset)
    if not directory:
      raise ValueError(f'directory is not set: say where the four IDX files of {dataset!r} are')
    self.dataset = dataset
    self.directory = str(pathlib.Path(directory).expanduser())
    self.classes = _CLASSES[dataset]
    self.num_classes = len(self.classes)
    sizes = {name: len(labels) for name, (_, labels) in _load(self.directory).items()}
    self.selection = splits.Selection(split, sizes)

  def __len__(self) -> int:
    return len(self.selection)

  def __getitem__(self, i: int) -> dict[str, Any]:
    place = self.selection[i]
    images, labels = _load(self.directory)[place.name]
    return {
      'image': images[place.index],
      'label': np.int32(labels[place.index]),
      'id': np.int64(place.id),
    }

  def name(self, i: int) -> str:
    """A name for messages: 'fashion_mnist/train[17]'."""
    place = self.selection[i]
    return f'{self.dataset}/{place.name}[{place.index}]'


@functools.lru_cache(maxsize=4)
def _load(directory: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images [N, H, W, 1] and labels [N], uint8 and read-only, of each split."""
  data = {}
  for split, prefix in _FILES.items():
    images_file = _find(directory, prefix, 'images', 3)
    labels_file = _find(directory, prefix, 'labels', 1)
    images, labels = _read(images_file, 3)[..., None], _read(labels_file, 1)
    if len(images) != len(labels):
      raise ValueError(
        f'{images_file} has {len(images)} images, {labels_file} {len(labels)} labels'
      )
    if labels.max(initial=0) > 9:
      raise ValueError(f'{labels_file} has label {labels.max()}, there are 10 classes')
    data[split] = images, labels
  return data


def _find(directory: str, prefix: str, kind: str, rank: int) -> pathlib.Path:
  """The file of one kind under any of its published names."""
  root = pathlib.Path(directory)
  names = [f'{prefix}-{kind}{dot}idx{rank}-ubyte{gz}' for dot in '-.' for gz in ('.gz', '')]
  for name in names:
    if (root / name).is_file():
      return root / name
  debian = _DIRECTORIES['fashion_mnist']
  raise FileNotFoundError(
    f'no {" or ".join(names)} in {directory}; nothing is downloaded unasked: on Debian, '
    f'`apt-get install dataset-fashion-mnist` puts those of Fashion-MNIST in {debian}'
  )


def _read(file: pathlib.Path, rank: int) -> np.ndarray:
  """An IDX file of unsigned bytes: 0, 0, type, rank, the sizes as big-endian uint32, the data."""
  content = file.read_bytes()
  if file.suffix == '.gz':
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
      raise ValueError(f'{file} is damaged, fetch it again: {e}') from None
  magic = bytes((0, 0, 8, rank))  # 8 is the type unsigned byte
  header = 4 + 4 * rank
  if content[:4] != magic or len(content) < header:
    raise ValueError(
      f'{file} is damaged or no IDX file: it starts with {content[:4].hex()}, not {magic.hex()}'
    )
  shape = struct.unpack(f'>{rank}I', content[4:header])
  if len(content) - header != math.prod(shape):
    raise ValueError(
      f'{file} is truncated or damaged: its header says {shape}, '
      f'{len(content) - header} bytes follow'
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
