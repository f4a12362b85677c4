"""Cards of zero-shot answers: an image beside the texts that fit it best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.plots import figures, images

SIDE = 160  # pixels, the side of an image's place
TEXT = 250  # pixels, the width of the texts and of the bars under them
PERCENT = 54  # pixels, for the number beside a bar
LINES = 2  # of a text; what is longer is cut
BAR = 9  # pixels, the height of a bar
GAP = 18  # pixels around everything on a card
BLUE, GREEN, EMPTY = (107, 174, 214), (42, 157, 92), (238, 238, 238)
MARK = '✓ '  # before a right text: the colour alone does not reach everybody

Row = tuple[list[str], float, bool]  # the lines of a text, its probability, whether it is right


def answers(
  pictures: Sequence[np.ndarray],
  texts: Sequence[str],
  probabilities: np.ndarray,
  truths: Sequence[int | None] | None = None,
  *,
  top: int = 5,
  columns: int = 2,
  title: str = '',
) -> np.ndarray:
  """Draws a card for each image: its best texts, each over a bar. Fig. 21, arXiv:2103.00020.

  A right text has a mark and a green bar. Where it is not among the best, it stands below them
  after its place: '12. a photo of a fox'.

  Args:
    pictures: n arrays [H, W, C], each C 1, 3 or 4; uint8, or float in [0, 1]. The sizes may differ.
    texts: K texts.
    probabilities: [n, K], in [0, 1]; a row need not sum to 1.
    truths: n indices of the right texts; None for an image of which it is not known.
    top: texts on a card.
    columns: cards in a row.
    title: one line above all.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: no images, or as many texts, probabilities or truths as do not fit them.
  """
  probabilities = np.asarray(probabilities, np.float32)
  if not len(pictures):
    raise ValueError('cards need at least one image')
  if probabilities.shape != (len(pictures), len(texts)):
    raise ValueError(
      f'{len(pictures)} images and {len(texts)} texts have probabilities of shape '
      f'{probabilities.shape}'
    )
  truths = [None] * len(pictures) if truths is None else truths
  if len(truths) != len(pictures):
    raise ValueError(f'{len(pictures)} images have {len(truths)} truths')
  cards = [_rows(p, texts, truth, top) for p, truth in zip(probabilities, truths, strict=True)]
  small = [thumbnail(picture, SIDE) for picture in pictures]
  return _draw(small, cards, min(columns, len(cards)), title)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
  """An image as RGB that fits in a square; small ones are enlarged by a whole factor.

  Args:
    image: [H, W, C], C is 1, 3 or 4; uint8, or float in [0, 1].
    side: pixels of the square.

  Returns:
    [H', W', 3] uint8, both at most `side`.
  """
  from PIL import Image

  rgb = images.to_rgb(image)
  longest = max(rgb.shape[:2])
  if longest <= side / 2:
    return images.enlarge(rgb, side // longest * longest)
  height, width = (max(1, round(n * side / longest)) for n in rgb.shape[:2])
  return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))


def wrap(text: str, width: float, size: float, lines: int) -> list[str]:
  """A text in up to `lines` lines of `width` pixels at `size` points; the rest is cut."""
  found, words = [], text.split()
  while words and len(found) < lines - 1:
    count = 1
    while count < len(words) and _fits(' '.join(words[: count + 1]), width, size):
      count += 1
    found.append(figures.fit(' '.join(words[:count]), width, size))
    words = words[count:]
  return [*found, figures.fit(' '.join(words), width, size)] if words else found


def _fits(text: str, width: float, size: float) -> bool:
  return figures.text_width(text, size) <= width


def _rows(
  probabilities: np.ndarray, texts: Sequence[str], truth: int | None, top: int
) -> list[Row]:
  """What stands on a card, from top to bottom."""
  order = np.argsort(-probabilities, kind='stable').tolist()
  shown = [(i, texts[i]) for i in order[:top]]
  if truth is not None and truth not in order[:top]:
    shown.append((truth, f'{order.index(truth) + 1}. {texts[truth]}'))
  return [
    (
      wrap(MARK * (i == truth) + text, TEXT, figures.FONT_SIZE, LINES),
      float(probabilities[i]),
      i == truth,
    )
    for i, text in shown
  ]


def _draw(
  pictures: Sequence[np.ndarray], cards: Sequence[list[Row]], columns: int, title: str
) -> np.ndarray:
  """Puts images and bars on a canvas, and the texts on top."""
  height = max(SIDE, *(sum(map(_height, rows)) for rows in cards)) + GAP
  width = SIDE + TEXT + PERCENT + 3 * GAP
  top = GAP + (images.TITLE if title else 0)
  canvas = np.full((top + -(-len(cards) // columns) * height, columns * width, 3), 255, np.uint8)
  written = []  # x, y, text, how it is set
  for i, (picture, rows) in enumerate(zip(pictures, cards, strict=True)):
    y, x = top + i // columns * height, i % columns * width + GAP
    h, w = picture.shape[:2]
    corner_y, corner_x = y + (height - GAP - h) // 2, x + (SIDE - w) // 2
    canvas[corner_y : corner_y + h, corner_x : corner_x + w] = picture
    x += SIDE + GAP
    y += (height - GAP - sum(map(_height, rows))) // 2
    for lines, probability, right in rows:
      written += [(x, y + j * images.LINE, line, dict(va='top')) for j, line in enumerate(lines)]
      bar = y + len(lines) * images.LINE + 1
      canvas[bar : bar + BAR, x : x + TEXT] = EMPTY
      canvas[bar : bar + BAR, x : x + round(TEXT * probability)] = GREEN if right else BLUE
      percent = f'{100 * probability:.1f} %'
      end = x + TEXT + PERCENT
      written.append((end, bar + BAR / 2, percent, dict(va='center', ha='right')))
      y += _height((lines, probability, right))
  if title:
    title = figures.fit(title, canvas.shape[1] - 2 * GAP, 12)
    written.append((GAP, 12, title, dict(va='top', fontsize=12)))
  return write(canvas, written)


def _height(row: Row) -> int:
  return len(row[0]) * images.LINE + BAR + 9


def write(canvas: np.ndarray, written: Sequence[tuple[float, float, str, dict]]) -> np.ndarray:
  """Sets texts on a picture.

  Args:
    canvas: [H, W, 3] uint8.
    written: x and y in pixels from the top left, the text, and arguments of matplotlib's `text`.

  Returns:
    [H, W, 3] uint8.
  """
  height, width = canvas.shape[:2]
  figure = figures.new(width, height)
  figure.figimage(canvas, origin='upper')
  for x, y, text, style in written:
    style = {'fontsize': figures.FONT_SIZE, 'parse_math': False, **style}
    figure.text(x / width, 1 - y / height, text, **style)
  return figures.to_array(figure)
