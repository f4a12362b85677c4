"""Encoded images to uint8 arrays, by Pillow."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from vit_jax.data import jpeg
from vit_jax.data.substitute import BadExample

Box = tuple[int, int, int, int]  # (top, left, height, width) in pixels

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's names, by the number of channels


def decode_image(data: bytes, channels: int = 3, *, orient: bool = False) -> np.ndarray:
  """Decodes JPEG, PNG, WebP, GIF (its first frame) and whatever else Pillow reads.

  Grey, palette, CMYK and 16-bit images are converted; 16 bits are scaled to 8 (65535 -> 255).
  Without a channel for it, transparency is composited on white, as a browser shows it, and not just
  cut off.

  Args:
    data: the encoded file.
    channels: 1 (grey), 3 (RGB) or 4 (RGBA, not premultiplied).
    orient: turn the image as its EXIF tag says. Off by default: the published pipelines on ImageNet
    do not.

  Returns:
    [H, W, channels] uint8, read-only.

  Raises:
    BadExample: the data are no complete image.
  """
  with _broken_is_bad(), Image.open(io.BytesIO(data)) as image:
    image.load()
    if orient:
      image = ImageOps.exif_transpose(image)
    return as_array(image, channels)


def as_array(image: Image.Image, channels: int = 3) -> np.ndarray:
  """An image of Pillow's in any mode, converted as `decode_image` says: [H, W, channels] uint8."""
  pixels = np.asarray(_to_8_bits(image, MODES[channels]))
  return pixels[:, :, None] if channels == 1 else pixels


def decode_boxes(
  data: bytes,
  channels: int,
  draw: Callable[[int, int], Sequence[Box]],
  size: tuple[int, int],
) -> np.ndarray:
  """Decodes an image once, cuts parts out and resizes each, bilinear with antialiasing.

  A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale where that leaves each part at least as large as
  `size`: a block's low frequencies alone are transformed, which is its average over 2 x 2, 4 x 4 or
  8 x 8 pixels but for rounding. Where the extra `fast` is installed, `data/jpeg.py` does it for
  colour JPEGs.

  Args:
    data: the encoded file.
    channels: 1, 3 or 4.
    draw: from the image's height and width to the parts, at least one.
    size: (height, width) of the result.

  Returns:
    [parts, *size, channels] uint8.

  Raises:
    BadExample: the data are no complete image.
  """
  with _broken_is_bad():
    image = Image.open(io.BytesIO(data))  # its header alone
  width, height = image.size
  boxes = draw(height, width)
  least = [min(box[axis] for box in boxes) for axis in (2, 3)]
  scale = next((s for s in (8, 4, 2) if least[0] >= s * size[0] and least[1] >= s * size[1]), 1)
  if channels == 3 and (image.format, image.mode) == ('JPEG', 'RGB') and jpeg.installed():
    resized = jpeg.decode_boxes(data, (height, width), boxes, scale, size)
    if resized is not None:
      return resized
  with _broken_is_bad(), image:
    if scale > 1 and image.format == 'JPEG':
      # Pillow takes the largest scale that leaves this size, and rounds up to whole pixels.
      image.draft(None, (width // scale, height // scale))
    image.load()
    if image.width == width:
      scale = 1  # no JPEG
    return np.stack([_resize_box(image, channels, box, scale, size) for box in boxes])


def _resize_box(
  image: Image.Image, channels: int, box: Box, scale: int, size: tuple[int, int]
) -> np.ndarray:
  """The part `box` / scale of an image in any mode, resized to [*size, channels] uint8."""
  top, left, h, w = box
  part = np.array((left, top, left + w, top + h)) / scale
  # Cut out first: no pixel beyond the part is looked at.
  x, y, x_end, y_end = *np.floor(part[:2]).astype(int), *np.ceil(part[2:]).astype(int)
  pixels = _to_8_bits(image.crop((x, y, x_end, y_end)), MODES[channels])
  part -= (x, y, x, y)
  resized = np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR, tuple(part)))
  return resized.reshape(*size, channels)


@contextlib.contextmanager
def _broken_is_bad() -> Iterator[None]:
  """Raises BadExample for whatever Pillow raises on a broken file."""
  try:
    yield
  except Exception as e:  # OSError, SyntaxError, struct.error, IndexError, ...
    raise BadExample(f'{type(e).__name__}: {e}'.split(' <_io')[0]) from e


def _to_8_bits(image: Image.Image, mode: str) -> Image.Image:
  """Converts any mode of Pillow to 'L', 'RGB' or 'RGBA'."""
  if image.mode.startswith('I'):  # 'I;16', 'I;16B', or 16 bits in 32
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
      raise ValueError('more than 16 bits a channel')
    image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
  elif image.mode == 'F':
    raise ValueError('floating-point pixels have no stated range')
  if mode != 'RGBA' and image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image if image.mode == mode else image.convert(mode)
