"""What is the masked autoencoder's own; `objectives_test.py` has what holds for every objective."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.models.positions import sincos2d
from vit_jax.models.vit import ViT
from vit_jax.state import streams

B, SIDE, P, D, W = 4, 16, 4, 24, 16
N, K = 16, 4
VIT = dict(
  type='models.vit.ViT', patch_size=P, width=D, depth=2, num_heads=3, mlp_dim=48, pooling='mean',
  positions='sincos2d',
)  # fmt: skip
FIELDS = dict(encoder=VIT, decoder_width=W, decoder_depth=1, decoder_num_heads=2)


def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8),
    'id': np.arange(B, dtype=np.int32),
  }


def objective_of(**fields):
  return build({'type': 'objectives.masked_autoencoder.MaskedAutoencoder', **FIELDS, **fields})


def made(**fields):
  """An objective and its parameters, away from their start, where it would predict zeros."""
  objective, data = objective_of(**fields), batch()
  start = nn.unbox(jax.jit(lambda: objective.init(jax.random.key(0), data, train=False))())
  rng = np.random.default_rng(1)
  return objective, jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), start
  )


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
  """Normalised images and visible patches; in training with a key."""
  objective = objective_of(**fields)
  rngs = {} if key is None else streams(jax.random.key(key))

  def draw(data, rngs):
    return objective.apply({}, data, rngs=rngs, train=key is not None, method=_task)

  return jax.device_get(jax.jit(draw)(data, rngs))


def _task(objective, data, train):
  return objective._task(data, train=train)


# -- Against transformers' ViTMAEForPreTraining.


def their_model(norm_pixels):
  """With random weights, and in its decoder our fixed positions, which it has none for."""
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  config = transformers.ViTMAEConfig(
    hidden_size=D, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
    image_size=SIDE, patch_size=P, decoder_hidden_size=W, decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2, decoder_intermediate_size=4 * W, mask_ratio=1 - K / N,
    layer_norm_eps=1e-6, norm_pix_loss=norm_pixels,
  )  # fmt: skip
  model = transformers.ViTMAEForPreTraining(config).eval()
  rng = np.random.default_rng(3)
  for parameter in model.parameters():
    values = rng.normal(size=tuple(parameter.shape)) * 0.2
    parameter.data.copy_(torch.tensor(values) + (parameter.ndim == 1))
  # Ours have the last frequency too, see `sincos2d`; other tokens have none.
  positions = np.concatenate([np.zeros((1, W), np.float32), sincos2d(4, 4, W)])
  model.decoder.decoder_pos_embed.data.copy_(torch.tensor(positions)[None])
  return model


def our_parameters(model):
  theirs = {name: value.numpy() for name, value in model.state_dict().items()}

  def norm(name):
    return {'scale': theirs[f'{name}.weight'], 'bias': theirs[f'{name}.bias']}

  def linear(name):
    return {'kernel': theirs[f'{name}.weight'].T, 'bias': theirs[f'{name}.bias']}

  def block(name, heads):
    attention = {}
    for ours in ('query', 'key', 'value'):
      p = linear(f'{name}.attention.{ours[0]}_proj')
      attention[ours] = {
        'kernel': p['kernel'].reshape(len(p['kernel']), heads, -1),
        'bias': p['bias'].reshape(heads, -1),
      }
    out = linear(f'{name}.attention.o_proj')
    out['kernel'] = out['kernel'].reshape(heads, -1, len(out['bias']))
    return {
      'norm_1': norm(f'{name}.layernorm_before'),
      'attention': {**attention, 'out': out},
      'norm_2': norm(f'{name}.layernorm_after'),
      'mlp': {f'fc_{i}': linear(f'{name}.mlp.fc{i}') for i in (1, 2)},
    }

  patches = 'vit.embeddings.patch_embeddings.projection'
  encoder = {
    'cls': theirs['vit.embeddings.cls_token'],
    'pos_embedding': theirs['vit.embeddings.position_embeddings'],
    'embedding': {
      'kernel': theirs[f'{patches}.weight'].transpose(2, 3, 1, 0),
      'bias': theirs[f'{patches}.bias'],
    },
    **{f'block_{i}': block(f'vit.layers.{i}', 3) for i in range(2)},
    'norm': norm('vit.layernorm'),
  }
  decoder = {
    'embed': linear('decoder.decoder_embed'),
    'mask_token': theirs['decoder.mask_token'],
    'block_0': block('decoder.decoder_layers.0', 2),
    'norm': norm('decoder.decoder_norm'),
    'pixels': linear('decoder.decoder_pred'),
  }
  return {'params': {'encoder': encoder, 'decoder': decoder}}


@pytest.mark.parametrize('norm_pixels', [True, False])
def test_equals_transformers_with_the_same_weights_and_noise(norm_pixels):
  model = their_model(norm_pixels)
  objective = objective_of(
    encoder=dict(VIT, pooling='token', positions='learned'), norm_pixels=norm_pixels
  )
  image, keep = task(batch())
  noise = np.ones((B, N), np.float32)
  np.put_along_axis(noise, keep, 0, axis=1)
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    expected = model(torch.tensor(image.transpose(0, 3, 1, 2).copy()), noise=torch.tensor(noise))
  variables = our_parameters(model)
  predicted = jax.jit(lambda *args: objective.apply(*args, train=False, method='predict'))(
    variables, image, keep
  )
  assert expected.logits.std() > 0.1
  np.testing.assert_allclose(predicted, expected.logits.numpy(), rtol=1e-4, atol=1e-5)
  loss, _ = evaluate(objective, variables, batch())
  np.testing.assert_allclose(loss, expected.loss.item(), rtol=1e-5)


# -- The task.


def test_patches_are_kept_in_order_and_as_many_as_said():
  _, keep = task(batch(), mask_ratio=0.75)
  assert keep.shape == (B, K)
  assert (np.diff(keep, axis=1) > 0).all()
  assert keep.min() >= 0
  assert keep.max() < N
  assert len({row.tobytes() for row in keep}) == B
  assert task(batch(), mask_ratio=0.5)[1].shape == (B, 8)


def test_each_patch_is_kept_as_often():
  size = 4000
  data = {'image': np.zeros((size, SIDE, SIDE, 3), np.uint8), 'id': np.arange(size)}
  _, keep = task(data)
  share = np.bincount(keep.reshape(-1), minlength=N) / size
  np.testing.assert_allclose(share, K / N, atol=5 * np.sqrt(K / N * (1 - K / N) / size))


def test_masks_are_fixed_by_id_in_evaluation_and_drawn_anew_in_training():
  data = batch()
  _, keep = task(data)
  order = np.array([3, 0])
  _, part = task({key: value[order] for key, value in data.items()})
  np.testing.assert_array_equal(part, keep[order])
  one, same, other = (task(data, key=key)[1] for key in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert not np.array_equal(one, other)


@pytest.mark.parametrize('norm_pixels', [True, False])
def test_loss_equals_a_plain_loop(norm_pixels):
  data = batch()
  objective, variables = made(norm_pixels=norm_pixels)
  image, keep = task(data)
  predicted = jax.jit(lambda *args: objective.apply(*args, train=False, method='predict'))(
    variables, image, keep
  )
  _, metrics = evaluate(objective, variables, data)
  for i in range(B):
    targets = []
    for n in range(N):
      row, column = P * (n // 4), P * (n % 4)
      patch = image[i, row : row + P, column : column + P].reshape(-1)
      if norm_pixels:
        patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
      targets.append(patch)
    color = np.mean([targets[n].reshape(-1, 3).mean(0) for n in keep[i]], axis=0)
    hidden = [n for n in range(N) if n not in keep[i]]
    errors = [np.mean((predicted[i, n] - targets[n]) ** 2) for n in hidden]
    np.testing.assert_allclose(metrics['loss'][i], np.mean(errors), rtol=1e-4)
    errors = [np.mean((targets[n].reshape(-1, 3) - color) ** 2) for n in hidden]
    np.testing.assert_allclose(metrics['baseline'][i], np.mean(errors), rtol=1e-4)


def test_what_is_hidden_is_not_seen():
  data = batch()
  objective, variables = made(norm_pixels=False)
  image, keep = task(data)
  seen = (keep[..., None] == np.arange(N)).any(1).reshape(B, 4, 4)
  seen = seen.repeat(P, axis=1).repeat(P, axis=2)[..., None]
  predict = jax.jit(lambda *args: objective.apply(*args, train=False, method='predict'))
  predicted = predict(variables, image, keep)
  changed = np.where(seen, image, -image)
  assert not np.allclose(changed, image)
  np.testing.assert_array_equal(predict(variables, changed, keep), predicted)
  assert not np.allclose(predict(variables, np.where(seen, -image, image), keep), predicted)


@pytest.mark.parametrize('norm_pixels', [True, False])
def test_pictures_are_the_image_where_it_is_visible(norm_pixels):
  data = batch()
  fields = dict(norm_pixels=norm_pixels, mean=(0.5, 0.4, 0.3), std=0.25)
  columns = pictures(*made(**fields), data)
  title = 'filled, mean\nand std given' if norm_pixels else 'filled'
  assert list(columns) == ['image', 'visible', title]
  _, keep = task(data)
  seen = (keep[..., None] == np.arange(N)).any(1).reshape(B, 4, 4)
  seen = seen.repeat(P, axis=1).repeat(P, axis=2)[..., None]
  image = data['image'] / 255
  np.testing.assert_allclose(columns['image'], image, atol=1e-5)
  fill = np.broadcast_to([0.5, 0.4, 0.3], image.shape)
  np.testing.assert_allclose(columns['visible'], np.where(seen, image, fill), atol=1e-5)
  filled = np.asarray(columns[title])
  np.testing.assert_allclose(np.where(seen, filled, image), image, atol=1e-5)
  assert ((filled >= 0) & (filled <= 1)).all()


def test_the_target_itself_gives_the_image_back(monkeypatch):
  """With what is to be predicted as the prediction the hidden patches are right too."""
  data = batch()
  objective, variables = made()

  def perfect(self, image, keep, *, train):
    return self._target(image)[0]

  monkeypatch.setattr(type(objective), 'predict', perfect)
  columns = pictures(objective, variables, data)
  np.testing.assert_allclose(columns['filled, mean\nand std given'], data['image'] / 255, atol=1e-5)
  loss, _ = evaluate(objective, variables, data)
  assert float(loss) == 0


def test_a_patch_of_one_colour_is_predicted_as_zero():
  data = batch()
  data['image'][:] = 200
  objective, variables = made()
  start = jax.tree.map(jnp.zeros_like, variables)
  loss, metrics = evaluate(objective, start, data)
  # Rounding over sqrt(1e-6).
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  np.testing.assert_allclose(metrics['baseline'], 0, atol=1e-6)
  grads = jax.jit(
    jax.grad(lambda v: objective.apply(v, data, train=False)[0])
  )(variables)  # fmt: skip
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize('pooling', ['token', 'map'])
def test_what_pools_is_trained_too(pooling):
  data = batch()
  objective, variables = made(encoder=dict(VIT, pooling=pooling))
  grads = jax.jit(jax.grad(lambda v: objective.apply(v, data, train=False)[0]))(variables)
  encoder = grads['params']['encoder']
  part = encoder['cls' if pooling == 'token' else 'map_head']
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(part)) > 1e-4


def test_features_are_of_the_whole_image():
  data = batch()
  objective, variables = made()
  image = data['image'] / np.float32(127.5) - 1
  whole = ViT(**{k: v for k, v in VIT.items() if k != 'type'}).apply(
    {'params': variables['params']['encoder']}, image, train=False
  )
  features = objective.apply(variables, data, method='features')
  np.testing.assert_allclose(features, whole.pooled, rtol=1e-4, atol=1e-5)


RESNET = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(encoder=RESNET), 'read some patches alone, models.vit.ViT, not ResNet'),
    (dict(encoder=dict(VIT, conv_stem=(8,))), 'a ConvStem lets visible patches see hidden ones'),
    (dict(encoder=dict(VIT, pre_logits=8)), 'no use for pre_logits'),
    (dict(mask_ratio=0.0), r'mask_ratio is a share of the patches in \(0, 1\), not 0.0'),
    (dict(mask_ratio=1.0), 'mask_ratio is a share'),
    (dict(mask_ratio=0.99), 'leaves 0 of 16 patches visible'),
    (dict(encoder=dict(VIT, patch_size=5)), 'image 16x16 is not divisible by patch 5x5'),
    (dict(encoder=dict(VIT, patch_size=16)), 'leaves 0 of 1 patches visible'),
    (dict(decoder_width=18), 'sincos2d positions need a width of 8, 12, 16'),
  ],
)
def test_what_cannot_be_is_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)
