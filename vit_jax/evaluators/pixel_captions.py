"""The floor under image-text retrieval: an image is called what the nearest one in pixels is."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from vit_jax.evaluators import apply
from vit_jax.evaluators.captions import (
  DIRECTIONS,
  Captioned,
  Pairs,
  captioned_sources,
  check_k,
  share_found,
)
from vit_jax.evaluators.nearest_pixel import nearest

BLOCK = 2**22  # numbers at a time: 32 MiB
DIGITS = 9  # of a similarity: what differs beyond them differs by rounding


class PixelCaptions:
  """Recall@k as of `ImageTextRetrieval`, by captions of training images; reads no state.

  The description of an image are the captions of the training image that is nearest to it in the L2
  distance of pixels, the first of equal ones, with transparent images on `background`. A caption
  and an image are as similar as the caption and this description: the cosine of their words'
  TF-IDF. Candidates that are equally similar come in an order drawn at random, and a recall is its
  expected value, so that a caption of unknown words alone finds what chance does. Words weigh by
  the training images' descriptions; captions that are asked for weigh nothing.

  It is meant for small images and a few thousand of them. The result is computed once and kept.
  """

  reads_state = False  # so that it is not run again for averaged parameters

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    train: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    captions: int | None = None,
    group: str | None = None,
    same_text: bool = False,
    k: Sequence[int] = (1, 5, 10),
    background: Sequence[int] = (255, 255, 255),
  ):
    """Builds the sources and reads the captions.

    Args:
      objective: not used.
      mesh: the mesh, which the pipeline puts its batches on.
      train: the source or its spec in which neighbours are looked for, with `text`.
      source: a source or its spec, with `text`; or
      sources: several by name, which comes before their metrics.
      host: host transforms of the images of all; they must come out in one size.
      batch_size: examples read at a time.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, images that do not decode or have no caption are named and
        left out.
      captions: so many captions of each image, the first ones, of `train` too; None is all.
      group: a field of the examples: those with the same value are one image; of `train` too.
      same_text: whether a caption is right for every image that has the very same text.
      k: numbers of candidates among which a right one must be.
      background: RGB in 0..255.

    Raises:
      ValueError: no source is given, one has no texts or no field `group`, or a k is not between 1
        and its images.
    """
    del objective
    self.sources = captioned_sources(source, sources, captions=captions, group=group, k=k)
    self.train = Captioned(apply.named_sources(train)[''], captions, group)
    self.mesh, self.k, self.same_text = mesh, tuple(k), same_text
    self.background = tuple(background)
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self._results: dict[str, float] | None = None

  def run(self, state: Any = None, *, final: bool = False) -> dict[str, float]:
    """Searches in both directions.

    Args:
      state: not read.
      final: changes nothing.

    Returns:
      `text_to_image/recall@1`, `image_to_text/recall@1` and so on, in [0, 1]; after `<source>/`
      where there are several sources.

    Raises:
      ValueError: the images differ in size, or fewer decode than a k.
    """
    del state, final
    if self._results is None:
      pixels, descriptions = self._read(self.train)
      words = Words([' '.join(own) for own in descriptions])
      self._results = {}
      for name, source in self.sources.items():
        images, texts = self._read(source)
        check_k(self.k, len(images))
        near = nearest(images, pixels, 1)[:, 0]
        pairs = Pairs(texts, same_text=self.same_text)
        values = self._judge(pairs, [' '.join(descriptions[i]) for i in near], words)
        self._results |= {apply.prefix(name) + key: value for key, value in values.items()}
    return dict(self._results)

  def _read(self, source: Captioned) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """The images that decode, [N, H * W * 3] uint8, and the captions of each."""
    from vit_jax.plots.images import to_rgb

    images, masks = [], []
    for batch in apply.batches(source, self.mesh, **self.options):
      batch = apply.fetch({key: batch[key] for key in ('image', '_mask')}, self.mesh)
      mask = batch['_mask'].astype(bool)
      images.append(to_rgb(batch['image'][mask], self.background))
      masks.append(mask)
    kept = np.flatnonzero(np.concatenate(masks))
    rows = np.concatenate(images).reshape(len(kept), math.prod(images[0].shape[1:]))
    return rows, [source.texts[i] for i in kept]

  def _judge(self, pairs: Pairs, descriptions: Sequence[str], words: Words) -> dict[str, float]:
    sides = pairs.captions, descriptions
    results = {}
    for direction, (queries, candidates) in zip(DIRECTIONS, (sides, sides[::-1]), strict=True):
      sums = np.zeros(len(self.k))
      wanted = iter(pairs.right[direction])
      for row in words.similarity(queries, candidates):
        sums += expected_hits(row, next(wanted), self.k)
      for k, value in zip(self.k, sums / len(queries), strict=True):
        results[f'{direction}/recall@{k}'] = float(value)
    return results


class Words:
  """TF-IDF of words as scikit-learn has it by default, `TfidfVectorizer()`.

  A word is two or more letters, digits or underscores, in lower case. It weighs how often it stands
  in a text, times `ln((1 + n) / (1 + d)) + 1`, with d of the n documents having it; one that none
  has is left out.
  """

  def __init__(self, documents: Sequence[str]):
    """Weighs the words of n documents."""
    having = collections.Counter(word for text in documents for word in set(split(text)))
    self.weights = {
      word: float(np.log((1 + len(documents)) / (1 + count)) + 1) for word, count in having.items()
    }

  def similarity(self, queries: Sequence[str], candidates: Sequence[str]) -> Iterator[np.ndarray]:
    """For each query the cosines with all candidates, [N] float64; 0 where one has no known word.

    They are rounded, so that those of the same words are equal.
    """
    # Others are in no candidate: they make a query longer, and have no share in a product.
    words = {word for text in candidates for word in split(text)} & self.weights.keys()
    columns = {word: i for i, word in enumerate(sorted(words))}
    table = self._vectors(candidates, columns)  # [N, V]
    rows = max(1, BLOCK // max(table.shape))
    for start in range(0, len(queries), rows):
      few = self._vectors(queries[start : start + rows], columns)
      yield from np.round(few @ table.T, DIGITS)

  def _vectors(self, texts: Sequence[str], columns: Mapping[str, int]) -> np.ndarray:
    """[n, V] float64: the columns' part of vectors of length 1, or all zeros."""
    made = np.zeros((len(texts), len(columns)))
    for row, text in zip(made, texts, strict=True):
      counts = collections.Counter(word for word in split(text) if word in self.weights)
      values = {word: count * self.weights[word] for word, count in counts.items()}
      length = np.sqrt(sum(value**2 for value in values.values()))
      for word in values.keys() & columns.keys():
        row[columns[word]] = values[word] / length
    return made


def split(text: str) -> list[str]:
  """The words of a text in lower case, of two letters or more."""
  return re.findall(r'\b\w\w+\b', text.lower())


def expected_hits(similarity: np.ndarray, right: Set[int], k: Sequence[int]) -> np.ndarray:
  """The probability that a right candidate is among the first k, equal ones in a random order.

  Args:
    similarity: [N], of one query with each candidate.
    right: the candidates that are right, at least one.
    k: numbers of first candidates, [K].

  Returns:
    [K] float64.
  """
  own = similarity[sorted(right)]
  tied, first = int((similarity == own.max()).sum()), int((similarity > own.max()).sum())
  drawn = np.clip(np.asarray(k) - first, 0, tied)
  return share_found(int((own == own.max()).sum()), tied, drawn)
