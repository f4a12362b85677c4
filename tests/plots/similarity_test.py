"""The matrix of images and texts: a column an image, a row a text, the largest the darkest."""

import numpy as np
import pytest
from matplotlib import colormaps

from vit_jax.data.emoji import Emoji
from vit_jax.plots import images
from vit_jax.plots.similarity import CELL, GAP, TEXT, similarity

SOURCE = Emoji('test', styles=('google',))
DRAWINGS = [SOURCE[i]['image'] for i in (20, 80, 140)]
TEXTS = ['a cat', 'a drawing of an animal that is sad since nobody has given it any red fruit']
VALUES = np.array([[0.1, 0.3], [-0.2, 0.25], [0.0, 0.15]])


def corner(picture, column, row):
  """The colour of a cell, beside its number."""
  left, bottom = TEXT + 2 * GAP, picture.shape[0] - GAP
  y, x = bottom - (len(TEXTS) - row) * CELL, left + column * CELL
  cell = picture[y : y + CELL, x : x + CELL]
  assert (cell[:10] == cell[0, 0]).all() and (cell[-10:] == cell[0, 0]).all()
  assert (cell != cell[0, 0]).any()  # the number
  return cell[0, 0]


@pytest.mark.parametrize('title', ['', 'Cosine similarities'])
def test_cells_have_the_colours_of_their_values(title):
  picture = similarity(DRAWINGS, TEXTS, VALUES, title=title)
  assert picture.dtype == np.uint8 and picture.shape[2] == 3
  assert picture.shape[1] == TEXT + 3 * GAP + 3 * CELL
  for i in range(3):
    for j in range(2):
      share = (VALUES[i, j] + 0.2) / 0.5
      expected = 255 * np.array(colormaps['Blues'](share)[:3])
      np.testing.assert_allclose(corner(picture, i, j), expected, atol=2)


def test_images_stand_above_their_columns():
  picture = similarity(DRAWINGS, TEXTS, VALUES)
  for i, drawing in enumerate(DRAWINGS):
    x = TEXT + 2 * GAP + i * CELL + 2
    np.testing.assert_array_equal(picture[GAP : GAP + 96, x : x + 96], images.enlarge(drawing, 96))


def test_texts_and_numbers_are_written_where_they_belong():
  before = similarity(DRAWINGS, TEXTS, VALUES)
  other = similarity(DRAWINGS, ['a dog', TEXTS[1]], VALUES)
  ys, xs = np.nonzero((before != other).any(-1))
  top = GAP + CELL
  assert xs.max() < TEXT + 2 * GAP and xs.min() > GAP
  assert top < ys.min() and ys.max() < top + CELL
  number = VALUES.copy()
  number[1, 1] -= 0.011
  ys, xs = np.nonzero((before != similarity(DRAWINGS, TEXTS, number)).any(-1))
  left = TEXT + 2 * GAP
  assert left + CELL <= xs.min() and xs.max() < left + 2 * CELL
  assert top + CELL <= ys.min() and ys.max() < top + 2 * CELL


def test_equal_values_are_drawn():
  picture = similarity(DRAWINGS, TEXTS, np.full((3, 2), 0.5))
  light = 255 * np.array(colormaps['Blues'](0.0)[:3])
  np.testing.assert_allclose(corner(picture, 2, 1), light, atol=1)


@pytest.mark.parametrize('shape', [(2, 3), (3,), (3, 2, 1)])
def test_values_of_another_shape(shape):
  with pytest.raises(ValueError, match='3 images and 2 texts have similarities of shape'):
    similarity(DRAWINGS, TEXTS, np.zeros(shape))


def test_no_images():
  with pytest.raises(ValueError, match='0 images and 2 texts'):
    similarity([], TEXTS, np.zeros((0, 2)))
