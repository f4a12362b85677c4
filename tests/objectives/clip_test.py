"""What is CLIP's own; `objectives_test.py` has what holds for every objective."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.build import build
from vit_jax.losses import image_text
from vit_jax.models.chunked import Chunked
from vit_jax.objectives.clip import CLIP
from vit_jax.state import TrainState
from vit_jax.train import make_train_step

B, SIDE, D, L, VOCAB = 6, 8, 16, 5, 20
IMAGE = dict(
  type='models.vit.ViT', patch_size=4, width=D, depth=2, num_heads=2, mlp_dim=16, pooling='mean'
)
TEXT = dict(
  type='models.text.TextTransformer', vocab_size=VOCAB, end_id=VOCAB - 1, context=L, width=D,
  depth=1, num_heads=2, projection=12,
)  # fmt: skip


def batch(size=B):
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8),
    'text': rng.integers(0, VOCAB, (size, L)).astype(np.int32),
    'id': np.arange(size, dtype=np.int32),
  }


def made(**fields):
  objective = build(
    {'type': 'objectives.clip.CLIP', 'image': IMAGE, 'text': TEXT, 'projection': 12, **fields}
  )
  variables = nn.unbox(objective.init(jax.random.key(0), batch(), train=False))
  return objective, variables


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_the_loss_is_that_of_the_embeddings(loss):
  objective, variables = made(loss=loss)
  data = batch()
  total, metrics = objective.apply(variables, data, train=False)
  image, text = (
    objective.apply(variables, data, method=name) for name in ('embeddings', 'text_embeddings')
  )
  scale, bias = (1 / 0.07, ()) if loss == 'softmax' else (10.0, (-10.0,))
  function = image_text.cross_entropy if loss == 'softmax' else image_text.sigmoid
  want, to_text, to_image = function(image, text, scale, *bias)
  np.testing.assert_allclose(total, want.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], want, rtol=1e-5)
  np.testing.assert_array_equal(metrics['image_to_text'], to_text)
  np.testing.assert_array_equal(metrics['text_to_image'], to_image)
  assert float(metrics['scale']) == pytest.approx(scale, rel=1e-6)
  logits = objective.apply(variables, image, text, method='similarity')
  np.testing.assert_allclose(logits, scale * image @ text.T + sum(bias), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-6)


def test_the_scale_grows_to_its_limit_and_comes_back():
  objective, variables = made(scale=100.0)

  def loss(log_scale, sign):
    params = {**variables['params'], 'log_scale': log_scale}
    scale = objective.apply({'params': params}, batch(), train=True)[1]['scale']
    return sign * scale

  value = jax.value_and_grad(loss)
  beyond, limit = jnp.float32(math.log(150.0)), jnp.float32(math.log(100.0))
  for start in (beyond, limit):
    assert float(value(start, 1.0)[0]) == pytest.approx(100, rel=1e-5)
    assert float(value(start, -1.0)[1]) == 0.0  # A step down the gradient would go further up.
    assert float(value(start, 1.0)[1]) == pytest.approx(100, rel=1e-5)
  assert float(value(jnp.float32(math.log(50.0)), -1.0)[1]) == pytest.approx(-50, rel=1e-5)


def test_without_a_limit_it_grows_on():
  objective, variables = made(scale=150.0, max_scale=None)
  scale = objective.apply(variables, batch(), train=True)[1]['scale']
  assert float(scale) == pytest.approx(150, rel=1e-5)


def test_features_are_those_before_the_projection():
  objective, variables = made()
  features = objective.apply(variables, batch(), method='features')
  assert features.shape == (B, D)
  embeddings = features @ variables['params']['image_projection']['kernel']
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  ours = objective.apply(variables, batch(), method='embeddings')
  np.testing.assert_allclose(ours, embeddings, rtol=1e-4, atol=1e-6)


def test_chunks_of_both_encoders_give_the_same_gradient():
  objective, variables = made()
  chunked = objective.clone(image=Chunked(objective.image, 3), text=Chunked(objective.text, 2))

  def gradient(objective):
    def loss(params):
      return objective.apply({'params': params}, batch(), train=True)[0]

    return jax.jit(jax.value_and_grad(loss))(variables['params'])

  ours, theirs = gradient(chunked), gradient(objective)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(theirs[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest), ours, theirs
  )


def test_a_locked_image_tower_costs_no_backward_pass():
  objective, variables = made(image=dict(IMAGE, depth=6))
  params = variables['params']
  names = {'/'.join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(params)}
  tx = optax.sgd(0.1)
  flops = []
  for locked in ('nothing/', 'image/'):
    frozen = {name for name in names if name.startswith(locked)}
    step = make_train_step(objective, tx, frozen=frozen)
    state = TrainState(
      step=jnp.int32(0), params=params, model_state={}, opt_state=tx.init(params),
      rng=jax.random.key(0),
    )  # fmt: skip
    compiled = jax.jit(step).lower(state, batch()).compile()
    flops.append(compiled.cost_analysis()['flops'])
    after = compiled(state, batch())[0].params
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after['image'], params['image'])
    assert all(jax.tree.leaves(same)) == (locked == 'image/')
    assert (after['text']['pos_embedding'] != params['text']['pos_embedding']).any()
  assert flops[1] < 0.6 * flops[0]


@pytest.mark.parametrize('size', [1, 2])
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_small_batches_and_equal_pairs_have_finite_gradients(size, loss):
  objective, variables = made(loss=loss)
  data = {name: np.zeros_like(value) for name, value in batch(size).items()}
  gradient = jax.grad(lambda p: objective.apply({'params': p}, data, train=True)[0])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient(variables['params'])))


def test_what_cannot_be_is_refused():
  for fields, words in (
    (dict(loss='hinge'), "unknown loss 'hinge'; choose from 'softmax', 'sigmoid'"),
    (dict(scale=0.0), 'scale must be positive, got 0.0'),
    (dict(scale=200.0), 'max_scale 100.0 is below the scale 200.0'),
  ):
    with pytest.raises(ValueError, match=words):
      made(**fields)
  objective = build({'type': 'objectives.clip.CLIP', 'image': IMAGE, 'text': TEXT})
  assert isinstance(objective, CLIP)
  with pytest.raises(ValueError, match=r'images \(6, 16\) and texts \(6, 12\)'):
    objective.init(jax.random.key(0), batch(), train=False)
