"""The confusion matrix: what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.plots import figures


def confusion(
  counts: np.ndarray, classes: Sequence[str] | None = None, *, title: str = ''
) -> np.ndarray:
  """Draws a confusion matrix, each row normalised by its sum.

  A cell's colour is the share of its row. Up to 12 classes a cell says its share in per cent over
  its count, up to 30 its count; up to 120 classes the names stand at the sides.

  Args:
    counts: [K, K], `counts[i, j]` examples of class i were predicted to be j.
    classes: K names; the numbers by default.
    title: one line above.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: the counts are not square, or there are not K names.
  """
  counts = np.asarray(counts)
  if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
    raise ValueError(f'a confusion matrix is square, not of shape {counts.shape}')
  k = len(counts)
  names = [str(i) for i in range(k)] if classes is None else list(classes)
  if len(names) != k:
    raise ValueError(f'{k} classes have {len(names)} names')
  total = counts.sum(1, keepdims=True)
  shares = counts / np.maximum(total, 1)

  cell = 62 if k <= 12 else 34 if k <= 30 else max(3, min(15, 1800 // k))
  size = figures.FONT_SIZE if k <= 30 else 8
  names = [figures.fit(name, 210, size) for name in names]
  named = k <= 120
  widest = max(figures.text_width(name, size) for name in names) if named else 0
  left, bottom = widest + 60, widest * (0.75 if k <= 30 else 1) + 60
  width = int(left + k * cell + 110)
  height = int(bottom + k * cell + 46)

  figure = figures.new(width, height)
  axes = figure.add_axes(
    (left / width, bottom / height, k * cell / width, k * cell / height), aspect='auto'
  )
  # One hue from white to dark: it reads without colour vision, and an empty cell looks empty.
  picture = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, interpolation='nearest')
  _label_axes(axes, names if named else None, size, k)
  if k <= 30:
    _write_cells(axes, counts, shares)
  if title:
    left_share = 12 / width
    figure.text(left_share, 1 - 12 / height, title, va='top', fontsize=12, parse_math=False)
  bar = min(k * cell, 400)
  bar_axes = figure.add_axes(
    ((left + k * cell + 16) / width, 1 - (46 + bar) / height, 14 / width, bar / height)
  )
  figure.colorbar(picture, cax=bar_axes, ticks=[0, 0.5, 1], format=lambda x, _: f'{100 * x:.0f} %')
  bar_axes.tick_params(labelsize=figures.FONT_SIZE)
  return figures.to_array(figure)


def _label_axes(axes, names, size, k) -> None:
  style = dict(fontsize=size, parse_math=False)
  if names is None:
    axes.set_xticks([])
    axes.set_yticks([])
  else:
    turned = dict(rotation=45, ha='right', rotation_mode='anchor') if k <= 30 else dict(rotation=90)
    axes.set_xticks(range(k), names, **turned, **style)
    axes.set_yticks(range(k), names, **style)
  axes.tick_params(length=0)
  axes.set_xlabel('predicted', fontsize=11)
  axes.set_ylabel('true', fontsize=11)


def _write_cells(axes, counts, shares) -> None:
  k = len(counts)
  for i, j in np.argwhere(counts > 0):
    color = 'white' if shares[i, j] > 0.55 else 'black'
    if k > 12:
      axes.text(j, i, f'{counts[i, j]}', ha='center', va='center', fontsize=8, color=color)
      continue
    percent = f'{100 * shares[i, j]:.0f} %'
    axes.text(j, i - 0.14, percent, ha='center', va='center', fontsize=11, color=color)
    axes.text(j, i + 0.22, f'{counts[i, j]}', ha='center', va='center', fontsize=8, color=color)
