"""Parts of JPEGs by the libraries of the extra `fast`, against Pillow's."""

import concurrent.futures
import functools
import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import decode, jpeg
from vit_jax.data.substitute import BadExample

BOXES = [  # top, left, height, width of [801, 1003]
  (0, 0, 801, 1003),
  (5, 7, 100, 90),  # enlarged
  (3, 301, 407, 203),  # reduced
  (201, 2, 600, 999),  # decoded at 1/4, down to the lower border
  (1, 1, 798, 1001),  # ends one row above it
  (16, 0, 32, 64),  # whole blocks
]
SIZE = (96, 120)

fast = pytest.mark.skipif(not jpeg.installed(), reason="needs the extra 'fast'")


@pytest.fixture
def pillow(monkeypatch):
  """Decodes and resizes by Pillow alone."""

  def work(*args):
    with monkeypatch.context() as patch:
      patch.setattr(jpeg, 'installed', lambda: False)
      return decode.decode_boxes(*args)

  return work


@functools.cache
def photograph():
  """Colours that change faster down the image, with noise, [801, 1003, 3] uint8."""
  y, x = np.mgrid[:801, :1003]
  waves = [np.sin(x / 9 + y / 40), np.cos(y * y / 9000 - x / 33), np.sin(x * y / 9000)]
  noise = np.random.default_rng(0).normal(0, 15, (801, 1003, 3))
  return Image.fromarray((127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def encode(image, **kwargs):
  file = io.BytesIO()
  image.save(file, 'JPEG', **kwargs)
  return file.getvalue()


KINDS = {
  '4:2:0': {},
  '4:2:2': {'subsampling': '4:2:2'},
  '4:4:4': {'subsampling': '4:4:4'},
  'progressive': {'progressive': True},
  'restarts': {'restart_marker_blocks': 7},
  'progressive, restarts': {'progressive': True, 'restart_marker_rows': 1},
  'RGB': {'keep_rgb': True},
}


@fast
@pytest.mark.parametrize('kind', KINDS)
def test_a_part_is_pillows_but_for_rounding(kind, pillow, monkeypatch):
  data = encode(photograph(), quality=90, **KINDS[kind])
  results = []
  work = jpeg.decode_boxes
  monkeypatch.setattr(
    jpeg, 'decode_boxes', lambda *args: results.append(work(*args)) or results[-1]
  )
  for box in BOXES:
    args = data, 3, lambda h, w: [box], SIZE  # noqa: B023
    ours = decode.decode_boxes(*args)
    assert ours is results[-1]  # not fallen back
    np.testing.assert_allclose(ours.astype(int), pillow(*args), atol=1, err_msg=str(box))


@fast
@pytest.mark.parametrize('boxes', [BOXES, BOXES[2:4], BOXES[:1] * 2])
def test_parts_of_one_decode_are_those_of_several(boxes, pillow):
  data = encode(photograph(), quality=90)
  ours = decode.decode_boxes(data, 3, lambda h, w: boxes, SIZE)
  assert ours.shape == (len(boxes), *SIZE, 3)
  np.testing.assert_allclose(ours.astype(int), pillow(data, 3, lambda h, w: boxes, SIZE), atol=1)
  # The smallest part decides at which scale all are decoded.
  smallest = min(boxes, key=lambda box: min(box[2] / SIZE[0], box[3] / SIZE[1]))
  alone = decode.decode_boxes(data, 3, lambda h, w: [smallest], SIZE)
  np.testing.assert_array_equal(ours[boxes.index(smallest)], alone[0])


@fast
def test_rows_below_all_parts_are_not_decoded():
  data = encode(photograph())
  middle = len(data) // 2
  broken = data[:middle] + bytes(len(data) - middle - 2) + data[-2:]
  for top, same in [(0, True), (500, False)]:
    boxes = [(top, 0, 150, 900), (0, 0, 100, 100)]
    ours = [decode.decode_boxes(d, 3, lambda h, w: boxes, SIZE) for d in (data, broken)]  # noqa: B023
    assert np.array_equal(*ours) == same


@fast
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_what_is_odd_is_left_to_pillow(channels, pillow):
  colour = encode(photograph())
  for data in [
    encode(photograph().convert('L')),
    encode(photograph().convert('CMYK')),
    colour + b'after the end',
  ]:
    args = data, channels, lambda h, w: [BOXES[2]], SIZE
    np.testing.assert_array_equal(decode.decode_boxes(*args), pillow(*args))


@fast
def test_what_is_broken_fails_as_in_pillow(pillow):
  data = encode(photograph())
  for broken in (data[: len(data) // 2], data[:-2], data[:200] + data[-2:], b'', b'no image'):
    errors = []
    for work in (decode.decode_boxes, pillow):
      with pytest.raises(BadExample) as error:
        work(broken, 3, lambda h, w: [BOXES[1]], SIZE)
      errors.append(str(error.value))
    assert errors[0] == errors[1]


@fast
def test_tiny_files(pillow):
  for h, w in [(1, 1), (1, 40), (9, 2), (16, 16), (17, 33)]:
    data = encode(photograph().crop((0, 0, w, h)))
    for size in [(1, 1), (2, 1), (7, 5)]:
      args = data, 3, lambda h, w: [(0, 0, h, w)], size
      np.testing.assert_allclose(decode.decode_boxes(*args).astype(int), pillow(*args), atol=1)


@fast
def test_threads_decode_side_by_side():
  data = encode(photograph())
  boxes = BOXES * 10

  def work(box):
    return decode.decode_boxes(data, 3, lambda h, w: [box], SIZE)

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for ours, alone in zip(pool.map(work, boxes), map(work, boxes), strict=True):
      np.testing.assert_array_equal(ours, alone)
