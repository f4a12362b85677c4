"""Starting from other weights: values change, never the state's structure, shapes or dtypes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from vit_jax import rules
from vit_jax.adapters.formats import open_checkpoint
from vit_jax.adapters.layout import Layout, image_tower
from vit_jax.adapters.read import read_variables, stacked_name
from vit_jax.adapters.tensors import Tensors
from vit_jax.checkpoint import find_state, named, read_json
from vit_jax.choices import listed
from vit_jax.pretrained import native_shapes
from vit_jax.state import TrainState

# What training has learned: parameters and collections, each to the same name.
RULES = (('params/(.*)', r'params/\1'), ('model_state/(.*)', r'model_state/\1'))


def init_from(
  state: TrainState, fields: Mapping[str, Any], grid: tuple[int, int] | None = None
) -> tuple[TrainState, str]:
  r"""Takes weights from a run, array by array, or from any checkpoint, fitted to this model.

  Args:
    state: the first state, made from scratch.
    fields: of `config.init_from`; those that are None or absent have their defaults. Either
      `workdir`, the folder of a run whose arrays have the shapes of this one's; or `checkpoint`,
      whatever `vit_jax.load` opens, with `format`, `average` and `facts` as there: positions and
      patches are resized to this model's, and variables that one of the patterns `fresh` matches,
      such as 'params/head/.*', stay as they are. With both, `step` of a run, a number, 'last' (the
      default) or 'best'; and `rules`, pairs of a pattern that must match the whole name of an array
      there, such as 'params/encoder/cls' or 'model_state/batch_stats/...', and the name in `state`,
      with groups as `\1`. The first that matches counts; an array that none matches is not used.
    grid: patches of an image here, `(height, width)`, that a checkpoint's positions are resized to;
      None: a square.

  Returns:
    The state with those arrays, on each device its shard alone, and a text that says what was taken
    and how, what of the parameters and collections stays as it was, and what was not used. An
    average of the parameters starts from the new ones.

  Raises:
    FileNotFoundError: no run, or no such checkpoint.
    ValueError: a rule that is no pattern, a pattern that matches nothing, an array of another shape
      or (of a run) dtype, two arrays of one name, or nothing to take.
  """
  here = {name: leaf for name, leaf in named(state).items() if _is_weight(name)}
  mapping = _compile(fields.get('rules') or RULES)
  if fields.get('checkpoint'):
    arrays, text = _from_checkpoint(here, fields, mapping, grid)
  else:
    arrays, text = _from_run(here, fields, mapping)
  leaves = [arrays.get(name, leaf) for name, leaf in named(state).items()]
  state = jax.tree.unflatten(jax.tree.structure(state), leaves)
  if state.ema is not None:
    # A copy: the step gives both to its own outputs.
    state = state.replace(ema=jax.tree.map(lambda x: x.copy(), state.params))
  return state, f'starting from {text}'


def open_fields(fields: Mapping[str, Any]) -> tuple[Tensors, Layout]:
  """Opens the `checkpoint` that `config.init_from` names; see `open_checkpoint`."""
  return open_checkpoint(
    fields['checkpoint'],
    fields.get('facts') or {},
    format=fields.get('format'),
    step=fields.get('step') or 'last',
    average=fields.get('average') or False,
    progress=True,
  )


def _from_checkpoint(
  here: Mapping[str, Any],
  fields: Mapping[str, Any],
  mapping: Sequence[tuple[re.Pattern, str]],
  grid: tuple[int, int] | None,
) -> tuple[dict[str, Any], str]:
  """Arrays by their names here, and what to say of them."""
  fresh = rules.match('init_from.fresh', fields.get('fresh') or (), list(here))
  tensors, layout = open_fields(fields)
  if 'image' in layout.objective and not any(name.startswith('params/image/') for name in here):
    layout = image_tower(layout)
  theirs = {name: _in_state(name) for rule in layout.rules for name in rule.ours}
  renamed = {name: _renamed(in_state, mapping) for name, in_state in theirs.items()}
  _check_one_each(
    {theirs[name]: to for name, to in renamed.items() if to in here or stacked_name(to) in here}
  )
  arrays, report = read_variables(
    tensors,
    layout,
    layout.shapes or native_shapes(layout),
    here,
    grid=grid,
    leave=lambda name: name in fresh,
    rename=lambda name: renamed[name],
  )
  if not arrays:
    raise _nothing(tensors.path, here, theirs.values())
  return arrays, str(report)


def _from_run(
  here: Mapping[str, Any],
  fields: Mapping[str, Any],
  mapping: Sequence[tuple[re.Pattern, str]],
) -> tuple[dict[str, Any], str]:
  """The same of the folder of a run, whatever its objective is."""
  workdir, step = Path(fields['workdir']), fields.get('step') or 'last'
  config = read_json(workdir / 'config.json')
  if config is None:
    raise FileNotFoundError(f"{workdir} is no run's folder: it has no config.json")
  number, file = find_state(workdir, step, config.get('checkpoint'))
  reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  there = named(reader.metadata(file).item_metadata.tree)
  renamed = {name: _renamed(name, mapping) for name in there}
  taken = {name: to for name, to in renamed.items() if to in here}
  _check_one_each(taken)
  if not taken:
    raise _nothing(file, here, filter(_is_weight, there))
  _check_alike(taken, there, here, file)
  arrays = _read(reader, file, {name: here[to] for name, to in taken.items()})
  kept = [name for name in here if name not in taken.values()]
  unused = [name for name in there if name not in taken and _is_weight(name)]
  text = f'{workdir}, step {number}: {len(taken)} arrays taken'
  for what, names in (('as they were', kept), ('not used', unused)):
    if names:
      text += f'; {what}: {listed(names)}'
  return {to: arrays[name] for name, to in taken.items()}, text


def _compile(pairs: Sequence[Sequence[str]]) -> list[tuple[re.Pattern, str]]:
  compiled = []
  for rule in pairs:
    try:
      pattern, name = rule
      compiled.append((re.compile(pattern), name))
    except (re.error, TypeError, ValueError) as e:
      raise ValueError(f'init_from.rules has {rule!r}, no (pattern, name): {e}') from None
  return compiled


def _is_weight(name: str) -> bool:
  return name.startswith(('params/', 'model_state/'))


def _in_state(name: str) -> str:
  """What a variable of a layout is called in a state: collections are under 'model_state'."""
  return name if name.startswith('params/') else f'model_state/{name}'


def _renamed(name: str, mapping: Sequence[tuple[re.Pattern, str]]) -> str:
  """What the first rule that matches makes of a name; '' where none does."""
  for pattern, to in mapping:
    match = pattern.fullmatch(name)
    if match:
      return match.expand(to)
  return ''


def _check_one_each(taken: Mapping[str, str]) -> None:
  first: dict[str, str] = {}
  for name, to in taken.items():
    other = first.setdefault(to, name)
    if other != name:
      raise ValueError(f'init_from takes {to!r} from both {other!r} and {name!r}')


def _nothing(file: Any, here: Iterable[str], there: Iterable[str]) -> ValueError:
  return ValueError(
    f'init_from finds nothing in {file} for this model, which has {listed(here)}; '
    f'there are {listed(there)}'
  )


def _check_alike(
  taken: Mapping[str, str], there: Mapping[str, Any], here: Mapping[str, Any], file: Any
) -> None:
  for name, to in taken.items():
    found, wanted = ((tuple(x.shape), str(x.dtype)) for x in (there[name], here[to]))
    if found != wanted:
      raise ValueError(
        f'init_from: {name!r} in {file} is {found[1]} {list(found[0])}, and {to!r} is '
        f'{wanted[1]} {list(wanted[0])}'
      )


def _read(reader: Any, file: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
  """These arrays alone, each in the shards of its target."""
  item = traverse_util.unflatten_dict(
    {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in targets.items()},
    sep='/',
  )
  args = ocp.checkpoint_utils.construct_restore_args(item)
  options = ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
  return named(reader.restore(file, args=options))
