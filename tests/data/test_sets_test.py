"""ImageNet's test sets: names, splits, folders, the classes that occur, and several labels."""

import collections
import io
import pickle
import types
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip('tensorflow_datasets')

from vit_jax import sharding  # noqa: E402
from vit_jax.build import build  # noqa: E402
from vit_jax.data import class_maps, test_sets  # noqa: E402
from vit_jax.evaluators.classification import Classification  # noqa: E402

FOLDER = Path(tfds.__file__).parent / 'datasets'
WNIDS = (FOLDER / 'imagenet2012' / 'labels.txt').read_text().split()


def png(i):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def prepare(data_dir, path, split, labels, names=WNIDS):
  """Writes a data set as TFDS does; `labels` are numbers, or lists of them as in ReaL."""
  from array_record.python.array_record_module import ArrayRecordWriter

  root = data_dir / path
  root.mkdir(parents=True)
  real = isinstance(labels[0], list)
  kind = tfds.features.ClassLabel(names=names)
  key = 'real_label' if real else 'label'
  features = tfds.features.FeaturesDict(
    {'image': tfds.features.Image(), key: tfds.features.Sequence(kind) if real else kind}
  )
  template = tfds.core.ShardedFileTemplate(
    data_dir=root, dataset_name=path.split('/')[0], split=split, filetype_suffix='array_record'
  )
  file = str(template.sharded_filepath(shard_index=0, num_shards=1))
  writer = ArrayRecordWriter(file, 'group_size:1')
  for i, label in enumerate(labels):
    writer.write(features.serialize_example({'image': png(i), key: label}))
  writer.close()
  info = tfds.core.SplitInfo(
    name=split, shard_lengths=[len(labels)], num_bytes=0, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=root, features=features, split_infos=[info], check_data=False
  )
  return str(data_dir)


class Always(nn.Module):
  """The same logits for every image."""

  scores: tuple[tuple[int, float], ...]

  def logits(self, batch):
    row = np.zeros(1000, np.float32)
    for i, score in self.scores:
      row[i] = score
    return jax.numpy.tile(row, (len(batch['image']), 1))


def evaluate(scores, source):
  mesh = sharding.make_mesh(dict(data=-1))
  state = types.SimpleNamespace(step=0, params={}, model_state={})
  return Classification(Always(scores), mesh, source=source, batch_size=8).run(state)


def test_the_classes_are_those_that_are_published():
  for subset, first, last in (
    (test_sets.IMAGENET_A, 'n01498041', 'n12267677'),  # stingray, acorn
    (test_sets.IMAGENET_R, 'n01443537', 'n12267677'),  # goldfish, acorn
  ):
    assert len(subset) == 200 and list(subset) == sorted(set(subset))
    assert WNIDS[subset[0]] == first and WNIDS[subset[-1]] == last
  # Both have junco, bald eagle, porcupine, acorn; the sketches of R have pizza, A has not.
  both = set(test_sets.IMAGENET_A) & set(test_sets.IMAGENET_R)
  assert {WNIDS.index(w) for w in ('n01534433', 'n01614925', 'n02346627', 'n12267677')} <= both
  pizza = WNIDS.index('n07873807')
  assert pizza in test_sets.IMAGENET_R and pizza not in test_sets.IMAGENET_A


@pytest.mark.parametrize('name', test_sets.TEST_SETS)
def test_tfds_has_each_with_this_split_and_the_labels_of_imagenet(name):
  dataset, _, config = name.partition('/')
  builder = FOLDER / dataset / f'{dataset}_dataset_builder.py'
  text = builder.read_text()
  split, _ = test_sets.TEST_SETS[name]
  assert f'Split.{split.upper()}' in text
  assert 'imagenet_common.label_names_file()' in text
  assert not config or f"'{config}'" in text


def test_a_source_of_each_kind(tmp_path):
  data_dir = prepare(tmp_path, 'imagenet_v2/matched-frequency/3.0.0', 'test', [7, 999, 0])
  spec = dict(type='data.test_sets.test_set', name='imagenet_v2/matched-frequency')
  source = build({**spec, 'data_dir': data_dir})
  assert [int(e['label']) for e in source] == [7, 999, 0]
  assert source.subset is None and source.classes == tuple(WNIDS)
  prepare(tmp_path, 'imagenet_a/0.1.0', 'test', [6, 988])
  source = test_sets.test_set('imagenet_a', data_dir)
  assert pickle.loads(pickle.dumps(source)).subset == test_sets.IMAGENET_A
  # 5 is none of the 200 classes, so that the answer is 6; among all 1000 it would be wrong.
  result = evaluate(((5, 9.0), (6, 3.0)), source)
  assert result['accuracy'] == 0.5
  assert result['loss'] == pytest.approx(np.log(199 + np.exp(3)) - 3 / 2, rel=1e-5)


def test_real_labels(tmp_path):
  labels = [[3, 8], [], [8], [1]]
  data_dir = prepare(tmp_path, 'imagenet2012_real/1.0.0', 'validation', labels)
  source = test_sets.test_set('imagenet2012_real', data_dir)
  for example, label in zip(source, labels, strict=True):
    assert example['label'].dtype == np.float32 and example['label'].shape == (1000,)
    assert np.flatnonzero(example['label']).tolist() == label
  assert pickle.loads(pickle.dumps(source))[0]['label'].sum() == 2
  assert evaluate(((8, 1.0),), source)['accuracy'] == pytest.approx(2 / 3)  # the second has none


def test_mistakes(tmp_path):
  with pytest.raises(ValueError, match="unknown test set 'imagenet_b'; choose from 'imagenet2012'"):
    test_sets.test_set('imagenet_b')
  with pytest.raises(FileNotFoundError, match='imagenet_r is not prepared'):
    test_sets.test_set('imagenet_r', str(tmp_path))
  data_dir = prepare(tmp_path, 'imagenet_r/0.2.0', 'test', [0, 1], names=WNIDS[:200])
  with pytest.raises(ValueError, match='has 200 classes in its description, not the 1000'):
    test_sets.test_set('imagenet_r', data_dir)


def test_the_lists_have_the_counts_of_the_papers():
  assert tuple(WNIDS) == class_maps.IMAGENET and len(WNIDS) == 1000
  assert list(class_maps.IMAGENET) == sorted(set(WNIDS))
  labels = [i for one in class_maps.OBJECTNET.values() for i in one]
  assert len(class_maps.OBJECTNET) == 313
  assert sum(bool(one) for one in class_maps.OBJECTNET.values()) == 113
  assert len(labels) == len(set(labels))  # so that no class is two folders
  by_name = {name: [WNIDS[i] for i in one] for name, one in class_maps.OBJECTNET.items()}
  assert by_name['alarm_clock'] == ['n02708093', 'n03196217']  # analog and digital clock
  assert by_name['pen'] == ['n02783161', 'n04033901', 'n03388183']  # ballpoint, quill, fountain pen
  assert by_name['sunglasses'] == ['n04356056']
  assert by_name['ribbon'] == by_name['tomato'] == []


def test_the_lists_are_those_of_timm():
  timm = pytest.importorskip('timm')
  folder = Path(timm.__file__).parent / 'data' / '_info'
  for name, labels in (('a', test_sets.IMAGENET_A), ('r', test_sets.IMAGENET_R)):
    assert list(labels) == [int(i) for i in (folder / f'imagenet_{name}_indices.txt').open()]
    wnids = (folder / f'imagenet_{name}_synsets.txt').read_text().split()
    assert [class_maps.IMAGENET[i] for i in labels] == wnids
  lines = (folder / 'imagenet_synset_to_lemma.txt').read_text().splitlines()
  lemmas = dict(line.split('\t') for line in lines)
  named = collections.defaultdict(list)
  for i, wnid in enumerate(WNIDS):
    for word in lemmas[wnid].lower().split(', '):
      named[word].append(i)
  checked = 0
  for name, one in class_maps.OBJECTNET.items():
    same = named[name.replace('_', ' ')]
    if one and len(same) == 1:
      assert same[0] in one, name
      checked += 1
  assert checked > 60


def folders(root, *names, image=None):
  """A folder of each name, with one picture."""
  for i, name in enumerate(names):
    (root / name).mkdir(parents=True)
    file = root / name / 'a.png'
    file.write_bytes(png(i)) if image is None else Image.fromarray(image).save(file)
  return str(root)


def test_folders_by_wordnet_id_and_by_label(tmp_path):
  source = test_sets.test_folder('imagenet', folders(tmp_path / 'a', WNIDS[999], WNIDS[7]))
  assert [(int(e['label']), source.name(i)[-15:]) for i, e in enumerate(source)] == [
    (7, f'{WNIDS[7]}/a.png'),
    (999, f'{WNIDS[999]}/a.png'),
  ]
  assert source.classes == tuple(WNIDS) and source.num_classes == 1000 and source.subset is None
  # As text, '10' comes before '2'.
  source = build(
    dict(
      type='data.test_sets.test_folder',
      name='imagenet_v2',
      path=folders(tmp_path / 'b', '2', '10', '999'),
    )
  )
  assert [int(e['label']) for e in pickle.loads(pickle.dumps(source))] == [10, 2, 999]
  for name, subset in (('a', test_sets.IMAGENET_A), ('r', test_sets.IMAGENET_R)):
    path = folders(tmp_path / name / 'x', WNIDS[6 if name == 'a' else 1])
    source = test_sets.test_folder(f'imagenet_{name}', path)
    assert source.subset == subset and int(source[0]['label']) == subset[0]


def test_objectnet_has_several_labels_and_a_border(tmp_path):
  image = np.full((9, 7, 3), 200, np.uint8)
  image[2:-2, 2:-2] = np.arange(15, dtype=np.uint8).reshape(5, 3, 1)
  path = folders(tmp_path, 'chair', 'ribbon', 'wok', image=image)
  source = test_sets.test_folder('objectnet', path)
  assert len(source) == 2 and len(source.subset) == 125
  chairs = [WNIDS.index(w) for w in ('n02791124', 'n03376595', 'n04099969')]
  for example, labels in zip(source, (chairs, [909]), strict=True):
    assert example['label'].dtype == np.float32 and example['label'].shape == (1000,)
    assert np.flatnonzero(example['label']).tolist() == labels
    np.testing.assert_array_equal(example['image'], image[2:-2, 2:-2])
  assert source.name(1).endswith('wok/a.png')
  with pytest.raises(IndexError, match='example 2 of 2'):
    source[2]
  # A throne is none of the answers, and any of the three kinds of chair is right.
  throne = WNIDS.index('n04429376')
  assert evaluate(((throne, 9.0), (chairs[1], 3.0)), source)['accuracy'] == 0.5


def test_mistakes_in_folders(tmp_path):
  with pytest.raises(ValueError, match="unknown test set 'imagenet_b'; choose from 'imagenet'"):
    test_sets.test_folder('imagenet_b', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no folder'):
    test_sets.test_folder('imagenet', str(tmp_path / 'no'))
  path = folders(tmp_path / 'a', WNIDS[6], WNIDS[5])
  with pytest.raises(ValueError, match=f"has folders '{WNIDS[5]}', which are no classes of this"):
    test_sets.test_folder('imagenet_a', path)
  path = folders(tmp_path / 'b', 'ribbon')
  with pytest.raises(ValueError, match="is one of ImageNet's classes: it has 'ribbon'"):
    test_sets.test_folder('objectnet', path)
