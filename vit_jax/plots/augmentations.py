"""Images before and after each operation on the device: Figure 4 of arXiv:2002.05709."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment
from vit_jax.plots import images as pictures

# The operations that the figure shows, and the solarisation of BYOL (arXiv:2006.07733).
DEFAULTS = {
  'crop, resize': 'random_resized_crop(max_area=0.5)',
  'and flip': 'random_resized_crop(max_area=0.5) | flip(p=1)',
  'colour drop': 'grayscale(p=1)',
  'colour jitter': 'color_jitter(0.8, 0.8, 0.8, 0.2)',
  'rotation': 'rotate90(p=1)',
  'cutout': 'cutout(p=1)',
  'noise': 'noise(0.1)',
  'blur': 'blur(p=1, sigma=(1.0, 2.0))',
  'Sobel': 'sobel(p=1)',
  'solarisation': 'solarize(p=1)',
}


def augmentations(
  images: Sequence[np.ndarray],
  operations: Mapping[str, str] = DEFAULTS,
  *,
  seed: int = 0,
  side: int = 96,
  title: str = '',
) -> np.ndarray:
  """Draws a row for each image: the original, then what each operation makes of it.

  Args:
    images: n arrays [H, W, C], each C 1, 3 or 4; uint8, or float in [0, 1]. The sizes may differ.
    operations: device transforms as `augment.compose` takes them, by the captions of their columns.
    seed: of the draws, which differ in every cell.
    side: pixels to which small images are enlarged, by a whole factor.
    title: one line above all.

  Returns:
    [H, W, 3] uint8.

  Raises:
    ValueError: no images, or unknown operations.
  """
  key = jax.random.key(seed)
  change = {text: jax.jit(augment.compose(text)) for text in operations.values()}
  cells = []
  for image in images:
    image = np.asarray(image)
    cells.append(image)
    if image.dtype == np.uint8:
      image = image.astype(np.float32) / 255
    for text in operations.values():
      drawn = change[text](jax.random.fold_in(key, len(cells)), jnp.asarray(image)[None])
      cells.append(np.asarray(drawn[0]))
  captions = ['original', *operations] * len(images)
  return pictures.grid(cells, captions, columns=1 + len(operations), side=side, title=title)
