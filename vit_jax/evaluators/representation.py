"""Judges frozen features: the state's and, beside them, a random encoder's and raw pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Array, Batch
from vit_jax.choices import check_choice
from vit_jax.evaluators import apply
from vit_jax.tables import BASELINES

PIXELS_SIDE = 32  # larger images are first reduced to it: 3072 values are what a probe can bear


class Examples(NamedTuple):
  """What a source's examples are to an encoder, those that decode, in the order of the source.

  Attributes:
    features: [N, D] float32.
    labels: [N] int.
    ids: [N] int; as the devices have them, 32 bits.
    positions: [N] int, in the source.
  """

  features: np.ndarray
  labels: np.ndarray
  ids: np.ndarray
  positions: np.ndarray


Encode = Callable[[Any], Examples]  # from a source


class Representation:
  """The base of evaluators of frozen features: a subclass says what is measured, in `measure`.

  It is measured thrice: `accuracy` of the state's features, `accuracy_random` of those of the same
  encoder with the parameters and statistics that training would start from, and `accuracy_pixels`
  of the images themselves. The two baselines do not change in training: they are measured once.

  Pixels are what the host transforms make of an image, in [0, 1], transparency on white, and where
  they are larger than 32 x 32 reduced to that (bilinear, antialiased).
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    method: str = 'features',
    baselines: Sequence[str] = BASELINES,
    random_seed: int = 0,
  ):
    """Prepares.

    Args:
      objective: has the method `method`.
      mesh: the mesh.
      host: host transforms of all sources; they should draw nothing at random.
      batch_size: examples a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, examples that do not decode are named and left out.
      method: from a batch to features `[B, D]`.
      baselines: any of 'random' and 'pixels'.
      random_seed: of the random encoder.

    Raises:
      ValueError: the objective lacks the method (those it has are listed), or an unknown baseline.
    """
    self.evaluator = type(self).__module__.rsplit('.', 1)[-1]
    self.objective, self.mesh = objective, mesh
    self.method = apply.method_of(objective, method, evaluator=self.evaluator)
    self.baselines = tuple(check_choice('baseline', name, BASELINES) for name in baselines)
    self.random_seed = random_seed
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self._kept: dict[str, dict[str, float]] | None = None
    self._features = apply.jit(self._apply, mesh)
    self._pixels = apply.jit(_with_labels(pixels), mesh)
    self._random: Any = None

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Measures, and gives the baselines beside each result.

    Args:
      state: has `params` and `model_state`.
      final: changes nothing.

    Returns:
      What `measure` gives, and the same with `_random` and `_pixels` behind each name.
    """
    trained, *encoders = self.encoders(state).values()
    results = self.measure(trained)
    if self._kept is None:
      measured = map(self.measure, encoders)
      self._kept = dict(zip(self.baselines, measured, strict=True))
      self._random = None  # Its memory is free again.
    beside = {}
    for metric, value in results.items():
      beside[metric] = value
      for name, kept in self._kept.items():
        beside[f'{metric}_{name}'] = kept[metric]
    return beside

  def encoders(self, state: Any) -> dict[str, Encode]:
    """Functions from a source to `Examples`, one pass over it: 'trained', then the baselines."""
    trained = functools.partial(self._features, apply.variables_of(state))
    functions = {'trained': trained, 'random': self._of_random, 'pixels': self._pixels}
    return {name: self._encoder(functions[name]) for name in ('trained', *self.baselines)}

  def measure(self, encode: Encode) -> dict[str, float]:
    """What is measured of an encoder, the same names for every encoder.

    Args:
      encode: one of `encoders`.
    """
    raise NotImplementedError(f'{type(self).__name__} says nothing of what it measures')

  def _of_random(self, batch: Batch) -> Any:
    if self._random is None:
      self._random = self._init(batch)
    return self._features(self._random, batch)

  def _init(self, batch: Batch) -> Any:
    """The variables that `method` reads, as training would start with them, in their shards."""

    def make() -> Any:
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
      return self.objective.init(jax.random.key(self.random_seed), zeros, method=self.method)

    with jax.set_mesh(self.mesh):
      shardings = sharding.parameter_shardings(jax.eval_shape(make), self.mesh)
      return jax.jit(lambda: nn.unbox(make()), out_shardings=shardings)()

  def _apply(self, variables: Any, batch: Batch) -> tuple[Array, ...]:
    def features(batch: Batch) -> Array:
      made = self.objective.apply(variables, batch, method=self.method)
      if made.ndim != 2:
        raise ValueError(
          f'{self.evaluator} needs features [B, D]; {self.method!r} gives {list(made.shape)}'
        )
      return made

    return _with_labels(features)(batch)

  def _encoder(self, features: Callable[[Batch], tuple[np.ndarray, ...]]) -> Encode:
    def encode(source: Any) -> Examples:
      parts, seen = [], 0
      for batch in apply.batches(source, self.mesh, **self.options):
        if 'label' not in batch or batch['label'].ndim != 1:
          raise ValueError(f'{self.evaluator} needs one label an image, not multi-hot labels')
        *arrays, mask = features(batch)
        # Batches are in the order of the source, and padded at its end only.
        arrays.append(seen + np.arange(len(mask)))
        seen += len(mask)
        parts.append([array[mask.astype(bool)] for array in arrays])
      return Examples(*map(np.concatenate, zip(*parts, strict=True)))

    return encode


def pixels(batch: Batch) -> Array:
  """The images of `image [B, H, W, C]`, uint8, as features [B, H' * W' * C'], float32 in [0, 1].

  RGBA lies on white, C' is then 3; H' and W' are at most 32.
  """
  image = batch['image'].astype(jnp.float32) / 255
  if image.shape[-1] == 4:
    image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
  size, height, width, channels = image.shape
  height, width = min(height, PIXELS_SIDE), min(width, PIXELS_SIDE)
  image = jax.image.resize(image, (size, height, width, channels), 'linear')
  return image.reshape(size, -1)


def _with_labels(features: Callable[[Batch], Array]) -> Callable[[Batch], tuple[Array, ...]]:
  def call(batch: Batch) -> tuple[Array, ...]:
    return features(batch).astype(jnp.float32), batch['label'], batch['id'], batch['_mask']

  return call
