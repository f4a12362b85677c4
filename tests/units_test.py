import re

import ml_collections
import pytest

from vit_jax import units


@pytest.mark.parametrize(
  ('amount', 'expected'),
  [
    ({'steps': 7}, 7),
    ({'steps': 7.0}, 7),
    ({'steps': 0}, 0),
    ({'epochs': 1}, 16),  # 1000 / 64 = 15.625
    ({'epochs': 3}, 47),  # 46.875: rounded once, not per epoch.
    ({'epochs': 0.5}, 8),  # 7.8125
    ({'epochs': 0.48}, 8),  # 7.5: a half goes up.
    ({'epochs': 0.416}, 7),  # 6.5: also where the even neighbour is below.
    ({'epochs': 1e-6}, 1),
    ({'epochs': 0}, 0),
    ({'examples': 64}, 1),
    ({'examples': 65}, 2),
    ({'examples': 1e3}, 16),
    ({'examples': 0}, 0),
    ({'steps': None, 'epochs': None, 'examples': 1}, 1),
  ],
)
def test_steps(amount, expected):
  steps = units.steps(amount, batch_size=64, num_examples=1000)
  assert steps == expected
  assert type(steps) is int


def test_large_counts_are_exact():
  amount = {'examples': 2**60 + 1}
  assert units.steps(amount, batch_size=2, num_examples=1) == 2**59 + 1


def test_config_dict_with_placeholders():
  config = ml_collections.ConfigDict({'total': {'epochs': 2}})
  config.total.steps = ml_collections.config_dict.placeholder(int)
  assert units.steps(config.total, batch_size=10, num_examples=100) == 20
  assert units.unit(config.total) == ('epochs', 2)


@pytest.mark.parametrize(
  ('amount', 'message'),
  [
    ({}, r'got {}'),
    ({'steps': None}, r'got {}'),
    ({'steps': 1, 'epochs': 2}, r"got {'steps': 1, 'epochs': 2}"),
    ({'epoch': 2}, r"unknown unit 'epoch'"),
    (10, r'got 10'),
    ('steps', r"got 'steps'"),
  ],
)
def test_what_is_no_amount_names_the_field_and_the_choices(amount, message):
  form = r'^total must be one of dict\(steps=...\), dict\(epochs=...\), dict\(examples=...\)'
  with pytest.raises(ValueError, match=f'{form}.*{re.escape(message)}'):
    units.steps(amount, batch_size=1, num_examples=1, name='total')


@pytest.mark.parametrize('value', [-1, float('nan'), float('inf'), True, '3', [1]])
@pytest.mark.parametrize('unit', units.UNITS)
def test_what_is_no_number(unit, value):
  with pytest.raises(ValueError, match=f'{unit} of total must be a number of at least 0'):
    units.steps({unit: value}, batch_size=1, num_examples=1, name='total')


@pytest.mark.parametrize('unit', ['steps', 'examples'])
def test_only_epochs_are_fractional(unit):
  with pytest.raises(ValueError, match=f'{unit} of warmup must be a whole number, got 0.5'):
    units.steps({unit: 0.5}, batch_size=1, num_examples=1, name='warmup')


def test_needs_a_batch_and_examples():
  with pytest.raises(ValueError, match='batch size of at least 1, got 0'):
    units.steps({'examples': 1}, batch_size=0, num_examples=1)
  with pytest.raises(ValueError, match='at least 1 example, got 0'):
    units.steps({'epochs': 1}, batch_size=1, num_examples=0)
  assert units.steps({'steps': 1}, batch_size=0, num_examples=0) == 1
