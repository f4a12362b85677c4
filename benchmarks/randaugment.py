"""What RandAugment costs an image on one core: each operation, and the transform as configs use it.

python benchmarks/randaugment.py [MAGNITUDE]

Sides of 32 and 256 pixels, RGB, of smooth noise. A cell is the median of 7 timings. The inception
crop from 500 x 375 to the same size, which stands before it in a pipeline, is timed beside it.
"""

import sys
import time

import numpy as np
from PIL import Image

from vit_jax import compose, tables
from vit_jax.data import transforms
from vit_jax.data.randaugment import OPERATIONS

SIDES = (32, 256)
REPEATS = 7
SECONDS = 0.05  # of one timing, at least


def picture(h, w):
  """Smooth noise, [h, w, 3] uint8."""
  coarse = np.random.default_rng(0).integers(0, 256, (h // 8, w // 8, 3), np.uint8)
  return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


def milliseconds(function):
  """The median time of one call."""
  function()
  started, calls = time.perf_counter(), 0
  while time.perf_counter() - started < SECONDS:
    function()
    calls += 1
  times = []
  for _ in range(REPEATS):
    started = time.perf_counter()
    for _ in range(calls):
      function()
    times.append((time.perf_counter() - started) / calls * 1e3)
  return float(np.median(times))


def main(magnitude='10'):
  magnitude, rng = float(magnitude), np.random.default_rng(0)
  rows = []
  for name, operation in OPERATIONS.items():
    images = [picture(side, side) for side in SIDES]
    rows.append(
      (name, *(milliseconds(lambda x=x, f=operation: f(x, magnitude / 10, rng)) for x in images))
    )
  rows.append(('mean of the 16', *np.mean([row[1:] for row in rows], axis=0).tolist()))
  for text in (f'randaugment(2, {magnitude})', 'random_resized_crop({})'):
    cells = []
    for side in SIDES:
      (transform,) = compose.build(text.format(side), transforms)
      example = {'image': picture(side, side) if 'augment' in text else picture(375, 500)}
      cells.append(milliseconds(lambda f=transform, e=example: f(e, rng)))
    rows.append((text.format('side'), *cells))
  print(tables.table(rows, ('ms an image, one core', *(f'{side} px' for side in SIDES))))


if __name__ == '__main__':
  main(*sys.argv[1:])
