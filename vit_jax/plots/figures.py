"""Figures as arrays: matplotlib's Agg canvas without pyplot, so that nothing global is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from matplotlib.figure import Figure

DPI = 100
FONT_SIZE = 10  # points, of the smallest text that is meant to be read


def new(width: int, height: int) -> Figure:
  """An empty white figure of `width` x `height` pixels."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def to_array(figure: Figure) -> np.ndarray:
  """Draws the figure: [H, W, 3] uint8."""
  figure.canvas.draw()
  return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def text_width(text: str, size: float) -> float:
  """The width of one line of `text` in pixels, set at `size` points in the default font."""
  from matplotlib.font_manager import FontProperties
  from matplotlib.textpath import TextPath

  if not text.strip():
    return 0.0
  path = TextPath((0, 0), text.replace('$', r'\$'), prop=FontProperties(), size=size)
  return float(path.get_extents().width) * DPI / 72


def fit(text: str, width: float, size: float) -> str:
  """`text` cut at `width` pixels, with an ellipsis where something was cut."""
  if text_width(text, size) <= width:
    return text
  low, high = 0, len(text)
  while low < high:  # the longest prefix that fits
    middle = (low + high + 1) // 2
    if text_width(text[:middle].rstrip() + '…', size) <= width:
      low = middle
    else:
      high = middle - 1
  return text[:low].rstrip() + '…'
