"""Host transforms, which a config names: `host='decode | random_resized_crop(32) | flip'`.

Each function named in `__all__` makes a transform `f(example, rng) -> example`; those of texts are
in `texts.py`. The others change `example['image']`, uint8 [H, W, C] with C of 1, 3 or 4. After
`views(n)` there is `example['views']`, uint8 [V, H, W, C], in its place, and what follows changes
each view by draws of its own. What they make can be pickled, as worker processes need. Sizes are
pixels: one integer for a square, or (height, width). Resizing is bilinear unless it says otherwise,
with antialiasing (a filter as wide as the reduction), by Pillow, as in torchvision and timm; the
alpha of RGBA is premultiplied while it is resized, so that the colour of what is transparent does
not leak out.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from vit_jax.choices import check_choice
from vit_jax.data.decode import MODES, Box, as_array, decode_boxes, decode_image
from vit_jax.data.randaugment import MAX_MAGNITUDE, augment_image
from vit_jax.data.substitute import Example, Transform
from vit_jax.data.texts import caption, template, tokenize
from vit_jax.data.views import apply, is_encoded, make_views, on_image, with_views

Size = int | tuple[int, int]

__all__ = [
  'caption',
  'central_crop',
  'channels',
  'decode',
  'decode_random_resized_crop',
  'flip',
  'pad_crop',
  'randaugment',
  'random_resized_crop',
  'resize',
  'resize_small',
  'template',
  'tokenize',
  'views',
]

FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


def decode(channels: int = 3, orient: bool = False) -> Transform:
  """Decodes `image` if it is bytes, and leaves arrays alone; see `decode.decode_image`.

  Args:
    channels: 1, 3 or 4; transparency without a channel for it is composited on white.
    orient: turn the image as its EXIF tag says (off: as the published pipelines).
  """
  if channels not in MODES:
    raise ValueError(f'decode makes no image of {channels} channels; choose from 1, 3, 4')
  return functools.partial(_decode, channels=channels, orient=orient)


def channels(n: int) -> Transform:
  """Makes n channels of an array's: 1 (grey, ITU-R 601-2 luma), 3 (RGB, on white) or 4 (RGBA).

  For data that are arrays already, such as grey digits for an encoder of colours; `decode` does the
  same while it decodes.
  """
  if n not in MODES:
    raise ValueError(f'channels makes no image of {n} channels; choose from 1, 3, 4')
  return on_image(_channels, n=n)


def views(n: int) -> Transform:
  """Puts n views of the image in its place; whatever follows changes each by draws of its own.

  `'decode | views(2) | random_resized_crop(32) | flip'` cuts two crops out of one decoded image, as
  SimCLR has it (Sec. 2.1, arXiv:2002.05709).
  """
  return functools.partial(make_views, n=_positive('number of views', n))


def random_resized_crop(
  size: Size,
  min_area: float = 0.05,
  max_area: float = 1.0,
  min_aspect: float = 3 / 4,
  max_aspect: float = 4 / 3,
) -> Transform:
  """The 'inception crop': a random part of the image, resized to `size`.

  Szegedy et al. 2014, arXiv:1409.4842, Sec. 6.

  The area is uniform in [min_area, max_area] of the image, the aspect (width / height) log-uniform
  in [min_aspect, max_aspect]. After 10 draws that do not fit, the largest central crop whose aspect
  is in range.
  """
  draw = _drawing((min_area, max_area), (min_aspect, max_aspect))
  return on_image(_random_resized_crop, size=_pair(size), draw=draw)


def decode_random_resized_crop(
  size: Size,
  min_area: float = 0.05,
  max_area: float = 1.0,
  min_aspect: float = 3 / 4,
  max_aspect: float = 4 / 3,
  channels: int = 3,
  views: int | None = None,
) -> Transform:
  """`decode(channels) | random_resized_crop(...)` in one: the same part of each image.

  With `views` it is `decode(channels) | views(views) | random_resized_crop(...)`: that many parts
  of an image that is decoded once.

  Large JPEGs are decoded at reduced scale where the smallest part allows it, so that pixels differ
  by rounding and by the filter; see `decode.decode_boxes`. Arrays are cropped as they are.
  """
  if channels not in MODES:
    raise ValueError(f'decode makes no image of {channels} channels; choose from 1, 3, 4')
  if views is not None:
    _positive('number of views', views)
  draw = _drawing((min_area, max_area), (min_aspect, max_aspect))
  fields = dict(size=_pair(size), draw=draw, channels=channels, views=views)
  return functools.partial(_decode_crop, **fields)


def resize_small(size: int, interpolation: str = 'bilinear') -> Transform:
  """Resizes the shorter side to `size`, up or down; the longer keeps the aspect, rounded.

  Args:
    size: in pixels.
    interpolation: `bilinear`, `bicubic` or `lanczos`.
  """
  return on_image(_resize_small, size=_pair(size)[0], filter_=_filter(interpolation))


def resize(h: int, w: int | None = None, interpolation: str = 'bilinear') -> Transform:
  """Resizes to [h, w], or to the square [h, h], whatever the aspect.

  Args:
    h: in pixels.
    w: likewise; None: h.
    interpolation: `bilinear`, `bicubic` or `lanczos`.
  """
  size = _pair((h, h if w is None else w))
  return on_image(_resize_to, size=size, filter_=_filter(interpolation))


def central_crop(h: int, w: int | None = None) -> Transform:
  """Cuts out the central [h, w], or [h, h].

  An odd margin leaves its extra pixel below and to the right. An image that is smaller than the
  crop is first enlarged until it covers it, with its aspect kept.
  """
  return on_image(_central_crop, size=_pair((h, h if w is None else w)))


def pad_crop(size: Size, padding: int) -> Transform:
  """Pads with `padding` zeros on every side and cuts out a random `size`.

  He et al. 2015, arXiv:1512.03385, Sec. 4.2.
  """
  if padding < 0:
    raise ValueError(f'padding {padding} is negative')
  return on_image(_pad_crop, size=_pair(size), padding=padding)


def flip(p: float = 0.5) -> Transform:
  """Mirrors left and right with probability p."""
  if not 0 <= p <= 1:
    raise ValueError(f'probability {p} is not in [0, 1]')
  return on_image(_flip, p=p)


def randaugment(num_layers: int = 2, magnitude: float = 10) -> Transform:
  """Random colour and geometry at one strength; see `data/randaugment.py` for the operations.

  Cubuk et al. 2019, arXiv:1909.13719. The size stays as it is.

  Args:
    num_layers: operations one after the other.
    magnitude: their strength, in [0, 30]; at 0 some operations still change the image.
  """
  _positive('num_layers', num_layers)
  if not 0 <= magnitude <= MAX_MAGNITUDE:
    raise ValueError(f'magnitude {magnitude} is not in [0, {MAX_MAGNITUDE}]')
  return on_image(augment_image, num_layers=num_layers, magnitude=magnitude)


def _decode(example: Example, rng: np.random.Generator, *, channels: int, orient: bool) -> Example:
  del rng
  if 'views' in example or not is_encoded(example['image']):
    return example
  return {**example, 'image': decode_image(bytes(example['image']), channels, orient=orient)}


def _channels(image, rng, *, n) -> np.ndarray:
  del rng
  if image.shape[2] == n:
    return image
  return as_array(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), n)


def _decode_crop(
  example: Example, rng: np.random.Generator, *, size, draw, channels, views
) -> Example:
  if 'views' in example or not is_encoded(example['image']):
    example = example if views is None else make_views(example, rng, n=views)
    crop = functools.partial(_random_resized_crop, size=size, draw=draw)
    return apply(example, rng, function=crop)

  def boxes(h: int, w: int) -> list[Box]:
    return [draw(h, w, rng) for _ in range(views or 1)]

  parts = decode_boxes(bytes(example['image']), channels, boxes, size)
  return {**example, 'image': parts[0]} if views is None else with_views(example, parts)


def _drawing(area: tuple[float, float], aspect: tuple[float, float]) -> Callable[..., tuple]:
  """`draw(h, w, rng)` of an inception crop's box; see `_draw_box`."""
  if not 0 < area[0] <= area[1] <= 1:
    raise ValueError(f'areas {area[0]}, {area[1]} are not 0 < min_area <= max_area <= 1')
  if not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f'aspects {aspect[0]}, {aspect[1]} are not 0 < min_aspect <= max_aspect')
  return functools.partial(_draw_box, area=area, aspect=tuple(map(math.log, aspect)))


def _draw_box(h, w, rng, *, area, aspect) -> Box:
  """Draws (top, left, height, width) inside [h, w]; the aspects are logarithms."""
  for _ in range(10):
    target = rng.uniform(*area) * h * w
    ratio = math.exp(rng.uniform(*aspect))
    width, height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < width <= w and 0 < height <= h:
      return int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1)), height, width
  ratio = min(max(w / h, math.exp(aspect[0])), math.exp(aspect[1]))
  width, height = min(w, max(1, round(h * ratio))), min(h, max(1, round(w / ratio)))
  return (h - height) // 2, (w - width) // 2, height, width


def _random_resized_crop(image, rng, *, size, draw) -> np.ndarray:
  top, left, h, w = draw(*image.shape[:2], rng)
  return _resize(image[top : top + h, left : left + w], size)


def _resize_small(image, rng, *, size, filter_) -> np.ndarray:
  del rng
  h, w = image.shape[:2]
  scale = size / min(h, w)
  return _resize(image, (max(size, round(h * scale)), max(size, round(w * scale))), filter_)


def _resize_to(image, rng, *, size, filter_) -> np.ndarray:
  del rng
  return _resize(image, size, filter_)


def _central_crop(image, rng, *, size) -> np.ndarray:
  del rng
  h, w = image.shape[:2]
  if h < size[0] or w < size[1]:
    scale = max(size[0] / h, size[1] / w)
    image = _resize(image, (max(size[0], round(h * scale)), max(size[1], round(w * scale))))
    h, w = image.shape[:2]
  top, left = (h - size[0]) // 2, (w - size[1]) // 2
  return image[top : top + size[0], left : left + size[1]]


def _pad_crop(image, rng, *, size, padding) -> np.ndarray:
  h, w = image.shape[0] + 2 * padding, image.shape[1] + 2 * padding
  if h < size[0] or w < size[1]:
    raise ValueError(
      f'pad_crop cuts {list(size)} out of {[h, w]}, padding included; choose a smaller size'
    )
  top, left = int(rng.integers(h - size[0] + 1)), int(rng.integers(w - size[1] + 1))
  padded = np.zeros((h, w, image.shape[2]), np.uint8)
  padded[padding : h - padding, padding : w - padding] = image
  return padded[top : top + size[0], left : left + size[1]]


def _flip(image, rng, *, p) -> np.ndarray:
  if rng.random() >= p:
    return image
  mirrored = np.empty_like(image)
  for c in range(image.shape[2]):  # 5 times as fast as all channels at once
    mirrored[..., c] = image[:, ::-1, c]
  return mirrored


def _filter(interpolation: str) -> Image.Resampling:
  return FILTERS[check_choice('interpolation', interpolation, FILTERS)]


def _resize(
  image: np.ndarray, size: tuple[int, int], filter_: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
  """[H, W, C] uint8 to [*size, C], with antialiasing."""
  if image.shape[:2] == size:
    return image
  pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
  resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], filter_))
  return resized.reshape(*size, image.shape[2])


def _positive(name: str, value: int) -> int:
  if not isinstance(value, int) or value < 1:
    raise ValueError(f'{name} {value!r} is no positive integer')
  return value


def _pair(size: Size) -> tuple[int, int]:
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
    raise ValueError(f'size {size!r} is neither a positive integer nor two, (height, width)')
  return pair
