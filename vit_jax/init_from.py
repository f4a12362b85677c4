"""Starting from the weights of another run: values change, never structure, shape or dtype."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from vit_jax.checkpoint import Checkpoints, named, read_json
from vit_jax.choices import listed
from vit_jax.state import TrainState

# What training has learned: parameters and collections, each to the same name.
RULES = (('params/(.*)', r'params/\1'), ('model_state/(.*)', r'model_state/\1'))


def init_from(state: TrainState, fields: Mapping[str, Any]) -> tuple[TrainState, str]:
  r"""Takes weights from a run.

  Args:
    state: the first state, made from scratch.
    fields: of `config.init_from`: `workdir`, the run's folder; `step`, a number, 'last' or 'best',
      'last' unless given; `rules`, pairs of a pattern that must match the whole name of an array
      of the run, such as 'params/encoder/cls', and the name in `state`, with groups as `\1`. The
      first rule that matches counts; an array that none matches is not used.

  Returns:
    The state with those arrays in their shards, and a text that says what was taken, what of the
    parameters and collections stays as it was, and what of the run's was not used. An average of
    the parameters starts from the new ones.

  Raises:
    FileNotFoundError: no run, or no such checkpoint.
    ValueError: a rule that is no pattern, an array of another shape or dtype, two arrays of one
      name, or nothing to take.
  """
  workdir, step = Path(fields['workdir']), fields.get('step') or 'last'
  rules = _compile(fields.get('rules') or RULES)
  config = read_json(workdir / 'config.json')
  if config is None:
    raise FileNotFoundError(f"{workdir} is no run's folder: it has no config.json")
  best = (config.get('checkpoint') or {}).get('best')
  with Checkpoints(workdir, best=best) as checkpoints:
    number = checkpoints.find(step)
    if number not in checkpoints.steps:
      have = ', '.join(map(str, checkpoints.steps)) or 'none'
      raise FileNotFoundError(f'{workdir} has no checkpoint of step {step!r}; it has {have}')
    file = checkpoints.folder / str(number) / 'state'
  reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  there = named(reader.metadata(file).item_metadata.tree)
  here = {name: leaf for name, leaf in named(state).items() if _is_weight(name)}
  taken = _match(there, here, rules)
  _check(taken, there, here, file)
  arrays = _read(reader, file, {name: here[to] for name, to in taken.items()})
  by_name = {to: arrays[name] for name, to in taken.items()}
  leaves = [by_name.get(name, leaf) for name, leaf in named(state).items()]
  state = jax.tree.unflatten(jax.tree.structure(state), leaves)
  if state.ema is not None:
    # A copy: the step gives both to its own outputs.
    state = state.replace(ema=jax.tree.map(lambda x: x.copy(), state.params))
  kept = [name for name in here if name not in by_name]
  unused = [name for name in there if name not in taken and _is_weight(name)]
  text = f'starting from {workdir}, step {number}: {len(taken)} arrays taken'
  for what, names in (('as they were', kept), ('not used', unused)):
    if names:
      text += f'; {what}: {listed(names)}'
  return state, text


def _compile(rules: Sequence[Sequence[str]]) -> list[tuple[re.Pattern, str]]:
  compiled = []
  for rule in rules:
    try:
      pattern, name = rule
      compiled.append((re.compile(pattern), name))
    except (re.error, TypeError, ValueError) as e:
      raise ValueError(f'init_from.rules has {rule!r}, no (pattern, name): {e}') from None
  return compiled


def _is_weight(name: str) -> bool:
  return name.startswith(('params/', 'model_state/'))


def _match(
  there: Mapping[str, Any], here: Mapping[str, Any], rules: Sequence[tuple[re.Pattern, str]]
) -> dict[str, str]:
  """From a name in the run to that in the state, for all that both have."""
  taken: dict[str, str] = {}
  for name in there:
    for pattern, to in rules:
      match = pattern.fullmatch(name)
      if match:
        new = match.expand(to)
        if new in here:
          if new in taken.values():
            other = next(n for n, t in taken.items() if t == new)
            raise ValueError(f'init_from takes {new!r} from both {other!r} and {name!r}')
          taken[name] = new
        break
  return taken


def _check(
  taken: Mapping[str, str], there: Mapping[str, Any], here: Mapping[str, Any], file: Any
) -> None:
  if not taken:
    raise ValueError(
      f'init_from finds nothing in {file} for this model, which has {listed(list(here))}; '
      f'there are {listed(list(filter(_is_weight, there)))}'
    )
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
