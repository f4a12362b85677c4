"""The figure of operations shows what each of them makes of real drawings."""

import numpy as np
import pytest

from vit_jax.data.emoji import Emoji
from vit_jax.plots import augmentations, images

SIDE = 32
SOURCE = Emoji('train', styles=('google',))
DRAWINGS = [SOURCE[i]['image'] for i in (100, 300)]


def cell(picture: np.ndarray, row: int, column: int, rows: int = 2) -> np.ndarray:
  """What stands in one place of a figure without title, drawn at the size of the images."""
  step = (picture.shape[0] - images.GAP) // rows
  y, x = images.GAP + row * step, images.GAP + column * (SIDE + images.GAP)
  return picture[y : y + SIDE, x : x + SIDE]


def test_a_row_is_the_original_and_each_operation():
  operations = {'grey': 'grayscale(p=1)', 'inverse': 'invert(p=1)', 'mirror': 'flip(p=1)'}
  picture = augmentations.augmentations(DRAWINGS, operations, side=SIDE)
  assert picture.dtype == np.uint8
  for row, drawing in enumerate(DRAWINGS):
    np.testing.assert_array_equal(cell(picture, row, 0), drawing)
    gray = drawing @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(cell(picture, row, 1), gray[..., None] * np.ones(3), atol=0.51)
    np.testing.assert_array_equal(cell(picture, row, 2), 255 - drawing)
    np.testing.assert_array_equal(cell(picture, row, 3), drawing[:, ::-1])


def test_every_operation_of_the_figure_changes_the_drawing():
  columns = 1 + len(augmentations.DEFAULTS)
  picture = augmentations.augmentations(DRAWINGS[:1], side=SIDE)
  cells = [cell(picture, 0, column, rows=1) for column in range(columns)]
  assert picture.shape[1] == images.GAP + columns * (SIDE + images.GAP)
  for caption, drawn in zip(augmentations.DEFAULTS, cells[1:], strict=True):
    assert np.abs(drawn.astype(int) - cells[0]).max() > 20, caption


def test_the_seed_decides_and_each_cell_has_draws_of_its_own():
  operations = {str(i): 'noise(0.2)' for i in range(2)}
  drawings = [DRAWINGS[0], DRAWINGS[0] / np.float32(255)]
  picture = augmentations.augmentations(drawings, operations, seed=1, side=SIDE)
  np.testing.assert_array_equal(
    picture, augmentations.augmentations(drawings, operations, seed=1, side=SIDE)
  )
  assert (picture != augmentations.augmentations(drawings, operations, seed=2, side=SIDE)).any()
  cells = [cell(picture, row, column) for row in range(2) for column in (1, 2)]
  assert all((a != b).any() for i, a in enumerate(cells) for b in cells[:i])


def test_grey_images_have_the_whole_figure():
  gray = np.random.default_rng(0).random((SIDE, SIDE, 1), np.float32)
  picture = augmentations.augmentations([gray], side=SIDE)
  drawn = cell(picture, 0, 4, rows=1).astype(int)  # the jitter
  assert (drawn == drawn[..., :1]).all()
  assert np.abs(drawn - cell(picture, 0, 0, rows=1)).max() > 20


def test_sizes_and_channels_may_differ():
  rng = np.random.default_rng(0)
  drawings = [rng.random(shape, np.float32) for shape in ((8, 8, 1), (16, 12, 4), (32, 32, 3))]
  picture = augmentations.augmentations(drawings, {'mirror': 'flip(p=1)'}, side=SIDE)
  for row, drawing in enumerate(drawings):
    shown = images.enlarge(images.to_rgb(drawing), SIDE)
    left = (SIDE - shown.shape[1]) // 2
    found = cell(picture, row, 1, rows=3)[: len(shown), left : left + shown.shape[1]]
    np.testing.assert_array_equal(found, shown[:, ::-1])


def test_mistakes_are_refused():
  with pytest.raises(ValueError, match='at least one image'):
    augmentations.augmentations([])
  with pytest.raises(ValueError, match="unknown transform 'flop'"):
    augmentations.augmentations(DRAWINGS, {'a': 'flop'})
