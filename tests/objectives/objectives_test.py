"""What holds for every objective; `SPECS` says how to make a small one and what to feed it.

A new objective needs one entry: without it `test_every_objective_has_a_spec` fails.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import objectives, sharding
from vit_jax.build import build
from vit_jax.objectives import color_bins
from vit_jax.state import abstract_variables, init_variables, streams

B, SIDE, K, D = 8, 8, 5, 32
ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=D, depth=1, num_heads=2, mlp_dim=64, pooling='mean'
)


def images(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Noise with a label each; every class occurs."""
  return {
    'image': rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8),
    'label': (np.arange(B) % K).astype(np.int32),
    'id': np.arange(B, dtype=np.int32),
  }


def views(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Two views of each example that have nothing in common: what belongs together is learned."""
  pairs = rng.integers(0, 256, (B, 2, SIDE, SIDE, 3), dtype=np.uint8)
  return {**images(rng), 'views': pairs}


def pairs(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Noise with a text of its own each, which ends with the last token."""
  text = np.concatenate([np.arange(B * 3).reshape(B, 3), np.full((B, 1), 3 * B)], axis=1)
  return {**images(rng), 'text': text.astype(np.int32)}


def black_and_white(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Every value is at one of the ends, so that the square of each, normalised, is 1."""
  batch = images(rng)
  return {**batch, 'image': 255 * (batch['image'] // 128)}


def tiles(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Four times the same noise, so that what is hidden follows from what is not."""
  batch = images(rng)
  return {**batch, 'image': np.tile(batch['image'][:, : SIDE // 2, : SIDE // 2], (1, 2, 2, 1))}


def places(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Each image's quarters are noise of their own: the same in all images, so that it is learned."""
  image = rng.integers(9, 246, (1, SIDE, SIDE, 3)) + rng.integers(-9, 10, (B, SIDE, SIDE, 3))
  return {**images(rng), 'image': image.astype(np.uint8)}


@dataclasses.dataclass(frozen=True)
class Spec:
  """One objective to test.

  Attributes:
    fields: of the objective, all but its type.
    batch: makes a batch of B examples.
    chance: the loss at the start.
    random: more fields, with which training draws random numbers.
    outputs: method -> shape of what it gives for a batch.
    fits: metrics that 100 steps of Adam on 8 examples bring to at least this.
    start: more fields, with which the loss starts at its chance value.
  """

  fields: Mapping[str, Any]
  batch: Callable[[np.random.Generator], dict[str, np.ndarray]]
  chance: float
  random: Mapping[str, Any]
  outputs: Mapping[str, tuple[int, ...]]
  fits: Mapping[str, float]
  start: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SUPERVISED = dict(type='objectives.supervised.Supervised', num_classes=K, encoder=ENCODER)
TEXT = dict(
  type='models.text.TextTransformer', vocab_size=3 * B + 1, end_id=3 * B, context=4, width=D,
  depth=1, num_heads=2, projection=D,
)  # fmt: skip
# Several tokens a tile of 4x4, and positions for a whole image too.
TILE_ENCODER = dict(ENCODER, patch_size=2, positions='sincos2d')
SPECS = {
  'clip.CLIP': Spec(
    fields=dict(image=ENCODER, text=TEXT, projection=D),
    batch=pairs,
    chance=math.log(B),
    random=dict(augment='flip | color_distort(0.5)', image=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D), 'embeddings': (B, D), 'text_embeddings': (B, D)},
    fits={'image_to_text': 1.0, 'text_to_image': 1.0},
    start=dict(scale=1e-4, max_scale=1e-4),  # So low that all pairs are equally likely.
  ),
  'colorization.Colorization': Spec(
    # One bin a colour: spread over several, a target's own entropy would be in the loss.
    fields=dict(encoder=ENCODER, neighbors=1),
    batch=images,
    chance=math.log(len(color_bins.centers())),
    random=dict(
      augment='flip | color_distort(0.5)', neighbors=5, encoder=dict(ENCODER, dropout=0.2)
    ),
    outputs={'features': (B, D), 'colorize': (B, SIDE, SIDE, 3)},
    fits={'accuracy': 1.0},
  ),
  'deepcluster.DeepCluster': Spec(
    fields=dict(num_clusters=K, num_examples=B, encoder=ENCODER),
    batch=images,
    chance=math.log(K),
    random=dict(augment='flip | color_distort(0.5)', encoder=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D)},
    fits={'accuracy': 1.0},
  ),
  'distillation.Distillation': Spec(
    fields=dict(student=SUPERVISED, teacher=SUPERVISED),
    batch=images,
    chance=0.0,  # Two heads of zeros agree.
    random=dict(student=dict(SUPERVISED, augment='flip | color_distort(0.5)', mix='mixup(0.2)')),
    outputs={'logits': (B, K), 'features': (B, D)},
    fits={'agreement': 1.0},
  ),
  'inpainting.Inpainting': Spec(
    fields=dict(
      encoder=ENCODER,
      overlap=1,
      decoder=dict(type='models.decoder.Decoder', width=32, doublings=1),
    ),
    batch=black_and_white,
    chance=1.0,
    random=dict(
      augment='flip | color_distort(0.5)',
      mask='blocks',
      blocks=2,
      overlap=0,
      encoder=dict(ENCODER, dropout=0.2),
    ),
    outputs={'features': (B, D)},
    fits={},
  ),
  'jigsaw.Jigsaw': Spec(
    fields=dict(
      encoder=TILE_ENCODER,
      grid=2,
      tile=4,
      num_permutations=24,
      tile_dim=D,
      hidden_dim=64,
      shift=0,
      augment='',
    ),
    batch=places,
    chance=math.log(24),
    random=dict(
      shift=1,
      augment='grayscale(0.3)',
      encoder=dict(TILE_ENCODER, dropout=0.2),
    ),
    outputs={'features': (B, D)},
    fits={'accuracy': 1.0},
  ),
  'jigsaw_positions.JigsawPositions': Spec(
    fields=dict(encoder=dict(ENCODER, positions='none')),
    batch=places,
    chance=math.log(4),
    random=dict(augment='color_distort(0.5)', encoder=dict(ENCODER, positions='none', dropout=0.2)),
    outputs={'features': (B, D)},
    fits={'accuracy': 1.0},
  ),
  'masked_autoencoder.MaskedAutoencoder': Spec(
    fields=dict(
      encoder=ENCODER, mask_ratio=0.5, decoder_width=D, decoder_depth=1, decoder_num_heads=2
    ),
    batch=tiles,
    chance=47 / 48,  # A patch's 48 values have variance 1 by the unbiased estimate.
    random=dict(augment='flip | color_distort(0.5)', encoder=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D)},
    fits={},
  ),
  'rotation.Rotation': Spec(
    fields=dict(encoder=ENCODER),
    batch=images,
    chance=math.log(4),
    random=dict(augment='flip | color_distort(0.5)', encoder=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D)},
    fits={'accuracy': 1.0},
  ),
  'simclr.SimCLR': Spec(
    fields=dict(encoder=ENCODER),
    batch=views,
    chance=math.log(2 * B - 1),
    random=dict(augment='flip | color_distort(0.5)', encoder=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D), 'embeddings': (B, 128)},
    fits={'accuracy': 1.0},
    start=dict(temperature=1e4),  # So high that all views are equally likely.
  ),
  'slip.SLIP': Spec(
    fields=dict(image=ENCODER, text=TEXT, projection=D),
    batch=pairs,
    chance=math.log(B) + math.log(2 * B - 1),
    random=dict(augment='flip | color_distort(0.5)', image=dict(ENCODER, dropout=0.2)),
    outputs={'features': (B, D), 'embeddings': (B, D), 'text_embeddings': (B, D)},
    fits={'image_to_text': 1.0, 'text_to_image': 1.0},
    start=dict(scale=1e-4, max_scale=1e-4, temperature=1e4),
  ),
  'supervised.Supervised': Spec(
    fields=dict(num_classes=K, encoder=ENCODER),
    batch=images,
    chance=math.log(K),
    random=dict(augment='flip | color_distort(0.5)', encoder=dict(ENCODER, dropout=0.2)),
    outputs={'logits': (B, K), 'features': (B, D)},
    fits={'accuracy': 1.0},
  ),
}


def found() -> list[str]:
  """Every class in `objectives/` that can be trained: 'supervised.Supervised'."""
  names = []
  for info in pkgutil.iter_modules(objectives.__path__):
    module = importlib.import_module(f'vit_jax.objectives.{info.name}')
    for name, value in vars(module).items():
      own = inspect.isclass(value) and value.__module__ == module.__name__
      if own and issubclass(value, nn.Module) and name[0] != '_':
        call = inspect.signature(value.__call__).parameters
        if 'batch' in call:
          names.append(f'{info.name}.{name}')
  return names


FOUND = [name for name in found() if name in SPECS]
ONE_DEVICE = dict(data=1)
MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2)]


def test_every_objective_has_a_spec():
  assert sorted(found()) == sorted(SPECS)


@functools.cache
def make(name: str, *, random: bool = False, start: bool = False) -> nn.Module:
  spec = SPECS[name]
  more = {**(spec.random if random else {}), **(spec.start if start else {})}
  return build({'type': f'objectives.{name}', **spec.fields, **more})


@functools.cache
def batch_of(name: str) -> dict[str, np.ndarray]:
  return SPECS[name].batch(np.random.default_rng(0))


@functools.cache
def first(name: str) -> Any:
  """The variables as training starts with them."""
  batch = batch_of(name)
  init = jax.jit(lambda: nn.unbox(init_variables(make(name), batch, jax.random.PRNGKey(0))))
  return jax.device_get(init())  # Of no mesh: tests on several share it.


def moved(variables: Any) -> Any:
  """Variables away from their start, where a head of zeros would hide the encoder's gradients."""
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(1)
  # Whole numbers, such as a table's, round to what they were.
  moves = [0.1 * rng.normal(size=leaf.shape) for leaf in leaves]
  return jax.tree.unflatten(
    tree, [leaf + move.astype(leaf.dtype) for leaf, move in zip(leaves, moves, strict=True)]
  )


@functools.cache
def loss_and_grad(name: str, *, random: bool) -> Callable[..., Any]:
  objective = make(name, random=random)

  def loss_fn(params, state, batch, rng):
    (loss, metrics), new = objective.apply(
      {'params': params, **state}, batch, train=True, rngs=streams(rng), mutable=list(state)
    )
    return loss, (metrics, new)

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def split(variables: Any) -> tuple[Any, dict[str, Any]]:
  return variables['params'], {k: v for k, v in variables.items() if k != 'params'}


@pytest.mark.smoke
@pytest.mark.parametrize('name', FOUND)
def test_starts_at_its_chance_value(name):
  for train in (False, True):
    (loss, _), _ = make(name, start=True).apply(
      first(name), batch_of(name), train=train, rngs=streams(jax.random.PRNGKey(0)),
      mutable=['batch_stats'],
    )  # fmt: skip
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, SPECS[name].chance, rtol=1e-3)


@pytest.mark.smoke
@pytest.mark.parametrize('name', FOUND)
def test_overfits_8_examples(name):
  params, state = split(first(name))
  tx = optax.adam(3e-3)
  step = loss_and_grad(name, random=False)
  batch, opt_state, update = batch_of(name), tx.init(params), jax.jit(tx.update)
  for i in range(100):
    (_, (_, state)), grads = step(params, state, batch, jax.random.PRNGKey(i))
    updates, opt_state = update(grads, opt_state)
    params = optax.apply_updates(params, updates)
  loss, metrics = make(name).apply({'params': params, **state}, batch, train=False)
  assert float(loss) < 0.1
  for metric, value in SPECS[name].fits.items():
    assert float(metrics[metric].mean()) >= value, metric


def on_mesh(name: str, shape: Mapping[str, int], seed: int = 7) -> Any:
  """Loss, metrics and gradients of one training step with random numbers, computed on a mesh."""
  return _on_mesh(name, tuple(shape.items()), seed)


@functools.cache
def _on_mesh(name: str, shape: tuple[tuple[str, int], ...], seed: int) -> Any:
  devices = jax.devices()[: math.prod(n for _, n in shape)]
  mesh = sharding.make_mesh(dict(shape), devices)
  objective, batch = make(name, random=True), batch_of(name)
  with jax.set_mesh(mesh):
    placed = sharding.parameter_shardings(abstract_variables(objective, batch), mesh)
    params, state = split(jax.device_put(moved(first(name)), placed))
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    (loss, (metrics, _)), grads = loss_and_grad(name, random=True)(
      params, state, batch, jax.random.PRNGKey(seed)
    )
  return jax.device_get((loss, metrics, grads))


@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: '-'.join(mesh))
@pytest.mark.parametrize('name', FOUND)
def test_one_device_and_eight_give_the_same_loss_and_gradients(name, mesh):
  one, eight = on_mesh(name, ONE_DEVICE), on_mesh(name, mesh)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(one[2]))
  assert scale > 1e-3
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, scale), err_msg=str(path))


@pytest.mark.parametrize('name', FOUND)
def test_every_parameter_has_a_gradient(name):
  for path, grad in jax.tree.leaves_with_path(on_mesh(name, ONE_DEVICE)[2]):
    assert np.isfinite(grad).all(), path
    # Softmax does not see what the keys' bias adds to all of a query's scores.
    if not jax.tree_util.keystr(path, simple=True, separator='/').endswith('key/bias'):
      assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize('name', FOUND)
def test_evaluation_is_deterministic_and_training_follows_its_key(name):
  objective, batch, variables = make(name, random=True), batch_of(name), moved(first(name))

  def evaluate(*args):
    return jax.device_get(objective.apply(variables, batch, *args, train=False))

  # No random stream is given, so that drawing from one would raise.
  jax.tree.map(np.testing.assert_array_equal, evaluate(), evaluate())
  _on_mesh.cache_clear()
  one = on_mesh(name, ONE_DEVICE)
  _on_mesh.cache_clear()
  jax.tree.map(np.testing.assert_array_equal, one, on_mesh(name, ONE_DEVICE))
  assert float(on_mesh(name, ONE_DEVICE, seed=8)[0]) != float(one[0])


@pytest.mark.smoke
@pytest.mark.parametrize('name', FOUND)
def test_metrics_are_scalars_or_by_example(name):
  for train in (False, True):
    (loss, metrics), _ = make(name).apply(
      first(name), batch_of(name), train=train, rngs=streams(jax.random.PRNGKey(0)),
      mutable=['batch_stats'],
    )  # fmt: skip
    assert metrics
    for metric, value in metrics.items():
      assert value.shape in ((), (B,)), metric
      assert value.dtype == jnp.float32, metric
    if 'loss' in metrics:
      np.testing.assert_allclose(metrics['loss'].mean(), loss, rtol=1e-6)


@pytest.mark.parametrize('name', FOUND)
def test_outputs_have_their_shapes_and_examples_do_not_mix(name):
  objective, batch, variables = make(name), batch_of(name), moved(first(name))
  half = {key: value[: B // 2] for key, value in batch.items()}
  assert 'features' in SPECS[name].outputs
  for method, shape in SPECS[name].outputs.items():
    whole = objective.apply(variables, batch, method=method)
    assert whole.shape == shape
    assert whole.dtype == jnp.float32
    part = objective.apply(variables, half, method=method)
    np.testing.assert_allclose(part, whole[: B // 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FOUND)
def test_evaluation_by_example_does_not_depend_on_the_batch(name):
  objective, batch, variables = make(name), batch_of(name), moved(first(name))
  if getattr(objective, 'couples_batch', False):
    pytest.skip('its loss is one over the batch')
  half = {key: value[B // 2 :] for key, value in batch.items()}
  _, whole = objective.apply(variables, batch, train=False)
  _, part = objective.apply(variables, half, train=False)
  for metric, value in whole.items():
    if value.ndim:
      np.testing.assert_allclose(part[metric], value[B // 2 :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', FOUND)
def test_says_what_it_is_and_where_it_comes_from(name):
  module, _, cls = name.partition('.')
  text = inspect.getdoc(getattr(importlib.import_module(f'vit_jax.objectives.{module}'), cls))
  assert 'arXiv:' in text or 'doi' in text.lower()
