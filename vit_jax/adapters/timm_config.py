"""The 'config.json' of timm: what it says of a model and of its images, in and out.

`timm/models/_hub.py` reads and writes it, `timm/data/config.py` has the defaults.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_jax.adapters.layout import Facts, Preprocessing
from vit_jax.choices import check_choice

if TYPE_CHECKING:
  from vit_jax.model import Model

FILE = 'config.json'
CROP_PCT, CROP_MODE, INTERPOLATION = 0.875, 'center', 'bicubic'  # where the file leaves them out
# Of timm's, those that our host transforms have.
CROP_MODES = ('center', 'squash')
INTERPOLATIONS = ('bilinear', 'bicubic', 'lanczos')

Colour = Sequence[float] | None


class Config(NamedTuple):
  """What a 'config.json' says.

  Attributes:
    path: of the weights, for messages.
    architecture: timm's function that makes the model, 'vit_base_patch16_224'; '' without a file.
    args: what it is called with, beside its defaults.
    images: what the weights were made for; timm's `pretrained_cfg`.
    global_pool: how the model pools; '' where nobody says it.
    labels: names of the classes, where they are known.
  """

  path: str
  architecture: str = ''
  args: Mapping[str, Any] = {}
  images: Mapping[str, Any] = {}
  global_pool: str = ''
  labels: Sequence[str] = ()

  def refuse(self, what: str) -> ValueError:
    """The error for a model that has what no model here has."""
    return ValueError(f'{self.path}: {FILE} has {what}, which no model here has')


def find_config(path: str, files: Mapping[str, Any]) -> Config:
  """What the 'config.json' beside weights says; nothing where it is not timm's.

  Args:
    path: of the weights.
    files: the JSON files beside them, by name.
  """
  keys = files.get(FILE) or {}
  if 'architecture' not in keys:
    return Config(path)
  images = keys.get('pretrained_cfg', keys)  # Older files have all in one.
  args = keys.get('model_args') or {}
  pool = args.get('global_pool', keys.get('global_pool'))
  labels = keys.get('label_names') or images.get('label_names') or ()
  return Config(path, keys['architecture'], args, images, pool or '', labels)


def read_images(
  config: Config, native: tuple[int, int], patch: tuple[int, int], channels: int
) -> tuple[Preprocessing, Colour, Colour]:
  """What an image goes through, and what it is normalised by, as in timm's validation.

  A size that the patch does not divide is rounded down to one that it does. There timm leaves the
  last rows and columns of pixels out; here they are resized with the others.

  Args:
    config: of the model.
    native: `(height, width)` where no file says the size.
    patch: of the model.
    channels: of its images.

  Returns:
    The preprocessing, mean and std; the last two are None where nobody says them.

  Raises:
    ValueError: it does what we have no transform for.
  """
  if not config.architecture:
    return Preprocessing(native, channels=channels), None, None
  images = config.images
  # The size that was tested may be another than that of training.
  size = images.get('test_input_size') or config.args.get('img_size') or images.get('input_size')
  height, width = (s // p * p for s, p in zip(pair(size or native), patch, strict=True))
  share = images.get('test_crop_pct') or images.get('crop_pct') or CROP_PCT
  mode = images.get('crop_mode') or CROP_MODE
  filter_ = images.get('interpolation') or INTERPOLATION
  try:
    check_choice('crop_mode', mode, CROP_MODES)
    check_choice('interpolation', filter_, INTERPOLATIONS)
  except ValueError as e:
    raise ValueError(f'{FILE} beside {config.path}: {e}') from None
  crop = None if mode == 'squash' else share
  preprocessing = Preprocessing((height, width), crop, filter_, channels)
  if mode == 'squash' and share != 1:
    resize = f'resize({int(height / share)}, {int(width / share)}, {filter_!r})'
    host = f'decode(channels={channels}) | {resize} | central_crop({height}, {width})'
    preprocessing = Preprocessing((height, width), channels=channels, transforms=host)
  return preprocessing, images.get('mean'), images.get('std')


def class_names(config: Config, count: int | None, facts: Facts) -> Sequence[str]:
  """Names of so many classes, in order; () where nobody says them."""
  known = config.labels if len(config.labels) == count else ()
  return facts.get('classes', tuple(known)) if count else ()


def write_config(
  model: 'Model', architecture: str, args: Mapping[str, Any], first: str, head: str
) -> dict[str, Any]:
  """The file with which timm makes a model of a folder.

  What an image goes through is left out where it cannot be said so, that is of host transforms of
  its own and where nobody says mean and std; timm then takes its defaults.

  Args:
    model: the model.
    architecture: timm's function that makes it, and
    args: what it is called with.
    first: timm's name of the layer that sees pixels.
    head: of the classifier.
  """
  preprocessing = model.preprocessing
  classes = model.objective.num_classes if model.has_head else 0
  images = {
    'input_size': [preprocessing.channels, *preprocessing.size],
    'fixed_input_size': 'img_size' in args,
    'num_classes': classes,
    'first_conv': first,
    'classifier': head,
  }
  for name in ('mean', 'std'):
    value = model.spec.get(name, getattr(model.objective, name))
    if value is not None:
      images[name] = np.broadcast_to(value, preprocessing.channels).tolist()
  if not preprocessing.transforms:
    share = preprocessing.crop_share
    images |= {
      'interpolation': preprocessing.interpolation,
      'crop_pct': 1.0 if share is None else share,
      'crop_mode': 'squash' if share is None else 'center',
    }
  config = {'architecture': architecture, 'num_classes': classes, 'model_args': dict(args)}
  if model.classes:
    config['label_names'] = list(model.classes)
  return {**config, 'pretrained_cfg': images}


def pair(size: Any) -> tuple[int, int]:
  """`(height, width)` of a side, of both, or of channels and both."""
  return (size, size) if isinstance(size, int) else tuple(size[-2:])
