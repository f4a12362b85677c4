"""The reliability diagram: the height of a bar is the accuracy, and the red is the error."""

import numpy as np
import pytest

from vit_jax.plots.calibration import calibration

BLUE, RED = (0x6B, 0xAE, 0xD6), (0xCB, 0x18, 0x1D)


def pixels(picture, color):
  return np.abs(picture.astype(int) - color).max(-1) <= 2


def bins_of(accuracy, confidence, count=100):
  accuracy, confidence = np.asarray(accuracy), np.asarray(confidence)
  count = np.broadcast_to(count, accuracy.shape)
  return np.stack([count, confidence * count, accuracy * count], axis=1)


def test_bars_are_as_high_as_the_accuracy():
  middle = (np.arange(10) + 0.5) / 10
  picture = calibration(bins_of(middle, middle), title='perfect:')
  assert picture.dtype == np.uint8 and picture.shape == (640, 520, 3)
  upper = pixels(picture, BLUE)[:440]
  heights = upper.sum(0)
  columns = np.flatnonzero(heights > 2)
  at = np.interp(np.linspace(0.05, 0.95, 10), [0, 1], [columns[0] - 5, columns[-1] + 1])
  bars = np.array([heights[int(x) - 15 : int(x) + 15].max() for x in at])
  assert np.corrcoef(bars, middle)[0, 1] > 0.99
  assert pixels(picture, RED).sum() == 0  # nothing to correct


def test_the_red_grows_with_the_error():
  confidence = (np.arange(10) + 0.5) / 10
  red = [
    pixels(calibration(bins_of(confidence - gap * confidence, confidence)), RED).sum()
    for gap in (0.1, 0.3, 0.9)
  ]
  assert 0 < red[0] < red[1] < red[2]


def test_bins_without_examples_have_no_bar():
  confidence = (np.arange(15) + 0.5) / 15
  full = calibration(bins_of(np.ones(15), confidence))
  half = calibration(bins_of(np.ones(15), confidence, np.arange(15) % 2))
  assert pixels(half[:440], BLUE).sum() < 0.65 * pixels(full[:440], BLUE).sum()


def test_mistakes():
  with pytest.raises(ValueError, match=r'bins are \[M, 3\], not of shape \(15, 2\)'):
    calibration(np.zeros((15, 2)))
  with pytest.raises(ValueError, match='bins are empty'):
    calibration(np.zeros((15, 3)))
