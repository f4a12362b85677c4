"""The floor under every representation: the nearest neighbour in raw pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.evaluators import apply

BLOCK = 2**24  # distances at a time: 64 MiB


class NearestPixel:
  """Accuracy of the k nearest training images in the L2 distance of pixels; reads no state.

  The majority of the k labels is the answer, the lowest label where several have it. Of training
  images at the same distance the first is the nearer one. Transparent images lie on `background`.
  The result is computed once and kept.
  """

  reads_state = False  # so that it is not run again for averaged parameters

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    writer: Any = None,
    train: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    k: int = 1,
    background: Sequence[int] = (255, 255, 255),
  ):
    """Builds the sources.

    Args:
      objective: not used.
      mesh: the mesh, which the pipeline puts its batches on.
      writer: not used.
      train: the source or its spec in which neighbours are looked for.
      source: a source or its spec; or
      sources: several by name, which comes before their metrics: `google/accuracy`.
      host: host transforms of both; all images must come out in one size.
      batch_size: examples read at a time.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      k: neighbours asked.
      background: RGB in 0..255.

    Raises:
      ValueError: k is not between 1 and the number of training images, or no source is given.
    """
    self.sources = apply.named_sources(source, sources)
    self.train = apply.named_sources(train)['']
    if not 1 <= k <= len(self.train):
      raise ValueError(f'k is {k}; choose from 1 to {len(self.train)}, the training images')
    self.mesh, self.k, self.background = mesh, k, tuple(background)
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self._results: dict[str, float] | None = None

  def run(self, state: Any = None, *, final: bool = False) -> dict[str, float]:
    """The share of right answers.

    Args:
      state: not read.
      final: changes nothing.

    Returns:
      `accuracy`, or `<source>/accuracy` where there are several sources.
    """
    if self._results is None:
      train, labels = self._pixels(self.train)
      self._results = {}
      for name, source in self.sources.items():
        images, truth = self._pixels(source)
        votes = labels[nearest(images, train, self.k)]  # [N, k]
        right = int((majority(votes) == truth).sum())
        self._results[apply.prefix(name) + 'accuracy'] = right / len(truth)
    return dict(self._results)

  def _pixels(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images [N, H * W * C] uint8, and labels [N]."""
    from vit_jax.plots.images import to_rgb

    images, labels = [], []
    for batch in apply.batches(source, self.mesh, **self.options):
      batch = apply.fetch({key: batch[key] for key in ('image', 'label', '_mask')}, self.mesh)
      image, label = (batch[key][batch['_mask'].astype(bool)] for key in ('image', 'label'))
      if label.ndim != 1:
        raise ValueError('nearest_pixel needs one label an image, not multi-hot labels')
      if image.shape[-1] == 4:
        image = to_rgb(image, self.background)
      images.append(image)
      labels.append(label)
    images = np.concatenate(images)
    return images.reshape(len(images), -1), np.concatenate(labels)


def nearest(images: np.ndarray, train: np.ndarray, k: int) -> np.ndarray:
  """The k nearest rows of `train` to each image, the nearest first; the first of equal ones.

  Distances are computed in float32, by blocks. Those so near to the k-th that rounding may have
  swapped them are computed again in integers, so that the answer is exact.

  Args:
    images: [N, D] uint8.
    train: [M, D] uint8.
    k: at most M.

  Returns:
    [N, k] int64.

  Raises:
    ValueError: the images differ in size.
  """
  if images.shape[1] != train.shape[1]:
    raise ValueError(
      f'images have {images.shape[1]} values and those of the training source {train.shape[1]}; '
      'bring them to one size by the host transforms'
    )
  centre = train.mean(0, dtype=np.float64).astype(np.float32)  # smaller numbers round less
  base = train.astype(np.float32) - centre
  lengths = np.einsum('md,md->m', base, base)  # [M], squared
  found = np.empty((len(images), k), np.int64)
  rows = max(1, BLOCK // len(train))
  for start in range(0, len(images), rows):
    block = images[start : start + rows]
    centred = block.astype(np.float32) - centre
    distance = lengths - 2 * centred @ base.T  # [rows, M], squared, less |image|^2
    # A margin for the rounding of sums of D products.
    slack = 2.0**-22 * np.sqrt(images.shape[1]) * (lengths.max() + (centred**2).sum(1))
    for i, (image, row) in enumerate(zip(block, distance, strict=True), start):
      kth = row.min() if k == 1 else np.partition(row, k - 1)[k - 1]
      near = np.flatnonzero(row <= kth + slack[i - start])
      exact = ((train[near].astype(np.int64) - image) ** 2).sum(1)
      found[i] = near[np.argsort(exact, kind='stable')[:k]]
  return found


def majority(votes: np.ndarray) -> np.ndarray:
  """The most frequent label of each row, the lowest of equally frequent ones: [N, k] -> [N]."""
  classes = int(votes.max()) + 1
  counts = np.zeros((len(votes), classes), np.int32)
  np.add.at(counts, (np.arange(len(votes))[:, None], votes), 1)
  return counts.argmax(1)
