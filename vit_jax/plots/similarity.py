"""The matrix of similarities between images and texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.plots import answers, figures, images

CELL = 100  # pixels, the side of a cell; an image's place is a little less
TEXT = 240  # pixels, the width of the texts at the left
LINES = 4  # of a text; what is longer is cut
GAP = 14  # pixels around the matrix


def similarity(
  pictures: Sequence[np.ndarray], texts: Sequence[str], values: np.ndarray, *, title: str = ''
) -> np.ndarray:
  """Draws how near each image is to each text: a column an image, a row a text.

  The largest value is the darkest, the smallest white; each stands in its cell.

  Args:
    pictures: N arrays [H, W, C], each C 1, 3 or 4; uint8, or float in [0, 1]. The sizes may differ.
    texts: M texts.
    values: [N, M], such as cosines; `image_embeddings @ text_embeddings.T`.
    title: one line above.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: no images or texts, or values of another shape.
  """
  from matplotlib import colormaps

  values = np.asarray(values, np.float32)
  if not values.size or values.shape != (len(pictures), len(texts)):
    raise ValueError(
      f'{len(pictures)} images and {len(texts)} texts have similarities of shape {values.shape}'
    )
  low, high = values.min(), values.max()
  shares = (values - low) / max(high - low, 1e-12)  # [N, M]
  left, top = TEXT + 2 * GAP, GAP + (images.TITLE if title else 0)
  height, width = top + (1 + len(texts)) * CELL + GAP, left + len(pictures) * CELL + GAP
  canvas = np.full((height, width, 3), 255, np.uint8)
  for i, picture in enumerate(pictures):
    small = answers.thumbnail(picture, CELL - 4)
    h, w = small.shape[:2]
    y, x = top + CELL - 4 - h, left + i * CELL + (CELL - w) // 2  # It stands on the matrix.
    canvas[y : y + h, x : x + w] = small
  colors = np.rint(255 * colormaps['Blues'](shares.T)[..., :3]).astype(np.uint8)  # [M, N, 3]
  canvas[top + CELL : height - GAP, left : width - GAP] = colors.repeat(CELL, 0).repeat(CELL, 1)
  return answers.write(canvas, _written(texts, values, shares, (left, top + CELL), title, width))


def _written(
  texts: Sequence[str],
  values: np.ndarray,
  shares: np.ndarray,
  corner: tuple[int, int],
  title: str,
  width: int,
) -> list[tuple[float, float, str, dict]]:
  """The texts at the left, the numbers in the cells, the title: what `answers.write` takes."""
  left, top = corner
  written = []
  for j, text in enumerate(texts):
    lines = answers.wrap(text, TEXT, figures.FONT_SIZE, LINES)
    y = top + (j + 0.5) * CELL - (len(lines) - 1) / 2 * images.LINE
    for k, line in enumerate(lines):
      written.append((left - GAP, y + k * images.LINE, line, dict(ha='right', va='center')))
    for i in range(len(values)):
      color = 'white' if shares[i, j] > 0.55 else 'black'
      style = dict(ha='center', va='center', fontsize=12, color=color)
      x = left + (i + 0.5) * CELL
      written.append((x, top + (j + 0.5) * CELL, f'{values[i, j]:z.2f}', style))
  if title:
    title = figures.fit(title, width - 2 * GAP, 12)
    written.append((GAP, 12, title, dict(va='top', fontsize=12)))
  return written
