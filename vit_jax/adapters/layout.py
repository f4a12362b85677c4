"""What a published checkpoint is in our terms: the model, its input, and the rules of its names."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.choices import check_choice, listed
from vit_jax.models.hybrid import STEMS
from vit_jax.models.vit import VARIANTS, Size

# Fields that hold an encoder of images: of most objectives, and of one with a text tower.
TOWERS = ('encoder', 'image')


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """From an image of any size to what a model was evaluated on.

  Attributes:
    size: `(height, width)` of the input, in pixels.
    crop_share: the shorter side is resized to `size / crop_share`, and the middle cut out; None
      squashes the image to `size`.
    interpolation: 'bilinear', 'bicubic' or 'lanczos', with antialiasing.
    channels: of the input: 3, 1 or, with the alpha channel, 4.
    transforms: the host transforms of a run of ours, in the place of all that.
  """

  size: tuple[int, int]
  crop_share: float | None = None
  interpolation: str = 'bilinear'
  channels: int = 3
  transforms: str = ''

  @property
  def host(self) -> str:
    """The host transforms, as a config has them."""
    if self.transforms:
      return self.transforms
    how = '' if self.interpolation == 'bilinear' else f', interpolation={self.interpolation!r}'
    size = ', '.join(map(str, dict.fromkeys(self.size)))  # one number for a square
    if self.crop_share is None:
      return f'decode(channels={self.channels}) | resize({size}{how})'
    # As torchvision rounds it: down.
    side = math.floor(min(self.size) / self.crop_share)
    return f'decode(channels={self.channels}) | resize_small({side}{how}) | central_crop({size})'

  def resized(self, size: tuple[int, int]) -> 'Preprocessing':
    """The same for another input size; a run's own transforms are followed by a resize."""
    return self if size == self.size else dataclasses.replace(self, size=size)


def share_of(crop: int, shorter: int) -> float:
  """The `crop_share` of a crop from an image whose shorter side is resized to so many pixels."""
  share = crop / shorter
  return share if math.floor(crop / share) == shorter else math.nextafter(share, 0)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a checkpoint holds.

  Attributes:
    format: its name, such as 'timm'.
    objective: what `build` makes the model of: `objectives.supervised.Supervised` with an encoder
      whose blocks are one by one and, of a ViT with learned positions, whose `grid` is stated.
      Without `num_classes` it has no head; `mean` and `std` are None where nobody says them. Or
      `objectives.clip.CLIP`, with such an encoder as `image`.
    preprocessing: of its images.
    rules: from its arrays to variables called 'params/encoder/...', 'params/head/...',
      'batch_stats/encoder/...'; of both towers 'params/image/...', 'params/text/...'.
    classes: names of the outputs, where they are known.
    shapes: of the variables, by name, where the file itself has them; else those of `objective`.
    tokenizer: what `build` makes the text tower's tokenizer of; None where nobody says it.
  """

  format: str
  objective: Mapping[str, Any]
  preprocessing: Preprocessing
  rules: Sequence[Rule]
  classes: Sequence[str] = ()
  shapes: Mapping[str, tuple[int, ...]] | None = None
  tokenizer: Mapping[str, Any] | None = None

  @property
  def encoder(self) -> Mapping[str, Any]:
    """The innermost encoder's fields."""
    return innermost(self.objective)


def innermost(spec: Mapping[str, Any]) -> Mapping[str, Any]:
  """What an objective, or an encoder around another, is made on: the last one inside."""
  while (name := inside(spec)) is not None:
    spec = spec[name]
  return spec


def inside(spec: Mapping[str, Any]) -> str | None:
  """The field of an objective, or of an encoder around another, that holds the images' encoder."""
  return next((name for name in TOWERS if name in spec), None)


def image_tower(layout: Layout) -> Layout:
  """Of a layout of both towers, that of the images alone, a model without a head.

  What belongs to the rest is reported as not used.
  """
  objective = layout.objective
  fields = {name: objective[name] for name in ('mean', 'std', 'eval_augment') if name in objective}
  alone = {**supervised(objective['image'], None, 0.5, 0.5), **fields}

  def renamed(name: str) -> str:
    return re.sub(r'^(\w+)/image/', r'\1/encoder/', name)

  rules = [rule._replace(ours=tuple(map(renamed, rule.ours))) for rule in layout.rules]
  shapes = layout.shapes and {renamed(name): shape for name, shape in layout.shapes.items()}
  return dataclasses.replace(layout, objective=alone, rules=rules, shapes=shapes, tokenizer=None)


def supervised(
  encoder: Mapping[str, Any], num_classes: int | None, mean: Any, std: Any
) -> dict[str, Any]:
  """What `build` makes a published model of.

  Args:
    encoder: such as `vit_spec` gives.
    num_classes: outputs of its head; None where it has none.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel; None: not known.
    std: likewise.
  """
  mean, std = (tuple(value) if hasattr(value, '__iter__') else value for value in (mean, std))
  spec = {'type': 'objectives.supervised.Supervised', 'encoder': dict(encoder)}
  if num_classes is not None:
    spec['num_classes'] = num_classes
  return {**spec, 'mean': mean, 'std': std}


def one_tower(layout: Layout, facts: 'Facts') -> Layout:
  """A layout, or, where the caller asks for the image tower of two, that one.

  Raises:
    ValueError: another tower is asked for.
  """
  if 'image' not in layout.objective:
    return layout
  tower = facts.get('tower', 'both')
  check_choice('tower', tower, ('both', 'image'))
  return image_tower(layout) if tower == 'image' else layout


class Facts:
  """What a file does not say and the caller may: `load(..., num_heads=6)`.

  A fact that nothing asks for is a mistake, which `check` finds.
  """

  NAMES = (
    'activation', 'classes', 'grid', 'ln_eps', 'mean', 'num_heads', 'pooling', 'std', 'tower',
  )  # fmt: skip

  def __init__(self, given: Mapping[str, Any]):
    """Takes facts by name; raises ValueError for one that there is not."""
    for name in given:
      if name not in self.NAMES:
        raise ValueError(f'unknown fact {name!r}; choose from {listed(self.NAMES)}')
    self._given = {name: value for name, value in given.items() if value is not None}
    self._asked: set[str] = set()

  def get(self, name: str, known: Any = None) -> Any:
    """What the caller says, else what is `known`, which may be None."""
    self._asked.add(name)
    return self._given.get(name, known)

  def check(self, path: str) -> None:
    """Raises ValueError for a fact that nothing has asked for."""
    others = [name for name in self._given if name not in self._asked]
    if others:
      raise ValueError(f'{path} needs no {listed(others)}; leave it out')

  def need(self, name: str, known: Any, path: str, choices: str = '') -> Any:
    """The same, but never None.

    Args:
      name: of the fact.
      known: what the file or its format says.
      path: the file, for the message.
      choices: for the message: what it may be.

    Raises:
      ValueError: nobody says it.
    """
    value = self.get(name, known)
    if value is None:
      raise ValueError(f'{path} does not say its {name}{choices}; pass {name}=...')
    return value


def vit_spec(
  size: Size, patch: tuple[int, int], grid: tuple[int, int] | None, *, stem: str = '', **fields: Any
) -> dict[str, Any]:
  """What `build` makes a ViT of, by its variant where it is a published one.

  Args:
    size: of the transformer.
    patch: `(height, width)`, in pixels of the image.
    grid: of the learned positions; None for fixed ones.
    stem: the ResNet of a hybrid, such as 'R50'.
    **fields: others; those that are None are left out.
  """
  spec: dict[str, Any] = {'type': 'models.vit.ViT'}
  name = next((name for name, known in VARIANTS.items() if known == size), None)
  square = patch[0] == patch[1]
  if name and square:
    spec['variant'] = f'{stem}{"+" if stem else ""}{name}/{patch[0]}'
  else:
    if stem:
      spec['variant'] = f'{stem}+'
    spec.update(size._asdict(), patch_size=patch[0] if square else tuple(patch))
  fields['grid'] = grid and tuple(grid)
  return {**spec, **{key: value for key, value in fields.items() if value is not None}}


def stem_of(blocks: tuple[int, ...], path: str) -> str:
  """The name of the ResNet with so many blocks a stage; raises ValueError for one not published."""
  name = next((name for name, known in STEMS.items() if blocks in known), None)
  if name is None:
    raise ValueError(f'{path} has a ResNet of {blocks} blocks; known are {STEMS}')
  return name


def published_heads(width: int, depth: int, mlp_dim: int) -> int | None:
  """The heads of the published size with this shape; None for no such size."""
  return next((s.num_heads for s in VARIANTS.values() if s[:3] == (width, depth, mlp_dim)), None)


def square_grid(tokens: int, path: str, facts: Facts) -> tuple[int, int]:
  """The grid of so many patches: the one the caller states, or a square one.

  Raises:
    ValueError: it is no square and nobody says what it is, or what is said has another number.
  """
  side = math.isqrt(tokens)
  square = (side, side) if side**2 == tokens else None
  grid = tuple(facts.need('grid', square, path, f', of {tokens} patches'))
  if math.prod(grid) != tokens:
    raise ValueError(f'{path} has positions for {tokens} patches, and grid={grid} has others')
  return grid


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
  """The shape of an array that the format has; raises ValueError where the file has it not."""
  if name not in tensors:
    raise ValueError(f'{tensors.path} has no {name!r}, which its format has')
  return tensors.shapes[name][0]


def count_blocks(names: Sequence[str], prefix: str, separator: str) -> int:
  """How many blocks there are: names `{prefix}{number}{separator}...`, the largest number + 1."""
  numbers = {
    name.removeprefix(prefix).partition(separator)[0] for name in names if name.startswith(prefix)
  }
  return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def refuse_fields(format_: str, encoder: Any, allowed: Mapping[str, Sequence[Any]]) -> None:
  """Raises ValueError where a field of an encoder has a value that a format has no place for.

  Args:
    format_: its name, for the message.
    encoder: the module.
    allowed: values by field.
  """
  for field, values in allowed.items():
    value = getattr(encoder, field)
    value = tuple(value) if isinstance(value, list) else value
    if value not in values:
      takes = ' or '.join(map(repr, values))
      raise ValueError(f'{format_} has no place for {field}={value!r}; it takes {takes}')


def refuse_arrays(
  tensors: Tensors,
  inside: Iterable[str],
  rules: Sequence[Rule],
  others: Mapping[str, str],
  ignored: tuple[str, ...] = (),
) -> None:
  """Raises ValueError where an encoder has an array that no rule reads: it is another architecture.

  Args:
    tensors: the file's arrays.
    inside: what the names of the encoder's arrays begin with.
    rules: of the format.
    others: what a part of a name says of an architecture that we have not.
    ignored: ends of names of arrays that do not matter.
  """
  read = {name for rule in rules for name in rule.theirs}
  for name in tensors:
    if name.startswith(tuple(inside)) and name not in read and not name.endswith(ignored):
      what = next((what for part, what in others.items() if part in name), 'another architecture')
      raise ValueError(f'{tensors.path} has {name!r} ({what}), which no model here has')
