import jax
import pytest

from vit_jax import rules, sharding
from vit_jax.rules import Row

NAMES = ['cls', 'encoder/block_0/mlp/kernel', 'encoder/block_1/mlp/kernel', 'head/kernel']


def test_names_are_joined_by_slashes():
  paths = jax.tree_util.tree_leaves_with_path({'a': {'b_0': {'kernel': 1}}, 'c': 2})
  assert [rules.name(path) for path, _ in paths] == ['a/b_0/kernel', 'c']


def test_the_first_match_counts_and_it_is_of_the_whole_name():
  pairs = (('encoder/block_1/.*', 2), ('.*/kernel', 3.0))
  got = rules.values('f', pairs, NAMES, default=-1.0)
  assert got == dict(zip(NAMES, [-1.0, 3.0, 2.0, 3.0], strict=True))
  with pytest.raises(ValueError, match="'encoder' matches none of 4 parameters"):
    rules.match('f', ('encoder',), NAMES)
  with pytest.raises(ValueError, match="'kernel' matches none"):
    rules.match('f', ('kernel',), NAMES)


def test_lists_do_too_since_json_has_no_tuples():
  pairs = [['head/.*', 2.0]]
  assert rules.values('f', pairs, NAMES, default=1.0)['head/kernel'] == 2.0
  assert rules.match('f', ['head/.*'], NAMES) == {'head/kernel': 0}


def test_a_pattern_that_matches_nothing_names_the_closest():
  with pytest.raises(ValueError, match=r"^freeze: 'hed/\.\*' matches none.*'head/kernel'"):
    rules.match('freeze', ('hed/.*',), NAMES)


def test_a_pattern_that_comes_too_late():
  with pytest.raises(ValueError, match=r"^f: 'head/\.\*' decides nothing"):
    rules.values('f', (('.*/kernel', 1.0), ('head/.*', 2.0)), NAMES, default=0.0)
  rules.values('f', (('.*/kernel', 1.0), ('cls', 2.0), ('.*', 0.0)), NAMES, default=0.0)
  assert set(rules.match('freeze', ('.*/kernel', 'head/.*'), NAMES)) == set(NAMES[1:])


def test_no_regular_expression():
  with pytest.raises(ValueError, match=r"^freeze: '\*' is no regular expression: nothing to rep"):
    rules.match('freeze', ('*',), NAMES)


@pytest.mark.parametrize('patterns', ['head/.*', 3, (1,), {'head/.*': 1}])
def test_a_comma_was_forgotten_in_patterns(patterns):
  with pytest.raises(ValueError, match=r'^freeze must be patterns'):
    rules.match('freeze', patterns, NAMES)


@pytest.mark.parametrize('pairs', [('head/.*', 1.0), 'head/.*', 3, (('a', 1, 2),), ((1, 1),), (1,)])
def test_a_comma_was_forgotten_in_rules(pairs):
  with pytest.raises(ValueError, match=r'^decay must be rules'):
    rules.values('decay', pairs, NAMES, default=1.0)


@pytest.mark.parametrize('value', [-1.0, float('nan'), float('inf'), True, '1', None])
def test_values_are_numbers(value):
  with pytest.raises(ValueError, match=r"^decay of 'cls' must be a number >= 0, got"):
    rules.values('decay', (('cls', value),), NAMES, default=1.0)


def test_zero():
  assert rules.values('decay', (('cls', 0),), NAMES, default=1.0)['cls'] == 0.0
  with pytest.raises(ValueError, match=r"^multiplier of 'cls' must be a number > 0, got 0"):
    rules.values('multiplier', (('cls', 0),), NAMES, default=1.0, positive=True)


def row(name, shape=(2, 3), size=6, multiplier=1.0, decay=0.0, frozen=False):
  return Row(name, shape, size, multiplier, decay, frozen)


def test_describe():
  table = [
    row('cls', (), 1, 0.0, 0.0, True),
    *(row(f'encoder/block_{i}/mlp/fc_{j}/kernel', decay=0.05) for i in range(12) for j in (1, 2)),
    row('head/kernel', (2048, 1000), 2_048_000, 10.0, 0.5),
  ]
  assert rules.describe(table).split('\n') == [
    'parameter                                       shape       size  multiplier  decay',
    'cls                                            scalar          1      frozen',
    'encoder/block_{0..11}/mlp/fc_{1..2}/kernel        2x3     24 x 6           1   0.05',
    'head/kernel                                 2048x1000  2,048,000          10    0.5',
    'trainable: 2,048,144 in 25 arrays',
    'frozen: 1 in 1 arrays',
  ]


def test_describe_on_several_devices():
  mesh = sharding.make_mesh(dict(data=2, fsdp=4))
  table = [
    row('cls', (), 1, 1.0, 0.0),
    *(row(f'block_{i}/kernel', (2, 2048), 4096, decay=0.05) for i in range(12)),
    *(row(f'block_{i}/bias', (8,), 8) for i in (0, 1)),
  ]
  params = {
    one.name: jax.ShapeDtypeStruct(
      one.shape, 'float32', sharding=sharding.place((None,) * len(one.shape), one.shape, mesh, over)
    )
    for one, over in zip(table, [()] + 12 * [('fsdp',)] + [('fsdp',), ()], strict=True)
  }
  assert rules.describe(table, params).split('\n') == [
    'parameter              shape        size  decay  sharding  a device',
    'cls                   scalar           1      0     whole       4 B',
    'block_{0..11}/kernel  2x2048  12 x 4,096   0.05    -,fsdp   49.2 kB',
    'block_0/bias               8           8      0      fsdp       8 B',
    'block_1/bias               8           8      0     whole      32 B',
    'trainable: 49,169 in 15 arrays',
    'frozen: 0 in 0 arrays',
  ]
  table[0] = table[0]._replace(multiplier=0.0, frozen=True)
  assert rules.describe(table, params).split('\n')[1].split() == [
    'cls', 'scalar', '1', 'frozen', 'whole', '4', 'B'
  ]  # fmt: skip


def first_column(table):
  return [line.split()[0] for line in rules.describe(table).split('\n')[1:-2]]


def test_describe_keeps_blocks_with_other_rules_apart():
  layerwise = [row(f'block_{i}/bias', multiplier=0.5**i) for i in range(3)]
  assert first_column(layerwise) == ['block_0/bias', 'block_1/bias', 'block_2/bias']
  frozen = [row(f'block_{i}/bias', frozen=i < 4) for i in (0, 1, 2, 3, 5, 8, 9, 11)]
  assert first_column(frozen) == ['block_{0..3}/bias', 'block_{5,8..9,11}/bias']


def test_describe_states_no_parameter_that_is_not_there():
  pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
  names = first_column([row(f'stage_{i}/block_{j}/bias') for i, j in pairs])
  assert names == ['stage_{0..2}/block_{0..1}/bias', 'stage_2/block_2/bias']


def test_describe_an_empty_table():
  assert rules.describe([]).endswith('trainable: 0 in 0 arrays\nfrozen: 0 in 0 arrays')
