import collections
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.build import build
from vit_jax.data.mixture import Mixture
from vit_jax.data.pipeline import TrainPipeline


class Numbers:
  """n images that are all `value`; sorted by class, as folders are."""

  def __init__(self, n, value=0, classes=('a', 'b'), **more):
    self.n, self.value, self.classes, self.more = n, value, classes, more

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    label = np.int32(i * max(len(self.classes), 1) // self.n)
    image = np.full((2, 2, 1), self.value, np.uint8)
    return {'image': image, 'label': label, 'id': np.int64(i + 5), **self.more}

  def name(self, i):
    return f'{self.value}[{i}]'


def places(mixture):
  return [mixture.place(i) for i in range(len(mixture))]


def test_all_of_each_without_weights():
  mixture = Mixture({'x': Numbers(3), 'y': Numbers(5)})
  assert places(mixture) == [(0, i) for i in range(3)] + [(1, i) for i in range(5)]
  assert mixture.counts == {'x': 3, 'y': 5}


@pytest.mark.parametrize(
  ('sizes', 'weights', 'kwargs', 'counts'),
  [
    ((100, 30), (0.7, 0.3), {}, (70, 30)),  # the float 0.7 is less than 7/10
    ((100, 30), (7, 3), {}, (70, 30)),
    ((100, 30), (1, 1), {}, (30, 30)),
    ((100, 30), (1, 1), dict(repeat=True), (100, 100)),
    ((100, 30), (0.9, 0.1), dict(repeat=True), (270, 30)),
    ((100, 30), (1, 1), dict(size=10), (5, 5)),
    ((100, 30), (2, 1), dict(size=10), (7, 3)),
    ((100, 30), (1, 2), dict(size=1000, repeat=True), (333, 667)),
    ((100, 30), None, dict(size=13), (10, 3)),
    ((7, 7, 7), (1, 1, 1), dict(size=8, repeat=True), (3, 3, 2)),
  ],
)
def test_proportions_are_exact(sizes, weights, kwargs, counts):
  names = 'xyz'[: len(sizes)]
  mixture = Mixture(
    {name: Numbers(n) for name, n in zip(names, sizes, strict=True)},
    weights and dict(zip(names, weights, strict=True)),
    **kwargs,
  )
  assert tuple(mixture.counts.values()) == counts
  assert len(mixture) == sum(counts)
  drawn = collections.Counter(places(mixture))
  for k, (n, count) in enumerate(zip(sizes, counts, strict=True)):
    times = [drawn[k, i] for i in range(n)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1  # none repeated unless all are


def test_what_is_left_out_is_spread_over_the_source():
  mixture = Mixture({'x': Numbers(1000), 'y': Numbers(100)}, {'x': 1, 'y': 1})
  labels = [int(mixture[i]['label']) for i in range(100)]
  assert labels.count(0) == labels.count(1) == 50


def test_ids_are_unique_and_those_of_the_example():
  mixture = Mixture({'x': Numbers(6), 'y': Numbers(9)})
  ids = [int(mixture[i]['id']) for i in range(15)]
  assert len(set(ids)) == 15
  place = {mixture.place(i): id_ for i, id_ in enumerate(ids)}
  other = Mixture({'x': Numbers(6), 'y': Numbers(9)}, {'x': 1, 'y': 3}, size=40, repeat=True)
  assert all(int(other[i]['id']) == place[other.place(i)] for i in range(40))
  assert ids[0] == 10  # 5 of source 0 of 2
  assert mixture[0]['id'].dtype == np.int64
  assert mixture.name(6) == 'y: 0[0]'


def test_pickled_mixture_reads_the_same():
  mixture = Mixture({'x': Numbers(6), 'y': Numbers(9, 1)}, {'x': 1, 'y': 2}, size=9)
  copy = pickle.loads(pickle.dumps(mixture))
  for i in (0, 8):
    assert copy[i]['id'] == mixture[i]['id']
  for i in (9, -1):
    with pytest.raises(IndexError):
      copy[i]


def test_classes():
  sources = {'x': Numbers(4, classes=('a', 'b')), 'y': Numbers(4, classes=('b', 'c'))}
  with pytest.raises(ValueError, match=r"'x' has the classes 'a', 'b', 'y' has 'b', 'c'; choose "):
    Mixture(sources)
  offset = Mixture(sources, labels='offset')
  assert offset.classes == ('x/a', 'x/b', 'y/b', 'y/c')
  assert [int(e['label']) for e in offset] == [0, 0, 1, 1, 2, 2, 3, 3]
  named = Mixture(sources, labels='name')
  assert named.classes == ('a', 'b', 'c')
  assert [int(e['label']) for e in named] == [0, 0, 1, 1, 1, 1, 2, 2]
  assert (named.num_classes, named[0]['label'].dtype) == (3, np.int32)
  with pytest.raises(ValueError, match="needs names of the classes, which 'z' lack"):
    Mixture(sources | {'z': Numbers(4, classes=())}, labels='offset')


def test_the_pipeline_draws_the_weights_in_every_epoch():
  mixture = Mixture({'x': Numbers(30, 1), 'y': Numbers(80, 2)}, {'x': 3, 'y': 1}, size=40)
  over = NamedSharding(Mesh(np.array(jax.devices()[:1]), ('data',)), PartitionSpec('data'))
  with TrainPipeline(mixture, host='', batch_size=8, seed=0, sharding=over) as batches:
    steps = [jax.tree.map(np.asarray, next(batches)) for _ in range(10)]
  values = np.concatenate([step['image'][:, 0, 0, 0] for step in steps])
  assert [int(np.sum(epoch == 1)) for epoch in (values[:40], values[40:])] == [30, 30]
  assert len(set(values[:8])) == 2  # mixed within a batch
  with TrainPipeline(mixture, host='', batch_size=8, seed=0, sharding=over, start_step=7) as later:
    np.testing.assert_array_equal(next(later)['id'], steps[7]['id'])


def test_a_config_builds_it():
  digits = {'type': 'data.digits.Digits'}
  spec = {'type': 'data.mixture.Mixture', 'weights': {'new': 1, 'old': 3}, 'size': 100}
  sources = {'new': digits, 'old': digits | {'split': 'validation'}}
  mixture = build(spec | {'sources': sources})
  assert mixture.counts == {'new': 25, 'old': 75}
  assert mixture.classes == tuple('0123456789')


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    (dict(sources={}), 'at least one source'),
    (dict(weights={'x': 1}), "not one positive number for each of 'x', 'y'"),
    (dict(weights={'x': 1, 'y': 0}), 'not one positive number'),
    (dict(weights={'x': 1, 'z': 1}), 'not one positive number'),
    (dict(labels='merge'), "unknown labels 'merge'; choose from 'same', 'offset', 'name'"),
    (
      dict(weights={'x': 1, 'y': 1}, size=30),
      "size 30 needs 15 examples of 'x', which has 10; choose at most 20, or repeat=True",
    ),
    (dict(weights={'x': 1, 'y': 1000}), "'x' gets none of the 20 examples; choose a larger"),
    (dict(sources={'x': Numbers(3), 'y': Numbers(0)}), "sources 'y' have no examples"),
    (
      dict(sources={'x': Numbers(3), 'y': Numbers(3, text='a')}),
      "'y' has 'id', 'image', 'label', 'text'; choose sources or keys",
    ),
  ],
)
def test_mistakes_are_one_sentence_with_the_choices(kwargs, message):
  with pytest.raises(ValueError, match=message) as error:
    Mixture(**{'sources': {'x': Numbers(10), 'y': Numbers(20)}, **kwargs})
  assert '\n' not in str(error.value)
