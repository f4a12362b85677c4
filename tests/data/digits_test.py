import pickle
import sys

import numpy as np
import pytest
from sklearn import datasets

from vit_jax.data.digits import Digits


def test_splits_are_a_partition_of_the_data_by_pixels():
  original = datasets.load_digits()
  seen = []
  for split, size in (('train', 1258), ('validation', 180), ('test', 359)):
    source = Digits(split)
    assert len(source) == size
    seen += [(e['image'].tobytes(), int(e['label'])) for e in source]
  scaled = np.round(original.images * 255 / 16).astype(np.uint8)
  expected = [(image.tobytes(), int(k)) for image, k in zip(scaled, original.target, strict=True)]
  assert sorted(seen) == sorted(expected)


def test_examples_have_the_types_of_the_protocol():
  example = Digits('test')[0]
  assert example['image'].shape == (8, 8, 1)
  assert example['image'].dtype == np.uint8
  assert (example['label'].dtype, example['id'].dtype) == (np.int32, np.int64)
  assert max(e['image'].max() for e in Digits('test')) == 255


def test_every_split_is_stratified():
  share = [np.bincount([e['label'] for e in Digits(s)]) for s in ('train', 'validation', 'test')]
  total = sum(share)
  np.testing.assert_allclose(share[0] / total, 0.7, atol=0.005)
  np.testing.assert_allclose(share[2] / total, 0.2, atol=0.005)
  assert (np.bincount([e['label'] for e in Digits('train[:10%]')], minlength=10) > 0).all()


def test_the_split_is_fixed():
  # Numbers of a published result must not move with NumPy's or scikit-learn's version.
  assert [int(e['label']) for e in Digits('train[:12]')] == [4, 4, 4, 3, 2, 5, 8, 2, 3, 0, 9, 1]
  assert int(sum(e['image'].sum(dtype=np.int64) for e in Digits('test'))) == 1789653


def test_another_seed_is_another_partition():
  def pixels(split, seed):
    return {example['image'].tobytes() for example in Digits(split, splits_seed=seed)}

  assert pixels('test', 0) == {example['image'].tobytes() for example in Digits('test')}
  assert len(pixels('test', 0) & pixels('test', 1)) < 150  # of 359, 72 by chance
  assert len(pixels('train', 1) & pixels('test', 1)) <= 1  # two drawings may be alike


def test_ids_are_unique_and_do_not_depend_on_the_slice():
  ids = [int(e['id']) for e in Digits('all')]
  assert sorted(ids) == list(range(1797))
  source, part = Digits('train'), Digits('train[100:200]')
  assert part[3]['id'] == source[103]['id']
  np.testing.assert_array_equal(part[3]['image'], source[103]['image'])
  assert part.name(3) == 'digits/train[103]'


def test_an_example_can_be_changed_without_changing_the_source():
  source = Digits('test')
  before = source[0]['image'].copy()
  source[0]['image'][:] = 7
  np.testing.assert_array_equal(source[0]['image'], before)


def test_a_worker_needs_no_sklearn(monkeypatch):
  stored = pickle.dumps(Digits('validation'))
  expected = Digits('validation')[5]['image']
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  np.testing.assert_array_equal(pickle.loads(stored)[5]['image'], expected)
  with pytest.raises(ValueError, match='pip install scikit-learn'):
    Digits('validation')


def test_unknown_split_lists_the_choices():
  with pytest.raises(ValueError, match="'val'; choose from 'train', 'validation', 'test'"):
    Digits('val')
