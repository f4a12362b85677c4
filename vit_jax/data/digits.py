"""scikit-learn's handwritten digits: 1797 gray images of 8x8, the smallest real data there is.

They are the test set of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak,
1998) and come with scikit-learn: nothing is downloaded.
"""

from typing import Any

import numpy as np

from vit_jax.data import splits


class Digits:
  """70 % train, 10 % validation, 20 % test: `digits[i]` has `image` [8, 8, 1] uint8, `label`, `id`.

  The examples of each class are permuted and cut.
  """

  classes = tuple('0123456789')
  num_classes = 10

  def __init__(self, split: str = 'train', splits_seed: int = 0):
    """Reads the data.

    Args:
      split: 'train', 'validation' or 'test', or slices of them (`data/splits.py`).
      splits_seed: of the permutation. An `id` is unique within one.

    Raises:
      ValueError: an unknown split, or scikit-learn is missing.
    """
    try:
      from sklearn import datasets
    except ImportError:
      raise ValueError(
        'the digits come with scikit-learn, which is not installed: pip install scikit-learn'
      ) from None
    data = datasets.load_digits()
    rows = _split(data.target, splits_seed)
    self.selection = splits.Selection(split, {name: len(r) for name, r in rows.items()})
    chosen = np.concatenate([rows[p.name][p.start : p.stop] for p in self.selection.parts])
    # 17 gray levels, 0 to 16. At 64 bytes an image, a worker gets the arrays and needs no sklearn.
    self._images = np.round(data.images[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
    self._labels = data.target[chosen].astype(np.int32)

  def __len__(self) -> int:
    return len(self.selection)

  def __getitem__(self, i: int) -> dict[str, Any]:
    place = self.selection[i]
    return {'image': self._images[i].copy(), 'label': self._labels[i], 'id': np.int64(place.id)}

  def name(self, i: int) -> str:
    """A name for messages: 'digits/train[17]'."""
    place = self.selection[i]
    return f'digits/{place.name}[{place.index}]'


def _split(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Rows of each split, stratified by `labels` [N]."""
  rng = np.random.RandomState(seed)  # its stream is frozen, default_rng's is not
  names = 'train', 'validation', 'test'
  parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
  for label in np.unique(labels):
    rows = rng.permutation(np.flatnonzero(labels == label))
    cuts = [round(0.7 * len(rows)), round(0.8 * len(rows))]
    for name, part in zip(names, np.split(rows, cuts), strict=True):
      parts[name].append(part)
  # Not class by class, so that a slice such as train[:10%] holds every class.
  return {name: rng.permutation(np.concatenate(part)) for name, part in parts.items()}
