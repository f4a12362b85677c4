"""What is JigsawPositions' own; `objectives_test.py` has what holds for every objective."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax.build import build

B, SIDE = 4, 8
ENCODER = dict(
  type='models.vit.ViT', patch_size=2, width=16, depth=2, num_heads=2, mlp_dim=16, pooling='mean',
  positions='none',
)  # fmt: skip


def batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8)
  return {'image': image, 'id': np.arange(B, dtype=np.int32)}


def apply(objective, variables, data, **options):
  return jax.jit(functools.partial(objective.apply, **options))(variables, data)


def made(**fields):
  objective = build(
    {'type': 'objectives.jigsaw_positions.JigsawPositions', 'encoder': ENCODER, **fields}
  )
  variables = nn.unbox(jax.jit(lambda: objective.init(jax.random.key(0), batch(), train=False))())
  kernel = jax.random.normal(jax.random.key(1), variables['params']['head']['kernel'].shape)
  variables['params']['head']['kernel'] = kernel  # A head of zeros has one answer for all.
  return objective, batch(), variables


def patches_of(image):
  """`[H, W, C]` to `[16, 2, 2, C]`, row by row."""
  return [image[r : r + 2, c : c + 2] for r in range(0, SIDE, 2) for c in range(0, SIDE, 2)]


def place(objective, data, variables):
  return apply(objective, variables, data, method=lambda m, b: m._place(b, train=False))


@pytest.mark.parametrize(('keep', 'count'), [(0.5, 8), (1.0, 16), (0.01, 1)])
def test_the_loss_is_that_of_a_loop_over_the_patches_seen(keep, count):
  objective, data, variables = made(keep=keep)
  _, seen, logits = place(objective, data, variables)
  assert logits.shape == (B, count, 16)
  _, metrics = apply(objective, variables, data, train=False)
  for b in range(B):
    assert len(set(seen[b].tolist())) == count
    losses, right = [], []
    for k, own in enumerate(np.asarray(seen[b])):
      row = np.asarray(logits[b, k], np.float64)
      losses.append(np.log(np.exp(row).sum()) - row[own])
      right.append(row.argmax() == own)
    np.testing.assert_allclose(metrics['loss'][b], np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'][b], np.mean(right), rtol=1e-6)


def test_a_patch_is_told_by_what_it_shows_and_not_by_where_it_is():
  """The patches of an image in another order get the same logits, in that order."""
  objective, data, variables = made(keep=1.0)
  _, seen, logits = place(objective, data, variables)
  order = np.random.default_rng(1).permutation(16)
  image = np.zeros_like(data['image'])
  for b in range(B):
    cells = patches_of(data['image'][b])
    for at, k in enumerate(order):
      r, c = divmod(at, 4)
      image[b, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = cells[k]
  _, again, moved = place(objective, {**data, 'image': image}, variables)
  np.testing.assert_array_equal(seen, again)  # Drawn by the id.
  for b in range(B):
    by_place = dict(zip(seen[b].tolist(), np.asarray(logits[b]), strict=True))
    for k, own in enumerate(seen[b].tolist()):
      np.testing.assert_allclose(moved[b, k], by_place[order[own]], rtol=1e-3, atol=1e-4)


def test_each_image_sees_patches_of_its_own():
  objective, data, variables = made()
  _, seen, _ = place(objective, data, variables)
  assert len({tuple(sorted(row)) for row in seen.tolist()}) == B


def test_pictures_show_the_patches_where_they_are_told():
  objective, data, variables = made()
  pictures = apply(objective, variables, data, method='pictures')
  assert set(pictures) == {'image', 'seen', 'as placed'}
  _, seen, logits = place(objective, data, variables)
  told = np.asarray(logits).argmax(-1)
  for b in range(B):
    whole = patches_of(data['image'][b] / np.float32(255))
    shown = patches_of(np.asarray(pictures['seen'][b]))
    placed = patches_of(np.asarray(pictures['as placed'][b]))
    for k in range(16):
      expected = whole[k] if k in seen[b].tolist() else np.full((2, 2, 3), 0.5)
      np.testing.assert_allclose(shown[k], expected, atol=1e-6)
      claimed = [own for own, at in zip(seen[b].tolist(), told[b], strict=True) if at == k]
      # Where several are told to be, one of them is seen.
      choices = [whole[own] for own in claimed] or [np.full((2, 2, 3), 0.5)]
      assert any(np.allclose(placed[k], choice, atol=1e-6) for choice in choices)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      dict(encoder=dict(ENCODER, positions='sincos2d')),
      "with positions 'none' .* ViT with .*'sinc",
    ),
    (dict(encoder=dict(ENCODER, patch_size=4, conv_stem=(8,))), 'without a stem'),
    (
      dict(encoder=dict(type='models.resnet.ResNet', blocks=(1,), width=8)),
      'got ResNet with positions None',
    ),
    (dict(keep=0), 'keep is a share above 0 and at most 1, not 0'),
  ],
)
def test_what_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)
