"""Configs: load a file, override fields by flags, compare, write as JSON."""

import difflib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from vit_jax.units import UNITS

# What a config says, in the order in which it reads as a recipe.
FIELDS = {
  'seed': 'decides the parameters, the order of the data, augmentation and dropout',
  'total': 'length of the training: steps, epochs or examples',
  'batch_size': 'examples a step, over all devices and hosts',
  'data': 'source, host transforms, workers',
  'objective': 'the method, with its encoder and heads',
  'optimizer': 'optimizer, schedule, and rules by parameter name',
  'mesh': 'devices along data, fsdp and tensor',
  'evals': 'evaluators by name, each with how often it runs',
  'hooks': 'what changes the state between steps, by name',
  'log': 'how often metrics are written',
  'checkpoint': 'how often to save, how many to keep, and by which metric the best',
}
OPTIONAL = ('mesh', 'evals', 'hooks', 'log', 'checkpoint')

# A run may go on with other values of these: they do not change its result.
FREE = ('mesh', 'data.num_workers', 'log')


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Loads `path.py` or `path.py:argument` and applies `--config.field=value` flags.

  Setting one unit of a number (`--config.total.steps=10`) replaces the unit the file used.

  Args:
    path: the config's file, and after a colon the argument of its `get_config`.
    overrides: flags, as on the command line.

  Returns:
    The locked config.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file has no `get_config`, or a flag names no field or has a wrong value.
  """
  config = _with_units(_read(path))
  config = _override(config, list(overrides))
  check(config)
  return config.lock()


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError where a config lacks a field or has one that nothing reads."""
  for name in config:
    if name not in FIELDS:
      raise ValueError(f'unknown config field {name!r}; choose from {_join(FIELDS)}')
  for name in FIELDS:
    if name not in OPTIONAL and name not in config:
      raise ValueError(f'the config lacks {name!r} ({FIELDS[name]})')


def plain(config: Any) -> Any:
  """The config as JSON has it: dicts, lists, numbers, strings; units that are not set are left out."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if isinstance(config, Mapping):
    unit = _is_units(config)
    return {k: plain(v) for k, v in config.items() if not (unit and v is None)}
  if isinstance(config, list | tuple):
    return [plain(v) for v in config]
  return config


def to_json(config: Any) -> str:
  """The config as text for `config.json`."""
  return json.dumps(plain(config), indent=2) + '\n'


def differences(saved: Mapping[str, Any], now: Any) -> list[str]:
  """How a config differs from a saved one, fields that do not change the result left out.

  Args:
    saved: what `config.json` holds.
    now: the config of today; compared after a JSON round trip, so a tuple equals a list.

  Returns:
    One `field: before -> now` a difference.
  """
  before, after = _flat(saved), _flat(json.loads(to_json(now)))
  rows = []
  for name in sorted({*before, *after}):
    if any(name == free or name.startswith(free + '.') for free in FREE):
      continue
    if before.get(name) != after.get(name):
      old, new = (json.dumps(d[name]) if name in d else 'absent' for d in (before, after))
      rows.append(f'{name}: {old} -> {new}')
  return rows


def _read(path: str) -> ml_collections.ConfigDict:
  filename, _, argument = path.partition(':')
  file = Path(filename)
  if not file.is_file():
    near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob('*.py')], n=3)
    hint = f'; did you mean {_join(near)}?' if near else ''
    raise FileNotFoundError(f'there is no config {filename!r}{hint}')
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f"{filename!r} is no config: it has no function 'get_config'")
  return module.get_config(argument) if argument else module.get_config()


def _is_units(value: Any) -> bool:
  return isinstance(value, Mapping) and len(value) > 0 and all(k in UNITS for k in value)


def _with_units(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Gives every number of something all its units, so that a flag can set any of them."""

  def expand(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
      value = {k: value.get_ref(k) if value[k] is None else value[k] for k in value}
    if not isinstance(value, Mapping):
      return value
    if _is_units(value):
      types = dict(steps=int, epochs=float, examples=int)
      return {
        unit: ml_collections.config_dict.placeholder(types[unit])
        if not isinstance(value.get(unit), int | float)
        else types[unit](value[unit])
        for unit in UNITS
      }
    return {k: expand(v) for k, v in value.items()}

  return ml_collections.ConfigDict(expand(config))


def _override(
  config: ml_collections.ConfigDict, arguments: list[str]
) -> ml_collections.ConfigDict:
  for argument in arguments:
    if not argument.startswith('--config.') or '=' not in argument:
      raise ValueError(f'cannot read {argument!r}; write --config.field=value')
  values = flags.FlagValues()
  argv = ['vit_jax', *arguments]
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    left = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(_restate(config, arguments, e)) from None
  if len(left) > 1:
    raise ValueError(f'cannot read {left[1]!r}; write --config.field=value')
  config = values['config'].value
  for path in [a[len('--config.') :].partition('=')[0].split('.') for a in arguments]:
    parent = config
    for name in path[:-1]:
      parent = parent[name]
    if path[-1] in UNITS and _is_units(parent.to_dict()):
      for unit in UNITS:
        if unit != path[-1]:
          parent[unit] = None
  return config


def _restate(config: ml_collections.ConfigDict, arguments: list[str], error: Exception) -> str:
  """One sentence about the flag that cannot be applied, with the choices."""
  for argument in arguments:
    path, _, text = argument.removeprefix('--config.').partition('=')
    here, walked = config, 'config'
    for name in path.split('.'):
      if not isinstance(here, ml_collections.ConfigDict):
        return f'unknown field --config.{path}: {walked} is {here!r} and has no fields'
      if name not in here:
        return f'unknown field {name!r} in --config.{path}; {walked} has {_join(here)}'
      kind = here.get_type(name).__name__
      here, walked = here[name], f'{walked}.{name}'
    if path in str(error):
      return f'--config.{path} takes a value of type {kind}, not {text!r}'
  return str(error).splitlines()[0]


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  rows = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      rows.update(_flat(value, f'{prefix}{key}.'))
    else:
      rows[prefix + key] = value
  return rows


def _join(names: Any) -> str:
  return ', '.join(map(repr, names))


