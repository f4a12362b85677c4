"""Parts of a JPEG by simplejpeg and cykooz-resizer, the extra `fast` of `setup.py`.

On one core, all of decode, crop to 224 and flip, 1.3 to 1.8 times as fast as by Pillow
(`benchmarks/input.py`).
"""

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np

FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive; ITU T.81, Table B.1
SCAN, END = 0xDA, b'\xff\xd9'
MCU = 16  # pixels down a row of blocks, at most in usual files


@functools.cache
def installed() -> bool:
  """Whether both libraries are here."""
  return all(importlib.util.find_spec(name) for name in ('simplejpeg', 'cykooz_resizer'))


def decode_boxes(
  data: bytes,
  shape: tuple[int, int],
  boxes: Sequence[tuple[int, int, int, int]],
  scale: int,
  size: tuple[int, int],
) -> np.ndarray | None:
  """Decodes a colour JPEG once, cuts parts out and resizes each, bilinear with antialiasing.

  The rows below all parts are not decoded: nobody notices if they are corrupt. The pixels are
  Pillow's but for the rounding of the resize, at most 1.

  Args:
    data: the encoded file; its header is known to be sound.
    shape: its (height, width).
    boxes: the parts, each (top, left, height, width).
    scale: 1, 2, 4 or 8: what to divide the image's size by as it is decoded.
    size: (height, width) of the result.

  Returns:
    [parts, *size, 3] uint8; None where the file is cut short, broken or odd: Pillow shall judge it.
  """
  import simplejpeg

  if not data.endswith(END):
    return None
  end = max(top + h for top, _, h, _ in boxes)
  # One row more than the parts: the chroma of their last is interpolated with that of the next.
  rows = min(shape[0], -(-(end + 1) // MCU) * MCU)
  height, width = -(-rows // scale), -(-shape[1] // scale)
  try:
    pixels = simplejpeg.decode_jpeg(
      _with_height(data, rows),
      min_height=height,
      min_width=width,
      min_factor=scale,
      strict=False,  # it warns of what follows the last row
    )
  except ValueError:
    return None
  if pixels.shape != (height, width, 3):
    return None
  return np.stack([_resize_box(pixels, box, scale, size) for box in boxes])


def _resize_box(
  pixels: np.ndarray, box: tuple[int, int, int, int], scale: int, size: tuple[int, int]
) -> np.ndarray:
  """The part `box` / scale of [H, W, 3] uint8, resized to [*size, 3]."""
  top, left, h, w = box
  # Cut out first: no pixel beyond the part is looked at.
  y, x = top // scale, left // scale
  part = pixels[y : -(-(top + h) // scale), x : -(-(left + w) // scale)]
  return _resize(part, (left / scale - x, top / scale - y, w / scale, h / scale), size)


def _with_height(data: bytes, rows: int) -> bytes:
  """The file with `rows` in its frame header, so that a decoder stops there."""
  at = 2  # after the mark of the start
  while data[at : at + 1] == b'\xff' and data[at + 1] != SCAN:
    if data[at + 1] in FRAMES:
      # Marker (2 bytes), length (2), precision (1), height (2); ITU T.81, Fig. B.3.
      return b''.join((data[: at + 5], rows.to_bytes(2, 'big'), data[at + 7 :]))
    at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
  raise ValueError('no frame header of a known kind')


def _resize(pixels: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
  """Resizes the part `box`, (left, top, width, height), of [H, W, 3] uint8 to [*size, 3]."""
  import cykooz_resizer as resizer

  height, width, _ = pixels.shape
  source = resizer.ImageData(width, height, resizer.PixelType.U8x3, pixels.tobytes())
  resized = resizer.ImageData(size[1], size[0], resizer.PixelType.U8x3)
  options = resizer.ResizeOptions(
    resizer.ResizeAlg.convolution(resizer.FilterType.bilinear), crop_box=resizer.CropBox(*box)
  )
  resizer.Resizer().resize(source, resized, options)  # threads cannot share a Resizer
  return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*size, 3)
