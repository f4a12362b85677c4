"""The 'preprocessor_config.json' of transformers: what an image goes through, in and out."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.adapters.hf_config import pair
from vit_jax.adapters.layout import Preprocessing, share_of

FILE = 'preprocessor_config.json'
# Pillow's numbers of the filters that our transforms have.
FILTERS = {1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
# Processors to which a size of one number is the shorter side; to the others it is both.
SHORTER = ('CLIP', 'Bit')

Colour = Sequence[float] | None


def read_preprocessing(
  path: str,
  files: Mapping[str, Any],
  native: tuple[int, int],
  patch: tuple[int, int],
  channels: int,
  processor: str,
) -> tuple[Preprocessing, Colour, Colour]:
  """What an image goes through, and what it is normalised by.

  A size that the patch does not divide is rounded down to one that it does. There transformers
  leaves the last rows and columns of pixels out; here they are resized with the others.

  Args:
    path: of the weights, for messages.
    files: the JSON files beside them, by name.
    native: `(height, width)` of the learned positions, in pixels: the size where no file says it.
    patch: of the model.
    channels: of its images.
    processor: the class of the family's image processor, where the file does not say it.

  Returns:
    The preprocessing, mean and std; the last two are None where nobody says them.

  Raises:
    ValueError: it does what we have no transform for.
  """
  keys = files.get(FILE)
  if keys is None:
    return Preprocessing(native, channels=channels), None, None
  processor = keys.get('image_processor_type', keys.get('feature_extractor_type', processor))
  try:
    preprocessing = _read_sizes(keys, patch, channels, processor)
    mean, std = _read_colours(keys, channels)
  except ValueError as e:
    raise ValueError(f'{FILE} beside {path}: {e}') from None
  return dataclasses.replace(preprocessing, channels=channels), mean, std


def write_preprocessing(preprocessing: Preprocessing, mean: Any, std: Any) -> dict[str, Any] | None:
  """What makes transformers do the same to an image.

  Args:
    preprocessing: of the model.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel; None: not known.
    std: likewise.

  Returns:
    What the file holds; None where it cannot say it: of a model with transforms of its own, or
    with a mean or std that nobody says.
  """
  if preprocessing.transforms or mean is None or std is None:
    return None
  size = dict(zip(('height', 'width'), preprocessing.size, strict=True))
  share = preprocessing.crop_share
  squash = share is None
  number = next(n for n, name in FILTERS.items() if name == preprocessing.interpolation)
  keys = {
    'image_processor_type': 'ViTImageProcessor' if squash else 'CLIPImageProcessor',
    'do_resize': True,
    'size': size if squash else {'shortest_edge': math.floor(min(preprocessing.size) / share)},
    'resample': number,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': _by_channel(mean, preprocessing.channels),
    'image_std': _by_channel(std, preprocessing.channels),
  }
  return keys if squash else {**keys, 'do_center_crop': True, 'crop_size': size}


def _read_sizes(
  keys: Mapping[str, Any], patch: tuple[int, int], channels: int, processor: str
) -> Preprocessing:
  number = keys.get('resample', 2 if processor.startswith('ViT') else 3)
  if number not in FILTERS:
    raise ValueError(f'resample is {number}; known are {FILTERS}')
  size = keys.get('size')
  if not size or not keys.get('do_resize', True):
    raise ValueError('it does not resize images')
  crop = keys.get('crop_size')
  crop = pair(crop) if crop and keys.get('do_center_crop', True) else None
  if isinstance(size, int) and processor.startswith(SHORTER):
    size = {'shortest_edge': size}
  if isinstance(size, Mapping) and 'height' not in size:
    shorter = size.get('shortest_edge')
    if shorter is None or crop is None or min(crop) > shorter:
      raise ValueError(f'with size {size} and a crop of {crop} images have no one size')
    final = _divisible(crop, patch)
    return Preprocessing(final, share_of(min(final), shorter), FILTERS[number])
  size = pair(size)
  final = _divisible(crop or size, patch)
  if crop in (None, size):
    return Preprocessing(final, None, FILTERS[number])
  resize = f'resize({size[0]}, {size[1]}, {FILTERS[number]!r})'  # whatever the aspect
  crop = f'central_crop({final[0]}, {final[1]})'
  return Preprocessing(final, transforms=f'decode(channels={channels}) | {resize} | {crop}')


def _read_colours(keys: Mapping[str, Any], channels: int) -> tuple[Colour, Colour]:
  factor = keys.get('rescale_factor', 1 / 255)
  if not keys.get('do_rescale', True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
    raise ValueError('pixels are not scaled by 1/255')
  if not keys.get('do_normalize', True):
    return _by_channel(0.0, channels), _by_channel(1.0, channels)
  mean, std = keys.get('image_mean'), keys.get('image_std')
  return mean and _by_channel(mean, channels), std and _by_channel(std, channels)


def _by_channel(value: Any, channels: int) -> list[float]:
  if np.size(value) not in (1, channels):
    raise ValueError(f'{value} is neither one number nor one for each of {channels} channels')
  return np.broadcast_to(value, channels).tolist()


def _divisible(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
  height, width = (s // p * p for s, p in zip(size, patch, strict=True))
  return height, width
