"""What evaluators share: an objective's methods, a source's batches, results on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Batch
from vit_jax.build import build


def method_of(objective: nn.Module, name: str, *, evaluator: str) -> str:
  """`name`, if `objective` has such a method.

  Args:
    objective: the Linen module.
    name: the method that the evaluator calls.
    evaluator: its name in the error.

  Raises:
    ValueError: it has none; those that it has are listed.
  """
  methods = methods_of(objective)
  if name not in methods:
    raise ValueError(
      f'Evaluator {evaluator} calls {name!r}, which {type(objective).__name__} lacks; '
      f'it has {", ".join(map(repr, methods)) or "none"}'
    )
  return name


def methods_of(objective: nn.Module) -> list[str]:
  """The public methods of an objective that are not Linen's: 'features', 'logits', ..."""
  kind = type(objective)
  fields = {field.name for field in dataclasses.fields(kind)}
  names = (name for name in dir(kind) if name[0] != '_' and name not in fields)
  return [name for name in names if callable(getattr(kind, name)) and not hasattr(nn.Module, name)]


def named_sources(source: Any = None, sources: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """The sources of an evaluator by name, built; a single one is called ''.

  Args:
    source: one source or its spec.
    sources: several of either, by name.

  Raises:
    ValueError: both or neither are given, or a source is empty.
  """
  if (source is None) == (not sources):
    raise ValueError("an evaluator reads one 'source' or several 'sources': give one of the two")
  given = {'': source} if source is not None else dict(sources or {})
  made = {name: build(s) if isinstance(s, Mapping) else s for name, s in given.items()}
  for name, s in made.items():
    if not len(s):
      raise ValueError(f'source {name!r} of an evaluator is empty' if name else 'source is empty')
  return made


class Chosen:
  """Some examples of a source, as a source: its example i is example `indices[i]` of `source`."""

  def __init__(self, source: Any, indices: np.ndarray):
    self.source, self.indices = source, indices

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.source[int(self.indices[i])]


def prefix(name: str) -> str:
  """What stands before a metric of the source `name`: `google/`, or nothing for a single source."""
  return f'{name}/' if name else ''


def class_names(source: Any, count: int) -> list[str]:
  """The names of labels 0 to `count - 1`; the numbers where the source has none."""
  names = [str(name) for name in getattr(source, 'classes', ())][:count]
  return names + [str(i) for i in range(len(names), count)]


def batches(
  source: Any,
  mesh: Mesh,
  *,
  host: str,
  batch_size: int,
  num_workers: int = 0,
  max_bad_share: float = 0.01,
) -> Iterator[Batch]:
  """Each example of `source` once and in order, in global batches.

  Row r of batch b is example `b * size + r`; `_mask` is False on padding and on broken examples.

  Args:
    source: the source.
    mesh: the mesh over which batches are split.
    host: host transforms, such as `'decode | resize(224)'`.
    batch_size: examples a batch, rounded up to a multiple of the devices that hold different ones.
    num_workers: processes that decode; 0 decodes in this one.
    max_bad_share: up to this share, examples that do not decode are named and left out.

  Raises:
    ValueError: more than that do not decode.
  """
  from vit_jax.data import pipeline

  shards = sharding.batch_shards(mesh)
  with pipeline.eval_batches(
    source,
    host=host,
    batch_size=-(-batch_size // shards) * shards,
    sharding=sharding.batch_sharding(mesh),
    num_workers=num_workers,
    max_bad_share=max_bad_share,
  ) as reader:
    yield from reader


def jit(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Compiles `function` once; its results come to the host whole, as NumPy arrays, on every host.

  Args:
    function: arrays to arrays. Parameters are arguments of it: closed over, they would be
      constants.
    mesh: the mesh that its arguments lie on.
  """
  compiled = jax.jit(function, out_shardings=sharding.replicated(mesh))

  def call(*arguments: Any) -> Any:
    with jax.set_mesh(mesh):
      results = compiled(*arguments)
    # Every host holds the whole of each result, though not all of its devices.
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), results)

  return call


def fetch(tree: Any, mesh: Mesh) -> Any:
  """Arrays that are split over devices and hosts as whole NumPy arrays on every host."""
  return jit(_same, mesh)(tree)


def _same(tree: Any) -> Any:
  return tree


def variables_of(state: Any) -> dict[str, Any]:
  """What `objective.apply` takes: the parameters and the other collections of a state."""
  return {'params': state.params, **state.model_state}
