"""Grids of images: every image is there, where it should be, pixel by pixel."""

import numpy as np
import pytest

from vit_jax.data.emoji import Emoji
from vit_jax.plots import figures, images


def emoji(count, **fields):
  source = Emoji('test', styles=('google',), **fields)
  return [source[10 * i]['image'] for i in range(count)]


@pytest.mark.parametrize('captions', [None, list('abcdefg')])
def test_grid_holds_every_image(captions):
  cells = emoji(7)
  picture = images.grid(cells, captions, columns=3, side=64, title='Seven emoji')
  assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  gap, top = images.GAP, images.GAP + images.TITLE
  step_x = 64 + gap
  step_y = step_x + (images.LINE + 6 if captions else 0)
  for i, cell in enumerate(cells):
    y, x = top + i // 3 * step_y, gap + i % 3 * step_x
    part = picture[y : y + 64, x : x + 64]
    np.testing.assert_array_equal(part, cell.repeat(2, 0).repeat(2, 1))


def test_captions_and_title_are_written():
  cells = emoji(2)
  empty = images.grid(cells, ['', ''], title=' ')
  written = images.grid(cells, ['one\n$two', 'three\nfour'], title=' ')
  assert written.shape[0] > empty.shape[0]
  one_line = images.grid(cells, ['one', 'three'], title=' ')
  assert one_line.shape == empty.shape and (one_line != empty).any()
  red = images.grid(cells, ['one', 'three'], title=' ', colors=['red', 'black'])
  assert (red != one_line).any()


def test_channels():
  rgba, rgb = emoji(1, alpha=True)[0], emoji(1)[0]
  np.testing.assert_array_equal(images.to_rgb(rgba), rgb)
  np.testing.assert_array_equal(images.to_rgb(rgb / np.float32(255)), rgb)
  gray = rgb[..., :1]
  np.testing.assert_array_equal(images.to_rgb(gray), np.repeat(gray, 3, -1))
  red = images.to_rgb(np.zeros((2, 2, 4), np.uint8), (255, 0, 0))
  assert (red == (255, 0, 0)).all()
  with pytest.raises(ValueError, match='1, 3 or 4 channels, not 2'):
    images.to_rgb(np.zeros((2, 2, 2), np.uint8))


def test_images_of_several_sizes():
  cells = [np.zeros((8, 8, 1), np.uint8), np.zeros((300, 200, 3), np.uint8)]
  picture = images.grid(cells, side=64)
  assert (picture == 0).all(-1).sum() == 64 * 64 + 300 * 200


@pytest.mark.parametrize(
  'cells, captions, message',
  [([], None, 'at least one image'), ([np.zeros((2, 2, 3))], ['a', 'b'], '1 images have 2 captio')],
)
def test_mistakes(cells, captions, message):
  with pytest.raises(ValueError, match=message):
    images.grid(cells, captions)


def test_text_is_cut_to_the_width():
  text = 'closed mailbox with raised flag'
  assert figures.fit(text, 1000, 10) == text
  cut = figures.fit(text, 120, 10)
  assert cut.endswith('…') and text.startswith(cut[:-1]) and len(cut) > 8
  assert figures.text_width(cut, 10) <= 120
  assert figures.text_width('$x$', 10) > figures.text_width('x', 10)
