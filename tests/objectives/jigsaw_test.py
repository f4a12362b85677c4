"""What is Jigsaw's own; `objectives_test.py` has what holds for every objective."""

import functools
import itertools

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax
import pytest

from vit_jax import experiment, sharding
from vit_jax.augment.color import standardized
from vit_jax.build import build
from vit_jax.objectives.jigsaw import arrange, cut, permutations
from vit_jax.state import init_state, streams

B, SIDE = 5, 12
ENCODER = dict(
  type='models.vit.ViT', patch_size=2, width=16, depth=1, num_heads=2, mlp_dim=16, pooling='mean',
  positions='sincos2d',
)  # fmt: skip
FIELDS = dict(grid=2, tile=4, num_permutations=24, tile_dim=8, hidden_dim=16)


def batch(height=SIDE, width=SIDE):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, height, width, 3), dtype=np.uint8)
  return {'image': image, 'id': np.arange(B, dtype=np.int32)}


def spec(**fields):
  return {'type': 'objectives.jigsaw.Jigsaw', 'encoder': ENCODER, **FIELDS, **fields}


def made(data=None, **fields):
  objective = build(spec(**fields))
  data = batch() if data is None else data
  variables = nn.unbox(jax.jit(lambda: objective.init(jax.random.key(0), data, train=False))())
  # A head of zeros has one answer for all.
  kernel = jax.random.normal(jax.random.key(1), variables['params']['head']['kernel'].shape)
  variables['params']['head']['kernel'] = kernel
  return objective, data, variables


def apply(objective, variables, data, **options):
  return jax.jit(functools.partial(objective.apply, **options))(variables, data)


# -- The set of permutations.


def slow_permutations(every, first, count):
  """Algorithm 1 of arXiv:1603.09246 word by word, ties as `permutations` says."""
  left, chosen = [tuple(p) for p in every], [tuple(every[first])]
  while len(chosen) < count:
    left.remove(chosen[-1])

    def far(candidate):
      distances = [sum(a != b for a, b in zip(candidate, p, strict=True)) for p in chosen]
      return sum(distances), min(distances)

    chosen.append(max(left, key=far))  # the first of several
  return np.array(chosen)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('count', [2, 7, 24])
def test_permutations_of_2x2_are_those_of_a_slow_loop(count, seed):
  every = list(itertools.permutations(range(4)))
  first = every.index(tuple(permutations(count, 2, seed)[0]))
  np.testing.assert_array_equal(
    permutations(count, 2, seed), slow_permutations(every, first, count)
  )


def test_permutations_of_3x3_are_far_from_each_other():
  found = permutations(100, 3, 0)
  assert found.shape == (100, 9) and found.dtype == np.int32
  np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(9), (100, 1)))
  distance = (found[:, None] != found).sum(-1)[np.triu_indices(100, 1)]
  assert distance.min() == 4
  # The mean of 100 that are drawn is 8.
  assert distance.mean() == pytest.approx(8.08, abs=0.005)
  # Twenty-four, without repeats, leave no place where two of nine agree more than needs be.
  np.testing.assert_array_equal(permutations(24, 3, 0), found[:24])
  assert not np.array_equal(permutations(100, 3, 1), found)


def test_all_of_2x2_are_there():
  assert len(np.unique(permutations(24, 2), axis=0)) == 24


def test_a_run_that_is_restored_has_its_set(tmp_path):
  """Though whoever restores it would have drawn another."""
  data = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch().items()}
  config = ml_collections.ConfigDict()
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    states = [
      init_state(build(spec(permutations_seed=seed)), optax.sgd(0.1), data, 0, mesh)
      for seed in (0, 1)
    ]
    with experiment.open_checkpoints(tmp_path, config) as checkpoints:
      state = states[0][0]()
      checkpoints.save(1, state, {})
      checkpoints.wait()
      restored = checkpoints.restore(states[1][1])
  expected = permutations(24, 2, 0)
  assert not np.array_equal(expected, permutations(24, 2, 1))
  np.testing.assert_array_equal(restored.model_state['constants']['permutations'], expected)


def test_training_leaves_the_set_as_it_is():
  objective, data, variables = made()
  params = variables.pop('params')
  _, new = objective.apply(
    {'params': params, **variables}, data, train=True, rngs=streams(jax.random.key(0)),
    mutable=list(variables),
  )  # fmt: skip
  assert list(variables) == ['constants']
  jax.tree.map(np.testing.assert_array_equal, new, variables)


# -- Tiles.


@pytest.mark.parametrize('shift', [0, 2])
def test_every_tile_is_cut_out_of_its_cell(shift):
  # The value of a pixel is where it is.
  row, column = np.indices((14, 18)).astype(np.float32)
  image = np.stack([np.stack([row, column, row], -1)] * 300)  # [300, 14, 18, 3]
  tiles = np.asarray(cut(jax.random.split(jax.random.key(0), 300), image, 2, 4, shift))
  assert tiles.shape == (300, 4, 4, 4, 3)
  corner = tiles[:, :, 0, 0, :]  # [300, 4, 3]
  inside = np.indices((4, 4)).astype(np.float32)
  np.testing.assert_array_equal(
    tiles[..., 0] - corner[..., 0][..., None, None], inside[0] + 0 * tiles[..., 0]
  )
  np.testing.assert_array_equal(
    tiles[..., 1] - corner[..., 1][..., None, None], inside[1] + 0 * tiles[..., 1]
  )
  for t, (y, x) in enumerate([(0, 0), (0, 9), (7, 0), (7, 9)]):
    for channel, (start, slack, limit) in enumerate([(y, 3, 10), (x, 5, 14)]):
      seen = np.unique(corner[:, t, channel])
      low, high = max(0, start - shift), min(limit, start + slack + shift)
      np.testing.assert_array_equal(seen, np.arange(low, high + 1))  # all places, and no other
  moved = (corner[..., 0] - corner[..., 2]).astype(int)
  assert set(moved.ravel()) == set(range(-2 * shift, 2 * shift + 1))


def test_unshuffling_gives_the_tiles_back():
  tiles = np.random.default_rng(0).random((3, 9, 2, 2, 1)).astype(np.float32)
  order = permutations(100, 3)[[4, 50, 99]]
  shuffled = arrange(tiles, order)
  for b in range(3):
    for place in range(9):
      np.testing.assert_array_equal(shuffled[b, place], tiles[b, order[b, place]])
  np.testing.assert_array_equal(arrange(shuffled, np.argsort(order, axis=1)), tiles)


def test_tiles_are_normalised_each_by_its_own():
  image = np.random.default_rng(0).random((4, 6, 6, 3)).astype(np.float32)
  image[1] = 0.25  # flat
  image[2, ..., 1] = 1  # in one channel
  expected = np.zeros_like(image)
  for b in range(4):
    for c in range(3):
      if np.ptp(image[b, ..., c]):
        expected[b, ..., c] = (image[b, ..., c] - image[b, ..., c].mean()) / image[b, ..., c].std()
  np.testing.assert_allclose(standardized(image), expected, atol=1e-3)
  # Brightness and contrast, which go on from tile to tile, are not in it.
  np.testing.assert_allclose(standardized(image * 0.5 + 0.2), standardized(image), atol=2e-3)


def test_shuffling_what_is_seen_of_tiles_is_shuffling_tiles():
  objective, data, variables = made()

  def both(module, batch):
    tiles, target = module._puzzle(batch, train=False)
    order = module.permutations.value[target]
    identity = (module.permutations.value == np.arange(4)).all(1).argmax()
    ours = module._classify(tiles, target, train=False)
    theirs = module._classify(arrange(tiles, order), identity + 0 * target, train=False)
    return ours, theirs

  ours, theirs = apply(objective, variables, data, method=both)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
  assert np.asarray(ours).std() > 0.1


def test_pictures_show_the_puzzle_and_the_answer():
  objective, data, variables = made(tile=6)  # cells of 6: nothing is left to draw but the order
  pictures = apply(objective, variables, data, method='pictures')
  assert set(pictures) == {'tiles', 'shuffled', 'put back'}
  image = data['image'].astype(np.float32) / 255

  def tiles_of(sheet):
    assert sheet.shape == (16, 16, 3)
    return [sheet[8 * r + 1 : 8 * r + 7, 8 * c + 1 : 8 * c + 7] for r in (0, 1) for c in (0, 1)]

  def show(module, batch):
    tiles, target = module._puzzle(batch, train=False)
    return target, module._classify(tiles, target, train=False).argmax(-1)

  target, told = apply(objective, variables, data, method=show)
  table = permutations(24, 2)
  _, metrics = apply(objective, variables, data, train=False)
  np.testing.assert_array_equal(metrics['accuracy'], target == told)
  for b in range(B):
    whole = [image[b, 6 * r : 6 * r + 6, 6 * c : 6 * c + 6] for r in (0, 1) for c in (0, 1)]
    np.testing.assert_allclose(tiles_of(pictures['tiles'][b]), whole, atol=1e-6)
    shuffled = [whole[k] for k in table[target[b]]]
    np.testing.assert_allclose(tiles_of(pictures['shuffled'][b]), shuffled, atol=1e-6)
    back = [None] * 4
    for place, k in enumerate(table[told[b]]):
      back[k] = shuffled[place]
    np.testing.assert_allclose(tiles_of(pictures['put back'][b]), back, atol=1e-6)
    assert pictures['tiles'][b, 0].min() == 1  # a white frame


def test_features_are_of_the_whole_image_normalised_as_a_tile():
  objective, data, variables = made()
  features = apply(objective, variables, data, method='features')
  image = standardized(data['image'].astype(np.float32) / 255)
  encoder = {'params': variables['params']['encoder']}
  expected = objective.encoder.apply(encoder, image, train=False).pooled
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
  assert features.shape == (B, 16)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(grid=4), 'unknown grid 4; choose from 2, 3'),
    (dict(num_permutations=25), 'num_permutations is 25; choose from 2 to 24, all those of 2x2'),
    (dict(num_permutations=1), 'num_permutations is 1; choose from 2 to 24'),
    (dict(tile=0), 'tile must be at least 1, got 0'),
    (dict(shift=-1), 'shift must be 0 or more, got -1'),
    (
      dict(tile=8),
      r'2x2 cells of an image of 12x12 have 6x6 pixels, and a tile 8x8; choose a tile of at most 6',
    ),
  ],
)
def test_what_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)


def test_a_flat_image_has_finite_gradients():
  objective, data, variables = made()
  data['image'][:] = 7
  constants = {'constants': variables['constants']}

  def loss(params):
    return objective.apply(
      {'params': params, **constants}, data, train=True, rngs=streams(jax.random.key(0))
    )[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(variables['params'])
  assert np.isfinite(value)
  assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
