"""Our own: the folder of a run, and the `.npz` and `.safetensors` files that `convert` writes.

A file holds the variables by name and, as an array of bytes called 'vit_jax', a JSON object with
what `Layout` says. Its blocks are one by one, whatever the model's `scan`.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.adapters.layout import Facts, Layout, Preprocessing, innermost, square_grid
from vit_jax.adapters.mapping import Rule, layers, same
from vit_jax.adapters.tensors import Shape, Tensors
from vit_jax.build import build
from vit_jax.checkpoint import Checkpoints, named, read_json

DESCRIPTION = 'vit_jax'
_WEIGHTS = ('params/', 'model_state/', 'ema/')


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is one that `convert` wrote."""
  return DESCRIPTION in set(names)


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads what the file says of itself.

  Raises:
    ValueError: it says nothing that can be read.
  """
  del files
  try:
    fields = json.loads(bytes(tensors[DESCRIPTION]))
    preprocessing = Preprocessing(**fields['preprocessing'])
    layout = Layout(
      'vit_jax', fields['objective'], preprocessing, (), facts.get('classes', fields['classes'])
    )
  except (ValueError, LookupError, TypeError) as e:
    raise ValueError(f'{tensors.path} does not say what it is ({e})') from None
  return dataclasses.replace(layout, rules=export_rules(tensors))


def export_rules(names: Iterable[str]) -> list[Rule]:
  """Variables by their own names; the description, which is none, is read by nobody else."""
  rules = [same(name, name) for name in names if name != DESCRIPTION]
  return [*rules, Rule((), (DESCRIPTION,), lambda *_: [], lambda _: [])]


def description(layout: Layout) -> np.ndarray:
  """What a file says of itself, `[N]` uint8."""
  fields = {
    'objective': layout.objective,
    'preprocessing': dataclasses.asdict(layout.preprocessing),
    'classes': list(layout.classes),
  }
  return np.frombuffer(json.dumps(fields).encode(), np.uint8)


def is_run(location: str) -> bool:
  """Whether it is the folder of a run, finished or not."""
  folder = Path(os.path.expanduser(location))
  return (folder / 'config.json').is_file() and (folder / 'checkpoints').is_dir()


def open_run(
  location: str, step: str | int, facts: Facts, *, average: bool = False
) -> tuple[Tensors, Layout]:
  """The parameters and collections of a run's checkpoint.

  Args:
    location: its folder.
    step: a number, 'last' or 'best'.
    facts: what the caller says.
    average: the averaged parameters in the place of the last ones.

  Raises:
    FileNotFoundError: no such checkpoint.
    ValueError: it has no averaged parameters, or its config describes no model.
  """
  workdir = Path(os.path.expanduser(location))
  config = read_json(workdir / 'config.json')
  tensors = _open_arrays(workdir, step, (config.get('checkpoint') or {}).get('best'))
  params = 'ema/' if average else 'params/'
  if average and not any(name.startswith('ema/') for name in tensors):
    raise ValueError(f'{workdir} has no averaged parameters: its config has no ema')
  objective = _unscanned(config['objective'])
  rules = []
  for name in tensors:
    if name.startswith((params, 'model_state/')):
      ours = re.sub('^(ema/|model_state/)', lambda m: m[0] == 'ema/' and 'params/' or '', name)
      rules.append(_unstacked(ours, name, tensors))
    else:  # One of the two sets of parameters is not read.
      rules.append(Rule((), (name,), lambda *_: [], lambda _: []))
  encoder = innermost(objective)
  positions = next((n for n in tensors if n.endswith('encoder/pos_embedding')), None)
  if positions and not encoder.get('grid'):
    tokens = tensors.shapes[positions][0][1] - (encoder.get('pooling', 'token') == 'token')
    encoder['grid'] = square_grid(tokens, str(workdir), facts)
  preprocessing = _preprocessing(workdir, config, encoder)
  layout = Layout('vit_jax run', objective, preprocessing, rules, facts.get('classes', ()))
  return tensors, layout


def _unscanned(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The same spec with blocks one by one; lists are tuples, as in a config."""
  plain = {
    key: _unscanned(value) if isinstance(value, Mapping) else value for key, value in spec.items()
  }
  return {key: value for key, value in plain.items() if key != 'scan'}


def _unstacked(ours: str, theirs: str, tensors: Tensors) -> Rule:
  if '/blocks/' not in ours:
    return same(ours, theirs)
  count = tensors.shapes[theirs][0][0]
  names = [ours.replace('/blocks/', f'/block_{i}/') for i in range(count)]
  return layers(theirs, *(same(name, theirs) for name in names))


def _preprocessing(
  workdir: Path, config: Mapping[str, Any], encoder: Mapping[str, Any]
) -> Preprocessing:
  """What the run's evaluation does to an image, and a resize to the size that it trained on."""
  evals = (config.get('evals') or {}).values()
  host = next((e['host'] for e in evals if e.get('host')), config['data']['host'])
  shape = ((read_json(workdir / 'run.json') or {}).get('batch') or {}).get('image')
  if shape:
    *size, channels = shape[1:]
  else:  # An older run: positions say it, or nothing does and any size will do.
    patch = build({k: v for k, v in encoder.items() if k != 'scan'}).patch
    grid = encoder.get('grid') or (4, 4)
    size, channels = [p * g for p, g in zip(patch, grid, strict=True)], 3
  return Preprocessing(tuple(size), channels=channels, transforms=host)


def _open_arrays(workdir: Path, step: str | int, best: str | None) -> Tensors:
  """A run's arrays by name, read one by one; optimizer, step and key are left out."""
  import orbax.checkpoint as ocp
  from flax import traverse_util

  with Checkpoints(workdir, best=best) as checkpoints:
    number = checkpoints.find(step)
    if number not in checkpoints.steps:
      have = ', '.join(map(str, checkpoints.steps)) or 'none'
      raise FileNotFoundError(f'{workdir} has no checkpoint of step {step!r}; it has {have}')
    file = checkpoints.folder / str(number) / 'state'
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
