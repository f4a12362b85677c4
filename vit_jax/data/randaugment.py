"""RandAugment's operations on uint8 images. Cubuk et al. 2019, arXiv:1909.13719.

`num_layers` operations are drawn from sixteen, each as likely as the others and with replacement,
and carried out one after the other. One `magnitude` M sets the strength s = M / 10 of all of them:

| operation                             | argument          | at M = 10                     |
|---------------------------------------|-------------------|-------------------------------|
| autocontrast, equalize, invert        | none              |                               |
| rotate                                | +- 30 s           | +- 30 degrees                 |
| shear_x, shear_y                      | +- 0.3 s          | +- 0.3                        |
| translate_x, translate_y              | +- 100/224 s      | +- 100 pixels of 224          |
| cutout                                | 40/224 s          | a box of 80 pixels of 224     |
| color, contrast, brightness, sharpness| 0.1 + 1.8 s       | 1.9 (1 changes nothing)       |
| posterize                             | floor(4 s) bits   | 4 bits                        |
| solarize                              | from floor(256 s) | 256: changes nothing          |
| solarize_add                          | floor(110 s)      | 110 on top of what is < 128   |

These are the operations and ranges of the ImageNet pipelines that the paper's authors released and
that the plain ViT baseline (arXiv:2205.01580: RandAugment of 2 layers at magnitude 10) was trained
with. So magnitude 0 is not the absence of a change: invert, posterize (to black) and solarize (all
of the image) are among the operations. Two things differ from there. Distances are parts of the
image's sides, which at 224 pixels are theirs. Contrast is taken about the mean grey, as Pillow
does, where theirs took the number of pixels / 256.

Every sign is a coin of its own. Uncovered pixels are grey, 128, and where there is alpha also
transparent. Pixels are moved to the nearest place. Colours change, alpha does not; `color` leaves
grey images as they are.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 30  # arXiv:1909.13719 reports settings of up to 28, for EfficientNet-B7
GREY = 128
FILL = {1: GREY, 3: (GREY,) * 3, 4: (GREY, GREY, GREY, 0)}  # by the number of channels

Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def augment_image(
  image: np.ndarray, rng: np.random.Generator, *, num_layers: int, magnitude: float
) -> np.ndarray:
  """Carries out `num_layers` random operations.

  Args:
    image: [H, W, C] uint8, C of 1, 3 or 4; not changed.
    rng: decides which operations, their signs and places.
    num_layers: operations, the paper's N.
    magnitude: the paper's M, in [0, 30].

  Returns:
    [H, W, C] uint8.
  """
  operations = list(OPERATIONS.values())
  for _ in range(num_layers):
    image = operations[rng.integers(len(operations))](image, magnitude / 10, rng)
  return image


def autocontrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Stretches each channel to 0..255."""
  del strength, rng
  return _colors(image, lambda x: _by_pillow(x, ImageOps.autocontrast))


def equalize(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Makes each channel's histogram as even as a monotone map can."""
  del strength, rng
  return _colors(image, lambda x: _by_pillow(x, ImageOps.equalize))


def invert(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Turns every value c into 255 - c."""
  del strength, rng
  return _colors(image, lambda x: 255 - x)


def rotate(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Turns by 30 `strength` degrees about the centre, either way."""
  angle = _sign(rng) * 30 * strength
  fill = FILL[image.shape[2]]
  return _by_pillow(image, lambda x: x.rotate(angle, Image.Resampling.NEAREST, fillcolor=fill))


def posterize(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Keeps the 4 `strength` highest bits of each value."""
  del rng
  mask = np.uint8(256 - 2 ** (8 - min(8, math.floor(4 * strength))) & 255)
  return _colors(image, lambda x: x & mask)


def solarize(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Inverts the values from 256 `strength` on."""
  del rng
  return _colors(image, lambda x: np.where(x < math.floor(256 * strength), x, 255 - x))


def solarize_add(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Adds 110 `strength` to the values below 128."""
  del rng
  table = np.arange(256)
  table[:128] = np.minimum(table[:128] + math.floor(110 * strength), 255)
  return _colors(image, lambda x: table.astype(np.uint8)[x])


def color(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Scales the saturation."""
  del rng
  return _enhance(image, strength, ImageEnhance.Color)


def contrast(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Scales the distance from the mean grey."""
  del rng
  return _enhance(image, strength, ImageEnhance.Contrast)


def brightness(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Scales all values."""
  del rng
  return _enhance(image, strength, ImageEnhance.Brightness)


def sharpness(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Scales the distance from a blurred copy."""
  del rng
  return _enhance(image, strength, ImageEnhance.Sharpness)


def shear_x(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Moves each row by 0.3 `strength` of its distance from the top, either way."""
  return _affine(image, (1, _sign(rng) * 0.3 * strength, 0, 0, 1, 0))


def shear_y(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Moves each column by 0.3 `strength` of its distance from the left, either way."""
  return _affine(image, (1, 0, 0, _sign(rng) * 0.3 * strength, 1, 0))


def translate_x(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Moves to the left or right, at strength 1 by 100 pixels of 224."""
  shift = _sign(rng) * _pixels(100 * strength, image.shape[1])
  return _affine(image, (1, 0, shift, 0, 1, 0))


def translate_y(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Moves up or down, at strength 1 by 100 pixels of 224."""
  shift = _sign(rng) * _pixels(100 * strength, image.shape[0])
  return _affine(image, (1, 0, 0, 0, 1, shift))


def cutout(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Covers a box about a random pixel, what lies inside of the image. arXiv:1708.04552."""
  box = []
  for side in image.shape[:2]:
    centre, half = int(rng.integers(side)), _pixels(40 * strength, side)
    box.append(slice(max(0, centre - half), centre + half))
  covered = image.copy()
  covered[tuple(box)] = FILL[image.shape[2]]
  return covered


OPERATIONS: dict[str, Operation] = {
  function.__name__: function
  for function in (
    autocontrast, equalize, invert, rotate, posterize, solarize, solarize_add, color, contrast,
    brightness, sharpness, shear_x, shear_y, translate_x, translate_y, cutout,
  )
}  # fmt: skip


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


def _pixels(distance: float, side: int) -> int:
  """A distance in an image of 224 pixels as whole pixels of one of `side`."""
  return round(distance / 224 * side)


def _colors(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Changes grey or RGB and keeps alpha."""
  if image.shape[2] < 4:
    return change(image)
  return np.concatenate([change(image[:, :, :3]), image[:, :, 3:]], axis=2)


def _enhance(image: np.ndarray, strength: float, kind: Callable) -> np.ndarray:
  factor = 0.1 + 1.8 * strength
  return _colors(image, lambda x: _by_pillow(x, lambda y: kind(y).enhance(factor)))


def _affine(image: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
  """The pixel (x, y) comes from (a x + b y + c, d x + e y + f), of matrix (a, ..., f)."""

  def change(x: Image.Image) -> Image.Image:
    fill = FILL[image.shape[2]]
    nearest = Image.Resampling.NEAREST
    return x.transform(x.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=fill)

  return _by_pillow(image, change)


def _by_pillow(image: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
  pixels = np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image)
  return np.asarray(change(Image.fromarray(pixels))).reshape(image.shape)
