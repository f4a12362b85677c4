"""How position embeddings resemble one another: Figure 7 (centre) of arXiv:2010.11929."""

from __future__ import annotations

import numpy as np

from vit_jax.plots import figures


def similarity(embedding: np.ndarray) -> np.ndarray:
  """Cosine similarity of all pairs: [N, D] float -> [N, N] float64."""
  embedding = np.asarray(embedding, np.float64)
  norms = np.sqrt((embedding**2).sum(1, keepdims=True))
  embedding = embedding / np.maximum(norms, 1e-12)
  return embedding @ embedding.T


def positions(embedding: np.ndarray, grid: tuple[int, int], *, title: str = '') -> np.ndarray:
  """Draws the similarity of every patch's position embedding to those of all the others.

  The tile in row i and column j of the picture is a map, [h, w], of the similarities to patch (i,
  j). Large grids are thinned to at most 14 tiles a side.

  Args:
    embedding: [h * w, D] float, patches row by row, without those of class tokens.
    grid: (h, w).
    title: one line above.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: there are not h * w embeddings.
  """
  h, w = grid
  if len(embedding) != h * w:
    raise ValueError(f'a grid of {h} x {w} has {len(embedding)} position embeddings')
  maps = similarity(embedding).reshape(h, w, h, w)
  rows, columns = (np.linspace(0, n - 1, min(n, 14)).round().astype(int) for n in grid)
  factor = max(1, round(560 / (len(rows) * h)))
  gap = 3
  tile_h, tile_w = factor * h, factor * w
  canvas = np.full((len(rows) * (tile_h + gap) - gap, len(columns) * (tile_w + gap) - gap), np.nan)
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      y, x = i * (tile_h + gap), j * (tile_w + gap)
      tile = maps[row, column].repeat(factor, axis=0).repeat(factor, axis=1)
      canvas[y : y + tile_h, x : x + tile_w] = tile
  return _draw(canvas, rows, columns, (tile_h + gap, tile_w + gap), title)


def _draw(canvas, rows, columns, step, title) -> np.ndarray:
  high, wide = canvas.shape
  left, bottom, top = 62, 58, 46
  width, height = left + wide + 100, bottom + high + top
  figure = figures.new(width, height)
  axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
  finite = canvas[np.isfinite(canvas)]
  picture = axes.imshow(
    canvas, cmap='viridis', vmin=min(0.0, finite.min()), vmax=1, interpolation='nearest'
  )
  axes.set_xticks([step[1] * (j + 0.5) - 2 for j in range(len(columns))], columns + 1)
  axes.set_yticks([step[0] * (i + 0.5) - 2 for i in range(len(rows))], rows + 1)
  axes.tick_params(length=0, labelsize=figures.FONT_SIZE)
  axes.set_xlabel('patch column', fontsize=11)
  axes.set_ylabel('patch row', fontsize=11)
  axes.spines[:].set_visible(False)
  title = title or 'Cosine similarity of the position embeddings'
  figure.text(12 / width, 1 - 12 / height, title, va='top', fontsize=12, parse_math=False)
  bar = figure.add_axes(((left + wide + 16) / width, bottom / height, 14 / width, high / height))
  figure.colorbar(picture, cax=bar).ax.tick_params(labelsize=figures.FONT_SIZE)
  return figures.to_array(figure)
