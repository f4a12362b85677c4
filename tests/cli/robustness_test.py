"""`vit_jax robustness`: ImageNet's test sets in miniature, and answers that are known."""

import argparse
import io
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.cli import robustness
from vit_jax.data import class_maps, prompts, test_sets
from vit_jax.image_text import ImageTextModel
from vit_jax.model import Model
from vit_jax.pretrained import build_model

tfds = pytest.importorskip('tensorflow_datasets')

WNIDS = (Path(tfds.__file__).parent / 'datasets/imagenet2012/labels.txt').read_text().split()
OBJECTNET = {
  name: [WNIDS.index(wnid) for wnid in wnids]
  for name, wnids in json.loads((class_maps.FOLDER / 'objectnet.json').read_text()).items()
}
SIDE, IMAGES, CONTEXT, VOCAB = 32, 6, 16, 600
VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=24, grid=(4, 4)
)


def random_variables(objective, batch, method=None):
  rng = np.random.default_rng(1)
  init = lambda: nn.unbox(objective.init(jax.random.key(0), batch, **method))  # noqa: E731
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), jax.eval_shape(init)
  )


def make_classifier(num_classes=1000):
  spec = dict(type='objectives.supervised.Supervised', encoder=VIT, num_classes=num_classes)
  objective = build_model(spec)
  batch = {'image': np.zeros((1, SIDE, SIDE, 3), np.uint8)}
  method = dict(method='logits' if num_classes else 'features')
  variables = random_variables(objective, batch, method)
  return Model(objective, variables, Preprocessing((SIDE, SIDE)), Report('a'), spec)


def make_clip():
  text = dict(
    type='models.text.TextTransformer', vocab_size=VOCAB, end_id=VOCAB - 1, context=CONTEXT,
    width=16, depth=1, num_heads=2, projection=12,
  )  # fmt: skip
  spec = {'type': 'objectives.clip.CLIP', 'projection': 12, 'image': VIT, 'text': text}
  objective = build_model(spec)
  batch = {
    'image': np.zeros((1, SIDE, SIDE, 3), np.uint8),
    'text': np.zeros((1, CONTEXT), np.int32),
  }
  variables = random_variables(objective, batch, dict(train=False))
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', context=CONTEXT, vocab_size=VOCAB)
  rest = Preprocessing((SIDE, SIDE)), Report('a'), spec, (), tokenizer
  return ImageTextModel(objective, variables, *rest)


def write(folder, name, image, border=0):
  """A picture, with a red border."""
  folder.mkdir(parents=True, exist_ok=True)
  red = np.broadcast_to(np.uint8([255, 0, 0]), (*np.add(image.shape[:2], 2 * border), 3)).copy()
  red[border : border + image.shape[0], border : border + image.shape[1]] = image
  Image.fromarray(red).save(folder / f'{name}.png')


def groups_of(name):
  """By a test set's folders the labels of each, of TFDS's list and the papers' alone."""
  if name == 'objectnet':
    return {folder: labels for folder, labels in OBJECTNET.items() if labels}
  subset = {'imagenet_a': test_sets.IMAGENET_A, 'imagenet_r': test_sets.IMAGENET_R}
  chosen = subset.get(name, range(1000))
  return {str(i) if name == 'imagenet_v2' else WNIDS[i]: [i] for i in chosen}


def draw(root, name, scores, images, right):
  """A test set of which `right` images lie in the folder of the best score, and the rest do not."""
  groups = groups_of(name)
  best = np.stack([scores[:, labels].max(1) for labels in groups.values()], axis=1)
  for i, answer in enumerate(best.argmax(1)):
    place = answer if i < right else (answer + 1 + i % 2) % len(groups)
    border = 2 if name == 'objectnet' else 0
    write(root / name / list(groups)[place], i, images[i], border)
  return f'{name}={root / name}'


def parse(*argv):
  parser = argparse.ArgumentParser()
  robustness.add_arguments(parser)
  return parser.parse_args([*map(str, argv)])


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  noise = rng.integers(-40, 40, (IMAGES, SIDE, SIDE, 3))
  return np.clip(rng.integers(0, 256, (IMAGES, 1, 1, 3)) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  """A classifier of random weights, and the file of it."""
  file = tmp_path_factory.mktemp('robustness') / 'a.npz'
  made = make_classifier()
  made.save(file)
  return made, file


def rows_of(capsys):
  lines = capsys.readouterr().out.splitlines()
  left_out = [line.split(': ', 2)[1:] for line in lines if line.startswith('left out')]
  return lines[0].split(), [line.split() for line in lines[2:] if 'left out' not in line], left_out


def test_a_classifier_on_each_in_miniature(classifier, images, tmp_path, capsys):
  model, file = classifier
  scores = model(images)
  folders = []
  for right, name in enumerate(robustness.SUITE, 1):
    folders += ['--folder', draw(tmp_path, name, scores, images, right)]
  # A folder that ImageNet has no class for is not looked at.
  write(tmp_path / 'objectnet' / 'ribbon', 'a', images[0], 2)
  out = tmp_path / 'ours.json'
  args = parse(file, *folders, '--batch-size', 4, '--json', out)
  assert robustness.run(args) == 0
  header, rows, left_out = rows_of(capsys)
  assert header == ['data', 'set', 'images', 'ours', 'ResNet-101', 'difference']
  # Fig. 13, arXiv:2103.00020
  assert rows == [
    ['imagenet', '6', '16.7', '76.2', '-59.5'],
    ['imagenet_v2', '6', '33.3', '64.3', '-31.0'],
    ['imagenet_r', '6', '50.0', '37.7', '+12.3'],
    ['imagenet_a', '6', '66.7', '2.7', '+64.0'],
    ['imagenet_sketch', '6', '83.3', '25.2', '+58.1'],
    ['objectnet', '6', '100.0', '32.6', '+67.4'],
  ]
  assert left_out == []
  # What it has written is what another model is compared with.
  args = parse(file, *folders[:2], '--data-dir', tmp_path, '--batch-size', 4, '--reference', out)
  assert robustness.run(args) == 0
  header, rows, left_out = rows_of(capsys)
  assert header[4] == 'ours' and rows == [['imagenet', '6', '16.7', '16.7', '+0.0']]
  assert [name for name, _ in left_out] == list(robustness.SUITE)[1:]


def test_a_clip_by_the_names_of_the_classes(images, tmp_path, capsys):
  model, templates = make_clip(), ['a photo of a {}.']
  model.save(tmp_path / 'clip.npz')
  own = tmp_path / 'prompts.json'
  own.write_text(json.dumps({'classes': 'imagenet', 'templates': templates}))
  text = model.classifier(prompts.load('imagenet').classes, templates)
  scores = model.embeddings(images) @ text.T
  folders = []
  for name, right in {'imagenet_v2': 3, 'imagenet_r': 5, 'objectnet': 2}.items():
    folders += ['--folder', draw(tmp_path, name, scores, images, right)]
  reference = tmp_path / 'theirs.json'
  reference.write_text('{"imagenet_v2": 70, "imagenet_a": 20}')
  rest = ['--prompts', own, '--data-dir', tmp_path, '--reference', reference, '--batch-size', 8]
  assert robustness.run(parse(tmp_path / 'clip.npz', *folders, *rest)) == 0
  header, rows, left_out = rows_of(capsys)
  assert header == ['data', 'set', 'images', 'ours', 'theirs', 'difference']
  assert rows == [
    ['imagenet_v2', '6', '50.0', '70.0', '-20.0'],
    ['imagenet_r', '6', '83.3'],
    ['objectnet', '6', '33.3'],
  ]
  assert [name for name, _ in left_out] == ['imagenet', 'imagenet_a', 'imagenet_sketch']


class Planted(nn.Module):
  """Reads its answers off the first row of an image: the first pixel is the best, and so on."""

  def logits(self, batch):
    label = batch['image'][:, 0, :4].astype(jnp.int32) @ jnp.array([1, 256, 0])
    return (jax.nn.one_hot(label, 1000) * jnp.array([4.0, 3.0, 2.0, 1.0])[:, None]).sum(1)


def planted(*answers):
  """An image of up to 4 answers, the best first."""
  image = np.zeros((8, 8, 3), np.uint8)
  for j, label in enumerate(np.resize(answers, 4)):
    image[0, j] = label % 256, label // 256, 0
  return image


@pytest.fixture
def model():
  spec = dict(type='planted')
  return Model(Planted(), {'params': {}}, Preprocessing((8, 8)), Report('planted'), spec)


def test_answers_are_among_the_classes_of_each_set(model, tmp_path):
  clock, digital, wall, wok = (
    WNIDS.index(w) for w in ('n02708093', 'n03196217', 'n04548280', 'n04596742')
  )
  chair = [WNIDS.index(w) for w in ('n02791124', 'n03376595', 'n04099969')]
  for i, (folder, answers) in enumerate(
    [
      ('alarm_clock', [clock]),
      ('alarm_clock', [digital]),  # either is right
      ('alarm_clock', [wall, digital, wok]),  # ObjectNet has no wall clock
      ('alarm_clock', [wok, clock]),
      ('chair', [chair[2], wok]),
      ('chair', [clock, *chair]),
      ('wok', [wall, 0, 1, wok]),
    ]
  ):
    write(tmp_path / 'objectnet' / folder, i, planted(*answers), border=2)
  for i, (folder, answers) in enumerate([('2', [2]), ('10', [10]), ('10', [2]), ('100', [100])]):
    write(tmp_path / 'imagenet_v2' / folder, i, planted(*answers))
  # 5 is none of the 200 classes, so that the answer is 6.
  write(tmp_path / 'imagenet_a' / WNIDS[6], 0, planted(5, 6))
  write(tmp_path / 'imagenet' / WNIDS[6], 0, planted(5, 6))
  names = ('imagenet', 'imagenet_v2', 'imagenet_a', 'objectnet')
  sources, _ = robustness.find({name: str(tmp_path / name) for name in names}, str(tmp_path))
  found = robustness.accuracies(model, sources, batch_size=3)
  assert found == pytest.approx(
    {'imagenet': 0, 'imagenet_v2': 3 / 4, 'imagenet_a': 1, 'objectnet': 5 / 7}
  )


def test_another_mapping_gives_another_accuracy(model, tmp_path):
  for i in (2, 10, 100, 999):
    write(tmp_path / str(i), i, planted(i))
  right = test_sets.test_folder('imagenet_v2', str(tmp_path))
  by_name = {str(i): (k,) for k, i in enumerate(sorted(range(1000), key=str))}
  wrong = test_sets.ClassFolders(str(tmp_path), by_name)
  found = robustness.accuracies(model, dict(right=right, wrong=wrong), batch_size=4)
  # In the order of text, '10' is third, '100' fourth, and '999' is last in both orders.
  assert found == {'right': 1, 'wrong': 0.25}


def prepare(root, labels):
  """ImageNet-A of planted images as TFDS writes it."""
  from array_record.python.array_record_module import ArrayRecordWriter

  root.mkdir(parents=True)
  kind = tfds.features.ClassLabel(names=WNIDS)
  features = tfds.features.FeaturesDict({'image': tfds.features.Image(), 'label': kind})
  template = tfds.core.ShardedFileTemplate(
    data_dir=root, dataset_name='imagenet_a', split='test', filetype_suffix='array_record'
  )
  file = template.sharded_filepath(shard_index=0, num_shards=1)
  writer = ArrayRecordWriter(str(file), 'group_size:1')
  for label, answers in labels:
    image = io.BytesIO()
    Image.fromarray(planted(*answers)).save(image, 'PNG')
    writer.write(features.serialize_example({'image': image.getvalue(), 'label': label}))
  writer.close()
  split = tfds.core.SplitInfo(
    name='test', shard_lengths=[len(labels)], num_bytes=0, filename_template=template
  )
  tfds.folder_dataset.write_metadata(
    data_dir=root, features=features, split_infos=[split], check_data=False
  )


def test_what_tfds_has_prepared_and_what_is_left_out(model, tmp_path):
  prepare(tmp_path / 'imagenet_a/0.1.0', [(6, [5, 6]), (11, [6, 11]), (988, [988]), (13, [6])])
  sources, left_out = robustness.find({}, str(tmp_path))
  assert list(sources) == ['imagenet_a']
  assert robustness.accuracies(model, sources) == {'imagenet_a': 0.5}
  assert list(left_out) == [name for name in robustness.SUITE if name != 'imagenet_a']
  assert left_out['imagenet_v2'] == (
    f'not prepared in {tmp_path}; prepare it with `tfds build imagenet_v2/matched-frequency '
    f'--data_dir={tmp_path} --file_format=array_record`, or give --folder imagenet_v2=PATH, '
    "folders '0' to '999'"
  )
  assert left_out['objectnet'].startswith('TFDS does not have it; give --folder objectnet=PATH')


def test_mistakes_are_one_sentence(classifier, images, tmp_path):
  _, file = classifier
  write(tmp_path / 'mine' / WNIDS[0], 'a', images[0])
  (tmp_path / 'bad.json').write_text('{"imagenet": "high"}')
  (tmp_path / 'other.json').write_text('{"cifar10": 9}')
  (tmp_path / 'none.json').write_text('{}')
  (tmp_path / 'torn.json').write_text('{')
  good = ['--data-dir', tmp_path, '--folder', f'imagenet={tmp_path / "mine"}']
  for argv, error, message in [
    (['--data-dir', tmp_path], ValueError, 'there is no test set: imagenet: not prepared in'),
    (['--folder', 'imagenet'], ValueError, "--folder takes NAME=PATH, .*, not 'imagenet'"),
    (['--folder', 'imagenet_b=x'], ValueError, "unknown test set 'imagenet_b'; choose from"),
    ([*good, '--folder', 'imagenet=x'], ValueError, '--folder has imagenet twice'),
    (['--folder', f'imagenet={tmp_path / "no"}'], FileNotFoundError, 'no folder'),
    (['--folder', f'imagenet_a={tmp_path / "mine"}'], ValueError, "has folders 'n01440764'"),
    ([*good, '--batch-size', 0], ValueError, '--batch-size must be at least 1, got 0'),
    ([*good, '--workers', -1], ValueError, '--workers must be 0 or more, got -1'),
    ([*good, '--reference', tmp_path / 'bad.json'], ValueError, "has 'high' for imagenet; it"),
    ([*good, '--reference', tmp_path / 'other.json'], ValueError, "'cifar10'; choose from"),
    ([*good, '--reference', tmp_path / 'none.json'], ValueError, 'holds no object of accuracies'),
    ([*good, '--reference', tmp_path / 'torn.json'], ValueError, 'is damaged or no JSON'),
    ([*good, '--reference', tmp_path / 'no.json'], FileNotFoundError, 'no.json'),
  ]:
    with pytest.raises(error, match=message):
      robustness.run(parse(file, *argv))
  sources, _ = robustness.find({'imagenet': str(tmp_path / 'mine')}, str(tmp_path))
  for made, message in (
    (make_classifier(10), 'a gives 10 logits; these test sets have ImageNet.s 1000 classes'),
    (make_classifier(None), 'a has no head and no text tower, so it knows no classes'),
  ):
    with pytest.raises(ValueError, match=message):
      robustness.accuracies(made, sources)
