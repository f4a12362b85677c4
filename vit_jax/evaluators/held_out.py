"""Held-out examples: what an objective reports of its own task, and pictures of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.arrays import Array, Batch
from vit_jax.evaluators import apply


class HeldOut:
  """The metrics that an objective reports by example, averaged over examples that it has not seen.

  They are those of a call in evaluation, so a pretext task draws its target by the example's id.
  Where the objective has a method `pictures`, a batch to `{column: [B, H, W, C]}` on the scale
  [0, 1], the last run draws those of some examples, a row each.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    writer: Any = None,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    pictures: int = 12,
  ):
    """Builds the sources.

    Args:
      objective: the method.
      mesh: the mesh.
      writer: takes the pictures of the last run; None draws none.
      source: a source or its spec; or
      sources: several by name, which comes before their metrics: `google/accuracy`.
      host: host transforms; they should draw nothing at random.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      pictures: examples in a picture, evenly spaced over the source; 0 for none.

    Raises:
      ValueError: the objective's loss is one over the batch, no source is given, or `pictures` is
        negative.
    """
    if getattr(objective, 'couples_batch', False):
      raise ValueError(
        f'the loss of {type(objective).__name__} is one over the batch and no mean over examples, '
        'so held-out examples have none'
      )
    if pictures < 0:
      raise ValueError(f'pictures is {pictures}; it must be 0 or more')
    self.objective, self.mesh, self.writer = objective, mesh, writer
    self.sources = apply.named_sources(source, sources)
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self.pictures = pictures if 'pictures' in apply.methods_of(objective) else 0
    self._metrics = apply.jit(self._report, mesh)
    self._pictures = apply.jit(self._show, mesh)

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Measures a state.

    Args:
      state: has `step`, `params` and `model_state`.
      final: whether this is the last run: draws the pictures.

    Returns:
      Each metric's mean over the examples; after `<source>/` where there are several sources.

    Raises:
      ValueError: the objective reports nothing by example.
    """
    results = {}
    variables = apply.variables_of(state)
    for name, source in self.sources.items():
      sums, count = {}, 0
      for batch in apply.batches(source, self.mesh, **self.options):
        values, mask = self._metrics(variables, batch)
        mask = mask.astype(bool)
        count += int(mask.sum())
        for key, value in values.items():
          sums[key] = sums.get(key, 0.0) + value[mask].sum(dtype=np.float64)
      if not sums:
        raise ValueError(f'{type(self.objective).__name__} reports nothing by example')
      results |= {apply.prefix(name) + key: float(value) / count for key, value in sums.items()}
      if final and self.writer is not None and self.pictures:
        self._draw(int(state.step), variables, name, source)
    return results

  def _report(self, variables: Any, batch: Batch) -> tuple[dict[str, Array], Array]:
    _, metrics = self.objective.apply(variables, batch, train=False)
    by_example = {key: value for key, value in metrics.items() if jnp.ndim(value)}
    return by_example, batch['_mask']

  def _show(self, variables: Any, batch: Batch) -> tuple[list[Array], Array]:
    columns = self.objective.apply(variables, batch, method='pictures')
    # Noted while this is traced: a dict comes out of a compiled function with its names sorted.
    self._titles = list(columns)
    return list(columns.values()), batch['_mask']

  def _draw(self, step: int, variables: Any, name: str, source: Any) -> None:
    from vit_jax.plots import images

    spaced = np.linspace(0, len(source) - 1, min(self.pictures, len(source))).round().astype(int)
    cells, captions = [], []
    for batch in apply.batches(apply.Chosen(source, spaced), self.mesh, **self.options):
      columns, mask = self._pictures(variables, batch)
      for row in np.flatnonzero(mask):
        cells += [column[row] for column in columns]
        captions += self._titles
    columns = len(self._titles) * (1 if len(spaced) == 1 else 2)  # two examples in a row
    picture = images.grid(cells, captions, columns=columns, side=112, title=name)
    self.writer.picture(step, apply.prefix(name) + 'examples', picture)
