"""What the operations of `augment/` share: they happen with a probability, in float32."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.arrays import Array

Augment = Callable[[Array, Array], Array]  # (rng, image [H, W, C]) -> image [H, W, C']


def sometimes(
  p: float, change: Augment, otherwise: Callable[[Array], Array] = lambda image: image
) -> Augment:
  """Applies `change` with probability `p` and `otherwise`, by default nothing, to the rest.

  Both are computed and one is chosen, as `vmap` would have it anyhow. `change` sees float32; its
  answer is clipped to [0, 1] and goes back to the dtype of the image. `otherwise` gives its shape.

  Raises:
    ValueError: `p` lies outside [0, 1].
  """
  check_probability('p', p)

  def apply(rng: Array, image: Array) -> Array:
    coin, rng = jax.random.split(rng)
    changed = jnp.clip(change(rng, image.astype(jnp.float32)), 0, 1).astype(image.dtype)
    if p == 1:
      return changed
    return jnp.where(jax.random.uniform(coin) < p, changed, otherwise(image).astype(image.dtype))

  return apply


def check_probability(name: str, value: float) -> None:
  """Raises ValueError where `value` lies outside [0, 1]."""
  if not 0 <= value <= 1:
    raise ValueError(f'probability {name}={value} is outside [0, 1]')


def check_range(name: str, low_high: tuple[float, float], *, least: float) -> tuple[float, float]:
  """Returns (low, high) or raises ValueError where it is no range from `least` up."""
  if isinstance(low_high, (tuple, list)) and len(low_high) == 2:
    low, high = low_high
    if least <= low <= high:
      return float(low), float(high)
  raise ValueError(f'{name}={low_high!r} is not (low, high) with {least} <= low <= high')


def split_alpha(image: Array) -> tuple[Array, Array | None]:
  """The colours [H, W, 1 or 3] and the alpha [H, W, 1] of RGBA, None of anything else."""
  if image.shape[-1] == 4:
    return image[..., :3], image[..., 3:]
  return image, None


def join_alpha(color: Array, alpha: Array | None) -> Array:
  """Undoes `split_alpha`."""
  return color if alpha is None else jnp.concatenate([color, alpha], -1)


def filter_axes(image: Array, rows: Array, columns: Array) -> Array:
  """Weighted sums of pixels, one matrix an axis; the colours of RGBA are weighted by alpha too.

  So what is invisible does not bleed.

  Args:
    image: [H, W, C], C is 1, 3 or 4.
    rows: [H', H].
    columns: [W', W].

  Returns:
    [H', W', C].
  """
  color, alpha = split_alpha(image)
  if alpha is not None:
    image = join_alpha(color * alpha, alpha)
  image = jnp.einsum('ij,jwc->iwc', rows, image)
  image = jnp.einsum('kw,iwc->ikc', columns, image)
  if alpha is None:
    return image
  color, alpha = split_alpha(image)
  return join_alpha(color / jnp.maximum(alpha, 1e-6), alpha)
