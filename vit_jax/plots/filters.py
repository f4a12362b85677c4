"""What a model's first layer looks for: Figure 7 (left) of arXiv:2010.11929."""

from __future__ import annotations

import numpy as np

from vit_jax.plots import images


def principal(kernel: np.ndarray, count: int) -> np.ndarray:
  """The principal components of a layer's filters.

  Args:
    kernel: [P, P, C, D] float, D filters of P x P pixels.
    count: components wanted; there are at most min(P * P * C, D).

  Returns:
    [n, P, P, C] float32, unit vectors by falling variance, the largest entry of each positive.
  """
  p, q, c, d = kernel.shape
  filters = np.asarray(kernel, np.float64).reshape(-1, d).T  # [D, P*P*C]
  filters = filters - filters.mean(0)
  components = np.linalg.svd(filters, full_matrices=False)[2][:count]  # [n, P*P*C]
  largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
  components = components * np.sign(largest)  # else the sign is arbitrary
  return components.reshape(-1, p, q, c).astype(np.float32)


def filters(kernel: np.ndarray, *, count: int = 28, title: str = '') -> np.ndarray:
  """Draws the principal components of the filters, or for small patches the filters.

  Below 8 x 8 pixels the components are little more than a cosine basis, so that there the `count`
  filters of largest norm are drawn. Each is scaled by its own largest absolute value; grey is zero.

  Args:
    kernel: [P, P, C, D] float, C is 1 or 3 (of 4 channels the first 3 are drawn).
    count: pictures, at most.
    title: one line above; says which of the two is drawn by default.

  Returns:
    [H, W, 3] uint8.
  """
  kernel = np.asarray(kernel, np.float32)
  if min(kernel.shape[:2]) < 8:
    norms = np.sqrt((kernel**2).sum((0, 1, 2)))  # [D]
    shown = np.moveaxis(kernel, -1, 0)[np.argsort(-norms, kind='stable')[:count]]
    title = title or f'The {len(shown)} filters of largest norm in the first layer'
  else:
    shown = principal(kernel, count)
    title = title or f'The first {len(shown)} principal components of the first layer'
  shown = shown[..., : 3 if shown.shape[-1] > 3 else None]
  scale = np.maximum(np.abs(shown).max((1, 2, 3), keepdims=True), 1e-12)
  return images.grid(list(0.5 + 0.5 * shown / scale), columns=7, side=64, title=title)
