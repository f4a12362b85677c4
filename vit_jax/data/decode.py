"""Encoded images to uint8 arrays, by Pillow."""

import io

import numpy as np
from PIL import Image, ImageOps

from vit_jax.data.substitute import BadExample

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
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
    if orient:
      image = ImageOps.exif_transpose(image)
    pixels = np.asarray(_to_8_bits(image, MODES[channels]))
  except (
    Exception
  ) as e:  # Pillow raises OSError, SyntaxError, struct.error, IndexError, ... on broken files.
    raise BadExample(f'{type(e).__name__}: {e}'.split(' <_io')[0]) from e
  return pixels[:, :, None] if channels == 1 else pixels


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
