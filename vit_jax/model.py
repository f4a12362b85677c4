"""A model with its weights and its preprocessing: images in, logits or features out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import compose
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.arrays import Array
from vit_jax.data import transforms
from vit_jax.data.decode import as_array, decode_image

BATCH_SIZE = 32
_SUPERVISED = 'objectives.supervised.Supervised'


def method_of(spec: Mapping[str, Any]) -> str:
  """What a model of this spec is called for: 'logits', or 'features' where it has no head."""
  headless = spec['type'] == _SUPERVISED and spec.get('num_classes') is None
  return 'features' if headless else 'logits'


class Model:
  """A model that takes images; `vit_jax.load` makes it.

  Attributes:
    objective: the Linen module; `objective.encoder` is the encoder.
    variables: its parameters and collections, `{'params': ...}`.
    preprocessing: what an image goes through before it is normalised.
    report: what was loaded, resized, initialised, missing and not used.
    spec: what `build` makes the objective of; mean and std are None where nobody says them.
    classes: names of the outputs; empty where they are not known.
  """

  def __init__(
    self,
    objective: nn.Module,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    report: Report,
    spec: Mapping[str, Any],
    classes: Sequence[str] = (),
  ):
    """Takes what `load` has made."""
    self.objective, self.variables, self.preprocessing = objective, variables, preprocessing
    self.report, self.spec, self.classes = report, spec, tuple(classes)
    self._compiled: dict[Any, Callable[..., Any]] = {}

  @property
  def params(self) -> Any:
    """The parameters, a nested dict."""
    return self.variables['params']

  @property
  def has_head(self) -> bool:
    """Whether it gives logits."""
    return method_of(self.spec) == 'logits'

  def __call__(self, images: Any, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Logits `[N, K]` of images, or, without a head, features `[N, D]`; float32.

    Args:
      images: uint8 `[N, H, W, C]` or `[H, W, C]`, or a list of such, of PIL images, or of encoded
        files' bytes, of any sizes. Each goes through `preprocessing`.
      batch_size: how many at once. A rest is padded to a power of two, so that few shapes are
        compiled.

    Raises:
      ValueError: no images, or nobody knows mean and std.
    """
    return self._apply(method_of(self.spec), images, batch_size)

  def features(self, images: Any, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Pooled features `[N, D]` of images, as of a call."""
    return self._apply('features', images, batch_size)

  def preprocess(self, images: Any) -> np.ndarray:
    """From images of any sizes to uint8 `[N, H, W, C]`, as the model takes them.

    Args:
      images: as of a call.

    Raises:
      ValueError: what is no image.
    """
    steps = _host(self.preprocessing.host)
    channels, size = self.preprocessing.channels, self.preprocessing.size
    rng = np.random.default_rng(0)  # No transform of evaluation draws from it.
    out = []
    for image in _as_list(images):
      example = {'image': _as_array(image, channels)}
      for step in steps:
        example = step(example, rng)
      if example['image'].shape[:2] != size:
        (resize,) = _host(f'resize{size}')
        example = resize(example, rng)
      out.append(example['image'])
    return np.stack(out)

  def _apply(self, method: str, images: Any, batch_size: int) -> np.ndarray:
    for name in ('mean', 'std'):
      if name in self.spec and self.spec[name] is None:
        raise ValueError(
          f'nobody says by which {name} images are normalised; pass load(..., {name}=...), '
          'one number a channel on the scale [0, 1]'
        )
    images = _as_list(images)
    if batch_size < 1:
      raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    out = []
    for start in range(0, len(images), batch_size):
      batch = self.preprocess(images[start : start + batch_size])
      count = len(batch)
      padded = min(batch_size, 1 << (count - 1).bit_length())
      batch = np.concatenate([batch, np.zeros((padded - count, *batch.shape[1:]), np.uint8)])
      out.append(np.asarray(self._function(method)(self.variables, batch))[:count])
    return np.concatenate(out)

  def _function(self, method: str) -> Callable[..., Array]:
    """The jitted method; compiled once a shape."""
    if method not in self._compiled:
      self._compiled[method] = jax.jit(
        lambda variables, image: self.objective.apply(variables, {'image': image}, method=method)
      )
    return self._compiled[method]


@functools.cache
def _host(text: str) -> list[Callable[..., Any]]:
  return compose.build(text, transforms)


def _as_list(images: Any) -> Sequence[Any]:
  single = isinstance(images, bytes) or hasattr(images, 'convert') or np.ndim(images) in (2, 3)
  if single and not isinstance(images, list | tuple):
    images = [images]
  if not len(images):
    raise ValueError('there are no images')
  return images


def _as_array(image: Any, channels: int) -> np.ndarray:
  """One image as uint8 `[H, W, channels]`."""
  if isinstance(image, bytes):
    return decode_image(image, channels)
  if hasattr(image, 'convert'):  # PIL's
    return as_array(image, channels)
  array = np.asarray(image)
  if array.dtype != np.uint8 or array.ndim not in (2, 3):
    raise ValueError(
      f'an image is {array.dtype} {list(array.shape)}; take uint8 [H, W, C], a PIL image, or the '
      'bytes of a file'
    )
  array = array if array.ndim == 3 else array[:, :, None]
  if array.shape[2] == 1 and channels > 1:
    array = np.repeat(array, 3, axis=2)
  if array.shape[2] == 3 and channels == 4:
    array = np.concatenate([array, np.full_like(array[:, :, :1], 255)], axis=2)
  if array.shape[2] != channels:
    raise ValueError(f'an image has {array.shape[2]} channels and the model takes {channels}')
  return array
