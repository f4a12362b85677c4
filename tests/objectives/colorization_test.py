"""What is colorization's own; `objectives_test.py` has what holds for every objective."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from vit_jax.augment import lab
from vit_jax.build import build
from vit_jax.objectives import color_bins
from vit_jax.state import streams

B, SIDE = 4, 16
VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=16, pooling='mean'
)
RESNET = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8)


def drawings():
  """A colour on white each; the last is grey all over."""
  rng = np.random.default_rng(0)
  image = np.full((B, SIDE, SIDE, 3), 255, np.uint8)
  image[:, 4:, :9] = rng.integers(0, 256, (B, 1, 1, 3))
  image[-1] = 90
  return {'image': image, 'id': np.arange(B, dtype=np.int32)}


def make(**fields):
  return build({'type': 'objectives.colorization.Colorization', 'encoder': VIT, **fields})


@functools.cache
def variables_of(encoder='vit'):
  """Away from the start, where all logits are 0."""
  objective = make(encoder=VIT if encoder == 'vit' else RESNET)
  init = jax.jit(functools.partial(objective.init, train=False))
  variables = jax.device_get(nn.unbox(init({'params': jax.random.key(0)}, drawings())))
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), variables.pop('params'))
  return {'params': params, **variables}


def applied(objective, variables, batch, **how):
  """Compiled as a whole, which takes less time than operation by operation."""
  return jax.jit(functools.partial(objective.apply, **how))(variables, batch)


def train(objective, variables, batch):
  collections = [name for name in variables if name != 'params']
  return applied(
    objective, variables, batch, train=True, rngs=streams(jax.random.key(0)), mutable=collections
  )


def logits_of(module, light):
  return module._logits(light, train=False)


@pytest.mark.parametrize('encoder', ['vit', 'resnet'])
def test_the_answer_follows_from_lightness_alone(encoder):
  objective, variables = make(encoder=VIT if encoder == 'vit' else RESNET), variables_of(encoder)
  batch = drawings()
  light = lab.rgb_to_lab(batch['image'] / np.float32(255))[..., :1]
  # Of less colour, and yet within the gamut: the same lightness.
  values = jnp.concatenate([light, 0.5 * lab.rgb_to_lab(batch['image'] / 255.0)[..., 1:]], -1)
  pale = {**batch, 'image': lab.lab_to_rgb(values)}
  assert np.abs(pale['image'] * 255 - batch['image']).max() > 20
  for method in ('features', 'colorize'):
    a, b = (applied(objective, variables, x, method=method) for x in (batch, pale))
    np.testing.assert_allclose(a, b, atol=2e-3)
  other = {**batch, 'image': 255 - batch['image']}
  features = applied(objective, variables, other, method='features')
  assert np.abs(features - applied(objective, variables, batch, method='features')).max() > 0.01


def test_the_loss_is_a_loop_over_places_with_weights():
  objective, variables, batch = make(uniform=0.3), dict(variables_of()), drawings()
  prior = np.random.default_rng(2).dirichlet(np.ones(len(color_bins.centers())))
  asked = np.random.default_rng(3).dirichlet(np.ones(len(prior)))
  variables['statistics'] = {
    'prior': jnp.asarray(prior, jnp.float32),
    'answer': jnp.asarray(3 * asked, jnp.float32),
  }
  values = np.asarray(lab.rgb_to_lab(batch['image'] / np.float32(255)))
  logits = np.asarray(applied(objective, variables, values[..., :1] / 100, method=logits_of))
  weights = np.asarray(color_bins.rebalance(variables['statistics']['prior'], 0.3, 5.0))
  nearest = jax.jit(lambda ab: color_bins.neighbors(ab, 5, 5.0))
  same = np.log(asked)
  weighted, constant = np.zeros(B), np.zeros(B)
  seen, wanted = np.zeros(len(prior)), np.zeros(len(prior))
  for i in range(B):
    for y in range(SIDE // 4):
      for x in range(SIDE // 4):
        ab = values[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4, 1:].mean((0, 1))
        index, share = map(np.asarray, nearest(ab))
        logp = log_softmax(logits[i, y, x])
        for answer, total in ((logp, weighted), (same, constant)):
          loss = -sum(s * answer[q] for q, s in zip(index, share, strict=True))
          total[i] += weights[index[0]] * loss / 16
        seen[index[0]] += 1 / (16 * B)
        wanted[index] += weights[index[0]] * share / (16 * B)
  loss, metrics = applied(objective, variables, batch, train=False)
  np.testing.assert_allclose(metrics['loss'], weighted, rtol=1e-4)
  np.testing.assert_allclose(metrics['baseline'], constant, rtol=1e-4)
  np.testing.assert_allclose(loss, weighted.mean(), rtol=1e-4)
  (_, metrics), new = train(objective, variables, batch)
  np.testing.assert_allclose(metrics['loss'], weighted, rtol=1e-4)
  np.testing.assert_allclose(new['statistics']['prior'], 0.99 * prior + 0.01 * seen, atol=1e-6)
  np.testing.assert_allclose(
    new['statistics']['answer'], 0.99 * 3 * asked + 0.01 * wanted, atol=1e-5
  )


def test_evaluation_leaves_the_histogram_and_training_brings_it_to_the_data():
  objective, variables, batch = make(momentum=0.5), dict(variables_of()), drawings()
  _, new = applied(objective, variables, batch, train=False, mutable=['statistics'])
  np.testing.assert_array_equal(new['statistics']['prior'], variables['statistics']['prior'])
  step = jax.jit(functools.partial(train, objective))
  for _ in range(20):
    _, new = step(variables, batch)
    variables |= new
  prior = np.asarray(variables['statistics']['prior'])
  np.testing.assert_allclose(prior.sum(), 1, rtol=1e-4)
  bins = [tuple(center) for center in color_bins.centers()]
  assert bins[prior.argmax()] == (0, 0)  # the white
  assert prior.max() > 0.5


def test_no_other_constant_has_less_loss_than_the_baseline():
  objective, variables, batch = make(momentum=0.0), dict(variables_of()), drawings()
  for _ in range(2):  # The weights follow from the histogram of the step before.
    _, new = train(objective, variables, batch)
    variables |= new

  def baseline(answer):
    statistics = {**variables['statistics'], 'answer': jnp.asarray(answer, jnp.float32)}
    changed = {**variables, 'statistics': statistics}
    return applied(objective, changed, batch, train=False)[1]['baseline'].mean()

  best = np.asarray(variables['statistics']['answer'])
  least = baseline(best)
  rng = np.random.default_rng(0)
  for _ in range(5):
    assert baseline(best * np.exp(0.3 * rng.normal(size=best.shape))) > least
  prior = variables['statistics']['prior']
  assert baseline(prior) > least
  assert baseline(color_bins.rebalance(prior, 0.5, 5.0) * prior) > least


def test_light_augment_changes_what_is_seen_and_not_what_is_asked_for():
  objective, variables, batch = make(light_augment='invert(p=1)'), variables_of(), drawings()
  values = lab.rgb_to_lab(batch['image'] / np.float32(255))
  ab = values[..., 1:].reshape(B, 4, 4, 4, 4, 2).mean((2, 4))
  index, share = color_bins.neighbors(ab, 5, 5.0)
  expected = {}
  for name, light in (('seen', 1 - values[..., :1] / 100), ('plain', values[..., :1] / 100)):
    logits = applied(objective, variables, light, method=logits_of)
    expected[name] = color_bins.cross_entropy(logits, index, share).mean((1, 2))
  (_, metrics), _ = train(objective, variables, batch)
  np.testing.assert_allclose(metrics['loss'], expected['seen'], rtol=1e-4)  # all weights are 1
  _, metrics = applied(objective, variables, batch, train=False)
  np.testing.assert_allclose(metrics['loss'], expected['plain'], rtol=1e-4)
  assert np.abs(expected['seen'] - expected['plain']).max() > 0.01


def test_a_grey_image_has_a_defined_answer():
  objective, variables, batch = make(), variables_of(), drawings()
  _, metrics = applied(objective, variables, batch, train=False)
  assert all(np.isfinite(value).all() for value in metrics.values())
  assert metrics['rmse_gray'][-1] < 0.01
  assert (metrics['rmse_gray'][:-1] > 1).all()
  grads = jax.grad(lambda params: train(objective, {**variables, 'params': params}, batch)[0][0])(
    variables['params']
  )
  assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_pictures_show_the_lightness_the_guess_and_the_truth():
  objective, variables, batch = make(), variables_of(), drawings()
  made = applied(objective, variables, batch, method='pictures')
  assert list(made) == ['grey', 'predicted', 'true']
  np.testing.assert_allclose(made['true'], batch['image'] / 255, atol=1e-3)
  spread = np.ptp(np.asarray(made['grey']), axis=-1)
  assert spread.max() < 1e-3
  colorized = applied(objective, variables, batch, method='colorize')
  np.testing.assert_allclose(made['predicted'], colorized, atol=1e-5)
  # The errors that the metrics tell are those of the picture, where nothing is cut off.
  grey = lab.rgb_to_lab(made['true'])[..., 1:]
  _, metrics = applied(objective, variables, batch, train=False)
  np.testing.assert_allclose(metrics['rmse_gray'], np.sqrt((grey**2).mean((1, 2, 3))), atol=0.02)


def test_at_the_end_of_training_the_colours_come_back():
  """What follows from lightness is found, though white is most of what is seen."""
  objective, batch = make(temperature=1.0, encoder=RESNET), drawings()
  init = jax.jit(functools.partial(objective.init, train=False))
  variables = nn.unbox(init({'params': jax.random.key(0)}, batch))
  params, state = variables.pop('params'), variables
  tx = optax.adam(1e-2)

  @jax.jit
  def step(params, state, opt_state):
    def loss_fn(params):
      (loss, _), new = train(objective, {'params': params, **state}, batch)
      return loss, new

    (_, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), state, opt_state

  opt_state = tx.init(params)
  for _ in range(150):
    params, state, opt_state = step(params, state, opt_state)
  _, metrics = applied(objective, {'params': params, **state}, batch, train=False)
  assert (metrics['accuracy'] > 0.9).all()
  # What is left is at the borders, which are interpolated.
  assert metrics['rmse'].mean() < 0.4 * metrics['rmse_gray'].mean()


@pytest.mark.parametrize(
  ('channels', 'side', 'fields', 'message'),
  [
    (1, 16, {}, 'grey images have no colour to learn'),
    (4, 16, {}, "'background' makes RGB of RGBA"),
    (3, 24, dict(scale=16), 'scale 16 does not divide images of 24x24'),
    (3, 16, dict(uniform=0.0), r'uniform must be in \(0, 1\], got 0'),
    (3, 16, dict(scale=0), 'scale must be at least 1'),
    (3, 16, dict(neighbors=0), 'neighbors is 0; there are 261 bins'),
    (3, 16, dict(temperature=0.0), 'temperature must be positive'),
    (3, 16, dict(momentum=1.0), 'momentum must be in'),
  ],
)
def test_mistakes_are_one_sentence(channels, side, fields, message):
  batch = {'image': np.zeros((1, side, side, channels), np.uint8)}
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: make(**fields).init({'params': jax.random.key(0)}, batch, train=False))
