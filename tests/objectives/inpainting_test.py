"""What is inpainting's own; `objectives_test.py` has what holds for every objective."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.objectives import inpainting
from vit_jax.state import streams

B, SIDE, D = 6, 16, 16
VIT = dict(
  type='models.vit.ViT', patch_size=4, width=D, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
)
RESNET = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8, small_stem=True)
DECODER = dict(type='models.decoder.Decoder', width=8, doublings=1)


def batch(side=SIDE):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (B, side, side, 3), dtype=np.uint8),
    'id': np.arange(B, dtype=np.int32),
  }


def made(data=None, **fields):
  """An objective and its parameters, away from their start, where it would predict zeros."""
  fields = dict(encoder=VIT, decoder=DECODER, overlap=1) | fields
  objective = build({'type': 'objectives.inpainting.Inpainting', **fields})
  data = batch() if data is None else data
  start = nn.unbox(jax.jit(lambda: objective.init(jax.random.key(0), data, train=False))())
  rng = np.random.default_rng(1)
  moved = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), start['params']
  )
  return objective, {**start, 'params': moved}


def evaluate(objective, variables, data):
  return jax.jit(lambda *args: objective.apply(*args, train=False))(variables, data)


def pictures(objective, variables, data):
  """In their order, which a compiled function would not keep."""
  titles = []

  def show(variables, data):
    columns = objective.apply(variables, data, method='pictures')
    titles.extend(columns)
    return list(columns.values())

  columns = jax.jit(show)(variables, data)
  return dict(zip(titles, columns, strict=True))


def task(data, *, key=None, **fields):
  """Images, holes and weights; in training with a key."""
  objective = build(
    {'type': 'objectives.inpainting.Inpainting', 'encoder': VIT, 'overlap': 1, **fields}
  )
  rngs = {} if key is None else streams(jax.random.key(key))

  def draw(data, rngs):
    return objective.apply({}, data, rngs=rngs, train=key is not None, method=_task)

  return jax.device_get(jax.jit(draw)(data, rngs))


def _task(objective, data, train):
  return objective._task(data, train=train)


def _fill(objective, seen):
  return objective.decoder(objective.encoder(seen, train=False), 3, (SIDE, SIDE))


def test_cover_is_what_any_block_covers():
  corners = np.random.default_rng(0).integers(0, 5, (4, 3, 2))
  expected = np.zeros((4, 7, 9), bool)
  for i, blocks in enumerate(corners):
    for row, column in blocks:
      expected[i, row : row + 2, column : column + 4] = True
  np.testing.assert_array_equal(inpainting.cover(jnp.array(corners), (2, 4), (7, 9)), expected)


def test_the_central_half_is_predicted_and_its_border_stays_visible():
  """As in the published code: of 16 pixels 8 are predicted and, with an overlap of 1, 6 hidden."""
  _, hole, weights = task(batch(), overlap_weight=10.0)
  expected = np.zeros((SIDE, SIDE))
  expected[4:12, 4:12] = 10
  expected[5:11, 5:11] = 1
  for i in range(B):
    np.testing.assert_array_equal(weights[i], expected)
    np.testing.assert_array_equal(hole[i], expected == 1)


@pytest.mark.parametrize(('blocks', 'overlap'), [(1, 0), (4, 0), (2, 1)])
def test_blocks_cover_at_most_their_area(blocks, overlap):
  _, hole, weights = task(batch(), mask='blocks', blocks=blocks, area=0.25, overlap=overlap)
  side = int(SIDE * (0.25 / blocks) ** 0.5)
  for i in range(B):
    predicted = (weights[i] > 0).sum()
    assert side**2 <= predicted <= blocks * side**2 <= 0.25 * SIDE**2
    assert (side - 2 * overlap) ** 2 <= hole[i].sum() <= blocks * (side - 2 * overlap) ** 2
    # Every hidden pixel has all that are `overlap` away among the predicted ones.
    for row, column in np.argwhere(hole[i]):
      around = weights[
        i, row - overlap : row + overlap + 1, column - overlap : column + overlap + 1
      ]
      assert around.shape == (2 * overlap + 1,) * 2
      assert (around > 0).all()
      assert weights[i, row, column] == 1
  assert len({h.tobytes() for h in hole}) == B


def test_blocks_lie_everywhere():
  data = {'image': np.zeros((2000, SIDE, SIDE, 3), np.uint8), 'id': np.arange(2000)}
  _, hole, _ = task(data, mask='blocks', blocks=1, area=0.25, overlap=0)
  corners = {tuple(np.argwhere(h)[0]) for h in hole}
  assert corners == {(i, j) for i in range(9) for j in range(9)}


@pytest.mark.parametrize('encoder', [VIT, RESNET], ids=['vit', 'resnet'])
@pytest.mark.parametrize('mask', inpainting.MASKS)
def test_loss_equals_a_plain_loop(encoder, mask):
  data = batch()
  cut = dict(mask=mask, blocks=2, overlap_weight=7.0)
  objective, variables = made(encoder=encoder, **cut)
  image, hole, weights = task(data, **cut)
  np.testing.assert_allclose(image, data['image'] / 127.5 - 1, atol=1e-5)
  seen = image * (1 - hole[..., None])  # 0 is the mean.
  filled = jax.jit(lambda *args: objective.apply(*args, method=_fill))(variables, seen)
  assert np.abs(filled).max() > 0.1
  loss, metrics = evaluate(objective, variables, data)
  for i in range(B):
    total = hidden = norm = count = base = 0.0
    color = np.mean([image[i, r, c] for r, c in np.argwhere(hole[i] == 0)], axis=0)
    for r in range(SIDE):
      for c in range(SIDE):
        error = np.mean((np.asarray(filled[i, r, c]) - image[i, r, c]) ** 2)
        total, norm = total + weights[i, r, c] * error, norm + weights[i, r, c]
        if hole[i, r, c]:
          hidden, count = hidden + error, count + 1
          base += np.mean((color - image[i, r, c]) ** 2)
    np.testing.assert_allclose(metrics['loss'][i], total / norm, rtol=1e-4)
    np.testing.assert_allclose(metrics['hole'][i], hidden / count, rtol=1e-4)
    np.testing.assert_allclose(metrics['baseline'][i], base / count, rtol=1e-4)
  np.testing.assert_allclose(loss, metrics['loss'].mean(), rtol=1e-6)


def test_what_is_hidden_is_not_seen():
  data = batch()
  cut = dict(mask='blocks', blocks=2)
  objective, variables = made(**cut)
  _, hole, _ = task(data, **cut)
  changed = {**data, 'image': np.where(hole[..., None] > 0, 255 - data['image'], data['image'])}
  changed['image'] = changed['image'].astype(np.uint8)

  def filled(data):
    return np.asarray(pictures(objective, variables, data)['hole filled'])

  inside = np.broadcast_to(hole[..., None] > 0, data['image'].shape)
  np.testing.assert_allclose(filled(changed)[inside], filled(data)[inside], atol=1e-6)
  assert np.abs(filled(data) - data['image'] / 255)[inside].max() > 0.1


def test_holes_are_fixed_by_id_in_evaluation_and_drawn_anew_in_training():
  data = batch()
  cut = dict(mask='blocks', blocks=2)
  _, hole, _ = task(data, **cut)
  order = np.array([3, 0, 5])
  _, part, _ = task({key: value[order] for key, value in data.items()}, **cut)
  np.testing.assert_array_equal(part, hole[order])
  one, same, other = (task(data, key=key, **cut)[1] for key in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)


def test_pictures_are_the_image_but_for_the_hole():
  data = batch()
  cut = dict(mask='blocks', blocks=2, mean=(0.5, 0.4, 0.3), std=0.25)
  _, hole, _ = task(data, **cut)
  columns = pictures(*made(**cut), data)
  assert list(columns) == ['image', 'masked', 'hole filled']
  image, hidden = data['image'] / 255, hole[..., None] > 0
  np.testing.assert_allclose(columns['image'], image, atol=1e-5)
  fill = np.broadcast_to([0.5, 0.4, 0.3], image.shape)
  np.testing.assert_allclose(columns['masked'], np.where(hidden, fill, image), atol=1e-5)
  filled = np.asarray(columns['hole filled'])
  np.testing.assert_allclose(np.where(hidden, image, filled), image, atol=1e-5)
  assert ((filled >= 0) & (filled <= 1)).all()


def test_one_colour_is_its_own_baseline():
  data = batch()
  data['image'][:] = 200
  objective, variables = made(mask='blocks', blocks=2)
  loss, metrics = evaluate(objective, variables, data)
  assert np.isfinite(loss)
  np.testing.assert_allclose(metrics['baseline'], 0, atol=1e-10)


def test_features_are_of_the_whole_image():
  data = batch()
  objective, variables = made()
  whole = objective.encoder.apply(
    {'params': variables['params']['encoder']}, data['image'] / np.float32(127.5) - 1, train=False
  )
  features = objective.apply(variables, data, method='features')
  np.testing.assert_allclose(features, whole.pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(mask='cross'), "unknown mask 'cross'; choose from 'center', 'blocks'"),
    (dict(area=1.0), 'area is a share of the image between 0 and 1'),
    (dict(blocks=0), 'blocks must be at least 1'),
    (dict(overlap=-1), 'overlap and its weight must be 0 or more'),
    (dict(overlap=4), 'overlap of 4 leaves nothing to cut out of blocks of 8x8'),
    (dict(mask='blocks', blocks=100), 'overlap of 1 leaves nothing to cut out'),
    (dict(decoder=dict(DECODER, width=16, doublings=3)), 'does not divide 16x16; choose fewer'),
  ],
)
def test_what_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)
