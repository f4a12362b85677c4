"""Packaged real data: about 1,600 emoji, each drawn in four styles at 32x32.

The styles are `google` (Noto Emoji), `twitter` (Twemoji), `openmoji` and `noto-mono` (a monochrome
font). By default only the first two are trained on: the other two are the distribution shift. Every
emoji has a name, keywords, a category and a subcategory. The splits are drawn by *base* emoji, so
that the man, woman and person of one emoji never fall in two. `tools/build_emoji.py` makes the
files; `ATTRIBUTION.md` says whose drawings these are and under which licences.
"""

from __future__ import annotations

import collections
import csv
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.choices import check_choice

FOLDER = pathlib.Path(__file__).parent
STYLES = ('google', 'twitter', 'openmoji', 'noto-mono')
SPLITS = ('train', 'validation', 'test')
LABELS = ('category', 'subcategory', 'name')
TEXTS = ('name', 'keywords', 'subcategory', 'category')
SIZE = 32  # pixels, the side of a drawing


@functools.cache
def read_table() -> tuple[dict[str, str], ...]:
  """The rows of `emoji.csv`; row i is cell i of every sheet, counted row by row."""
  with (FOLDER / 'emoji.csv').open(encoding='utf-8', newline='') as file:
    return tuple(csv.DictReader(file))


@functools.cache
def read_texts(columns: tuple[str, ...] = ('name', 'keywords')) -> tuple[tuple[str, ...], ...]:
  """What columns of `emoji.csv` say of each row, some of `TEXTS`; 'animal-bird' as words."""
  return tuple(
    tuple(
      text.replace('-', ' ') if column == 'subcategory' else text
      for column in columns
      for text in filter(None, row[column].split('|'))
    )
    for row in read_table()
  )


@functools.cache
def read_sheet(style: str) -> np.ndarray:
  """All drawings of one style, [N, 32, 32, 4] uint8 RGBA (alpha not premultiplied), read-only."""
  from PIL import Image

  with Image.open(FOLDER / f'{style}.png') as image:
    sheet = np.asarray(image.convert('RGBA'))
  rows, columns = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
  cells = sheet.reshape(rows, SIZE, columns, SIZE, 4).swapaxes(1, 2)  # [rows, columns, 32, 32, 4]
  cells = cells.reshape(-1, SIZE, SIZE, 4)[: len(read_table())].copy()
  cells.flags.writeable = False
  return cells


def draw_splits(rows: Sequence[dict[str, str]], *, seed: int) -> list[str]:
  """The split of each row, about 70/10/20 of the base emoji in every category.

  Within a category the bases are put in the order of the SHA-256 of '<seed>:<base>'; the first 70%
  (rounded) are `train`, the next 10% `validation`, the rest `test`. All variants of a base share
  its split. Bases of more than 10 variants (the families, the person) are always `train`: one alone
  would be a sixth of `validation`. The split column of `emoji.csv` is the draw with seed 0.

  Args:
    rows: have 'category' and 'base', as those of `emoji.csv`.
    seed: any integer.

  Raises:
    ValueError: a base stands in two categories.
  """
  variants = collections.Counter(row['base'] for row in rows)
  bases: dict[str, set[str]] = {}
  for row in rows:
    bases.setdefault(row['category'], set()).add(row['base'])
  split_of = {}
  for names in bases.values():
    ordered = sorted(names, key=lambda name: hashlib.sha256(f'{seed}:{name}'.encode()).digest())
    ordered.sort(key=lambda name: variants[name] <= 10)  # stable: the large ones come first
    train, validation = round(0.7 * len(ordered)), round(0.1 * len(ordered))
    for i, name in enumerate(ordered):
      if name in split_of:
        raise ValueError(f'base {name!r} has two categories')
      split_of[name] = SPLITS[(i >= train) + (i >= train + validation)]
  return [split_of[row['base']] for row in rows]


def draw_halves(rows: Sequence[dict[str, str]], *, seed: int) -> list[int]:
  """The half of each row, 0 or 1: no subcategory and no base emoji is in both.

  Within a category the subcategories are put in the order of the SHA-256 of '<seed>:<subcategory>'
  and cut in two where the numbers of emoji are the most alike. Each part has at least one, so that
  both halves hold every category; a category of a single subcategory would be in half 0 alone, but
  `emoji.csv` has none (flags are not in it). Subcategories with a base in common count as one, by
  the name of the first: the table has families in `family` and `person-symbol`.

  Args:
    rows: have 'category', 'subcategory' and 'base', as those of `emoji.csv`.
    seed: any integer.
  """
  group_of = _join_subcategories(rows)
  sizes: dict[str, collections.Counter[str]] = {}
  for row in rows:
    sizes.setdefault(row['category'], collections.Counter())[group_of[row['subcategory']]] += 1
  half_of = {}
  for counts in sizes.values():
    groups = sorted(counts, key=lambda name: hashlib.sha256(f'{seed}:{name}'.encode()).digest())
    firsts = list(itertools.accumulate(counts[name] for name in groups))  # emoji of a first part
    cuts = range(1, max(len(groups), 2))
    cut = min(cuts, key=lambda k: abs(2 * firsts[k - 1] - firsts[-1]))
    half_of.update({name: int(i >= cut) for i, name in enumerate(groups)})
  return [half_of[group_of[row['subcategory']]] for row in rows]


def _join_subcategories(rows: Sequence[dict[str, str]]) -> dict[str, str]:
  """For each subcategory the first one that it is joined with by common bases, or itself."""
  group_of: dict[str, str] = {}
  first: dict[str, str] = {}  # the subcategory in which a base is met first
  for row in rows:
    own = group_of.setdefault(row['subcategory'], row['subcategory'])
    other = group_of[first.setdefault(row['base'], row['subcategory'])]
    if own != other:
      group_of = {name: other if group == own else group for name, group in group_of.items()}
  return group_of


class Emoji:
  """The packaged emoji as a source: `len(source)`, `source[i] -> dict`.

  An example holds
    image: [32, 32, 3] uint8, the drawing on `background`; where `alpha=True`, [32, 32, 4] uint8
      with its alpha channel (not premultiplied);
    label: int32, an index into `classes`;
    id: int64, `STYLES.index(style) * N + row`, with N the rows of `emoji.csv`: it is the same
      whatever the split and the other styles;
    text: where asked for, its name, its keywords and so on, a tuple of str.

  The examples of the first style come first, in the order of `emoji.csv`, then those of the second:
  with n of them in a style, i and i + n are one emoji drawn twice. `labels` and `ids` are those of
  all examples, [len] each.

  Args:
    split: 'train', 'validation', 'test' or 'all', or several joined by '+'.
    styles: any of `STYLES`.
    label: 'category' (8 classes), 'subcategory' (95) or 'name' (1629, every emoji a class of its
      own: the label by which two styles of one match). A half has its own classes, in the same
      order. They are the same whatever the split and the styles.
    alpha: keep the alpha channel, so that what lies behind a drawing can be an augmentation.
    background: the RGB colour behind the drawing, 0 to 255, where alpha is False.
    splits_seed: draw the splits anew with this seed; None takes those of `emoji.csv`.
    half: 0 or 1 keeps one half of the subcategories of every category (see `draw_halves`): to
      pretrain on one and transfer to the other, which shares no emoji with it. The splits are the
      same, and each category is in both. None keeps all.
    halves_seed: of the halves.
    text: the texts to give, some of `TEXTS`; True is its name and its keywords.
    within: subcategories to keep, as `emoji.csv` calls them; None keeps all.
    without: subcategories to leave out, so that they are new to whoever was trained on the rest.

  Raises:
    ValueError: an unknown split, style, label, half, text or subcategory (the choices are listed),
      or a background that is no RGB colour.
  """

  def __init__(
    self,
    split: str = 'train',
    styles: Sequence[str] = ('google', 'twitter'),
    label: str = 'category',
    alpha: bool = False,
    background: Sequence[int] = (255, 255, 255),
    splits_seed: int | None = None,
    half: int | None = None,
    halves_seed: int = 0,
    text: bool | Sequence[str] = False,
    within: Sequence[str] | None = None,
    without: Sequence[str] = (),
  ):
    rows = read_table()
    parts = split.split('+')
    for part in parts:
      check_choice('split', part, (*SPLITS, 'all'))
    if isinstance(styles, str):
      styles = (styles,)
    for style in styles:
      check_choice('style', style, STYLES)
    check_choice('label', label, LABELS)
    check_choice('half', half, (None, 0, 1))
    if len(background) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in background):
      raise ValueError(f'background {background!r} is not three integers from 0 to 255')
    self.split, self.styles, self.label = split, tuple(styles), label
    self.alpha, self.background, self.splits_seed = alpha, tuple(background), splits_seed
    self.half, self.halves_seed = half, halves_seed
    self.text = ('name', 'keywords') if text is True else tuple(text or ())
    for column in self.text:
      check_choice('text', column, TEXTS)
    self.within, self.without = within, tuple(without)

    if splits_seed is None:
      splits = [row['split'] for row in rows]
    else:
      splits = draw_splits(rows, seed=splits_seed)
    halves = [None] * len(rows) if half is None else draw_halves(rows, seed=halves_seed)
    kept = [i for i, drawn in enumerate(halves) if drawn == half]
    # In the order of the table. All splits of a half have the same ones.
    self.classes = tuple(dict.fromkeys(rows[i][label] for i in kept))
    kept = [i for i in kept if splits[i] in parts or 'all' in parts]
    known = dict.fromkeys(row['subcategory'] for row in rows)
    for subcategory in (*(within or ()), *without):
      check_choice('subcategory', subcategory, known)
    if within is not None:
      kept = [i for i in kept if rows[i]['subcategory'] in within]
    kept = [i for i in kept if rows[i]['subcategory'] not in without]
    self.rows = np.array(kept, np.int64)  # [n], rows of the table
    index = {name: i for i, name in enumerate(self.classes)}
    labels = np.array([index[rows[i][label]] for i in kept], np.int32)  # [n]
    self.labels = np.tile(labels, len(self.styles))  # [len(self)]
    ids = [STYLES.index(style) * len(rows) + i for style in self.styles for i in kept]
    self.ids = np.array(ids, np.int64)  # [len(self)]

  @property
  def num_classes(self) -> int:
    """8 categories, 95 subcategories or 1629 names, fewer in a half."""
    return len(self.classes)

  def __len__(self) -> int:
    return len(self.styles) * len(self.rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    style, row = self._find(i)
    image = self._sheet(style)[row]  # [32, 32, 4]
    if self.alpha:
      image = image.copy()
    else:
      image = composite(image, self.background)  # [32, 32, 3]
    example = {'image': image, 'label': self.labels[i], 'id': self.ids[i]}
    return {**example, 'text': read_texts(self.text)[row]} if self.text else example

  def mask(self, i: int) -> np.ndarray:
    """What example i covers, [32, 32] float32 in [0, 1]: truth for attention and segmentation."""
    style, row = self._find(i)
    return self._sheet(style)[row, :, :, 3].astype(np.float32) / 255

  def table(self) -> list[dict[str, str]]:
    """The row of `emoji.csv` for every example, with its `style`: names, keywords and the rest."""
    rows = read_table()
    return [{**rows[row], 'style': style} for style in self.styles for row in self.rows]

  def __repr__(self) -> str:
    half = '' if self.half is None else f', half={self.half}'
    return f'Emoji({self.split!r}, styles={self.styles}, label={self.label!r}{half})'

  def _sheet(self, style: str) -> np.ndarray:
    return read_sheet(style)

  def _find(self, i: int) -> tuple[str, int]:
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    style, position = divmod(int(i), len(self.rows))
    return self.styles[style], int(self.rows[position])


class Drawings:
  """The packaged emoji, one example each, its drawings in several styles as views.

  An example is that of `Emoji` in the first style, but for `views`, [S, 32, 32, C] uint8, one
  drawing a style in the order of the styles, in the place of `image`.

  Args:
    styles: at least two of `STYLES`.
    **fields: the others of `Emoji`.

  Raises:
    ValueError: a single style, or what `Emoji` refuses.
  """

  def __init__(self, styles: Sequence[str] = ('google', 'twitter'), **fields: Any):
    if isinstance(styles, str) or len(styles) < 2:
      raise ValueError(f'styles {styles!r} are not two or more; one drawing is no pair of views')
    self.source = Emoji(styles=styles, **fields)
    self.classes = self.source.classes
    self.num_classes = self.source.num_classes

  def __len__(self) -> int:
    return len(self.source.rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    if not 0 <= i < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    drawn = [self.source[i + k * len(self)] for k in range(len(self.source.styles))]
    images = [example.pop('image') for example in drawn]
    return {**drawn[0], 'views': np.stack(images)}

  def __repr__(self) -> str:
    return f'Drawings of {self.source!r}'


def composite(image: np.ndarray, background: Sequence[int]) -> np.ndarray:
  """Puts a drawing on a colour: [..., 4] uint8 RGBA over RGB in 0..255 -> [..., 3] uint8."""
  alpha = image[..., 3:].astype(np.float32) / 255
  color = image[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
  return np.rint(color).astype(np.uint8)
