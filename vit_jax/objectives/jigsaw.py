"""Jigsaw: tiles of an image are shuffled; which of a set of permutations was it?"""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.arrays import Array, Batch
from vit_jax.augment.color import standardized
from vit_jax.choices import check_choice
from vit_jax.losses import classification
from vit_jax.models.head import linear_head
from vit_jax.objectives import inputs
from vit_jax.sharding import constrain

logical = nn.with_logical_partitioning


class Jigsaw(nn.Module):
  """A context-free network on shuffled tiles. Noroozi & Favaro 2016, arXiv:1603.09246.

  The encoder sees one tile at a time; only the head puts them beside each other. What would give
  the answer away without looking at what is drawn is dealt with as in Section 4.2 there: edges that
  go on in the next tile by a gap between tiles, brightness by normalising each tile by its own mean
  and deviation, and the lens's colours at the rim by grey images and shifted channels.

  The set of permutations is kept in the collection `constants`, so that a checkpoint has it.

  Attributes:
    encoder: images to `Features`; of a tile, and in `features` of a whole image, so a ViT needs
      positions for grids of both sizes.
    grid: cells along a side, 2 or 3.
    tile: side of a tile in pixels; it lies anywhere in its cell, of a `grid`-th of the image.
    num_permutations: P, of the (grid * grid)! that there are.
    permutations_seed: of the first permutation, from which all others follow.
    shift: in training, each channel of each tile is moved by up to this many pixels on both axes.
    tile_dim: features of a tile in the head, `fc6` there.
    hidden_dim: features of all tiles together, `fc7` there.
    augment: device transforms of the whole image in training; without colour in 30% as in the
      paper.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
  """

  encoder: nn.Module
  grid: int = 3
  tile: int = 64
  num_permutations: int = 1000
  permutations_seed: int = 0
  shift: int = 2
  tile_dim: int = 512
  hidden_dim: int = 4096
  augment: str = 'grayscale(0.3)'
  eval_augment: str = ''
  # What the encoder sees, for whoever takes it alone: device transforms after `eval_augment`.
  encoder_view = 'standardize'

  def setup(self) -> None:
    """Makes the head and the set; raises ValueError for a set or a size that cannot be."""
    for field in ('tile', 'tile_dim', 'hidden_dim'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field} must be at least 1, got {getattr(self, field)}')
    if self.shift < 0:
      raise ValueError(f'shift must be 0 or more, got {self.shift}')
    self.permutations = self.variable(
      'constants',
      'permutations',
      lambda: jnp.asarray(permutations(self.num_permutations, self.grid, self.permutations_seed)),
    )
    self.tile_layer = _dense(self.tile_dim, ('embed', 'mlp'))
    self.hidden_layer = _dense(self.hidden_dim, ('mlp', 'embed'))
    self.head = linear_head(self.num_permutations)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; in evaluation `id [B]` too.
      train: whether to augment, to shift channels and to drop, and to draw tiles and permutations
        anew.

    Returns:
      The mean loss, and `loss [B]` and `accuracy [B]`.

    Raises:
      ValueError: an image whose cells are smaller than a tile.
    """
    tiles, target = self._puzzle(batch, train=train)
    logits = self._classify(tiles, target, train=train)
    loss = classification.softmax_cross_entropy(logits, target)
    correct = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return jnp.mean(loss), {'loss': loss, 'accuracy': correct}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of `image [B, H, W, C]`, as in evaluation.

    Of the whole image, which is normalised as a tile is: by its own mean and deviation.
    """
    image = inputs.view(batch, self.eval_augment, None)
    return self.encoder(standardized(image), train=False).pooled

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """Pictures `[B, S, S, C]` in [0, 1]: the tiles in place, shuffled, and put back as told."""
    tiles, target = self._puzzle(batch, train=False)
    told = jnp.argmax(self._classify(tiles, target, train=False), axis=-1)
    shuffled = arrange(tiles, self.permutations.value[target])
    solved = arrange(shuffled, jnp.argsort(self.permutations.value[told], axis=1))
    shown = {'tiles': tiles, 'shuffled': shuffled, 'put back': solved}
    return {title: _sheet(tiles, self.grid) for title, tiles in shown.items()}

  def _puzzle(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
    """Tiles in place `[B, T, t, t, C]` in [0, 1], and which permutation is asked for, `[B]`."""
    image = inputs.augmented(self, batch, train=train)
    keys = inputs.example_keys(batch, self.make_rng('augment') if train else None)
    split = jax.vmap(jax.random.split)(keys)  # [B, 2]
    target = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.num_permutations))(
      split[:, 0]
    )
    return cut(split[:, 1], image, self.grid, self.tile, self.shift if train else 0), target

  def _classify(self, tiles: Array, target: Array, *, train: bool) -> Array:
    """Logits `[B, P]` float32 of tiles that are shuffled by the permutations `target`."""
    batch, count = tiles.shape[:2]
    image = standardized(tiles.reshape(-1, *tiles.shape[2:]))  # [B * T, t, t, C]
    x = self.encoder(image, train=train).pooled.astype(jnp.float32)
    x = nn.relu(self.tile_layer(x)).reshape(batch, count, -1)
    # Each tile is seen alone, so that shuffling what is seen is shuffling tiles, and much less.
    x = arrange(x, self.permutations.value[target]).reshape(batch, -1)
    x = constrain(nn.relu(self.hidden_layer(x)), 'batch', None)
    return constrain(self.head(x), 'batch', 'classes')


@functools.cache
def permutations(count: int, grid: int = 3, seed: int = 0) -> np.ndarray:
  """A set of permutations far from each other: Algorithm 1, arXiv:1603.09246.

  The first is drawn, each next one has the largest mean Hamming distance to those before; of
  several such, which the paper does not speak of, the first whose nearest is the farthest. With 100
  of 3x3 and seed 0 no two agree in more than 5 of 9 places (9 - 4), on average in 0.9.

  Args:
    count: P, how many.
    grid: cells along a side, 2 or 3.
    seed: of the first.

  Returns:
    `[P, grid * grid]` int32, read-only: row p has, for each place, the cell whose tile comes there.

  Raises:
    ValueError: another grid, or fewer than 2 or more permutations than there are.
  """
  check_choice('grid', grid, (2, 3))  # There are 2 * 10^13 of 4x4.
  places = grid * grid
  if not 2 <= count <= math.factorial(places):
    raise ValueError(
      f'num_permutations is {count}; choose from 2 to {math.factorial(places)}, all those of'
      f' {grid}x{grid} tiles'
    )
  every = np.array(list(itertools.permutations(range(places))), np.uint8)  # [N, T]
  columns = np.ascontiguousarray(every.T)  # [T, N]: sums over T are then quick
  total = np.zeros(len(every), np.int32)  # of the distances to those chosen
  nearest = np.full(len(every), places, np.uint8)
  chosen = [int(np.random.default_rng(seed).integers(len(every)))]
  while len(chosen) < count:
    distance = (columns != columns[:, chosen[-1], None]).sum(axis=0, dtype=np.uint8)  # [N]
    total += distance
    total[chosen[-1]] = -count * places  # never again
    nearest = np.minimum(nearest, distance)
    best = np.flatnonzero(total == total.max())
    chosen.append(int(best[nearest[best].argmax()]))
  found = every[chosen].astype(np.int32)
  found.flags.writeable = False
  return found


def cut(keys: Array, image: Array, grid: int, tile: int, shift: int = 0) -> Array:
  """Cuts a tile out of each cell of images, anywhere in it.

  Args:
    keys: `[B]`, what the places are drawn from.
    image: `[B, H, W, C]`.
    grid: cells along a side; pixels that are left over on the right and below are not used.
    tile: side of a tile in pixels.
    shift: each channel of each tile lies up to this many pixels elsewhere, but in the image.

  Returns:
    `[B, grid * grid, tile, tile, C]`, row by row.

  Raises:
    ValueError: cells are smaller than a tile.
  """
  height, width, channels = image.shape[1:]
  cell = np.array([height // grid, width // grid])
  if min(cell) < tile:
    raise ValueError(
      f'{grid}x{grid} cells of an image of {height}x{width} have {cell[0]}x{cell[1]} pixels, and a'
      f' tile {tile}x{tile}; choose a tile of at most {min(cell)} or larger images'
    )
  corners = np.stack(np.indices((grid, grid)), axis=-1).reshape(-1, 1, 2) * cell  # [T, 1, 2]

  def one(key: Array, image: Array) -> Array:
    place, move = jax.random.split(key)
    starts = corners + jax.random.randint(place, (grid * grid, 1, 2), 0, cell - tile + 1)
    if not shift:
      return jax.vmap(lambda s: jax.lax.dynamic_slice(image, (*s[0], 0), (tile, tile, channels)))(
        starts
      )
    starts += jax.random.randint(move, (grid * grid, channels, 2), -shift, shift + 1)
    starts = jnp.maximum(starts, 0)  # dynamic_slice sees to the other edge; below 0 it wraps.

    def channel(start: Array, plane: Array) -> Array:
      return jax.lax.dynamic_slice(plane, start, (tile, tile))

    return jax.vmap(jax.vmap(channel, (0, 2), 2), (0, None))(starts, image)

  return jax.vmap(one)(keys, image)


def arrange(tiles: Array, order: Array) -> Array:
  """Puts at each place the tile that `order` has there; `argsort(order)` undoes it.

  Args:
    tiles: `[B, T, ...]`.
    order: `[B, T]` int, a permutation in each row.
  """
  return jnp.take_along_axis(tiles, order.reshape(*order.shape, *[1] * (tiles.ndim - 2)), axis=1)


def _dense(features: int, axes: tuple[str, str]) -> nn.Dense:
  _, outputs = axes
  return nn.Dense(
    features,
    kernel_init=logical(nn.initializers.he_normal(), axes),
    bias_init=logical(nn.initializers.zeros, (outputs,)),
  )


def _sheet(tiles: Array, grid: int) -> Array:
  """Tiles `[B, T, t, t, C]` on white, with a pixel around each: `[B, S, S, C]`."""
  framed = jnp.pad(tiles, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
  batch, _, side, _, channels = framed.shape
  rows = framed.reshape(batch, grid, grid, side, side, channels).swapaxes(2, 3)
  return rows.reshape(batch, grid * side, grid * side, channels)
