"""The reliability diagram: whether answers that are 80 % sure are right 80 % of the time."""

from __future__ import annotations

import numpy as np

from vit_jax.plots import figures

WIDTH, HEIGHT = 520, 640


def calibration(bins: np.ndarray, *, title: str = '') -> np.ndarray:
  """Draws accuracy by confidence, and below how many answers have it. Fig. 4, arXiv:1706.04599.

  A bar is the accuracy of a bin; the red line on it ends at the bin's mean confidence, so its
  length is the error. A bin without examples has no bar.

  Args:
    bins: [M, 3], of M equally wide bins over [0, 1]: examples, the sum of their confidence, right
      answers.
    title: one line above.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: another shape, or no examples.
  """
  bins = np.asarray(bins, np.float64)
  if bins.ndim != 2 or bins.shape[1] != 3:
    raise ValueError(f'bins are [M, 3], not of shape {bins.shape}')
  count, confidence, right = bins.T
  total = count.sum()
  if not total:
    raise ValueError('the bins are empty')
  seen = count > 0
  edges = np.arange(len(bins)) / len(bins)
  accuracy, mean = right[seen] / count[seen], confidence[seen] / count[seen]

  figure = figures.new(WIDTH, HEIGHT)
  upper = figure.add_axes((0.17, 0.35, 0.76, 0.56))
  lower = figure.add_axes((0.17, 0.09, 0.76, 0.2), sharex=upper)
  bar = dict(width=1 / len(bins), align='edge', color='#6baed6', edgecolor='white')
  upper.bar(edges[seen], accuracy, **bar)
  upper.plot([0, 1], [0, 1], color='black', linewidth=1, linestyle='--')
  upper.vlines(edges[seen] + 0.5 / len(bins), accuracy, mean, color='#cb181d', linewidth=3)
  lower.bar(edges, count / total, **bar)
  for axes, name in ((upper, 'right answers'), (lower, 'answers')):
    axes.set_ylabel(name, fontsize=11)
    axes.yaxis.set_major_formatter(_percent)
    axes.tick_params(labelsize=figures.FONT_SIZE)
  upper.set(xlim=(0, 1), ylim=(0, 1))
  lower.xaxis.set_major_formatter(_percent)
  lower.set_xlabel('confidence', fontsize=11)
  text = figures.fit(title, WIDTH - 24, 12)
  figure.text(12 / WIDTH, 1 - 12 / HEIGHT, text, va='top', fontsize=12, parse_math=False)
  return figures.to_array(figure)


def _percent(value: float, _: object = None) -> str:
  return f'{100 * value:.0f} %'
