"""Published prompts: open_clip's lists, the order of the data sets' labels, files of one's own."""

import json

import pytest

from vit_jax.data import prompts
from vit_jax.data.texts import check_templates

# Classes and templates.
COUNTS = {
  'imagenet': (1000, 80),
  'imagenet_7': (1000, 7),
  'food101': (101, 1),
  'sun397': (397, 2),
  'eurosat': (10, 3),
  'cifar10': (10, 18),
  'cifar100': (100, 18),
  'oxford_iiit_pet': (37, 1),
  'oxford_flowers102': (102, 1),
}


def label_file(tfds, name):
  with open(tfds.core.tfds_path(f'image_classification/{name}'), encoding='utf-8') as file:
    return [line.strip() for line in file if line.strip()]


@pytest.mark.parametrize('name', prompts.NAMES)
def test_as_many_as_published(name):
  made = prompts.load(name)
  assert (len(made.classes), len(made.templates)) == COUNTS[name]
  check_templates(made.templates)
  assert len(set(made.templates)) == len(made.templates)
  # ImageNet's 'missile' and 'sunglasses' are two classes each.
  repeated = 2 if name.startswith('imagenet') else 0
  assert len(set(made.classes)) == len(made.classes) - repeated
  for text in made.classes + made.templates:
    assert text == ' '.join(text.split()) and text.isascii()


def test_every_file_says_whose_it_is():
  assert set(prompts.NAMES) == set(COUNTS)
  readme = (prompts.FOLDER / 'README.md').read_text()
  for name in prompts.NAMES:
    made = json.loads((prompts.FOLDER / f'{name}.json').read_text())
    assert 'github.com/openai/CLIP, MIT licence (LICENSE-clip)' in made['source'] and made['order']
    assert f'`{name}.json`' in readme
  for name in ('LICENSE-clip', 'LICENSE-open_clip'):
    assert (prompts.FOLDER / name).read_text() == (
      prompts.FOLDER.parent / 'tokenizers' / name
    ).read_text()


def test_imagenet_is_that_of_open_clip():
  open_clip = pytest.importorskip('open_clip')
  made, seven = prompts.load('imagenet'), prompts.load('imagenet_7')
  assert made.classes == seven.classes == tuple(open_clip.IMAGENET_CLASSNAMES)
  assert made.templates == tuple(t('{}') for t in open_clip.OPENAI_IMAGENET_TEMPLATES)
  assert seven.templates == tuple(t('{}') for t in open_clip.SIMPLE_IMAGENET_TEMPLATES)


def test_food_and_scenes_are_in_the_order_of_tfds():
  tfds = pytest.importorskip('tensorflow_datasets')
  food = label_file(tfds, 'food-101_classes.txt')
  assert prompts.load('food101').classes == tuple(name.replace('_', ' ') for name in food)
  scenes = label_file(tfds, 'sun397_labels.txt')  # '/c/church/indoor'
  plain = tuple(name[3:].replace('_', ' ').replace('/', ' ') for name in scenes)
  assert prompts.load('sun397').classes == plain


def test_pets_are_in_the_order_of_tfds():
  pytest.importorskip('tensorflow_datasets')
  from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder as pets

  names = tuple(name.replace('_', ' ') for name in pets._LABEL_CLASSES)
  assert prompts.load('oxford_iiit_pet').classes == names


def test_flowers_are_in_the_order_of_tfds_and_torchvision():
  pytest.importorskip('tensorflow_datasets')
  datasets = pytest.importorskip('torchvision.datasets')
  from tensorflow_datasets.datasets.oxford_flowers102 import (
    oxford_flowers102_dataset_builder as flowers,
  )

  ours = prompts.load('oxford_flowers102').classes
  renamed = {'globe-flower': 'globe flower', 'ball moss': 'air plant'}
  renamed['pink-yellow dahlia?'] = 'pink and yellow dahlia'
  for names in (flowers._NAMES, datasets.Flowers102.classes):
    assert ours == tuple(renamed.get(name, name) for name in names)


def test_land_is_in_the_order_of_tfds():
  pytest.importorskip('tensorflow_datasets')
  from tensorflow_datasets.image_classification import eurosat

  told = {
    'AnnualCrop': 'annual crop land',
    'Forest': 'forest',
    'HerbaceousVegetation': 'brushland or shrubland',
    'Highway': 'highway or road',
    'Industrial': 'industrial buildings or commercial buildings',
    'Pasture': 'pasture land',
    'PermanentCrop': 'permanent crop land',
    'Residential': 'residential buildings or homes or apartments',
    'River': 'river',
    'SeaLake': 'lake or sea',
  }
  assert prompts.load('eurosat').classes == tuple(told[name] for name in eurosat._LABELS)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_the_labels_of_cifar_are_sorted(name):
  classes = prompts.load(name).classes
  assert list(classes) == sorted(classes)
  assert prompts.load('cifar10').templates == prompts.load('cifar100').templates


def test_a_file_of_ones_own(tmp_path):
  file = tmp_path / 'mine.json'
  file.write_text('{"templates": ["{}, drawn", "an über-{}"], "classes": ["cat", "dog"]}', 'utf-8')
  assert prompts.load(str(file)) == (('cat', 'dog'), ('{}, drawn', 'an über-{}'))
  file.write_text('{"templates": ["{}"], "classes": "cifar10", "source": "me"}')
  assert prompts.load(str(file)) == (prompts.load('cifar10').classes, ('{}',))


def test_an_unknown_name_lists_the_choices():
  with pytest.raises(ValueError, match="unknown prompts 'pets'; choose from 'cifar10', 'cifar100'"):
    prompts.load('pets')
  with pytest.raises(FileNotFoundError, match="the file of prompts '.*none.json' is no file"):
    prompts.load('none.json')


@pytest.mark.parametrize(
  'content, message',
  [
    ('{', 'is damaged or no JSON'),
    ('[]', "is no object with 'classes' and 'templates'"),
    ('{"classes": ["cat"]}', "is no object with 'classes' and 'templates'"),
    ('{"classes": [], "templates": ["{}"]}', r'classes is no list of texts, but \[\]'),
    ('{"classes": ["cat", " "], "templates": ["{}"]}', "classes has ' ' at 1, which is no text"),
    ('{"classes": [7], "templates": ["{}"]}', 'classes has 7 at 0, which is no text'),
    ('{"classes": ["cat"], "templates": "{}"}', "templates is no list of texts, but '{}'"),
    ('{"classes": ["cat"], "templates": ["a"]}', "template 'a' does not have {} once"),
    ('{"classes": "cats", "templates": ["{}"]}', "unknown prompts 'cats'; choose from 'cifar10'"),
    (b'\xff\xfe{'.decode('latin-1'), 'is damaged or no JSON'),
  ],
)
def test_a_file_that_is_none(tmp_path, content, message):
  file = tmp_path / 'mine.json'
  file.write_bytes(content.encode('latin-1'))
  with pytest.raises(ValueError, match=message) as error:
    prompts.load(str(file))
  assert str(file) in str(error.value)
