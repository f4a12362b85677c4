"""Images and their captions as retrieval reads them, and what chance would find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.substitute import BadExample, name
from vit_jax.data.texts import captions_of
from vit_jax.evaluators import apply

DIRECTIONS = ('text_to_image', 'image_to_text')


class Captioned:
  """A source's images alone, as a source, and beside it the captions of each.

  The pipeline puts no strings on devices, so captions are read here, once: every example of the
  source is read, though not decoded. An example that has none, or that is broken, is one that does
  not decode.

  Attributes:
    texts: of each image its captions; () where it has none.
    positions: [N] int64, where the images stand in the source.
  """

  def __init__(self, source: Any, captions: int | None = None, group: str | None = None):
    """Reads the captions.

    Args:
      source: examples have `image`, `id` and `text`, a string or several.
      captions: so many captions of each image, the first ones; None is all.
      group: a field of the examples: those with the same value are one image, the first's, with the
        captions of all. For sources of pairs, which repeat an image for every caption. None: each
        example is an image of its own.

    Raises:
      ValueError: the examples have no `text` or no such field, or `captions` is not at least 1.
    """
    if captions is not None and not (isinstance(captions, int) and captions >= 1):
      raise ValueError(f'captions is {captions!r}; choose from 1, 2, ... or None, which is all')
    images: dict[Any, list[int]] = {}  # the positions of the examples of each image
    texts = []
    for i in range(len(source)):
      found, value = _read(source, i, group)
      texts.append(found)
      # Without a caption it stays an example of its own, so that it is named and counted.
      images.setdefault(('value', value) if found and group else ('position', i), []).append(i)
    self.source = source
    self.positions = np.array([members[0] for members in images.values()], np.int64)
    self.texts = [
      tuple(text for i in members for text in texts[i])[:captions] for members in images.values()
    ]

  def __len__(self) -> int:
    return len(self.positions)

  def __getitem__(self, i: int) -> dict[str, Any]:
    if not self.texts[i]:
      raise BadExample('no caption that is not blank')
    example = self.source[int(self.positions[i])]
    return {'image': example['image'], 'id': example['id']}

  def name(self, i: int) -> str:
    """The source's name for the image."""
    return name(self.source, int(self.positions[i]))


def _read(source: Any, i: int, group: str | None) -> tuple[list[str], Any]:
  """The captions of an example, none where it is broken, and the value of its field `group`."""
  try:
    example = source[i]
  except BadExample:
    return [], None
  if group is not None and group not in example:
    raise ValueError(f'the source gives no {group!r}; choose group from {sorted(example)}')
  value = None if group is None else np.asarray(example[group]).item()
  return captions_of(example), value


class Pairs:
  """Which captions are right for which images.

  Attributes:
    captions: M texts, those of the first image first.
    counts: how many images and captions there are, N and M.
    right: by direction, of each query the candidates that are right, at least one:
      'text_to_image' has M sets of images, 'image_to_text' N sets of captions.
  """

  def __init__(self, texts: Sequence[Sequence[str]], *, same_text: bool):
    """Finds the right ones.

    Args:
      texts: of each image its captions, at least one.
      same_text: whether a caption is right for every image that has the very same text, else for
        its own alone.
    """
    self.captions = tuple(text for own in texts for text in own)
    images = [i for i, own in enumerate(texts) for _ in own]  # of each caption
    self.counts = len(texts), len(self.captions)
    having: dict[Any, set[int]] = {}  # the images of each text, or of each caption
    keys = self.captions if same_text else range(len(self.captions))
    for key, image in zip(keys, images, strict=True):
      having.setdefault(key, set()).add(image)
    of_captions = [having[key] for key in keys]
    of_images: list[set[int]] = [set() for _ in texts]
    for caption, found in enumerate(of_captions):
      for image in found:
        of_images[image].add(caption)
    self.right = dict(zip(DIRECTIONS, (of_captions, of_images), strict=True))

  def candidates(self, direction: str) -> int:
    """How many a query chooses from."""
    return self.counts[DIRECTIONS.index(direction)]

  def chance(self, direction: str, k: int) -> float:
    """The recall@k of an order drawn at random, its expected value."""
    right = np.array([len(found) for found in self.right[direction]])
    return float(share_found(right, self.candidates(direction), k).mean())


def share_found(right: np.ndarray, total: np.ndarray | int, drawn: np.ndarray | int) -> np.ndarray:
  """The probability that a draw has at least one right candidate.

  Args:
    right: [Q] int, right candidates of each query.
    total: [Q] or one int, its candidates.
    drawn: [Q] or one int, how many are drawn, all different; at most `total`.

  Returns:
    [Q] float64.
  """
  right, total, drawn = np.broadcast_arrays(right, total, drawn)
  missed = np.ones(right.shape)
  for i in range(int(drawn.max(initial=0))):
    wrong = np.maximum(total - right - i, 0) / np.maximum(total - i, 1)
    missed *= np.where(i < drawn, wrong, 1.0)
  return 1 - missed


def captioned_sources(
  source: Any,
  sources: Mapping[str, Any] | None,
  *,
  captions: int | None,
  group: str | None,
  k: Sequence[int],
) -> dict[str, Captioned]:
  """The sources of an evaluator by name with their captions read.

  Args:
    source: one source or its spec; or
    sources: several by name.
    captions: as of `Captioned`.
    group: likewise.
    k: numbers of candidates among which a right one must be.

  Raises:
    ValueError: as of `Captioned`, no source, or a k that is not between 1 and the images of each.
  """
  made = {}
  for one, given in apply.named_sources(source, sources).items():
    made[one] = Captioned(given, captions, group)
    check_k(k, len(made[one]))
  return made


def check_k(k: Sequence[int], images: int) -> None:
  """Raises ValueError where one of `k`, of which there is one, is not from 1 to `images`."""
  for one in tuple(k) or (0,):
    if not 1 <= one <= images:
      raise ValueError(f'k is {one}; choose from 1 to {images}, the images')
