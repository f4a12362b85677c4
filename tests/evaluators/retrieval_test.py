"""Retrieval: a loop's answers, itself left out, one emoji in two styles."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.data.digits import Digits
from vit_jax.data.emoji import Emoji
from vit_jax.evaluators.retrieval import Retrieval

STATE = types.SimpleNamespace(step=0, params={}, model_state={})


class Centred(nn.Module):
  """Features are the pixels less 128."""

  def features(self, batch):
    image = batch['image']
    return image.reshape(len(image), -1).astype(jnp.float32) - 128


class Arrays:
  """A source of arrays in memory; a number in `ids` for each."""

  def __init__(self, image, label, ids=None):
    self.image, self.label = image, label
    self.ids = np.arange(len(image)) if ids is None else ids

  def __len__(self):
    return len(self.image)

  def __getitem__(self, i):
    return {'image': self.image[i], 'label': np.int32(self.label[i]), 'id': np.int64(self.ids[i])}


def random_source(rows, seed, classes=5, ids=None):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (rows, 3, 3, 1)).astype(np.uint8)
  return Arrays(image, rng.permutation(np.arange(rows) % classes), ids)


def mesh_of(devices):
  return sharding.make_mesh(dict(data=-1), jax.devices()[:devices])


def run(queries, candidates=None, devices=8, **fields):
  fields = dict(baselines=()) | fields
  evaluator = Retrieval(
    Centred(), mesh_of(devices), queries=queries, candidates=candidates, **fields
  )
  return evaluator.run(STATE)


def loop(queries, candidates, k, same_ids):
  """A query at a time, from the definitions and scikit-learn's average precision."""

  def unit(source):
    features = source.image.reshape(len(source), -1) - 128.0
    return features / np.linalg.norm(features, axis=1, keepdims=True)

  hits, precisions = [], []
  for feature, label, number in zip(unit(queries), queries.label, queries.ids, strict=True):
    kept = candidates.ids != number if same_ids else np.full(len(candidates), True)
    similar, relevant = (unit(candidates) @ feature)[kept], (candidates.label == label)[kept]
    assert np.diff(np.sort(similar)).min() > 1e-7  # else their order is one of rounding
    order = np.argsort(-similar)
    hits.append([relevant[order[:n]].any() for n in k])
    precisions.append(average_precision_score(relevant, similar))
  recalls = {f'recall@{n}': hit for n, hit in zip(k, np.mean(hits, axis=0), strict=True)}
  return recalls | {'mAP': np.mean(precisions)}


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
def test_equals_a_loop_at_any_batch_size(batch_size, devices):
  queries, candidates = random_source(37, 0), random_source(101, 1)
  result = run(queries, candidates, devices, batch_size=batch_size)
  assert result == pytest.approx(loop(queries, candidates, (1, 5, 10), False), abs=1e-6)
  assert list(result) == ['recall@1', 'recall@5', 'recall@10', 'mAP']
  assert result['recall@1'] < result['recall@5'] < result['recall@10']


@pytest.mark.parametrize('batch_size, devices', [(7, 1), (64, 8)])
def test_a_query_does_not_find_itself(batch_size, devices):
  ids = np.random.default_rng(3).permutation(1000)[:53]
  source = random_source(53, 0, ids=ids)
  want = loop(source, source, (1, 5, 10), True)
  assert want['recall@1'] < 0.5
  fields = dict(devices=devices, batch_size=batch_size)
  assert run(source, **fields) == pytest.approx(want, abs=1e-6)
  assert run(source, source, **fields) == pytest.approx(want, abs=1e-6)
  # Two sources with common examples, as from two specs.
  other = Arrays(source.image, source.label, source.ids)
  assert run(source, other, **fields)['recall@1'] == 1
  assert run(source, other, same_ids=True, **fields) == pytest.approx(want, abs=1e-6)


def test_several_sources_of_queries():
  queries, candidates = random_source(20, 0), random_source(30, 1)
  result = run({'a': queries, 'b': candidates}, candidates, k=(1, 29))
  assert list(result) == [f'{s}/{m}' for s in 'ab' for m in ('recall@1', 'recall@29', 'mAP')]
  alone = {'a': run(queries, candidates, k=(1, 29)), 'b': run(candidates, k=(1, 29))}
  assert result == {f'{s}/{m}': value for s in 'ab' for m, value in alone[s].items()}
  own = run({'a': queries, 'b': candidates}, k=(1, 5))  # each searches itself
  assert own['a/mAP'] == run(queries)['mAP'] and own['b/mAP'] == run(candidates)['mAP']


def test_without_the_whole_ranking():
  fields = dict(k=(3,), mean_average_precision=False)
  assert list(run(random_source(9, 0), random_source(9, 1), **fields)) == ['recall@3']


def test_digits_find_digits_and_permuted_labels_chance():
  source = Digits('test')
  examples = [source[i] for i in range(len(source))]
  image = np.stack([e['image'] for e in examples])
  label = np.array([e['label'] for e in examples])
  true, permuted = (
    run(Arrays(image, labels)) for labels in (label, np.random.default_rng(0).permutation(label))
  )
  assert true['recall@1'] > 0.9 and true['mAP'] > 0.5
  assert 0.04 < permuted['recall@1'] < 0.17
  assert permuted['mAP'] == pytest.approx(0.1, abs=0.03)


def test_one_emoji_in_two_styles():
  def spec(style):
    return dict(type='data.emoji.Emoji', split='validation', styles=(style,), label='name')

  made = {
    'type': 'evaluators.retrieval.Retrieval',
    'queries': {'openmoji': spec('openmoji'), 'google': spec('google')},
    'candidates': spec('google'),
  }
  result = build(made, objective=Centred(), mesh=mesh_of(8)).run(STATE)
  drawn = len(Emoji('validation', styles=('google',)))
  assert result['google/recall@1'] == result['google/mAP'] == 1  # each is its own drawing
  for metric in ('recall@1', 'mAP'):
    assert result[f'openmoji/{metric}'] > 10 / drawn  # chance is 1 / drawn
    assert result[f'openmoji/{metric}_pixels'] > 10 / drawn
  assert result['openmoji/recall@1'] <= result['openmoji/mAP'] < result['openmoji/recall@10'] < 1


def test_queries_without_an_answer():
  queries, candidates = random_source(20, 0), random_source(30, 1)
  queries.label[[4, 9]] = 7, 8
  message = "2 of 20 queries of 'odd' have no candidate with their label, the first label 7;"
  with pytest.raises(ValueError, match=message):
    run({'odd': queries}, candidates)
  result = run(queries, candidates, skip_unanswerable=True)
  kept = np.delete(np.arange(20), [4, 9])
  answerable = Arrays(queries.image[kept], queries.label[kept])
  assert result.pop('unanswerable') == 2
  assert result == pytest.approx(run(answerable, candidates), abs=1e-7)
  assert run(answerable, candidates, skip_unanswerable=True)['unanswerable'] == 0


def test_the_only_one_of_its_label_has_no_answer():
  source = random_source(20, 0)
  source.label[3] = 9
  with pytest.raises(ValueError, match='1 of 20 queries have no candidate with their label'):
    run(source)
  assert run(source, skip_unanswerable=True)['unanswerable'] == 1
  with pytest.raises(ValueError, match='20 of 20 queries'):
    run(Arrays(source.image, np.arange(20)), skip_unanswerable=True)


@pytest.mark.parametrize(
  'candidates, k, most', [(None, (1, 20), 19), (None, (), 19), (30, (31,), 30), (30, (0,), 30)]
)
def test_k_is_among_the_candidates(candidates, k, most):
  candidates = candidates and random_source(candidates, 1)
  with pytest.raises(ValueError, match=f'choose from 1 to {most}, the candidates'):
    run(random_source(20, 0), candidates, k=k)
