"""Answer cards: bars as long as the probabilities, the best first, the right one green."""

import numpy as np
import pytest

from vit_jax.data.emoji import Emoji
from vit_jax.plots import figures, images
from vit_jax.plots.answers import BLUE, EMPTY, GAP, GREEN, SIDE, TEXT, answers, thumbnail, wrap

SOURCE = Emoji('test', styles=('google',))
DRAWINGS = [SOURCE[i]['image'] for i in (20, 80, 140)]
TEXTS = ['a cat', 'a dog', 'a fox', 'a fish', 'a bird', 'a frog', 'a bee']
ROW = [0.05, 0.4, 0.02, 0.3, 0.1, 0.04, 0.09]
CARD = answers(DRAWINGS[:1], TEXTS, [ROW]).shape[1]  # the width of one


def bars(picture, column=0):
  """The bars of a column of cards, from top to bottom: colour, and the share that is filled."""
  left = column * CARD + GAP + SIDE + GAP
  part = picture[:, left : left + TEXT]
  blue, green, empty = ((part == color).all(-1).sum(1) for color in (BLUE, GREEN, EMPTY))
  rows = np.flatnonzero(blue + green + empty == TEXT)  # No text, no image.
  firsts = [y for y in rows if y - 1 not in rows]
  return [('green' if green[y] else 'blue', (blue + green)[y] / TEXT) for y in firsts]


def check(found, expected):
  assert [color for color, _ in found] == [color for color, _ in expected]
  shares = [share for _, share in expected]
  np.testing.assert_allclose([share for _, share in found], shares, atol=0.5 / TEXT + 1e-6)


def test_the_best_texts_have_bars_in_order():
  picture = answers(DRAWINGS[:1], TEXTS, [ROW], title='One card')
  assert picture.dtype == np.uint8 and picture.shape[2] == 3
  check(bars(picture), [('blue', p) for p in (0.4, 0.3, 0.1, 0.09, 0.05)])
  check(bars(answers(DRAWINGS[:1], TEXTS, [ROW], top=2)), [('blue', 0.4), ('blue', 0.3)])
  check(bars(answers(DRAWINGS[:1], TEXTS[:2], [[0, 1]])), [('blue', 1), ('blue', 0)])


def test_the_right_text_is_green_also_where_it_is_not_among_the_best():
  picture = answers(DRAWINGS[:1], TEXTS, [ROW], [3], top=3)
  check(bars(picture), [('blue', 0.4), ('green', 0.3), ('blue', 0.1)])
  picture = answers(DRAWINGS[:1], TEXTS, [ROW], [2], top=3)
  check(bars(picture), [('blue', 0.4), ('blue', 0.3), ('blue', 0.1), ('green', 0.02)])
  assert (answers(DRAWINGS[:1], TEXTS, [ROW], [None]) == answers(DRAWINGS[:1], TEXTS, [ROW])).all()


def test_every_image_stands_beside_its_own_bars():
  rows = [ROW, ROW[::-1], [0.5, 0.6, 0.7, 0, 0, 0, 0]]
  picture = answers(DRAWINGS, TEXTS, rows, top=2)
  assert picture.shape[1] == 2 * CARD
  check(bars(picture), [('blue', p) for p in (0.4, 0.3, 0.7, 0.6)])
  check(bars(picture, 1), [('blue', p) for p in (0.4, 0.3)])
  for i, drawing in enumerate(DRAWINGS):
    y, x = GAP + i // 2 * (SIDE + GAP), GAP + i % 2 * CARD
    np.testing.assert_array_equal(picture[y : y + SIDE, x : x + SIDE], images.enlarge(drawing, 160))


def test_long_texts_are_wrapped_and_what_is_longer_is_cut():
  text = 'a photograph of an animal that is sad since nobody has given it any of the red fruit yet'
  for lines in (1, 2, 3, 9):
    found = wrap(text, 250, 10, lines)
    assert len(found) == min(lines, 3)
    assert all(figures.text_width(line, 10) <= 250 for line in found)
    if lines >= 3:
      assert ' '.join(found) == text
    else:
      assert found[-1].endswith('…') and text.startswith(' '.join(found)[:-1])
  assert wrap('', 250, 10, 2) == []
  cut, rest = wrap('x' * 99 + ' and more', 250, 10, 2)
  assert cut.endswith('x…') and rest == 'and more'
  short, long = (answers(DRAWINGS[:1], [t] * 5, [ROW[:5]]) for t in ('a fox', text))
  assert long.shape[0] > short.shape[0] and long.shape[1] == short.shape[1]
  check(bars(long), bars(short))


def test_thumbnails_keep_proportions():
  rng = np.random.default_rng(0)
  large = rng.integers(0, 256, (300, 600, 3), np.uint8)
  assert thumbnail(large, 160).shape == (80, 160, 3)
  assert thumbnail(large[:1], 160).shape == (1, 160, 3)
  assert thumbnail(large[:100, :60, :1], 160).shape == (160, 96, 3)
  small = large[:20, :7]
  np.testing.assert_array_equal(thumbnail(small, 64), small.repeat(3, 0).repeat(3, 1))


def test_mistakes():
  with pytest.raises(ValueError, match='at least one image'):
    answers([], TEXTS, np.zeros((0, 7)))
  with pytest.raises(ValueError, match=r'1 images and 7 texts have .* of shape \(1, 2\)'):
    answers(DRAWINGS[:1], TEXTS, [[0.5, 0.5]])
  with pytest.raises(ValueError, match='1 images have 2 truths'):
    answers(DRAWINGS[:1], TEXTS, [ROW], [1, 2])
