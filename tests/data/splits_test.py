import pytest

from vit_jax.data import splits

SIZES = {'test': 7, 'train': 23, 'extra': 5}


def places(spec):
  return list(splits.Selection(spec, SIZES))


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    ('train', range(23)),
    ('train[:99%]', range(23)),  # round(22.77)
    ('train[:50%]', range(12)),  # round(11.5), to even
    ('train[50%:]', range(12, 23)),
    ('train[10:20]', range(10, 20)),
    ('train[-3:]', range(20, 23)),
    ('train[:-20%]', range(18)),
    ('test', range(23, 30)),  # train is numbered first, the others in their order
    ('extra[1:2]', [31]),
    ('train[20:]+test[:2]', range(20, 25)),
    ('test[:1] + train[:1]', [23, 0]),
    ('all', range(35)),
  ],
)
def test_an_example_keeps_its_id_in_every_part(spec, expected):
  assert [place.id for place in places(spec)] == list(expected)


def test_places_name_split_and_index():
  assert places('train[20:]+test[5:]')[2:4] == [('train', 22, 22), ('test', 5, 28)]


def test_slices_are_those_of_tfds():
  tfds = pytest.importorskip('tensorflow_datasets')
  for size in (23, 100, 1797, 50000):
    for text in ('[:99%]', '[1%:]', '[33%:66%]', '[-5%:]', '[:-7]', '[3:9]', '[-10%:-3%]'):
      (theirs,) = tfds.core.ReadInstruction.from_spec(f'train{text}').to_absolute(
        {'train': tfds.core.SplitInfo(name='train', shard_lengths=[size], num_bytes=0)}
      )
      (ours,) = splits.Selection(f'train{text}', {'train': size}).parts
      assert (ours.start, ours.stop) == (theirs.from_ or 0, theirs.to or size), (text, size)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('validation', "unknown split 'validation'; choose from 'train', 'test', 'extra'"),
    ('train[', "cannot read the split 'train\\['; write"),
    ('', 'cannot read the split'),
    ('train[5]', 'cannot read the split'),
    ('train[5:5]', "'train\\[5:5\\]' is empty: 'train' has 23"),
    ('train[:24]', 'out of range: there are 23'),
    ('train[:120%]', 'out of range'),
    ('train+train[:1]', "chooses examples of 'train' twice"),
  ],
)
def test_mistakes_are_one_sentence(spec, message):
  with pytest.raises(ValueError, match=message) as error:
    splits.Selection(spec, SIZES)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('i', [-1, 23])
def test_positions_outside_are_refused(i):
  with pytest.raises(IndexError, match='of 23'):
    splits.Selection('train', SIZES)[i]
