"""Few labels: how many of each class, the same ones wherever and whenever they are drawn."""

import collections
import hashlib
import pickle

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.build import build
from vit_jax.data.emoji import Emoji
from vit_jax.data.pipeline import eval_batches
from vit_jax.data.subset import Subset
from vit_jax.data.substitute import BadExample


class Numbers:
  """Examples of the given labels, whose ids are 100, 101 and so on; `bad` do not decode."""

  classes = ('a', 'b', 'c', 'd')
  num_classes = 4

  def __init__(self, given, ids=None, bad=()):
    self.given, self.bad = given, bad
    self.numbers = range(100, 100 + len(given)) if ids is None else ids

  def __len__(self):
    return len(self.given)

  def __getitem__(self, i):
    if i in self.bad:
      raise BadExample(f'{i} is broken')
    label = self.given[i]
    return {
      'image': np.full((2, 2, 1), i, np.uint8),
      'label': label,
      'id': np.int64(self.numbers[i]),
    }

  def name(self, i):
    return f'number {i}'


class Known(Numbers):
  """Has labels and ids beside its examples, which cannot be read."""

  def __init__(self, given):
    super().__init__(given, bad=range(len(given)))
    self.labels, self.ids = np.array(given, np.int32), np.array(self.numbers)


GIVEN = [np.int32(label) for label in [0, 1, 1, 3, 0, 1, 0, 0, 1, 1, 3, 0, 1, 0, 1, 1, 0, 3, 1, 1]]


def ids(source):
  return [int(source[i]['id']) for i in range(len(source))]


def first(ids_of_class, count, seed):
  """The oracle: those of a class whose digests, as text, come first."""
  digests = {hashlib.sha256(f'{seed}:{i}'.encode()).hexdigest(): i for i in ids_of_class}
  return [digests[d] for d in sorted(digests)][:count]


def expected(counts, seed=0):
  by_class = collections.defaultdict(list)
  for i, label in enumerate(GIVEN):
    by_class[int(label)].append(100 + i)
  return sorted(i for c, own in by_class.items() for i in first(own, counts[c], seed))


@pytest.mark.parametrize('kind', [Numbers, Known])
@pytest.mark.parametrize('seed', [0, 1, 12345])
@pytest.mark.parametrize(
  ('kwargs', 'counts'),  # of the 7, 10 and 3 examples of classes 0, 1 and 3
  [
    (dict(per_class=1), {0: 1, 1: 1, 3: 1}),
    (dict(per_class=5), {0: 5, 1: 5, 3: 3}),
    (dict(per_class=20), {0: 7, 1: 10, 3: 3}),
    (dict(share=0.01), {0: 1, 1: 1, 3: 1}),
    (dict(share=0.3), {0: 2, 1: 3, 3: 1}),
    (dict(share=1), {0: 7, 1: 10, 3: 3}),
  ],
)
def test_first_of_each_class_in_the_order_of_digests(kind, seed, kwargs, counts):
  subset = Subset(kind(GIVEN), seed=seed, **kwargs)
  assert subset.ids.tolist() == expected(counts, seed)
  assert collections.Counter(subset.labels.tolist()) == counts
  assert len(subset) == sum(counts.values())


def test_examples_are_those_of_the_source():
  source = Numbers(GIVEN)
  subset = Subset(source, per_class=2)
  assert (np.diff(subset.positions) > 0).all()
  for i, position in enumerate(subset.positions):
    for key, value in source[position].items():
      np.testing.assert_array_equal(subset[i][key], value)
    assert subset[i]['id'] == subset.ids[i] and subset[i]['label'] == subset.labels[i]
    assert subset.name(i) == f'number {position}'
  assert subset.labels.dtype == np.int32 and subset.ids.dtype == np.int64


def test_a_draw_stays_as_it_is():
  # Written down when it was made: no version of NumPy or of this file may draw others.
  subset = Subset(Emoji('train', styles=('google',)), per_class=1)
  assert subset.ids.tolist() == [46, 392, 616, 808, 923, 1107, 1335, 1514]


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(('field', 'values'), [('per_class', (1, 5, 20)), ('share', (0.1, 0.5, 1))])
def test_few_are_among_more(field, values, seed):
  source = Emoji('train', label='subcategory')
  few, more, most = (set(Subset(source, seed=seed, **{field: v}).ids.tolist()) for v in values)
  assert few < more < most <= set(source.ids.tolist())
  again = Subset(Emoji('train', label='subcategory', alpha=True), seed=seed, **{field: values[1]})
  assert set(again.ids.tolist()) == more  # paired, however the source draws its images


def test_seeds_draw_different_ones():
  source = Emoji('train')
  draws = [set(Subset(source, per_class=5, seed=seed).ids.tolist()) for seed in range(4)]
  assert all(len(draws[a] & draws[b]) < 10 for a in range(4) for b in range(a))


def test_every_example_of_a_class_is_drawn_equally_often():
  source = Known([0] * 10)
  drawn = collections.Counter(
    i for seed in range(1000) for i in Subset(source, per_class=3, seed=seed).ids.tolist()
  )
  # Each count is binomial with mean 300 and standard deviation 14.5.
  assert len(drawn) == 10 and all(240 < count < 360 for count in drawn.values())


def test_the_order_of_the_source_changes_nothing_but_the_order():
  back = Numbers(GIVEN[::-1], ids=range(100, 100 + len(GIVEN))[::-1])
  assert ids(Subset(back, per_class=3)) == ids(Subset(Numbers(GIVEN), per_class=3))[::-1]


def test_labels_that_are_read_draw_the_same():
  class Bare:  # without `labels` and `ids`
    def __init__(self, source):
      self.source = source

    def __len__(self):
      return len(self.source)

    def __getitem__(self, i):
      return self.source[i]

  source = Emoji('validation')
  bare, known = Subset(Bare(source), per_class=3), Subset(source, per_class=3)
  np.testing.assert_array_equal(bare.positions, known.positions)
  assert bare.classes == () and bare.name(1) == f'example {bare.positions[1]}'


def test_a_subset_of_a_subset():
  source = Emoji('train')
  few = Subset(Subset(source, per_class=20), per_class=5)
  assert ids(few) == ids(Subset(source, per_class=5))


def test_broken_examples_are_left_out():
  position = expected({0: 1, 1: 1, 3: 1})[0] - 100  # the one that would be drawn
  subset = Subset(Numbers(GIVEN, bad=(position,)), per_class=1)
  assert len(subset) == 3 and position not in subset.positions
  assert {int(GIVEN[p]) for p in subset.positions} == {0, 1, 3}


def test_what_the_source_says_of_itself():
  source = Numbers(GIVEN)
  subset = Subset(source, per_class=1)
  assert subset.classes == source.classes and subset.num_classes == 4 and subset.subset is None
  source.subset = (0, 3)
  assert Subset(source, per_class=1).subset == (0, 3)


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({}, "'per_class' or a 'share': give one"),
    (dict(per_class=1, share=0.5), "'per_class' or a 'share': give one"),
    (dict(per_class=0), 'per_class 0 is not a whole number of at least 1'),
    (dict(per_class=2.5), 'per_class 2.5 is not a whole number'),
    (dict(share=0), 'share 0 is not above 0 and at most 1'),
    (dict(share=1.5), 'share 1.5 is not above 0'),
    (dict(share=float('nan')), 'share nan is not above 0'),
  ],
)
def test_numbers_out_of_range(kwargs, message):
  with pytest.raises(ValueError, match=message):
    Subset(Numbers(GIVEN), **kwargs)


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    (np.zeros(4, np.float32), r"'number 1' has a label of shape \[4\]; a subset needs one class"),
    (np.array([2]), r"'number 1' has a label of shape \[1\]"),
    (np.int32(-1), "'number 1' has the label .*-1"),
    (0.5, "'number 1' has the label 0.5"),
    ('cat', "'number 1' has the label 'cat'"),
    (None, "'number 1' has the label None"),
  ],
)
def test_a_label_is_one_class_number(label, message):
  with pytest.raises(ValueError, match=message):
    Subset(Numbers([np.int32(0), label]), per_class=1)


def test_labels_and_ids_are_of_all_examples():
  source = Known(GIVEN)
  source.labels = source.labels[:-1]
  with pytest.raises(ValueError, match='the source has 20 examples, but 19 labels and 20 ids'):
    Subset(source, per_class=1)


@pytest.mark.parametrize('i', [-1, 3])
def test_index_out_of_range(i):
  subset = Subset(Numbers(GIVEN), per_class=1)
  with pytest.raises(IndexError, match='of 3'):
    subset[i]
  with pytest.raises(IndexError):
    subset.name(i)


@pytest.mark.parametrize('kind', [dict, ml_collections.ConfigDict])
def test_from_a_config_through_the_pipeline(kind):
  spec = kind(
    dict(
      type='data.subset.Subset',
      source=dict(type='data.emoji.Emoji', split='train', styles=('twitter',), half=1),
      per_class=5,
      seed=3,
    )
  )
  subset = build(spec)
  whole = Emoji('train', styles=('twitter',), half=1)
  assert len(subset) == 40 and subset.classes == whole.classes
  subset = pickle.loads(pickle.dumps(subset))
  sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ('data',)), PartitionSpec('data'))
  with eval_batches(subset, host='decode', batch_size=16, sharding=sharding) as batches:
    read = [jax.tree.map(np.asarray, batch) for batch in batches]
  mask = np.concatenate([batch['_mask'] for batch in read])
  numbers, labels = (np.concatenate([b[key] for b in read])[mask] for key in ('id', 'label'))
  assert np.bincount(labels).tolist() == [5] * 8
  assert set(numbers) <= set(whole.ids) and (np.diff(numbers) > 0).all()
