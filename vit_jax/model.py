"""A model with its weights and its preprocessing: images in, logits or features out."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from PIL import Image

from vit_jax import compose
from vit_jax.adapters import write
from vit_jax.adapters.layout import TOWERS, Preprocessing, inside
from vit_jax.adapters.read import Report
from vit_jax.arrays import Array, Batch
from vit_jax.data import transforms
from vit_jax.data.decode import MODES, as_array, decode_image

if TYPE_CHECKING:
  from vit_jax.convert import Written

BATCH_SIZE = 32
PLATFORMS = ('cpu', 'cuda', 'tpu')
_SUPERVISED = 'objectives.supervised.Supervised'


def method_of(spec: Mapping[str, Any]) -> str:
  """What a model is called for: 'logits', 'features' without a head, 'embeddings' beside texts."""
  if 'text' in spec:
    return 'embeddings'
  headless = spec['type'] == _SUPERVISED and spec.get('num_classes') is None
  return 'features' if headless else 'logits'


class Model:
  """A model that takes images; `vit_jax.load` makes it.

  Images are uint8 `[N, H, W, C]` or `[H, W, C]`, or a list of such, of PIL images, or of encoded
  files' bytes, of any sizes, and grey, colour or transparent. Each goes through `preprocessing`;
  not so with `preprocessed=True`, where they are what `preprocess` has given. They are looked at
  `batch_size` at once; a rest is padded to a power of two, so that few shapes are compiled.

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
    self._compiled: dict[str, Callable[..., Array]] = {}

  def replaced(
    self, objective: nn.Module, variables: Mapping[str, Any], spec: Mapping[str, Any]
  ) -> 'Model':
    """The same with another module, its variables, and what `build` makes it of."""
    return Model(objective, variables, self.preprocessing, self.report, spec, self.classes)

  @property
  def params(self) -> Any:
    """The parameters, a nested dict."""
    return self.variables['params']

  @property
  def has_head(self) -> bool:
    """Whether it gives logits."""
    return method_of(self.spec) == 'logits'

  @property
  def has_text(self) -> bool:
    """Whether it has a text tower."""
    return method_of(self.spec) == 'embeddings'

  def __call__(
    self, images: Any, *, batch_size: int = BATCH_SIZE, preprocessed: bool = False
  ) -> np.ndarray:
    """Logits `[N, K]` of images; features `[N, D]` without a head, embeddings beside texts.

    Raises:
      ValueError: no images, or nobody knows mean and std.
    """
    return self._apply(method_of(self.spec), images, batch_size, preprocessed)

  def probabilities(
    self, images: Any, *, batch_size: int = BATCH_SIZE, preprocessed: bool = False
  ) -> np.ndarray:
    """How likely each class is, `[N, K]`: of classes that exclude each other, or of each alone.

    The latter are those of a run whose `loss` is 'sigmoid'.

    Raises:
      ValueError: as of a call, or there is no head.
    """
    if not self.has_head:
      gives = method_of(self.spec)
      raise ValueError(f'{self.report.origin} has no head, so it gives {gives} and no classes')
    logits = self(images, batch_size=batch_size, preprocessed=preprocessed)
    return np.asarray(
      jax.nn.sigmoid(logits) if self.spec.get('loss') == 'sigmoid' else jax.nn.softmax(logits)
    )

  def features(
    self, images: Any, *, batch_size: int = BATCH_SIZE, preprocessed: bool = False
  ) -> np.ndarray:
    """Pooled features `[N, D]` of images, float32."""
    return self._apply('features', images, batch_size, preprocessed)

  def tokens(
    self, images: Any, *, batch_size: int = BATCH_SIZE, preprocessed: bool = False
  ) -> np.ndarray:
    """The encoder's last tokens `[N, n, D]` of images, one a patch, row by row; float32."""
    return self._apply(_tokens, images, batch_size, preprocessed)

  def preprocess(self, images: Any) -> np.ndarray:
    """From images of any sizes to uint8 `[N, H, W, C]`, as the model takes them.

    Raises:
      ValueError: what is no image.
    """
    host, size = self.preprocessing.host, self.preprocessing.size
    steps = [*_host(host), *_host(f'resize{size}')]  # The last of most does nothing.
    rng = np.random.default_rng(0)  # No transform of evaluation draws from it.
    out = []
    for image in _as_list(images):
      example = {'image': _as_array(image, self.preprocessing.channels, orient=_orients(host))}
      for step in steps:
        example = step(example, rng)
      out.append(example['image'])
    return np.stack(out)

  def save(
    self, path: str | Path, format: str | None = None, *, overwrite: bool = False
  ) -> 'Written':
    """Writes the model as a file of some format; see `vit_jax.convert.save`."""
    from vit_jax import convert  # It imports this module.

    return convert.save(self, path, format, overwrite=overwrite)

  def export(
    self,
    path: str | Path,
    *,
    batch_size: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
  ) -> None:
    """Writes a program, its weights inside, that JAX runs without this package.

    ```
    from jax import export
    program = export.deserialize(bytearray(open(path, 'rb').read()))
    logits = program.call(images)  # uint8 [N, H, W, C] of the model's size, as `preprocess` gives
    ```

    Without a head it gives features, beside a text tower embeddings. Writing it takes five times
    the memory of the weights.

    JAX guarantees that releases up to 6 months newer than the one that exported can run it, and
    those up to 3 weeks older:
    https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees. That guarantee does
    not hold for layouts in memory, so that attention is `jax.nn.dot_product_attention` here, and
    results differ from the model's by rounding.

    Args:
      path: of the file.
      batch_size: the only N that it takes; None for any.
      platforms: where it is to run: 'cpu', 'cuda', 'rocm', 'tpu'.

    Raises:
      ValueError: nobody knows mean and std, or the weights have 2 GiB or more, which the format
        has no place for.
    """
    self._check_colours()
    variables = jax.tree.map(np.asarray, self.variables)
    if sum(x.nbytes for x in jax.tree.leaves(variables)) >= 2**31:
      raise ValueError(f'{self.report.origin} has weights of 2 GiB or more; jax.export takes less')
    objective, method = self.objective, method_of(self.spec)
    tower = inside(self.spec)
    encoder = tower and getattr(objective, tower)
    if hasattr(encoder, 'attention'):
      objective = objective.clone(**{tower: encoder.clone(attention='xla')})

    def program(images: Array) -> Array:
      out = objective.apply(variables, {'image': images}, method=method)
      return out.astype(jnp.float32)

    (count,) = (batch_size,) if batch_size else jax_export.symbolic_shape('batch')
    shape = count, *self.preprocessing.size, self.preprocessing.channels
    exported = jax_export.export(jax.jit(program), platforms=list(platforms))
    data = exported(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize()
    with write.whole(Path(os.path.expanduser(path))) as partial:
      partial.write_bytes(data)

  def _apply(
    self, method: str | Callable[..., Array], images: Any, batch_size: int, preprocessed: bool
  ) -> np.ndarray:
    self._check_colours()
    make = np.asarray if preprocessed else self.preprocess
    return self._in_batches(method, 'image', _as_list(images), batch_size, make)

  def _in_batches(
    self,
    method: str | Callable[..., Array],
    key: str,
    examples: Sequence[Any],
    batch_size: int,
    make: Callable[[Any], np.ndarray] = np.asarray,
  ) -> np.ndarray:
    """What a method gives for examples, which `make` makes an array of, under a batch's key."""
    if batch_size < 1:
      raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    out = []
    for start in range(0, len(examples), batch_size):
      batch = make(examples[start : start + batch_size])
      count = len(batch)
      padded = min(batch_size, 1 << (count - 1).bit_length())
      batch = np.concatenate([batch, np.zeros((padded - count, *batch.shape[1:]), batch.dtype)])
      result = self._function(method)(self.variables, {key: batch})
      out.append(np.asarray(result, np.float32)[:count])
    return np.concatenate(out)

  def _function(self, method: str | Callable[..., Array]) -> Callable[..., Array]:
    """The jitted method; compiled once a shape."""
    if method not in self._compiled:
      apply = method if callable(method) else functools.partial(_call, method=method)
      self._compiled[method] = jax.jit(functools.partial(apply, self.objective))
    return self._compiled[method]

  def _check_colours(self) -> None:
    for name in ('mean', 'std'):
      if name in self.spec and self.spec[name] is None:
        raise ValueError(
          f'nobody says by which {name} images are normalised; pass load(..., {name}=...), '
          'one number a channel on the scale [0, 1]'
        )


def _call(objective: nn.Module, variables: Any, batch: Batch, *, method: str) -> Array:
  return objective.apply(variables, batch, method=method)


def _tokens(objective: nn.Module, variables: Any, batch: Batch) -> Array:
  """What the encoder of images gives for tokens while features are computed."""
  tower = next(name for name in TOWERS if hasattr(objective, name))
  _, state = objective.apply(
    variables,
    batch,
    method='features',
    capture_intermediates=lambda module, name: (module.path, name) == ((tower,), '__call__'),
    mutable=['intermediates'],
  )
  return state['intermediates'][tower]['__call__'][0].tokens


@functools.cache
def _host(text: str) -> list[Callable[..., Any]]:
  return compose.build(text, transforms)


@functools.cache
def _orients(host: str) -> bool:
  """Whether the host transforms turn an encoded image as its EXIF tag says."""
  decoders = [call for call in compose.parse(host) if call.name == 'decode']
  return any(call.kwargs.get('orient', call.args[1:2] == (True,)) for call in decoders)


def _as_list(images: Any) -> Sequence[Any]:
  if not isinstance(images, list | tuple):
    single = isinstance(images, bytes | Image.Image) or np.ndim(images) in (2, 3)
    images = [images] if single else images
  if not len(images):
    raise ValueError('there are no images')
  return images


def _as_array(image: Any, channels: int, *, orient: bool = False) -> np.ndarray:
  """One image as uint8 `[H, W, channels]`, converted as `decode_image` says."""
  if isinstance(image, bytes):
    return decode_image(image, channels, orient=orient)
  if not isinstance(image, Image.Image):
    array = np.asarray(image)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in MODES:
      raise ValueError(
        f'an image is {array.dtype} {list(array.shape)}; take uint8 [H, W, C] with C of 1, 3 or 4, '
        'a PIL image, or the bytes of a file'
      )
    if array.shape[2] == channels:
      return array
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
  return as_array(image, channels)
