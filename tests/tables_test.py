from vit_jax.tables import final_table, grids, memory, number, split, table

FINAL = {
  'step': 900,
  'train/loss': 0.1,
  'test/google/accuracy': 0.6125,
  'test/google/loss': 1.2345,
  'test/google/examples': 1400,
  'test/google/class/Food & Drink': 0.3,
  'attention/mask_share': 0.7,
  'test/noto-mono/accuracy': 0.4,
  'test/noto-mono/loss': 11.5,
  'test/noto-mono/examples': 90,
  'baseline/google/accuracy': 0.2,
}


def test_the_parts_of_a_name():
  assert split('train/loss') == ('train', '', 'loss', '')
  assert split('test/google/accuracy') == ('test', 'google', 'accuracy', '')
  assert split('test/emoji/google/accuracy') == ('test', 'emoji/google', 'accuracy', '')
  assert split('test/google/class/Food/Drink') == ('test', 'google', 'class', 'Food/Drink')
  assert split('test/class/Flags') == ('test', '', 'class', 'Flags')
  assert split('loss') == ('', '', 'loss', '')


def test_bytes_to_read():
  sizes = {0: '0 B', 999: '999 B', 1000: '1.0 kB', 999_999: '1,000.0 kB', 14_160_000: '14.2 MB'}
  sizes |= {3.1e9: '3.1 GB', 3.1e12: '3,100.0 GB'}
  assert {size: memory(size) for size in sizes} == sizes


def test_evals_of_the_same_sources_share_a_grid():
  values = FINAL | {'faces/lfw/recall': 0.5, 'test/accuracy': 0.5}
  (first, second), rest = grids(values)
  assert first.sources == ['google', 'noto-mono', '']
  assert first.columns == [
    ('test', 'accuracy'),
    ('test', 'loss'),
    ('test', 'examples'),
    ('baseline', 'accuracy'),
  ]
  assert first.values['noto-mono', ('test', 'loss')] == 11.5
  assert ('noto-mono', ('baseline', 'accuracy')) not in first.values
  assert (second.sources, second.columns) == (['lfw'], [('faces', 'recall')])
  assert rest == {'attention/mask_share': 0.7}


def test_the_final_table_is_aligned():
  assert final_table(FINAL).splitlines() == [
    '           test accuracy  test loss  test examples  baseline accuracy',
    '---------------------------------------------------------------------',
    'google             0.613      1.234          1,400              0.200',
    'noto-mono          0.400     11.500             90',
    '',
    '                      value',
    '---------------------------',
    'attention/mask_share  0.700',
  ]
  assert final_table({'train/loss': 1.0}) == ''


def test_averaged_parameters_stand_beside_the_raw_ones():
  values = {'test/a/accuracy': 0.5, 'test_ema/a/accuracy': 0.6, 'test/b/accuracy': 0.3}
  assert final_table({**values, 'test_ema/b/accuracy': 0.4, 'pixels/b/accuracy': 0.2}).splitlines()[
    ::2
  ] == [
    '   test accuracy  test ema accuracy  pixels accuracy',
    'a          0.500              0.600',
  ]
  assert final_table({'test/loss': 2.0, 'test_ema/loss': 1.0}).splitlines()[2:] == [
    'test/loss      2.000',
    'test_ema/loss  1.000',
  ]


def test_every_column_of_a_table_ends_in_one_place():
  text = table([('a', 1, 'x'), ('longer', 12345, None), ('b', 0.00003, 'yy')], ('', 'count', 'z'))
  header, rule, *rows = text.splitlines()
  assert len(rule) == len(header) and set(rule) == {'-'}
  assert rows == ['a            1   x', 'longer  12,345', 'b        3e-05  yy']


def test_numbers_for_people():
  values = (1234567, 1234.6, 0.6125, 0.0, -0.5, 0.00003, float('nan'), float('inf'), None)
  shown = ['1,234,567', '1,235', '0.613', '0.000', '-0.500', '3e-05', 'nan', 'inf', '']
  assert [number(v) for v in values] == shown


def test_baselines_stand_beside_what_they_are_of():
  values = {
    'knn/google/accuracy': 0.5,
    'knn/google/accuracy_random': 0.3,
    'knn/google/accuracy_pixels': 0.4,
    'knn/l2': 0.01,
    'knn/l2_random': 1.0,
    'test/google/accuracy': 0.6,
  }
  assert final_table(values).splitlines() == [
    '        test accuracy',
    '---------------------',
    'google          0.600',
    '',
    '                 knn trained  knn random  knn pixels',
    '----------------------------------------------------',
    'google accuracy        0.500       0.300       0.400',
    'l2                     0.010       1.000',
  ]
