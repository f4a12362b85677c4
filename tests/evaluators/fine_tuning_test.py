"""Fine-tuning on few labels: a NumPy loop's accuracy, and a state that stays as it is."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.subset import Subset
from vit_jax.evaluators.fine_tuning import Classifier, FineTuning

RATE = dict(name='sgd', learning_rate=0.1, options=dict(momentum=0.9, nesterov=True))
FIELDS = dict(
  train=Digits('train'),
  source=Digits('test'),
  train_host='decode',
  shares=(0.1,),
  epochs=20,
  batch_size=32,
  optimizer=RATE,
)


class Linear(nn.Module):
  """Features linear in the pixels, normalised by statistics, and parts that they do not read."""

  def setup(self):
    self.dense, self.norm, self.other = nn.Dense(16), nn.BatchNorm(), nn.Dense(3)

  def __call__(self, batch, *, train):
    loss = jnp.mean(self.other(self._encode(batch, train)) ** 2)
    return loss, {}

  def features(self, batch):
    return self._encode(batch, False)

  def tokens(self, batch):
    return self.features(batch)[:, None]

  def _encode(self, batch, train):
    x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
    return self.norm(self.dense(x), use_running_average=not train)


def state_of(objective, seed=1):
  batch = {'image': np.zeros((8, 8, 8, 1), np.uint8), 'label': np.zeros(8, np.int32)}
  variables = dict(nn.unbox(objective.init(jax.random.key(seed), batch, train=False)))
  return types.SimpleNamespace(step=0, params=variables.pop('params'), model_state=variables)


@pytest.fixture(scope='module')
def vit():
  return build(
    {
      'type': 'objectives.supervised.Supervised',
      'num_classes': 4,  # Its own head is not read.
      'encoder': dict(
        type='models.vit.ViT', patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2
      ),
    }
  )


def classifier(evaluator):
  return Classifier(evaluator.objective, 10, evaluator.method)


def mesh_of(devices, **shape):
  return sharding.make_mesh(shape or dict(data=-1), jax.devices()[:devices])


SCALE = 1 / np.sqrt(1 + 1e-5)  # of statistics that never change, a mean of 0 and a variance of 1


def test_equals_a_loop_in_numpy():
  """With the paper's optimizer, whose learning rate is 0.05 * 40 / 256 at this batch size."""
  objective = Linear()
  state = state_of(objective)
  fields = dict(shares=(), per_class=(4,), epochs=30, batch_size=40, optimizer=None, baselines=())
  evaluator = FineTuning(objective, mesh_of(8), **{**FIELDS, **fields})
  # 40 examples are one batch, so the order does not matter.
  subset = Subset(Digits('train'), per_class=4)
  x, y = examples(subset)
  params = {
    k: {n: np.asarray(v, np.float64) for n, v in p.items()} for k, p in state.params.items()
  }
  weights = [params['dense']['kernel'], params['dense']['bias'], params['norm']['scale'],
             params['norm']['bias'], np.zeros((16, 10)), np.zeros(10)]  # fmt: skip
  velocity = [0.0] * 6
  for step in range(30):
    gradient = gradients(weights, x, y)
    rate = 0.05 * 40 / 256 * (1 + np.cos(np.pi * step / 30)) / 2
    velocity = [0.9 * v + g for v, g in zip(velocity, gradient, strict=True)]
    look = [g + 0.9 * v for g, v in zip(gradient, velocity, strict=True)]
    weights = [w - rate * u for w, u in zip(weights, look, strict=True)]
  ((_, trained),) = evaluator._train(classifier(evaluator), subset, 30, state, 'few')
  dense, norm, head = (
    *(trained.params['model'][k] for k in ('dense', 'norm')),
    trained.params['head'],
  )
  made = [dense['kernel'], dense['bias'], norm['scale'], norm['bias'], head['kernel'], head['bias']]
  for ours, expected in zip(made, weights, strict=True):
    np.testing.assert_allclose(ours, expected, atol=1e-5)
  test_x, test_y = examples(Digits('test'))
  want = np.mean(forward(weights, test_x)[-1].argmax(1) == test_y)
  assert want > 0.2
  result = evaluator.run(state, final=True)
  assert result == {'4shot_accuracy': pytest.approx(want, abs=0.003)}  # one of 360 rounded over


def examples(source):
  read = [source[i] for i in range(len(source))]
  x = np.stack([e['image'].ravel() for e in read]) / 255
  return x, np.array([e['label'] for e in read])


def forward(weights, x):
  kernel, bias, gain, shift, head, head_bias = weights
  normal = (x @ kernel + bias) * SCALE
  features = normal * gain + shift
  return normal, features, features @ head + head_bias


def gradients(weights, x, y):
  normal, features, logits = forward(weights, x)
  error = np.exp(logits - logits.max(1, keepdims=True))
  error /= error.sum(1, keepdims=True)
  error[np.arange(len(y)), y] -= 1
  error /= len(y)
  back = error @ weights[4].T
  inner = back * weights[2] * SCALE
  return [x.T @ inner, inner.sum(0), (back * normal).sum(0), back.sum(0),
          features.T @ error, error.sum(0)]  # fmt: skip


def test_it_learns_from_the_state_and_leaves_it_as_it_is(vit):
  state = state_of(vit)
  before = jax.tree.map(np.array, (state.params, state.model_state))
  fields = {**FIELDS, 'shares': (0.01, 0.2), 'epochs': (60, 15)}
  evaluator = FineTuning(vit, mesh_of(8), **fields)
  result = evaluator.run(state, final=True)
  assert set(result) == {
    '1pct_accuracy', '20pct_accuracy', '1pct_accuracy_random', '20pct_accuracy_random',
  }  # fmt: skip
  assert 0.25 < result['1pct_accuracy'] < result['20pct_accuracy']
  assert result['20pct_accuracy'] > 0.55 and result['20pct_accuracy_random'] > 0.55
  after = jax.tree.map(np.array, (state.params, state.model_state))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert evaluator.run(state) == {}


def test_what_the_state_knows_counts(vit):
  """Trained on all labels first, a state is better than a random one with the few."""
  mesh = mesh_of(8)
  everything = FineTuning(vit, mesh, **{**FIELDS, 'shares': (1.0,), 'epochs': 20, 'baselines': ()})
  trained = next(
    everything._train(classifier(everything), Subset(Digits('train'), share=1.0), 20,
                      state_of(vit), 'all')
  )[1]  # fmt: skip
  state = state_of(vit)
  known = {**state.params, 'encoder': trained.params['model']['encoder']}
  state = types.SimpleNamespace(params=known, model_state={})
  result = FineTuning(vit, mesh, **{**FIELDS, 'shares': (0.02,)}).run(state, final=True)
  assert result['2pct_accuracy'] > result['2pct_accuracy_random'] + 0.1


def test_the_same_on_any_mesh(vit):
  state = state_of(vit)
  trained = []
  for mesh in (mesh_of(1), mesh_of(8, data=2, fsdp=2, tensor=2)):
    evaluator = FineTuning(vit, mesh, **{**FIELDS, 'epochs': 2})
    subset = Subset(Digits('train'), share=0.1)
    made = evaluator._train(classifier(evaluator), subset, 2, state, 'few')
    trained.append([jax.tree.map(np.asarray, s.params) for _, s in made])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *trained)
  moved = [np.abs(s['model']['encoder']['embedding']['kernel']).sum() for s in trained[0]]
  assert moved[0] != moved[1]


def test_seeds_and_sources(vit):
  state = state_of(vit)
  fields = {**FIELDS, 'baselines': (), 'epochs': 5, 'train_host': 'decode | flip'}
  fields |= dict(source=None, sources={'test': Digits('test'), 'train': Digits('train')})
  one, two, again = (
    FineTuning(vit, mesh_of(8), **fields, seed=seed).run(state, final=True) for seed in (0, 1, 0)
  )
  assert set(one) == {'test/10pct_accuracy', 'train/10pct_accuracy'}
  assert one == again != two


def test_a_part_can_be_frozen_and_a_wrong_pattern_is_known_at_once(vit):
  state = state_of(vit)
  frozen = {**FIELDS, 'optimizer': {**RATE, 'freeze': ('model/encoder/.*',)}}
  evaluator = FineTuning(vit, mesh_of(8), **frozen)
  _, trained = next(
    evaluator._train(classifier(evaluator), Subset(Digits('train'), share=0.1), 2, state, 'few')
  )
  encoder = trained.params['model']['encoder']
  jax.tree.map(np.testing.assert_array_equal, encoder, state.params['encoder'])
  assert np.abs(trained.params['head']['kernel']).max() > 0
  with pytest.raises(ValueError, match="'decoder/.*' matches none"):
    FineTuning(vit, mesh_of(8), **{**FIELDS, 'optimizer': {**RATE, 'freeze': ('decoder/.*',)}})


def test_only_what_features_reads_is_trained(vit):
  evaluator = FineTuning(vit, mesh_of(8), **FIELDS)
  _, trained = next(
    evaluator._train(
      classifier(evaluator), Subset(Digits('train'), share=0.1), 1, state_of(vit), ''
    )
  )
  assert set(trained.params['model']) == {'encoder'}
  state = state_of(Linear())
  mean = state.model_state['batch_stats']['norm']['mean'] + 0.5
  state.model_state['batch_stats']['norm']['mean'] = mean
  evaluator = FineTuning(Linear(), mesh_of(8), **FIELDS)
  made = list(
    evaluator._train(classifier(evaluator), Subset(Digits('train'), share=0.1), 1, state, '')
  )
  assert set(made[0][1].params['model']) == {'dense', 'norm'}
  kept = [s.model_state['batch_stats']['model']['norm']['mean'] for _, s in made]
  np.testing.assert_array_equal(kept[0], mean)  # as it came
  np.testing.assert_array_equal(kept[1], 0)


def test_a_loss_that_is_not_finite_is_an_error(vit):
  fields = {**FIELDS, 'optimizer': {**RATE, 'learning_rate': 1e30}, 'epochs': 3}
  with pytest.raises(FloatingPointError, match='the loss of fine_tuning is .* for 10pct; lower'):
    FineTuning(vit, mesh_of(8), **fields).run(state_of(vit), final=True)


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(method='answers'), "fine_tuning calls 'answers', which Linear lacks"),
    (dict(method='tokens'), r"needs features \[B, D\]; 'tokens' gives \[32, 1, 16\]"),
    (dict(shares=(0.1, 0)), 'must be above 0 and at most 1'),
    (dict(per_class=(0,)), 'at least 1'),
    (dict(shares=()), 'one for each of the 0 shares'),
    (dict(epochs=(1, 2)), 'one for each of the 1 shares'),
    (dict(epochs=0), 'must be positive'),
    (dict(batch_size=12), 'batch_size 12 is not a multiple of the 8 parts'),
    (dict(baselines=('pixels',)), "unknown baseline 'pixels'; choose from 'random'"),
    (dict(optimizer=dict(name='sgdd', learning_rate=1)), "unknown optimizer 'sgdd'"),
    (dict(train_host='decode | nothing'), 'nothing'),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(ValueError, match=message):
    FineTuning(Linear(), mesh_of(8), **{**FIELDS, **fields})


def test_multi_hot_labels_are_none():
  class MultiHot(Digits):
    def __getitem__(self, i):
      example = super().__getitem__(i)
      return {**example, 'label': np.eye(10, dtype=np.float32)[example['label']]}

  state = state_of(Linear())
  for change in (dict(train=MultiHot('train')), dict(source=MultiHot('test'))):
    with pytest.raises(ValueError, match='needs one label an image, not multi-hot'):
      FineTuning(Linear(), mesh_of(1), **{**FIELDS, **change}).run(state, final=True)
