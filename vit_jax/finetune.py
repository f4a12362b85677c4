"""What a config of fine-tuning has to know of a checkpoint and of images."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.adapters.layout import Facts, Layout, Preprocessing, image_tower, innermost
from vit_jax.adapters.ours import tuples
from vit_jax.build import build, resolve
from vit_jax.choices import check_choice, listed
from vit_jax.data import source_name
from vit_jax.init_from import open_fields
from vit_jax.models.vit import ViT
from vit_jax.pretrained import change_spec

Size = tuple[int, int]

TUNE = ('all', 'head', 'lora')
PRE_LOGITS = ('drop', 'keep')
FACTS = tuple(name for name in Facts.NAMES if name != 'classes')  # Those are the images'.


@dataclasses.dataclass(frozen=True)
class Options:
  """The argument of `configs/finetune.py`.

  Attributes:
    init: the checkpoint, as `vit_jax.load` takes it.
    data: what `build` makes the source of training images of.
    val: that of evaluation; None: see `validation`.
    size: `(height, width)` of an image in pixels; None: the checkpoint's.
    test_size: another one to evaluate at.
    tune: of `TUNE`.
    pre_logits: of `PRE_LOGITS`.
    layer_decay: the share of the next block's learning rate that each block has; None: all of it.
    step: of a run: a number, 'last' or 'best'.
    average: of a run: the averaged parameters.
    format: of the checkpoint; None finds out.
    facts: by the names of `FACTS`.
  """

  init: str
  data: Mapping[str, Any]
  val: Mapping[str, Any] | None = None
  size: Size | None = None
  test_size: Size | None = None
  tune: str = 'all'
  pre_logits: str = 'drop'
  layer_decay: float | None = None
  step: str | int = 'last'
  average: bool = False
  format: str | None = None
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def checkpoint(self) -> dict[str, Any]:
    """The fields of `config.init_from` that say which checkpoint it is."""
    names = 'format', 'step', 'average'
    own = {name: getattr(self, name) for name in names}
    return dict(checkpoint=self.init, facts=dict(self.facts), **own)


NAMES = tuple(f.name for f in dataclasses.fields(Options) if f.name != 'facts')


def read_options(text: str) -> Options:
  """Reads `init=PATH,data=SOURCE,OPTION=VALUE,...`.

  Args:
    text: a comma ends a value only before the name of an option, so that a source may have fields,
      `data=csv:a.csv,label_key=kind,size=224`, and a path commas.

  Raises:
    ValueError: an unknown option, one that is missing or stands twice, or a wrong value; the
      sentence lists the choices.
  """
  values: dict[str, str] = {}
  names = '|'.join((*NAMES, *FACTS))
  for part in re.split(rf',(?=(?:{names})=)', text) if text else ():
    name, _, value = part.partition('=')
    check_choice('option', name, (*NAMES, *FACTS))
    if name in values:
      raise ValueError(f'option {name!r} stands twice in {text!r}')
    values[name] = value
  for name in ('init', 'data'):
    if not values.get(name):
      raise ValueError(
        f'say what to start from and what to train on, init=PATH,data=SOURCE; {name!r} is missing, '
        f'and other options are {listed((*NAMES[2:], *FACTS), limit=20)}'
      )
  fields = {name: _READERS.get(name, _literal)(name, value) for name, value in values.items()}
  facts = {name: fields.pop(name) for name in FACTS if name in fields}
  options = Options(**fields, facts=facts)
  if options.layer_decay is not None and options.tune != 'all':
    raise ValueError(f'layer_decay goes with tune=all, not with tune={options.tune}')
  return options


@dataclasses.dataclass(frozen=True)
class Start:
  """What training takes from a checkpoint, beside its weights.

  Attributes:
    encoder: what `build` makes the encoder of, for images of `size`.
    size: `(height, width)` of an image in pixels.
    mean: what pixels in [0, 1] are normalised by.
    std: likewise.
    augment: the device transforms that its evaluation has; '' for none.
    preprocessing: of its evaluation, at its own size.
  """

  encoder: Mapping[str, Any]
  size: Size
  mean: float | tuple[float, ...]
  std: float | tuple[float, ...]
  augment: str
  preprocessing: Preprocessing

  @property
  def train_host(self) -> str:
    """The host transforms of training: a random part of an image, mirrored or not."""
    size = self.size[0] if len(set(self.size)) == 1 else self.size
    channels = self.preprocessing.channels
    more = '' if channels == 3 else f', channels={channels}'
    return f'decode_random_resized_crop({size}{more}) | flip'

  def eval_host(self, size: Size) -> str:
    """The host transforms of evaluation at some size."""
    preprocessing = self.preprocessing.resized(size)
    if not preprocessing.transforms:
      return preprocessing.host
    # What a run does to its own images need not bring others to one size.
    return f'{preprocessing.host} | resize({", ".join(map(str, dict.fromkeys(size)))})'


def open_start(options: Options) -> Start:
  """Reads what a checkpoint says of itself; none of its arrays.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it has no encoder, or no pre-logits to keep, nobody says its mean and std, or its
      patches do not divide the size.
  """
  _, layout = open_fields(options.checkpoint)
  if 'image' in layout.objective:
    layout = image_tower(layout)
  spec, preprocessing = layout.objective, layout.preprocessing
  if 'encoder' not in spec:
    raise ValueError(f'{options.init} is a {spec["type"]}, which has no encoder to start from')
  size = options.size or tuple(preprocessing.size)
  encoder = tuples(change_spec(spec, size, {}, None)['encoder'])
  if options.test_size:
    change_spec(spec, options.test_size, {}, None)  # Before training: patches must divide it.
  inner = innermost(encoder)
  width = inner.pop('pre_logits', None)
  if options.pre_logits == 'keep':
    if not width:
      raise ValueError(f'{options.init} has no pre-logits to keep')
    inner['pre_logits'] = width
  if resolve(inner['type']) is ViT:
    # Fields that one may want to set by a flag.
    fields = dict(dtype='float32', attention='auto', scan=False, remat='none')
    inner.update({**fields, **inner}, dropout=0.0, drop_path=0.0, patch_dropout=0.0)
  return Start(
    encoder,
    size,
    _normalisation('mean', layout, options),
    _normalisation('std', layout, options),
    spec.get('eval_augment', ''),
    preprocessing,
  )


def validation(options: Options) -> tuple[str, Mapping[str, Any] | None]:
  """What to evaluate on.

  Returns:
    Its name and its source: 'validation', by which a checkpoint may be chosen, or 'test'. None
    where the source of the training images has neither split, or trains on it.

  Raises:
    ValueError: its classes are not those of the training images, or there is none and `test_size`
      needs one.
  """
  name, source = ('validation', options.val) if options.val else _other_split(options.data)
  if source:
    ours, theirs = (tuple(getattr(build(s), 'classes', ())) for s in (options.data, source))
    if ours != theirs:
      raise ValueError(
        f'the classes of val are not those of data: {listed(theirs)}, not {listed(ours)}'
      )
  elif options.test_size:
    raise ValueError('test_size needs images to evaluate on, and data has no other split: add val=')
  return name, source


def _other_split(data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
  parameters = inspect.signature(resolve(data['type'])).parameters
  trained = str(data.get('split', ''))
  for split in ('validation', 'test') if 'split' in parameters else ():
    if re.search(rf'\b({split}|all)\b', trained):
      continue
    source = {**data, 'split': split}
    try:
      build(source)
    except (ValueError, OSError):  # There is no such split.
      continue
    return split, source
  return '', None


def count_classes(source: Any, name: str) -> int:
  """How many classes a source has; raises ValueError where it does not say."""
  count = len(getattr(source, 'classes', ())) or getattr(source, 'num_classes', 0)
  if not count:
    raise ValueError(f'{name} has no classes: choose a source with labels')
  return count


def layer_decay(encoder: Mapping[str, Any], decay: float) -> tuple[tuple[str, float], ...]:
  """Rules of `optimizer.multiplier`: 1 for the head, times `decay` a layer below.

  The embedding, with positions and class token, is the lowest of depth + 1 layers; the final
  LayerNorm and whatever pools are the head's. Appendix, arXiv:2106.08254.

  Args:
    encoder: of a ViT whose blocks are one by one.
    decay: in (0, 1].

  Raises:
    ValueError: another encoder.
  """
  if resolve(encoder['type']) is not ViT:
    raise ValueError(f'layer_decay is of a ViT, not of a {encoder["type"]}')
  depth = build(encoder).size.depth
  blocks = ((f'encoder/block_{i}/.*', decay ** (depth - i)) for i in range(depth))
  top = ('encoder/(norm|map_head|pre_logits)/.*', 1.0)
  return (*blocks, top, ('encoder/.*', decay ** (depth + 1)))


def _normalisation(name: str, layout: Layout, options: Options) -> Any:
  value = options.facts.get(name, layout.objective.get(name, 0.5))
  if value is None:
    raise ValueError(f'{options.init} does not say its {name}; add {name}=(0.5, 0.5, 0.5)')
  return tuples(value)


def _literal(name: str, text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return _text(name, text)


def _text(name: str, text: str) -> str:
  unknown = re.search(r',([A-Za-z_]\w*)=', text)
  if unknown:
    check_choice('option', unknown[1], (*NAMES, *FACTS))
  return text


def _source(name: str, text: str) -> dict[str, Any]:
  try:
    return source_name.parse(text)
  except ValueError as e:
    raise ValueError(
      f'{name}: {e}; an option may follow: {listed((*NAMES, *FACTS), limit=20)}'
    ) from None


def _size(name: str, text: str) -> Size:
  value = _literal(name, text)
  pair = (value, value) if type(value) is int else value
  if not (
    isinstance(pair, tuple) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
  ):
    raise ValueError(f'{name} is pixels of a side, or (height, width), not {text!r}')
  return pair


def _flag(name: str, text: str) -> bool:
  return check_choice(name, text, ('True', 'False')) == 'True'


def _decay(name: str, text: str) -> float:
  value = _literal(name, text)
  if type(value) not in (int, float) or not 0 < value <= 1:
    raise ValueError(f'{name} must be a number above 0 and at most 1, such as 0.75, not {text!r}')
  return float(value)


_READERS = {
  'init': _text,
  'format': _text,
  'data': _source,
  'val': _source,
  'size': _size,
  'test_size': _size,
  'layer_decay': _decay,
  'average': _flag,
  'tune': lambda name, text: check_choice(name, text, TUNE),
  'pre_logits': lambda name, text: check_choice(name, text, PRE_LOGITS),
}
