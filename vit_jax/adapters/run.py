"""The folder of a run of ours as a checkpoint: its arrays, its model, and its images."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import compose
from vit_jax.adapters.layout import (
  TOWERS,
  Facts,
  Layout,
  Preprocessing,
  innermost,
  share_of,
  square_grid,
  supervised,
)
from vit_jax.adapters.mapping import Rule, layers, same
from vit_jax.adapters.ours import not_read, one_by_one, with_colours
from vit_jax.adapters.tensors import Shape, Tensors
from vit_jax.build import build, resolve
from vit_jax.checkpoint import find_state, named, read_json

# Host transforms without chance, and what their arguments are called.
ARGUMENTS = {
  'decode': ('channels', 'orient'),
  'resize': ('h', 'w', 'interpolation'),
  'resize_small': ('size', 'interpolation'),
  'central_crop': ('h', 'w'),
}
_WEIGHTS = ('params/', 'model_state/', 'ema/')


def is_run(location: str) -> bool:
  """Whether it is the folder of a run, finished or not."""
  folder = Path(os.path.expanduser(location))
  return (folder / 'config.json').is_file() and (folder / 'checkpoints').is_dir()


def open_run(
  location: str, step: str | int, facts: Facts, *, average: bool = False
) -> tuple[Tensors, Layout]:
  """The parameters and collections of a run's checkpoint; of a distillation, the student's.

  Of a method that gives no logits, such as SimCLR, its encoder alone: a model without a head.

  Args:
    location: its folder.
    step: a number, 'last' or 'best'.
    facts: what the caller says.
    average: the averaged parameters in the place of the last ones.

  Raises:
    FileNotFoundError: no such checkpoint.
    ValueError: it has no averaged parameters, or does not say the size of its images.
  """
  workdir = Path(os.path.expanduser(location))
  config, about = read_json(workdir / 'config.json'), read_json(workdir / 'run.json') or {}
  tensors = _open_arrays(workdir, step, config.get('checkpoint'))
  if average and not any(name.startswith('ema/') for name in tensors):
    raise ValueError(f'{workdir} has no averaged parameters: its config has no ema')
  objective, root = one_by_one(config['objective']), ''
  while 'student' in objective:
    objective, root = objective['student'], f'{root}student/'
  whole = 'text' in objective or hasattr(resolve(objective['type']), 'logits')
  if not whole:
    objective = _encoder_alone(objective)
  rules = []
  for name in tensors:
    ours = _variable(name, root, average)
    if not ours:
      rules.append(not_read(name))
    elif whole or ours.split('/')[1] == 'encoder':  # The rest is reported as not used.
      rules.append(_unstacked(ours, name, tensors))
  batch = about.get('batch') or {}  # Older runs do not say it.
  shape = batch.get('views', batch.get('image'))  # [B, H, W, C] or [B, V, H, W, C]
  size = tuple(shape[-3:-1]) if shape else None
  encoder = innermost(objective)
  ends = tuple(f'{tower}/pos_embedding' for tower in TOWERS)
  positions = next((n for n in tensors if _variable(n, root, average).endswith(ends)), None)
  if positions and not encoder.get('grid'):
    tokens = tensors.shapes[positions][0][1] - (encoder.get('pooling', 'token') == 'token')
    known = size and tuple(s // p for s, p in zip(size, build(encoder).patch, strict=True))
    encoder['grid'] = square_grid(tokens, str(workdir), Facts({'grid': facts.get('grid', known)}))
  if size is None and encoder.get('grid'):
    size = tuple(g * p for g, p in zip(encoder['grid'], build(encoder).patch, strict=True))
  preprocessing = read_host(_evaluation(config), size, shape[-1] if shape else None)
  if preprocessing is None:
    raise ValueError(
      f'{workdir} does not say the size of its images; give the command that trained it again, '
      'which notes it in run.json'
    )
  objective = with_colours(objective, facts)
  classes = facts.get('classes', tuple(about.get('classes') or ()))
  tokenizer = _tokenizer(config['data']['host']) if 'text' in objective else None
  return tensors, Layout(
    'vit_jax run', objective, preprocessing, rules, classes, tokenizer=tokenizer
  )


def read_host(
  host: str, size: tuple[int, int] | None = None, channels: int | None = None
) -> Preprocessing | None:
  """What host transforms do to an image of any size.

  Where they draw something, as in training, an image is squashed to the size that they give.

  Args:
    host: as a config has them.
    size: `(height, width)` that they give where they do not say it.
    channels: that they give; None: what `decode` gives.

  Returns:
    The preprocessing; None where nobody says the size.
  """
  calls = [
    (name, {**dict(zip(ARGUMENTS.get(name, ()), args, strict=False)), **kwargs})
    for name, args, kwargs in compose.parse(host)
  ]
  names = [name for name, _ in calls]
  for name, arguments in calls:
    if name in ('resize', 'central_crop'):
      size = arguments['h'], arguments.get('w') or arguments['h']
  if size is None:
    return None
  decode = calls[0][1] if names[:1] == ['decode'] else {}
  channels = channels or decode.get('channels', 3)
  if names[:1] == ['decode'] and not decode.get('orient'):
    del calls[0], names[0]
  if not names or not set(names) <= set(ARGUMENTS):
    return Preprocessing(size, channels=channels)
  first = calls[0][1]
  how = first.get('interpolation', 'bilinear')
  if names == ['resize']:
    return Preprocessing(size, None, how, channels)
  if names == ['resize_small', 'central_crop'] and min(size) <= first['size']:
    return Preprocessing(size, share_of(min(size), first['size']), how, channels)
  return Preprocessing(size, channels=channels, transforms=host)


def _evaluation(config: Mapping[str, Any]) -> str:
  """The host transforms of the evaluation that decides what is best, else of the first."""
  evals = config.get('evals') or {}
  best = ((config.get('checkpoint') or {}).get('best') or '').partition('/')[0]
  hosts = [spec.get('host') for spec in (evals.get(best, {}), *evals.values())]
  return next(filter(None, hosts), config['data']['host'])


def _tokenizer(host: str) -> dict[str, Any] | None:
  """What the host transforms of training make tokens with; None where they make none."""
  for name, args, kwargs in compose.parse(host):
    if name == 'tokenize':
      fields = {**dict(zip(('tokenizer',), args, strict=True)), **kwargs}
      return {'type': fields.pop('tokenizer', 'data.tokenizers.clip.ClipBpe'), **fields}
  return None


def _variable(name: str, root: str, average: bool) -> str:
  """What an array of a state is called in a model; '' for one that it has not."""
  kind, _, rest = name.partition('/')
  if kind == 'model_state':
    kind, _, rest = rest.partition('/')
  elif kind == ('ema' if average else 'params'):
    kind = 'params'
  else:
    return ''
  return f'{kind}/{rest.removeprefix(root)}' if rest.startswith(root) else ''


def _encoder_alone(objective: Mapping[str, Any]) -> dict[str, Any]:
  """A classifier without a head on an objective's encoder, which sees images as it did there."""
  kind = resolve(objective['type'])
  mean, std = (
    objective.get(name, getattr(kind, name, identity))
    for name, identity in (('mean', 0.0), ('std', 1.0))
  )
  views = (objective.get('eval_augment', ''), getattr(kind, 'encoder_view', ''))
  augment = ' | '.join(filter(None, views))
  return {**supervised(objective['encoder'], None, mean, std), 'eval_augment': augment}


def _unstacked(ours: str, theirs: str, tensors: Tensors) -> Rule:
  if '/blocks/' not in ours:
    return same(ours, theirs)
  count = tensors.shapes[theirs][0][0]
  names = [ours.replace('/blocks/', f'/block_{i}/') for i in range(count)]
  return layers(theirs, *(same(name, theirs) for name in names))


def _open_arrays(workdir: Path, step: str | int, kept: Mapping[str, Any] | None) -> Tensors:
  """A run's arrays by name, read one by one; optimizer, step and key are left out.

  Args:
    workdir: its folder.
    step: a number, 'last' or 'best'.
    kept: the config's `checkpoint`, which says what is best.
  """
  import orbax.checkpoint as ocp
  from flax import traverse_util

  number, file = find_state(workdir, step, kept)
  reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  there = named(reader.metadata(file).item_metadata.tree)
  shapes: dict[str, Shape] = {
    name: (tuple(x.shape), np.dtype(x.dtype))
    for name, x in there.items()
    if name.startswith(_WEIGHTS)
  }

  def read(name: str) -> np.ndarray:
    shape, dtype = shapes[name]
    item = traverse_util.unflatten_dict({name: np.empty(shape, dtype)}, sep='/')
    args = ocp.checkpoint_utils.construct_restore_args(item)
    options = ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
    return np.asarray(named(reader.restore(file, args=options))[name])

  return Tensors(f'{workdir}, step {number}', shapes, read)
