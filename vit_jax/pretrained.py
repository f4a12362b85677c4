"""`vit_jax.load`: a published checkpoint, or a run of ours, as a model that takes images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.adapters.formats import open_checkpoint
from vit_jax.adapters.layout import Layout, Preprocessing, innermost, inside
from vit_jax.adapters.mapping import HEAD
from vit_jax.adapters.read import read_variables
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.image_text import ImageTextModel
from vit_jax.model import Model, method_of


def load(
  location: str | Path,
  *,
  format: str | None = None,
  image_size: int | tuple[int, int] | None = None,
  num_classes: int | None = None,
  encoder: Mapping[str, Any] | None = None,
  mesh: Mesh | None = None,
  step: str | int = 'last',
  average: bool = False,
  sha256: str | None = None,
  progress: bool = True,
  seed: int = 0,
  **facts: Any,
) -> Model:
  """Loads a checkpoint as a model that takes images.

  Args:
    location: a name that `list_checkpoints` prints, such as 'augreg/B/16-i21k'; a file
      (`.safetensors`, `.npz`, `.bin`, `.pt`, `.pth`), or a folder of one with its `config.json`;
      the folder of a run; or an address: `https://`, `gs://`, `hf://org/name`. Of a file with
      several models one is chosen by its prefix: `file.npz:params/img`.
    format: 'vision_transformer', 'big_vision', 'timm', 'transformers', ...; None finds out.
    image_size: side in pixels, or `(height, width)`, that the model is to take; positions are
      interpolated to its grid. None: the checkpoint's.
    num_classes: outputs of a new head, all zeros, in the place of the checkpoint's.
    encoder: fields of the encoder to change, such as `dict(scan=True, dtype='bfloat16')`; another
      `patch_size` resizes the kernel of the patches (arXiv:2212.08013).
    mesh: where the parameters go, each device with its shard alone. None: the default device.
    step: of a run: a number, 'last' or 'best'.
    average: of a run: the averaged parameters in the place of the last ones.
    sha256: what the file's bytes must give, in hexadecimal digits.
    progress: whether to show the bar of a download.
    seed: of what the checkpoint has not.
    **facts: what the file does not say; an error names the one that is missed: `num_heads`,
      `activation`, `ln_eps`, `grid`, `pooling`, `mean`, `std`, `classes`;
      `tower='image'` loads a CLIP's encoder of images alone.

  Returns:
    The model. Its `report` says what was loaded, resized, initialised, missing and not used.

  Raises:
    FileNotFoundError: no such file or checkpoint.
    ValueError: an unknown name, format or fact; a damaged file, or one that would run code; an
      array that is missing or does not fit: one sentence that names file and array.
    ConnectionError: the server cannot be reached or stopped midway.
  """
  # Of a new head, the file need not know them.
  named_classes = facts.pop('classes', None) if num_classes is not None else None
  tensors, layout = open_checkpoint(
    location,
    facts,
    format=format,
    step=step,
    average=average,
    sha256=sha256,
    progress=progress,
  )
  size = (image_size,) * 2 if isinstance(image_size, int) else image_size
  preprocessing = layout.preprocessing.resized(tuple(size or layout.preprocessing.size))
  spec = change_spec(layout.objective, preprocessing.size, encoder or {}, num_classes)
  objective = build_model(spec)
  init = _init(objective, spec, preprocessing, seed)
  boxed = jax.eval_shape(init)
  targets = named(nn.unbox(boxed))
  # As it was published, a model is traced once.
  same = spec == layout.objective and preprocessing == layout.preprocessing
  native = layout.shapes or (shapes_of(targets) if same else native_shapes(layout))
  if mesh is not None:
    placed = named(sharding.parameter_shardings(boxed, mesh))
    targets = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[name])
      for name, x in targets.items()
    }
  arrays, report = read_variables(
    tensors,
    layout,
    native,
    targets,
    grid=innermost(spec).get('grid'),
    leave=lambda name: num_classes is not None and name.startswith(f'{HEAD}/'),
  )
  arrays |= _initial(init, {n: x for n, x in targets.items() if n not in arrays})
  variables = traverse_util.unflatten_dict({n: arrays[n] for n in targets}, sep='/')
  classes = layout.classes if num_classes is None else named_classes or ()
  outputs = getattr(objective, 'num_classes', len(classes))
  if method_of(spec) == 'logits' and len(classes) > outputs:
    raise ValueError(f'{len(classes)} classes are named, and the head has {outputs} outputs')
  made = objective, variables, preprocessing, report, spec, classes
  return ImageTextModel(*made, layout.tokenizer) if 'text' in spec else Model(*made)


def change_spec(
  objective: Mapping[str, Any],
  size: tuple[int, int],
  encoder: Mapping[str, Any],
  num_classes: int | None,
) -> dict[str, Any]:
  """A checkpoint's model for images of another size, with fields changed.

  Args:
    objective: of a `Layout`.
    size: `(height, width)` of the images.
    encoder: fields of the images' innermost encoder to change.
    num_classes: outputs of a new head; None keeps what there is.

  Raises:
    ValueError: a new head of a model with a text tower, or the patch does not divide the size.
  """
  spec = {**objective}
  if num_classes is not None:
    if 'text' in spec:
      raise ValueError("a model with a text tower has no head; tower='image' loads the other alone")
    spec['num_classes'] = num_classes
  inner = spec
  while (name := inside(inner)) is not None:
    inner[name] = {**inner[name]}
    inner = inner[name]
  inner.update(encoder)
  if inner.get('grid'):
    patch = build({**inner, 'grid': None}).patch
    if any(s % p for s, p in zip(size, patch, strict=True)):
      raise ValueError(
        f'image_size {size[0]}x{size[1]} is not divisible by patches of {patch[0]}x{patch[1]}'
      )
    inner['grid'] = tuple(s // p for s, p in zip(size, patch, strict=True))
  return spec


def build_model(spec: Mapping[str, Any]) -> nn.Module:
  """What a layout's objective describes, also where it has no head or nobody says mean and std."""
  defaults = {'num_classes': 1} if method_of(spec) == 'features' else {}
  known = {name: value for name, value in spec.items() if value is not None}
  return build({**defaults, **known})


def native_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
  """Shapes of the variables that a layout's rules speak of, by name."""
  init = _init(build_model(layout.objective), layout.objective, layout.preprocessing, 0)
  return shapes_of(named(nn.unbox(jax.eval_shape(init))))


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """The shape of each array."""
  return {name: tuple(x.shape) for name, x in arrays.items()}


def _init(
  objective: nn.Module, spec: Mapping[str, Any], preprocessing: Preprocessing, seed: int
) -> Callable[[], Any]:
  """A function that makes the model's variables anew, boxed."""

  def init() -> Any:
    key = jax.random.PRNGKey(seed)
    image = jnp.zeros((1, *preprocessing.size, preprocessing.channels), jnp.uint8)
    if 'text' not in spec:
      return objective.init(key, {'image': image}, method=method_of(spec))
    text = jnp.zeros((1, 1), jnp.int32)  # No parameter has the length of a text.
    return objective.init(key, {'image': image, 'text': text}, train=False)

  return init


def _initial(init: Callable[[], Any], targets: Mapping[str, Any]) -> dict[str, Any]:
  """New values of these variables alone, in their shards."""
  if not targets:
    return {}
  placed = {name: getattr(x, 'sharding', None) for name, x in targets.items()}
  make = jax.jit(
    lambda: {name: x for name, x in named(nn.unbox(init())).items() if name in targets},
    out_shardings=placed if all(placed.values()) else None,
  )
  return make()
