"""`vit_jax augment --config CONFIG`: draws training images before and after augmentation."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import numpy as np

OVERRIDES = True  # What argparse does not know are fields of the config.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('--config', required=True, help='a file of configs/, or file.py:argument')
  parser.add_argument(
    '--out', default='augmentations.png', metavar='FILE', help='the picture (augmentations.png)'
  )
  parser.add_argument('--images', type=int, default=4, metavar='N', help='training images (4)')
  parser.add_argument('--times', type=int, default=6, metavar='N', help='draws of each (6)')
  parser.add_argument(
    '--operations',
    action='store_true',
    help="single operations, as Figure 4 of arXiv:2002.05709, in place of the config's chain",
  )
  parser.epilog = "any field of the config can be set: --config.objective.augment='flip | blur'"


def run(args: argparse.Namespace) -> int:
  """Writes the picture; returns 0.

  Raises:
    ValueError: a config without images or without augmentation, or a wrong number.
    OSError: the file cannot be written.
  """
  from PIL import Image

  from vit_jax import config as config_lib
  from vit_jax.plots import augmentations

  for name, value in (('--images', args.images), ('--times', args.times)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  config = config_lib.load(args.config, args.overrides)
  operations, title = augmentations.DEFAULTS, 'Operations'
  if not args.operations:
    chains = _chains(config_lib.plain(config.objective))
    operations = {
      f'{name} {i}'.strip(): text for name, text in chains.items() for i in range(1, args.times + 1)
    }
    title = ' / '.join(chains.values())
  images = training_images(config, args.images)
  picture = augmentations.augmentations(images, operations, seed=config.seed, title=title)
  out = Path(args.out).expanduser()
  out.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(out)
  print(out)
  return 0


def training_images(config: Any, count: int) -> 'list[np.ndarray]':
  """Some training images as the host transforms leave them; each of several views is one.

  Args:
    config: with `data.source`, `data.host` and `seed`, which decides which images and all draws.
    count: of images, of which there may be several views.

  Returns:
    Arrays [H, W, C] uint8.

  Raises:
    ValueError: the examples have no images, or host transforms do not fit.
  """
  import numpy as np

  from vit_jax import build, compose
  from vit_jax.data import transforms
  from vit_jax.data.substitute import Load

  source = build.build(config.data.source)
  load = Load(source, compose.build(config.data.host, transforms))
  rng = np.random.default_rng(config.seed)
  images = []
  for i in rng.permutation(len(source))[:count].tolist():
    example = load(i, rng)
    if 'views' not in example and 'image' not in example:
      raise ValueError(f'examples of the source have {sorted(example)} and no image to augment')
    images += list(example['views']) if 'views' in example else [example['image']]
  return images


def _chains(objective: Any) -> dict[str, str]:
  """The augmentations of a config's objective by name, '' where there is one for all views."""
  found = _augment(objective)
  if not found:
    raise ValueError('config.objective has no augment; --operations draws single operations')
  if isinstance(found, str):
    return {'': found}
  return {f'view {i}:': text for i, text in enumerate(found, 1)}


def _augment(objective: Any) -> str | Sequence[str]:
  """The field `augment` of an objective, or of the first objective inside it that has one."""
  if not isinstance(objective, dict):
    return ''
  if objective.get('augment'):
    return objective['augment']
  return next(filter(None, map(_augment, objective.values())), '')
