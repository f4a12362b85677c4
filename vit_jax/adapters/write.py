"""Writes a model's variables as a file of some format: whole, or not at all."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.adapters.mapping import Rule
from vit_jax.choices import listed
from vit_jax.reasons import reason


def one_by_one(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Variables by name with stacked blocks taken apart: `blocks/...` as `block_0/...`, ..."""
  plain = {}
  for name, value in variables.items():
    if '/blocks/' in name:
      for i, row in enumerate(value):
        plain[name.replace('/blocks/', f'/block_{i}/')] = row
    else:
      plain[name] = value
  return plain


def their_arrays(
  rules: Sequence[Rule], variables: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """A format's arrays by name, each contiguous.

  Args:
    rules: of the format.
    variables: by name, blocks one by one.

  Raises:
    ValueError: a variable that a rule needs is missing, or one that no rule writes.
  """
  written = {name for rule in rules for name in rule.ours}
  lost = [name for name in variables if name not in written]
  if lost:
    raise ValueError(f'the format has no place for {listed(lost)}')
  for rule in rules:
    missing = [name for name in rule.ours if name not in variables]
    if missing:
      raise ValueError(f'the model has no {listed(missing)}, which the format has')
    arrays = rule.write([np.asarray(variables[name]) for name in rule.ours])
    for name, array in zip(rule.theirs, arrays, strict=True):
      yield name, np.asarray(array, order='C')  # The other way, a number gets an axis.


def save(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays as `.npz` or `.safetensors`, by the path's ending.

  Raises:
    ValueError: another ending.
    OSError: it cannot be written; what was there before stays.
  """
  path = Path(path)
  writers = {'.npz': _save_npz, '.safetensors': _save_safetensors}
  if path.suffix not in writers:
    raise ValueError(f'{path} ends in {path.suffix!r}; choose from {", ".join(writers)}')
  try:
    with whole(path) as partial:
      writers[path.suffix](partial, arrays)
  except (OSError, safetensors.SafetensorError) as e:
    raise OSError(f'cannot write {path} ({reason(e)})') from e


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Gives a path to write to, which becomes `path` at the end, or is removed after an error."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  try:
    yield partial
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def _save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  with open(path, 'wb') as f:
    np.savez(f, **arrays)


def _save_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  # transformers refuses a file that does not say which library's layout it has.
  safetensors.numpy.save_file(dict(arrays), path, metadata={'format': 'pt'})
