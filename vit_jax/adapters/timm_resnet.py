"""The residual networks of torchvision, which timm has by the same names, in and out.

`ResNet` of `torchvision/models/resnet.py` and of `timm/models/resnet.py`: v1.5 with BatchNorm.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.adapters.layout import (
  Facts,
  Layout,
  count_blocks,
  refuse_arrays,
  refuse_fields,
  shape_of,
  supervised,
)
from vit_jax.adapters.mapping import (
  ENCODER,
  HEAD,
  Rule,
  conv,
  dense,
  norm,
  same,
)
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.timm_config import (
  FILE,
  Config,
  class_names,
  find_config,
  read_images,
  write_config,
)
from vit_jax.models.resnet import VARIANTS, ResNet, Size

if TYPE_CHECKING:
  from vit_jax.model import Model

KERNELS = {7: False, 3: True}  # sides of the first kernel, and whether the stem is the small one
# What a part of a name says of an architecture that we have not.
OTHERS = {
  'conv1.0.': 'a stem of several convolutions',
  '.se.': 'squeeze and excitation',
  'downsample.2.': 'an average pooling before a projection',
}
INSIDE = ('conv1.', 'bn1.', 'layer', 'maxpool.')
# Pooling between convolutions, which has no arrays.
NOT_HERE = ('blur', 'aa')
# Of timm's function, the only values that our networks have.
ARGS = {
  'act_layer': 'relu',
  'norm_layer': 'batchnorm2d',
  'aa_layer': None,
  'output_stride': 32,
  'block_args': None,
}
NO_PLACE = {'width': (64,), 'small_stem': (False,)}


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is of this format."""
  names = set(names)
  block = {'layer1.0.conv1.weight', 'layer1.0.bn1.weight'}
  return block <= names and bool(names & {'conv1.weight', 'conv1.0.weight'})


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads the architecture off names and shapes.

  A first kernel of 3x3 is that of the stem for small images, which has no pooling, as nothing in
  the file says. Without 'config.json' images are of 224 pixels, but any size will do.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: the JSON files beside it, by name.

  Raises:
    ValueError: an array is missing, or one makes it another architecture.
  """
  path, config = tensors.path, find_config(tensors.path, files)
  _check_model(config)
  names = list(tensors)
  size = Size(
    tuple(
      count_blocks(names, f'layer{i}.', '.') for i in range(1, count_blocks(names, 'layer', '.'))
    ),
    bottleneck='layer1.0.conv3.weight' in tensors,
  )
  head = 'fc.weight' in tensors
  rules = list(_rules(size, head))
  refuse_arrays(tensors, INSIDE, rules, OTHERS)
  shape_of(tensors, 'bn1.running_mean')  # A GroupNorm has none.
  width, channels, *sides = shape_of(tensors, 'conv1.weight')
  if sides not in ([side, side] for side in KERNELS):
    raise ValueError(f"'conv1.weight' in {path} is of {sides}; known are 7x7 and 3x3")
  _check_widths(tensors, size, width)
  preprocessing, mean, std = read_images(config, (224, 224), (1, 1), channels)
  classes = shape_of(tensors, 'fc.bias')[0] if head else None
  objective = supervised(
    _spec(size, width, KERNELS[sides[0]]), classes, facts.get('mean', mean), facts.get('std', std)
  )
  return Layout('timm', objective, preprocessing, rules, class_names(config, classes, facts))


def export_rules(encoder: ResNet, num_classes: int | None) -> list[Rule]:
  """What a residual network is called in torchvision and in timm.

  Raises:
    ValueError: it is of another width, has a stem for small images, or not four stages.
  """
  refuse_fields('timm', encoder, NO_PLACE)
  if len(encoder.size.blocks) != 4:
    raise ValueError(f'timm has no place for stages of {encoder.size.blocks} blocks; it takes four')
  return list(_rules(encoder.size, num_classes is not None))


def companions(model: 'Model') -> dict[str, dict[str, Any]]:
  """The 'config.json' with which `timm.create_model('local-dir:FOLDER', pretrained=True)` opens it.

  See `write_config` for what it says of images.
  """
  size = model.objective.encoder.size
  name = next((name for name, known in VARIANTS.items() if known == size), None)
  args = {} if name else {'layers': list(size.blocks)}
  if model.preprocessing.channels != 3:
    args['in_chans'] = model.preprocessing.channels
  architecture = f'resnet{name or (50 if size.bottleneck else 18)}'
  return {FILE: write_config(model, architecture, args, 'conv1', 'fc')}


def _check_model(config: Config) -> None:
  """Raises ValueError where 'config.json' says what no model here has."""
  if any(part in config.architecture for part in NOT_HERE):
    raise config.refuse(f'architecture {config.architecture!r}')
  if config.global_pool not in ('', 'avg'):
    raise config.refuse(f'global_pool {config.global_pool!r}')
  for name, only in ARGS.items():
    if config.args.get(name, only) != only:
      raise config.refuse(f'{name} {config.args[name]!r}')


def _check_widths(tensors: Tensors, size: Size, width: int) -> None:
  """Raises ValueError where 3x3 convolutions have other features than `width` asks for."""
  for i in range(len(size.blocks)):
    name = f'layer{i + 1}.0.conv{2 if size.bottleneck else 1}.weight'
    features, inputs, *_ = shape_of(tensors, name)
    expected = width * 2**i
    if features != expected or (size.bottleneck and inputs != expected):
      raise ValueError(
        f'{name!r} in {tensors.path} goes from {inputs} to {features} features and should have '
        f'{expected} (a wide ResNet or ResNeXt), which no model here has'
      )


def _spec(size: Size, width: int, small_stem: bool) -> dict[str, Any]:
  """What `build` makes a residual network of, by its variant where it is a published one."""
  spec: dict[str, Any] = {'type': 'models.resnet.ResNet'}
  name = next((name for name, known in VARIANTS.items() if known == size), None)
  spec |= {'variant': name} if name else size._asdict()
  if width != 64:
    spec['width'] = width
  return {**spec, 'small_stem': True} if small_stem else spec


def _rules(size: Size, head: bool) -> Iterator[Rule]:
  yield from _layer('conv_root', 'norm_root', 'conv1', 'bn1')
  for i, count in enumerate(size.blocks):
    for j in range(count):
      ours, theirs = f'stage_{i}_block_{j}', f'layer{i + 1}.{j}'
      for n in range(1, 4 if size.bottleneck else 3):
        yield from _layer(
          f'{ours}/conv_{n}', f'{ours}/norm_{n}', f'{theirs}.conv{n}', f'{theirs}.bn{n}'
        )
      if not j and (i or size.bottleneck):  # The shape changes.
        yield from _layer(
          f'{ours}/conv_proj',
          f'{ours}/norm_proj',
          f'{theirs}.downsample.0',
          f'{theirs}.downsample.1',
        )
  if head:
    yield from dense(HEAD, 'fc')


def _layer(ours: str, our_norm: str, theirs: str, their_norm: str) -> Iterator[Rule]:
  """A convolution and the BatchNorm behind it."""
  yield conv(f'{ENCODER}/{ours}/kernel', f'{theirs}.weight')
  yield from norm(f'{ENCODER}/{our_norm}', their_norm)
  for name in ('mean', 'var'):
    yield same(f'batch_stats/encoder/{our_norm}/{name}', f'{their_norm}.running_{name}')
  # PyTorch counts batches for averages with a momentum of none, and nothing reads the number.
  count = np.zeros((), np.int64)
  yield Rule((), (f'{their_norm}.num_batches_tracked',), lambda *_: [], lambda _: [count])
