"""Clusters come into the state, the head starts anew, and a stopped run goes on exactly."""

import dataclasses
import os
import signal

import jax
import ml_collections
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score

from vit_jax import experiment, metrics, train
from vit_jax.build import build
from vit_jax.evaluators import apply
from vit_jax.hooks import recluster

K, N = 6, 128  # clusters; training images, 4 steps an epoch
SOURCE = dict(type='data.digits.Digits', split=f'train[:{N}]')
HOOK = dict(type='hooks.recluster.Recluster', source=SOURCE, batch_size=48)


def config_of():
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(steps=10)
  config.batch_size = 32
  config.data = dict(source=SOURCE, host='decode', num_workers=0)
  config.objective = dict(
    type='objectives.deepcluster.DeepCluster', num_clusters=K, num_examples=1797, pca=8,
    augment='flip | noise(0.1)',
    encoder=dict(
      type='models.vit.ViT', patch_size=4, width=16, depth=1, num_heads=2, mlp_dim=16,
      pooling='mean',
    ),
  )  # fmt: skip
  config.hooks = dict(recluster=dict(HOOK, every=dict(epochs=1)))
  config.optimizer = dict(name='adamw', learning_rate=1e-2, schedule='constant')
  config.mesh = dict(data=-1)
  config.log = dict(every=dict(steps=1))
  return config


def prepared(made, state):
  (hook, _) = experiment.build_periodic(made, 'hooks')['recluster']
  return hook(0, state)


@pytest.fixture(scope='module')
def first():
  """The run, its first state before any hook, and that with which training starts."""
  made = experiment.setup(config_of())
  with jax.set_mesh(made.mesh):
    make, _ = experiment.prepare_state(made)
    return made, make(), prepared(made, make())


def codebook_of(state):
  return jax.device_get(state.model_state['clusters']['codebook'])


def features_of(made, state):
  """Of all training images, with their ids and labels, by one plain call."""
  rows = [build(SOURCE)[i] for i in range(N)]
  batch = {name: np.stack([row[name] for row in rows]) for name in ('image', 'id', 'label')}
  variables = jax.device_get(apply.variables_of(state))
  features = made.objective.apply(variables, batch, method='features')
  return np.asarray(features), batch['id'], batch['label']


@pytest.mark.smoke
def test_the_first_clustering_is_before_the_first_step(first):
  made, bare, state = first
  features, ids, labels = features_of(made, bare)
  codebook = codebook_of(state)
  assert int(state.step) == 0
  assert codebook['clusterings'] == 1
  own = codebook['assignment'][ids]
  others = np.setdiff1d(np.arange(1797), ids)
  assert (codebook['assignment'][others] == -1).all()

  # Points whitened by scikit-learn, up to signs, are the nearest to the centres that they are in.
  z = (features - codebook['mean']) @ codebook['projection']
  theirs = PCA(8, whiten=True, svd_solver='full').fit_transform(features)
  np.testing.assert_allclose(np.abs(z), np.abs(theirs), rtol=1e-2, atol=1e-2)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  distances = ((z[:, None] - codebook['centers']) ** 2).sum(-1)
  np.testing.assert_array_equal(distances.argmin(1), own)
  # As good as what scikit-learn ends with from here: 20 iterations have nearly converged.
  best = KMeans(K, init=codebook['centers'], n_init=1).fit(z).inertia_
  assert distances.min(1).sum() == pytest.approx(best, rel=0.02)

  # The figures that the step logs.
  sizes = np.bincount(own, minlength=K)
  assert codebook['clusters_used'] == (sizes > 0).sum() == K
  np.testing.assert_allclose(codebook['weight'], N / (K * sizes), rtol=1e-6)
  assert codebook['nmi_labels'] == pytest.approx(
    normalized_mutual_info_score(labels, own), abs=1e-6
  )
  assert codebook['nmi_previous'] == 0


def test_weights_are_a_uniform_draw_over_clusters_in_expectation(first):
  _, _, state = first
  codebook = codebook_of(state)
  own = codebook['assignment'][codebook['assignment'] >= 0]
  losses = np.random.default_rng(0).normal(size=N) + own
  # A cluster first, each as likely, then one of its images.
  uniform = np.mean([losses[own == c].mean() for c in range(K)])
  np.testing.assert_allclose(np.mean(codebook['weight'][own] * losses), uniform, rtol=1e-5)
  assert codebook['weight'][own].mean() == pytest.approx(1, rel=1e-6)
  assert abs(losses.mean() - uniform) > 1e-3  # Without weights it is another.


def test_later_the_head_and_its_moments_start_again(first):
  made, _, state = first
  with jax.set_mesh(made.mesh):
    moved = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, state)
    moved = moved.replace(ema=moved.params, model_state=state.model_state)
    hook = experiment.build_periodic(made, 'hooks')['recluster'][0]
    after = hook(4, moved)
  assert jax.tree.structure(after) == jax.tree.structure(moved)
  kept, reset = 0, 0
  for (path, a), b in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(moved), strict=True):
    name = jax.tree_util.keystr(path)
    assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), name
    if "['head']" in name:
      np.testing.assert_array_equal(a, 0, err_msg=name)
      reset += 1
    elif 'clusters' not in name:
      np.testing.assert_array_equal(a, b, err_msg=name)
      kept += 1
  assert reset == 2 * 4  # kernel and bias: the parameters, their average and Adam's two moments
  assert kept > reset
  before, now = codebook_of(moved), codebook_of(after)
  assert now['clusterings'] == 2
  both = before['assignment'] >= 0
  assert now['nmi_previous'] == pytest.approx(
    normalized_mutual_info_score(before['assignment'][both], now['assignment'][both]), abs=1e-6
  )


def test_a_clustering_is_a_function_of_the_state_and_the_step(first):
  made, bare, state = first
  hook = experiment.build_periodic(made, 'hooks')['recluster'][0]
  again, later = hook(0, bare), hook(1, bare)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (codebook_of(later)['assignment'] != codebook_of(state)['assignment']).any()


def test_one_device_as_eight(first):
  _, _, state = first
  one = experiment.setup(config_of(), devices=jax.devices()[:1])
  with jax.set_mesh(one.mesh):
    make, _ = experiment.prepare_state(one)
    alone = codebook_of(prepared(one, make()))
  eight = codebook_of(state)
  np.testing.assert_array_equal(alone['assignment'], eight['assignment'])
  np.testing.assert_allclose(alone['centers'], eight['centers'], rtol=1e-3, atol=1e-4)


def test_stopped_in_the_middle_of_an_epoch_a_run_goes_on_in_the_same_bits(tmp_path, monkeypatch):
  whole = train.train_and_evaluate(config_of(), tmp_path / 'whole')
  rows = metrics.read(tmp_path / 'whole')
  assert rows[0]['train/clusters_used'] == K
  assert {row['train/nmi_previous'] for row in rows[:4]} == {0.0}
  assert rows[4]['train/nmi_previous'] > 0
  write = metrics.Writer.scalars

  def interrupting(self, step, values):
    write(self, step, values)
    if step == 6:
      os.kill(os.getpid(), signal.SIGINT)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Writer, 'scalars', interrupting)
    stopped = train.train_and_evaluate(config_of(), tmp_path / 'stopped')
  assert 6 <= int(stopped.step) < 8
  resumed = train.train_and_evaluate(config_of(), tmp_path / 'stopped')
  assert int(resumed.step) == int(whole.step) == 10
  assert int(codebook_of(whole)['clusterings']) == 3
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_last_evaluation_is_of_a_head_that_was_trained(tmp_path):
  config = config_of()
  config.total.steps = 8
  held_out = dict(type='evaluators.held_out.HeldOut', source=SOURCE, every=dict(epochs=1))
  config.evals = dict(held_out=held_out)
  last = train.train_and_evaluate(config, tmp_path)
  found = {row['step']: row for row in metrics.read(tmp_path) if 'held_out/loss' in row}
  assert sorted(found) == [4, 8]
  # A head of zeros has log(K), as after the clustering before step 5.
  np.testing.assert_allclose(found[4]['held_out/loss'], np.log(K), rtol=1e-5)
  assert found[8]['held_out/loss'] < np.log(K) - 0.01
  assert int(codebook_of(last)['clusterings']) == 2  # before steps 1 and 5, and none at the end
  assert np.abs(last.params['head']['kernel']).max() > 0


def test_without_labels_there_is_no_agreement_with_them():
  unknown = np.full(4, -1)
  assert recluster._agreement(unknown, np.arange(4)) == 0
  assert recluster._agreement(np.array([0, 0, 1, -1]), np.array([5, 5, 6, 7])) == 1


def test_mistakes_are_one_sentence(first):
  made, bare, _ = first
  with pytest.raises(ValueError, match='num_clusters is 129; choose at most 128'):
    build(HOOK, objective=made.objective.clone(num_clusters=N + 1), mesh=made.mesh)
  supervised = dict(
    type='objectives.supervised.Supervised',
    num_classes=2,
    encoder=dict(config_of().objective.encoder),
  )
  with pytest.raises(ValueError, match='Supervised has none'):
    build(HOOK, objective=build(supervised), mesh=made.mesh)
  with pytest.raises(ValueError, match="Recluster calls 'logits', which DeepCluster lacks"):
    build(dict(HOOK, method='logits'), objective=made.objective, mesh=made.mesh)
  eight = dict(HOOK, source=dict(SOURCE, split='train[:8]'))
  with pytest.raises(ValueError, match='pca is 8; choose at most 7'):
    build(eight, objective=made.objective, mesh=made.mesh)(0, bare)
  broken = bare.replace(params=jax.tree.map(lambda x: x * np.nan, bare.params))
  with pytest.raises(ValueError, match='not finite'):
    build(HOOK, objective=made.objective, mesh=made.mesh)(0, broken)
  few = build(HOOK, objective=made.objective.clone(num_examples=5), mesh=made.mesh)
  with pytest.raises(ValueError, match='set num_examples, now 5, to at least'):
    few(0, bare)


def test_examples_that_do_not_decode_are_in_no_cluster(first):
  made, bare, _ = first

  @dataclasses.dataclass
  class Broken:
    source: object

    def __len__(self):
      return len(self.source)

    def __getitem__(self, i):
      example = self.source[i]
      return {**example, 'image': b'no image'} if i == 5 else example

  hook = build(HOOK, objective=made.objective, mesh=made.mesh)
  hook.source = Broken(build(SOURCE))
  codebook = codebook_of(hook(0, bare))
  ids = np.array([hook.source[i]['id'] for i in range(N)])
  np.testing.assert_array_equal(np.flatnonzero(codebook['assignment'][ids] < 0), [5])
