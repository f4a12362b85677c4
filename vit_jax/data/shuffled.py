"""Shuffled pairs, the control experiment: every example has the text of another one."""

from typing import Any

import numpy as np

from vit_jax.data.substitute import name


class ShuffledTexts:
  """A source whose example i has the `text` of another example, always the same, and all else.

  Each example's text is given once, and none to its own; where two examples have the same one, it
  may still come back. Whose it is depends on the seed and the number of examples alone. A model
  that such pairs train has nothing to learn of images by texts: its retrieval stays at chance. Two
  examples are read for each, and it is broken where either is.

  Attributes:
    partners: [n] int64, whose text each example has.
    classes: the source's names; () where it has none.
    num_classes: the source's.
    subset: the source's (see `data/test_sets.py`), or None.
  """

  def __init__(self, source: Any, seed: int = 0):
    """Draws whose text each example has.

    Args:
      source: random access; its examples have `text`.
      seed: from 0 to 2**32 - 1.

    Raises:
      ValueError: fewer than two examples.
    """
    if len(source) < 2:
      raise ValueError(
        f'a source of {len(source)} has nothing to shuffle; choose one of at least 2'
      )
    # Its stream is frozen, default_rng's is not.
    order = np.random.RandomState(seed).permutation(len(source))
    self.partners = np.empty(len(source), np.int64)
    self.partners[order] = np.roll(order, 1)  # one ring of all, so that none is its own
    self.source = source
    self.classes = tuple(getattr(source, 'classes', ()))
    self.num_classes = getattr(source, 'num_classes', len(self.classes))
    self.subset = getattr(source, 'subset', None)

  def __len__(self) -> int:
    return len(self.partners)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Example i with another's text.

    Raises:
      BadExample: it or the other one is broken.
      ValueError: the source gives no text.
      IndexError: there is no example i.
    """
    self._check(i)
    other = self.source[int(self.partners[i])]
    if 'text' not in other:
      raise ValueError(f'the source gives no text to shuffle, but {sorted(other)}')
    return {**self.source[int(i)], 'text': other['text']}

  def name(self, i: int) -> str:
    """The source's name for the example."""
    self._check(i)
    return name(self.source, int(i))

  def _check(self, i: int) -> None:
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
