"""Where a ViT looks: the share of its attention rollout on the drawing, and pictures of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Array, Batch
from vit_jax.evaluators import apply
from vit_jax.models.features import Features
from vit_jax.models.positions import sincos2d
from vit_jax.plots import attention as plots

PICTURES = 24  # images beside their rollouts
SEED = 0  # of the untrained ViT


class Attention:
  """Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928) held against the masks of a source.

  The rollout is read at the class token, or where there is none at the mean over the patch tokens.
  It is normalised over the patches. Its share on the mask is near the mask's area where attention
  knows nothing of the drawing.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    writer: Any = None,
    source: Any,
    count: int | None = None,
    host: str = 'decode',
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
  ):
    """Builds the source and a copy of the objective that keeps its attention weights.

    Args:
      objective: has an `encoder` that is a ViT, and the method `features`.
      mesh: the mesh.
      writer: takes the pictures of the last run; None draws none.
      source: a source or its spec; has `mask(i)`, [H, W] float in [0, 1], of example i.
      count: examples used, evenly spaced; all by default.
      host: host transforms. They may scale an image but not crop, flip or turn it, since the masks
        are not.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.

    Raises:
      ValueError: the objective has no ViT or no method `features`, or the source has no masks.
    """
    apply.method_of(objective, 'features', evaluator='attention')
    self.source = apply.named_sources(source)['']
    if not hasattr(self.source, 'mask'):
      raise ValueError(
        f'Evaluator attention needs a source with mask(i), which {type(self.source).__name__} lacks'
      )
    total = len(self.source)
    if count is not None and not 1 <= count <= total:
      raise ValueError(f'count is {count}; choose from 1 to {total}, the examples of the source')
    spaced = np.linspace(0, total - 1, count or total).round().astype(int)
    self.examples = _Examples(self.source, spaced)
    self.mesh, self.writer = mesh, writer
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self.objective = _with_weights(objective)
    self._look = apply.jit(self._look_at, mesh)
    self._untrained: float | None = None

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Measures a state.

    Args:
      state: has `step`, `params` and `model_state`.
      final: whether this is the last run: draws the pictures.

    Returns:
      `mask_share`, the share of the rollout that falls on the mask; `mask_area`, the mask's share
      of the image; and `untrained_mask_share`, that of the same ViT with random parameters: means
      over the examples.

    Raises:
      ValueError: the encoder keeps no attention weights among its patches.
    """
    pictures = final and self.writer is not None
    seen = self._see(apply.variables_of(state), pictures=pictures)
    if self._untrained is None:
      self._untrained = float(self._see(self._random_variables(seen.spec)).share)
    if pictures:
      self._draw(state, seen)
    return {
      'mask_share': float(seen.share),
      'mask_area': float(seen.area),
      'untrained_mask_share': self._untrained,
    }

  def _see(self, variables: Any, *, pictures: bool = False) -> _Seen:
    share, area, shown, distance, start = [], [], [], 0.0, 0
    chosen = set(np.linspace(0, len(self.examples) - 1, PICTURES).round().astype(int).tolist())
    for batch in apply.batches(self.examples, self.mesh, **self.options):
      looked = self._look(variables, batch)
      rows = np.flatnonzero(looked['mask'])
      rollout = looked['rollout'].astype(np.float64)  # [B, h, w]
      distance += looked['distance'][rows].sum(0, dtype=np.float64)
      new = [row for row in rows if start + row in chosen] if pictures else []
      images = apply.fetch(batch['image'], self.mesh) if new else ()
      for row in rows:
        mask = plots.to_grid(self.examples.mask(start + row), rollout.shape[1:])
        share.append((rollout[row] * mask).sum() / rollout[row].sum())
        area.append(mask.mean())
        if row in new:
          shown.append(_Shown(start + row, images[row], rollout[row], share[-1], area[-1]))
      start += len(rollout)
      spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
    return _Seen(np.mean(share), np.mean(area), distance / len(share), shown, spec)

  def _look_at(self, variables: Any, batch: Batch) -> dict[str, Array]:
    """`rollout` [B, h, w], summing to 1, and `distance` [B, depth, heads] in patches."""
    _, new = self.objective.apply(
      variables,
      batch,
      method='features',
      mutable=['intermediates'],
      capture_intermediates=lambda module, _: module.path == ('encoder',),
    )
    found = new['intermediates'].get('encoder', {})
    weights = block_weights(found)
    grid = _grid_of(found)
    count = grid[0] * grid[1] if grid else 0
    size = len(batch['image'])
    if (
      not weights
      or not count
      or any(
        w.shape[0] != size or w.shape[-1] != weights[0].shape[-1] or w.shape[-1] < count
        for w in weights
      )
    ):
      raise ValueError(_no_vit(self.objective))
    length = weights[0].shape[-1]
    if self.objective.encoder.pooling == 'token':
      start = jnp.zeros(length).at[0].set(1)
    else:
      start = jnp.zeros(length).at[-count:].set(1 / count)
    rollout = plots.rollout(weights, start)[:, -count:]  # patches come last
    rollout = rollout / rollout.sum(-1, keepdims=True)
    among = [plots.distance(w[:, :, -count:, -count:], grid) for w in weights]
    return {
      'rollout': rollout.reshape(size, *grid),
      'distance': jnp.stack(among, axis=1),
      'mask': batch['_mask'],
    }

  def _random_variables(self, spec: Any) -> Any:
    """The variables that `features` needs, as they are before training; `spec` is a batch's."""

    def init() -> Any:
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)
      keys = jax.random.split(jax.random.key(SEED), 3)
      rngs = dict(zip(('params', 'dropout', 'augment'), keys, strict=True))
      return self.objective.init(rngs, zeros, method='features')

    with jax.set_mesh(self.mesh):
      shardings = sharding.parameter_shardings(jax.eval_shape(init), self.mesh)
      return jax.jit(lambda: nn.unbox(init()), out_shardings=shardings)()

  def _draw(self, state: Any, seen: _Seen) -> None:
    from vit_jax.plots import filters, positions

    def write(name: str, picture: np.ndarray) -> None:
      self.writer.picture(int(state.step), name, picture)

    encoder = self.objective.encoder
    title = f'Attention rollout: {100 * seen.share:.1f} % falls on the drawings, '
    title += f'which cover {100 * seen.area:.1f} % of the images (untrained: '
    title += f'{100 * self._untrained:.1f} %)'
    images, heats = [s.image for s in seen.shown], [s.rollout for s in seen.shown]
    captions = [self._caption(s) for s in seen.shown]
    write('rollout', plots.beside(images, heats, captions, title=title))
    write('distances', plots.distances(seen.distance * np.mean(encoder.patch)))

    parameters = state.params.get('encoder', {})
    inner = parameters.get('encoder', parameters)  # of an encoder around another, such as LoRA
    if 'embedding' in inner:
      kernel = encoder.pixel_kernel(parameters)
      write('filters', filters.filters(apply.fetch(kernel, self.mesh)))
    h, w = seen.shown[0].rollout.shape
    if 'pos_embedding' in inner:
      grid = tuple(encoder.grid or (h, w))
      embedding = apply.fetch(inner['pos_embedding'], self.mesh)[0, -grid[0] * grid[1] :]
      write('positions', positions.positions(embedding, grid))
    elif encoder.positions == 'sincos2d':
      write('positions', positions.positions(sincos2d(h, w, encoder.size.width), (h, w)))

  def _caption(self, shown: _Shown) -> str:
    label = self.examples[shown.index].get('label')
    name = ''
    if label is not None and np.ndim(label) == 0:
      name = apply.class_names(self.source, int(label) + 1)[int(label)] + '\n'
    return f'{name}{100 * shown.share:.0f} % on {100 * shown.area:.0f} % of the area'


class _Shown(NamedTuple):
  """An example of the picture."""

  index: int
  image: np.ndarray  # [H, W, C] uint8
  rollout: np.ndarray  # [h, w]
  share: float
  area: float


class _Seen(NamedTuple):
  """Means over the examples, and some of them."""

  share: float
  area: float
  distance: np.ndarray  # [depth, heads], in patches
  shown: list[_Shown]
  spec: Any  # of a batch


class _Examples(apply.Chosen):
  """Some examples of a source, with their masks."""

  def mask(self, i: int) -> np.ndarray:
    return self.source.mask(int(self.indices[i]))


def block_weights(intermediates: Mapping[str, Any]) -> list[Array]:
  """The attention weights that an encoder's blocks have sown, first to last, [B, heads, L, L] each.

  Blocks are ordered by the number in their name (`block_10` after `block_2`). Weights of `nn.scan`
  over the blocks, which have an axis more, are taken apart. Those of pooling, whose queries are no
  tokens, are left out.
  """
  found = []
  for path, leaf in jax.tree.leaves_with_path(dict(intermediates)):
    names = [str(getattr(key, 'key', '')) for key in path]
    block = next((n for n in names if n.startswith('block')), None)
    if 'attention_weights' not in names or block is None or leaf.shape[-1] != leaf.shape[-2]:
      continue
    number = int((re.findall(r'\d+', block) or ['0'])[-1])
    found += [(number, i, w) for i, w in enumerate(leaf if leaf.ndim == 5 else [leaf])]
  return [w for *_, w in sorted(found, key=lambda item: item[:2])]


def _grid_of(intermediates: Mapping[str, Any]) -> tuple[int, int] | None:
  """The grid of the features that the encoder returned."""
  outputs = intermediates.get('__call__', ())
  return next((f.grid for f in outputs if isinstance(f, Features)), None)


def _with_weights(objective: nn.Module) -> nn.Module:
  """A copy of the objective whose encoder writes its attention weights out."""
  encoder = getattr(objective, 'encoder', None)
  if not isinstance(encoder, nn.Module) or not all(
    hasattr(encoder, field) for field in ('attention', 'pooling', 'patch')
  ):
    raise ValueError(_no_vit(objective))
  return objective.clone(encoder=encoder.clone(attention='einsum'))


def _no_vit(objective: nn.Module) -> str:
  encoder = getattr(objective, 'encoder', None)
  has = f'has the encoder {type(encoder).__name__}' if encoder is not None else 'has no encoder'
  return (
    'Evaluator attention needs an encoder whose blocks attend over all patches, such as '
    f'models.vit.ViT; {type(objective).__name__} {has}'
  )
