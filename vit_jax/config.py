"""Configs: load a file, override fields by flags, compare, write as JSON."""

import ast
import difflib
import importlib.util
import inspect
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
  'accumulate': 'micro-batches that a batch is split into, one after another; 1 for none',
  'data': 'source, host transforms, workers',
  'objective': 'the method, with its encoder and heads',
  'init_from': 'the run or the checkpoint whose weights to start from',
  'optimizer': 'optimizer, schedule, and rules by parameter name',
  'ema': 'average of the parameters over the steps',
  'mesh': 'devices along data, fsdp and tensor',
  'sharding': "what is split over the mesh: 'fsdp' (or None), 'zero1' or 'replicated'",
  'evals': 'evaluators by name, each with how often it runs',
  'hooks': 'what changes the state between steps, by name',
  'log': 'how often metrics are written',
  'checkpoint': 'how often to save, how many to keep, and by which metric the best',
  'profile': "steps='100:110' traces these",
}
OPTIONAL = (
  'accumulate',
  'init_from',
  'ema',
  'mesh',
  'sharding',
  'evals',
  'hooks',
  'log',
  'checkpoint',
  'profile',
)

# Fields of `init_from` that go with its `checkpoint`.
OF_CHECKPOINT = ('format', 'facts', 'average', 'fresh')

# The groups whose fields the loop itself reads; all others are what they build.
GROUPS = {
  'data': ('source', 'host', 'num_workers', 'max_bad_share'),
  'init_from': ('workdir', 'checkpoint', *OF_CHECKPOINT, 'step', 'rules'),
  'ema': ('decay', 'warmup'),
  'log': ('every',),
  'profile': ('steps',),
}
REQUIRED = {'data': ('source', 'host'), 'ema': ('decay',)}

# A run may go on with other values of these: they do not change what is trained.
FREE = (
  'mesh',
  'sharding',
  'data.num_workers',
  'data.max_bad_share',
  'log',
  'evals',
  'checkpoint',
  'profile',
)


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
  return override(_read(path), overrides)


def override(
  config: ml_collections.ConfigDict, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """A checked and locked copy of `config`, with `--config.field=value` flags applied.

  Raises:
    ValueError: a flag names no field or has a wrong value, or the config lacks a field.
  """
  config = _with_units(config)
  # Whatever the config, a flag can ask for a trace, or split the state in another way.
  window, word = (config.get('profile') or {}).get('steps'), config.get('sharding')
  config.profile = {'steps': ml_collections.config_dict.placeholder(str)}
  config.profile.steps = window
  config.sharding = ml_collections.config_dict.placeholder(str)
  config.sharding = word
  for argument in overrides:
    config = _override(config, argument)
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
  for group, names in GROUPS.items():
    if config.get(group) is None and group in OPTIONAL:
      continue
    there = config[group]
    if not isinstance(there, ml_collections.ConfigDict):
      raise ValueError(f'{group} is {there!r}; it must be a dict of {_join(names)}')
    for name in there:
      if name not in names:
        raise ValueError(f'unknown config field {f"{group}.{name}"!r}; choose from {_join(names)}')
    for name in REQUIRED.get(group, ()):
      if name not in there:
        raise ValueError(f'the config lacks {f"{group}.{name}"!r}')
  _check_pure(plain(config), 'config')
  _check_init_from(config.get('init_from') or {})
  for name, value in (
    ('seed', config.seed),
    ('data.num_workers', config.data.get('num_workers')),
    ('data.max_bad_share', config.data.get('max_bad_share')),
  ):
    if value is not None and value < 0:
      raise ValueError(f'{name} must be 0 or more, got {value}')
  accumulate = config.get('accumulate')
  if accumulate is not None and (type(accumulate) is not int or accumulate < 1):
    raise ValueError(f'accumulate must be a whole number of at least 1, got {accumulate!r}')
  decay, warmup = ((config.get('ema') or {}).get(name) for name in ('decay', 'warmup'))
  if decay is not None and (type(decay) not in (int, float) or not 0 <= decay < 1):
    raise ValueError(f'ema.decay must be a number of at least 0 and below 1, got {decay!r}')
  if warmup not in (None, True, False):
    raise ValueError(f'ema.warmup must be True or False, got {warmup!r}')


def _check_init_from(fields: Mapping[str, Any]) -> None:
  given = [name for name in fields if fields[name] is not None]
  if fields and ('workdir' in given) == ('checkpoint' in given):
    raise ValueError(
      "init_from takes one of 'workdir', the folder of a run of the same model, and 'checkpoint', "
      'anything that vit_jax.load opens'
    )
  for name in OF_CHECKPOINT:
    if 'workdir' in given and name in given:
      raise ValueError(f"init_from.{name} goes with 'checkpoint', not with 'workdir'")


def plain(config: Any) -> Any:
  """The config as JSON has it: dicts, lists, numbers, strings; without units that are not set."""
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
    there = sorted(p.name for p in file.parent.glob('*.py'))
    hint = f'; did you mean {_join(near)}?' if near else f'; {file.parent} has {_join(there)}'
    raise FileNotFoundError(f'there is no config {filename!r}{hint}')
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f"{filename!r} is no config: it has no function 'get_config'")
  if not argument:
    return module.get_config()
  if not inspect.signature(module.get_config).parameters:
    raise ValueError(f'{filename!r} takes no argument, so not {argument!r} either')
  return module.get_config(argument)


def _check_pure(value: Any, name: str) -> None:
  if isinstance(value, dict):
    for key, inner in value.items():
      _check_pure(inner, f'{name}.{key}')
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      _check_pure(inner, f'{name}[{i}]')
  elif not isinstance(value, str | int | float | None):
    kind = type(value).__name__
    raise ValueError(f'{name} is {value!r} ({kind}); a config holds numbers, strings and tuples')


def _is_units(value: Any) -> bool:
  mapping = isinstance(value, Mapping | ml_collections.ConfigDict)
  return mapping and len(value) > 0 and all(k in UNITS for k in value)


def _with_units(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Gives every number of something all its units, so that a flag can set any of them."""

  def expand(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
      value = {k: _placeholder(value, k) if value[k] is None else value[k] for k in value}
    if not isinstance(value, Mapping):
      return value
    if _is_units(value):
      return {unit: _typed(unit, value.get(unit)) for unit in UNITS}
    return {k: expand(v) for k, v in value.items()}

  return ml_collections.ConfigDict(expand(config))


def _placeholder(config: ml_collections.ConfigDict, name: str) -> Any:
  kind = config.get_type(name)
  return None if kind is type(None) else ml_collections.config_dict.placeholder(kind)


def _typed(unit: str, value: Any) -> Any:
  kind = float if unit == 'epochs' else int
  # A reference keeps its type when another unit takes its place.
  reference = ml_collections.config_dict.placeholder(kind)
  if value is None or isinstance(value, ml_collections.FieldReference):
    return reference
  if type(value) not in (int, float) or (kind is int and value % 1):
    return value  # no such number: `units` will name the field
  reference.set(kind(value))
  return reference


def _override(config: ml_collections.ConfigDict, argument: str) -> ml_collections.ConfigDict:
  """Applies one flag, `--config.field=value`."""
  path, equals, text = argument.removeprefix('--config.').partition('=')
  if not argument.startswith('--config.') or not equals:
    raise ValueError(f'cannot read {argument!r}; write --config.field=value')
  *parents, field = path.split('.')
  group, walked = config, 'config'
  for name in parents:
    group, walked = _member(group, name, path, walked), f'{walked}.{name}'
  value = _member(group, field, path, walked)
  if isinstance(value, ml_collections.ConfigDict):
    raise ValueError(f'--config.{path} is no value; set one of its fields: {_join(value)}')
  values = flags.FlagValues()
  argv = ['vit_jax', argument]
  if group.get_type(field) is type(None):
    # Read from a run's config.json, None has lost the type that it stands for.
    group[field] = _literal(text)
    return config
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
    values(argv)
    if isinstance(value, tuple) and not _alike(value, group[field]):
      raise ValueError(text)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError):
    kind = group.get_type(field).__name__
    raise ValueError(f'--config.{path} takes a value of type {kind}, not {text!r}') from None
  if _is_units(group) and len(group) == len(UNITS):  # `profile` has steps alone.
    for unit in UNITS:
      if unit != field:
        group[unit] = None
  return config


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _alike(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
  # What is no Python literal, such as '(8, x)', becomes a tuple of this one string.
  strings = any(isinstance(v, str) for v in before) or not before
  return strings or not any(isinstance(v, str) for v in after)


def _member(group: Any, name: str, path: str, walked: str) -> Any:
  if not isinstance(group, ml_collections.ConfigDict):
    raise ValueError(f'unknown field --config.{path}: {walked} is {group!r} and has no fields')
  if name not in group:
    raise ValueError(f'unknown field {name!r} in --config.{path}; {walked} has {_join(group)}')
  return group[name]


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
