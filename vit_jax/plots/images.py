"""Images side by side, with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vit_jax.plots import figures

LINE = 17  # pixels between the lines of a caption
GAP = 14  # pixels between two cells
TITLE = 32  # pixels of the title's line


def to_rgb(image: np.ndarray, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
  """Any image as RGB.

  Args:
    image: [..., H, W, C], C is 1, 3 or 4; uint8, or float in [0, 1].
    background: RGB in 0..255, the colour that shows through where C is 4.

  Returns:
    [..., H, W, 3] uint8.

  Raises:
    ValueError: another number of channels.
  """
  image = np.asarray(image)
  if image.shape[-1] not in (1, 3, 4):
    raise ValueError(f'an image has 1, 3 or 4 channels, not {image.shape[-1]}')
  if image.dtype != np.uint8:
    image = np.rint(np.clip(np.asarray(image, np.float32), 0, 1) * 255).astype(np.uint8)
  if image.shape[-1] == 1:
    return np.repeat(image, 3, axis=-1)
  if image.shape[-1] == 3:
    return image
  alpha = image[..., 3:].astype(np.float32) / 255
  mixed = image[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
  return np.rint(mixed).astype(np.uint8)


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
  """Repeats the pixels of [H, W, C] until the longer side is about `side`; never shrinks."""
  factor = max(1, round(side / max(image.shape[:2])))
  return image.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(
  images: Sequence[np.ndarray],
  captions: Sequence[str] | None = None,
  *,
  columns: int | None = None,
  side: int = 96,
  title: str = '',
  colors: Sequence[str] | None = None,
) -> np.ndarray:
  """Images in rows and columns, each over its caption.

  Args:
    images: n arrays [H, W, C], each C 1, 3 or 4; uint8, or float in [0, 1]. The sizes may differ.
    captions: n strings; lines are split at newlines and cut where they are too long.
    columns: images in a row; by default about twice as many as there are rows.
    side: pixels to which small images are enlarged, by a whole factor.
    title: one line above all.
    colors: n colours of the captions, black by default.

  Returns:
    [H, W, 3] uint8, white between the images.

  Raises:
    ValueError: no images, or another number of captions than of images.
  """
  if not len(images):
    raise ValueError('a grid needs at least one image')
  if captions is not None and len(captions) != len(images):
    raise ValueError(f'{len(images)} images have {len(captions)} captions')
  cells = [enlarge(to_rgb(image), side) for image in images]
  columns = min(len(cells), columns or math.ceil(math.sqrt(2 * len(cells))))
  rows = math.ceil(len(cells) / columns)
  height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
  lines = max((caption.count('\n') + 1 for caption in captions or ()), default=0)
  if captions is not None:
    width = max(width, side)
  step_y, step_x = height + lines * LINE + (6 if lines else 0) + GAP, width + GAP
  top = GAP + (TITLE if title else 0)

  canvas = np.full((top + rows * step_y, GAP + columns * step_x, 3), 255, np.uint8)
  corners = [(top + i // columns * step_y, GAP + i % columns * step_x) for i in range(len(cells))]
  for cell, (y, x) in zip(cells, corners, strict=True):
    x += (width - cell.shape[1]) // 2
    canvas[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
  if captions is None and not title:
    return canvas
  return _write(canvas, captions or [], corners, (height, width), title, colors)


def _write(canvas, captions, corners, size, title, colors) -> np.ndarray:
  """Puts the captions under their cells, and the title above."""
  total_y, total_x = canvas.shape[:2]
  figure = figures.new(total_x, total_y)
  figure.figimage(canvas, origin='upper')
  style = dict(parse_math=False, fontsize=figures.FONT_SIZE)
  for i, (caption, (y, x)) in enumerate(zip(captions, corners, strict=False)):
    for j, line in enumerate(caption.split('\n')):
      figure.text(
        (x + size[1] / 2) / total_x,
        1 - (y + size[0] + 4 + j * LINE) / total_y,
        figures.fit(line, size[1] + GAP - 8, figures.FONT_SIZE),
        ha='center',
        va='top',
        color=colors[i] if colors else 'black',
        **style,
      )
  if title:
    title = figures.fit(title, total_x - 2 * GAP, 12)
    figure.text(GAP / total_x, 1 - 10 / total_y, title, va='top', **{**style, 'fontsize': 12})
  return figures.to_array(figure)
