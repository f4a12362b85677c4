"""Where a transformer looks: attention rollout and the distance that its heads look over."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array
from vit_jax.plots import figures, images


def rollout(weights: Sequence[Array], start: Array) -> Array:
  """Attention rollout: how much of each input token arrives where `start` reads the output.

  With `A_l = 0.5 * mean over heads + 0.5 * I`, rows normalised, it is `start @ A_n @ ... @ A_1`.
  The vector is carried from the last block to the first, so that no product of two matrices is
  made.

  Source: Abnar & Zuidema 2020, Section 3, arXiv:2005.00928.

  Args:
    weights: of each block, first to last, [B, heads, L, L]; a row is a query's weights over the
      keys.
    start: [L], weights of the output tokens that are read: one-hot for a class token, 1/N on N
      tokens for their mean.

  Returns:
    [B, L] float32; its sum is that of `start`.
  """
  batch, _, length, _ = weights[0].shape
  reading = jnp.broadcast_to(start.astype(jnp.float32), (batch, length))
  for block in reversed(weights):
    mixed = 0.5 * block.astype(jnp.float32).mean(1) + 0.5 * jnp.eye(length)  # [B, L, L]
    mixed = mixed / mixed.sum(-1, keepdims=True)
    reading = jnp.einsum('bi,bij->bj', reading, mixed, precision='highest')
  return reading


def distance(weights: Array, grid: tuple[int, int]) -> Array:
  """The mean distance that each head looks over: Figure 7 (right) of arXiv:2010.11929.

  Args:
    weights: [B, heads, N, N], among the patches alone; rows are normalised here.
    grid: (h, w) with h * w = N.

  Returns:
    [B, heads] float32, in patches: the distance between the centres of query and key, weighted by
    attention, averaged over the queries.
  """
  h, w = grid
  y, x = np.divmod(np.arange(h * w), w)
  apart = np.hypot(y[:, None] - y[None], x[:, None] - x[None])  # [N, N]
  weights = weights.astype(jnp.float32)
  total = jnp.maximum(weights.sum(-1), 1e-12)  # [B, heads, N]
  looked = jnp.einsum('bhij,ij->bhi', weights, apart, precision='highest')
  return (looked / total).mean(-1)


def to_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Averages a mask over patches, whose borders may cut pixels: [H, W] -> [h, w] float64."""
  rows, columns = (_overlaps(size, n) for size, n in zip(mask.shape, grid, strict=True))
  return rows @ np.asarray(mask, np.float64) @ columns.T


def _overlaps(size: int, patches: int) -> np.ndarray:
  """[patches, size]: the share of each patch that each pixel covers; rows sum to 1."""
  edges = np.linspace(0, size, patches + 1)
  pixels = np.arange(size)
  low = np.maximum(edges[:-1, None], pixels)
  high = np.minimum(edges[1:, None], pixels + 1)
  return np.maximum(high - low, 0) * (patches / size)


def overlay(image: np.ndarray, heat: np.ndarray, *, side: int = 96) -> np.ndarray:
  """A heat map over the image in grey.

  Args:
    image: [H, W, C], C is 1, 3 or 4; uint8, or float in [0, 1].
    heat: [h, w] float >= 0; scaled by its own largest value.
    side: pixels of the longer side, about.

  Returns:
    [H', W', 3] uint8.
  """
  from matplotlib import colormaps
  from PIL import Image

  picture = images.enlarge(images.to_rgb(image), side)
  scaled = np.asarray(heat, np.float32) / max(float(np.max(heat)), 1e-12)
  size = picture.shape[1::-1]
  scaled = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BICUBIC))  # [H', W']
  scaled = np.clip(scaled, 0, 1)
  color = colormaps['inferno'](scaled)[..., :3]  # [H', W', 3]
  grey = picture @ np.array([0.299, 0.587, 0.114]) / 255  # [H', W']
  mixed = 0.35 * grey[..., None] + 0.65 * color
  return np.rint(255 * mixed).astype(np.uint8)


def beside(
  pictures: Sequence[np.ndarray],
  heats: Sequence[np.ndarray],
  captions: Sequence[str] | None = None,
  *,
  columns: int = 6,
  title: str = '',
) -> np.ndarray:
  """Images beside their heat maps.

  Args:
    pictures: n arrays [H, W, C].
    heats: n arrays [h, w] float >= 0.
    captions: n strings.
    columns: pairs in a row.
    title: one line above.

  Returns:
    [H, W, 3] uint8.
  """
  pairs = []
  for picture, heat in zip(pictures, heats, strict=True):
    left = images.enlarge(images.to_rgb(picture), 96)
    gap = np.full((len(left), 3, 3), 255, np.uint8)
    pairs.append(np.concatenate([left, gap, overlay(picture, heat, side=96)], axis=1))
  return images.grid(pairs, captions, columns=columns, side=1, title=title)


def distances(mean: np.ndarray, *, title: str = '') -> np.ndarray:
  """Draws the mean attention distance of every head against the depth of its block.

  Args:
    mean: [depth, heads] float, in pixels.
    title: one line above.

  Returns:
    [H, W, 3] uint8.
  """
  depth, heads = mean.shape
  figure = figures.new(560, 420)
  axes = figure.add_axes((0.12, 0.14, 0.84, 0.70))
  blocks = np.arange(1, depth + 1)
  for head in range(heads):
    axes.scatter(blocks, mean[:, head], s=36, color='#0072b2', alpha=0.6, linewidths=0)
  axes.plot(blocks, mean.mean(1), color='#d55e00', linewidth=2, label='mean of the heads')
  axes.set_xticks(blocks if depth <= 16 else blocks[::2])
  axes.set_ylim(0, 1.1 * max(mean.max(), 1e-6))
  axes.set_xlabel('block', fontsize=11)
  axes.set_ylabel('mean attention distance (pixels)', fontsize=11)
  axes.tick_params(labelsize=figures.FONT_SIZE)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=figures.FONT_SIZE, loc='lower right', bbox_to_anchor=(1, 1))
  title = title or f'How far the {heads} heads of each block look'
  figure.text(0.02, 0.97, title, va='top', fontsize=12, parse_math=False)
  return figures.to_array(figure)
