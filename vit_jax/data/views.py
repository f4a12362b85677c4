"""What host transforms change: an example's image or, once there are views of it, each of these.

The views of an example draw one after the other from its generator, so they differ, and are a
function of the seed and the position as everything else. (`Generator.spawn` would not do: Grain
resets the state of one generator for every position, not the seed that children are made from.)
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data.decode import MODES
from vit_jax.data.substitute import Example, Transform


def on_image(function: Callable[..., np.ndarray], **kwargs: Any) -> Transform:
  """A picklable transform: `function(image, rng, **kwargs)` of the image, or of each view."""
  return functools.partial(apply, function=functools.partial(function, **kwargs))


def apply(
  example: Example, rng: np.random.Generator, *, function: Callable[..., np.ndarray]
) -> Example:
  """The example with `function(image, rng)` in the place of its image, or of each view.

  Args:
    example: `image [H, W, C]` or `views [V, H, W, C]`, uint8 with C of 1, 3 or 4.
    rng: what the function draws from.
    function: what it makes of equal shapes has equal shapes.

  Raises:
    ValueError: an image that is encoded, or of another kind.
  """
  if 'views' in example:
    changed = [function(_pixels(view), rng) for view in example['views']]
    return {**example, 'views': np.stack(changed)}
  return {**example, 'image': function(_pixels(example['image']), rng)}


def make_views(example: Example, rng: np.random.Generator, *, n: int) -> Example:
  """The example with `views`, its image n times, in the place of the image; nothing is copied.

  Raises:
    ValueError: there are views already, or as of `apply`.
  """
  del rng
  if 'views' in example:
    raise ValueError('the example has views already; make them once in the host transforms')
  image = _pixels(example['image'])
  return with_views(example, np.broadcast_to(image, (n, *image.shape)))


def with_views(example: Example, views: np.ndarray) -> Example:
  """The example with `views [V, H, W, C]` in the place of the image."""
  return {**{key: value for key, value in example.items() if key != 'image'}, 'views': views}


def is_encoded(image: Any) -> bool:
  """Whether an image is a file's bytes, still to be decoded."""
  return isinstance(image, (bytes, bytearray, memoryview))


def _pixels(image: Any) -> np.ndarray:
  if is_encoded(image):
    raise ValueError("image is still encoded; put 'decode' first in the host transforms")
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in MODES:
    raise ValueError(
      f'image is {image.dtype} {list(image.shape)}; '
      'host transforms take uint8 [H, W, C] with C of 1, 3 or 4'
    )
  return image
