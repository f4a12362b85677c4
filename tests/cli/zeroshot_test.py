"""`vit_jax zeroshot`: which of one's own words fit images best, however they are given."""

import csv
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.data import prompts
from vit_jax.data.decode import decode_image
from vit_jax.data.tokenizers.clip import ClipBpe
from vit_jax.image_text import ImageTextModel
from vit_jax.model import Model
from vit_jax.plots import answers
from vit_jax.pretrained import build_model

TOKENIZER = dict(vocab_size=1024, context=12)
ENCODER = dict(width=16, depth=1, num_heads=2, mlp_dim=24)
IMAGE = dict(type='models.vit.ViT', patch_size=8, grid=(2, 2), **ENCODER)
TEXT = dict(type='models.text.TextTransformer', **TOKENIZER, **ENCODER, projection=8, end_id=1023)
LABELS = ('a sad animal', 'a red fruit', 'an arrow')


def make(**fields):
  """A model of images of 16x16 and texts with random numbers."""
  spec = dict(type='objectives.clip.CLIP', image=IMAGE, text=TEXT, projection=8) | fields
  objective = build_model(spec)
  batch = {'image': np.zeros((1, 16, 16, 3), np.uint8), 'text': np.zeros((1, 12), np.int32)}
  shapes = jax.eval_shape(lambda: nn.unbox(objective.init(jax.random.key(0), batch, train=False)))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
  variables['params']['log_scale'] = np.float32(np.log(5))
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', **TOKENIZER)
  preprocessing = Preprocessing((16, 16), 0.9)
  return ImageTextModel(objective, variables, preprocessing, Report('a'), spec, (), tokenizer)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The model, and the file of it."""
  file = tmp_path_factory.mktemp('zeroshot') / 'a.npz'
  made = make()
  made.save(file)
  return made, file


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The current folder, with three images."""
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  for name in ('my.png', 'more/a.png', 'more/b.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / name)
  return tmp_path


@pytest.fixture
def run(capfd):
  """A function that runs the command; its exit code, and the lines on stdout and stderr."""

  def run(*argv):
    capfd.readouterr()
    code = cli.main(['zeroshot', *map(str, argv)])
    out = capfd.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()

  return run


@functools.cache
def jitted(objective, method):
  return jax.jit(functools.partial(objective.apply, method=method))


def expected(made, file, labels, templates=('{}',)):
  """The probabilities of labels by hand, one text a call."""
  tokenizer, unit = ClipBpe(**TOKENIZER), lambda x: x / np.linalg.norm(x)
  objective, variables = made.objective, made.variables

  def encode(text):
    found = jitted(objective, 'text_embeddings')(variables, {'text': tokenizer(text)[None]})
    return np.asarray(found[0])

  image = {'image': made.preprocess(file.read_bytes())}
  image = np.asarray(jitted(objective, 'embeddings')(variables, image)[0])
  texts = [unit(sum(encode(t.replace('{}', label)) for t in templates)) for label in labels]
  logits = 5 * np.array([image @ text for text in texts])
  if objective.loss == 'sigmoid':
    return 1 / (1 + np.exp(-(logits + variables['params']['logit_bias'])))
  return np.exp(logits) / np.exp(logits).sum()


def cells(labels, probabilities, top=5):
  """What stands in a row of the table, but for spaces."""
  order = sorted(range(len(labels)), key=lambda i: -probabilities[i])[:top]
  return ' '.join(f'{labels[i]} {probabilities[i]:.3f}' for i in order).split()


def test_the_images_may_come_after_the_labels(run, model, folder):
  made, file = model
  code, lines, errors = run(file, '--labels', *LABELS[:2], 'my.png')
  assert (code, errors) == (0, [])
  assert lines[0].split() == ['image', 'best', '2.']
  (line,) = lines[2:]
  probabilities = expected(made, folder / 'my.png', LABELS[:2])
  assert line.split() == ['my.png', *cells(LABELS[:2], probabilities)]
  assert np.ptp(probabilities) > 0.01  # else the order would say nothing


@pytest.mark.parametrize(
  'argv',
  [
    ('MODEL', 'my.png', 'more', '--labels', *LABELS),
    ('MODEL', '--labels', *LABELS, 'my.png', 'more'),
    ('MODEL', '--labels', *LABELS, '--', 'my.png', 'more'),
    ('MODEL', '--labels', *LABELS, '--top', '5', 'my.png', 'more'),
    ('MODEL', '--labels', *LABELS, '--templates', '{}', 'my.png', 'more'),
    ('MODEL', '--templates', '{}', '--labels', *LABELS, 'my.png', 'more'),
    ('--labels', *LABELS, '--', 'MODEL', 'my.png', 'more'),
    ('MODEL', '--labels', LABELS[0], '@rest.txt', 'my.png', 'more'),
  ],
)
def test_wherever_the_images_stand(run, model, folder, argv):
  made, file = model
  (folder / 'rest.txt').write_text(f' {LABELS[1]}\r\n\n{LABELS[2]} \n')
  code, lines, errors = run(*(file if arg == 'MODEL' else arg for arg in argv))
  assert (code, errors) == (0, [])
  paths = ['my.png', 'more/a.png', 'more/b.png']
  found = [[path, *cells(LABELS, expected(made, folder / path, LABELS))] for path in paths]
  assert [line.split() for line in lines[2:]] == found


def test_a_label_may_be_called_as_a_folder_where_the_images_stand_elsewhere(run, model, folder):
  made, file = model
  labels = ['sad', 'more', 'cat']
  (folder / 'cat').mkdir()
  rows = expected(made, folder / 'my.png', labels)
  for argv in ([file, 'my.png', '--labels', *labels], [file, '--labels', *labels, '--', 'my.png']):
    code, lines, errors = run(*argv)
    assert (code, errors) == (0, [])
    assert [line.split() for line in lines[2:]] == [['my.png', *cells(labels, rows)]]


def test_of_several_templates_the_mean_counts(run, model, folder):
  made, file = model
  templates = ('a photo of {}.', '{}!', 'no {} at all')
  _, lines, _ = run(file, 'my.png', '--labels', *LABELS, '--templates', *templates)
  probabilities = expected(made, folder / 'my.png', LABELS, templates)
  assert lines[-1].split() == ['my.png', *cells(LABELS, probabilities)]
  assert cells(LABELS, probabilities) != cells(LABELS, expected(made, folder / 'my.png', LABELS))


def test_published_prompts_and_many_labels(run, model, folder):
  made, file = model
  pets = prompts.load('oxford_iiit_pet')
  _, lines, _ = run(file, 'my.png', '--prompts', 'oxford_iiit_pet', '--top', 2)
  assert len(pets.classes) == 37  # More than are encoded at once.
  probabilities = expected(made, folder / 'my.png', *pets)
  assert lines[-1].split() == ['my.png', *cells(pets.classes, probabilities, top=2)]
  _, lines, _ = run(file, 'my.png', '--prompts', 'oxford_iiit_pet', '--labels', *LABELS)
  probabilities = expected(made, folder / 'my.png', LABELS, pets.templates)
  assert lines[-1].split() == ['my.png', *cells(LABELS, probabilities)]


def test_a_sigmoid_loss_judges_each_label_alone(run, folder):
  made = make(loss='sigmoid')
  made.save(folder / 'a.npz')
  _, lines, _ = run('a.npz', 'my.png', '--labels', *LABELS)
  probabilities = expected(made, folder / 'my.png', LABELS)
  assert lines[-1].split() == ['my.png', *cells(LABELS, probabilities)]
  _, lines, _ = run('a.npz', 'my.png', '--labels', LABELS[0])
  assert lines[-1].split() == ['my.png', *cells(LABELS[:1], probabilities)]
  assert abs(probabilities.sum() - 1) > 0.01


def test_a_file_of_answers_and_a_picture_of_them(run, model, folder):
  made, file = model
  argv = ['more', '--labels', *LABELS, '--csv', 'a.csv', '--cards', 'new/cards.png', '--top', 2]
  code, lines, errors = run(file, *argv)
  assert (code, lines, errors) == (0, ['a.csv: 2 images', 'new/cards.png'], [])
  with (folder / 'a.csv').open(newline='') as f:
    header, *rows = csv.reader(f)
  assert header == ['image', 'class_1', 'probability_1', 'class_2', 'probability_2']
  files = [folder / 'more/a.png', folder / 'more/b.png']
  found = np.stack([expected(made, file, LABELS) for file in files])
  for row, probabilities in zip(rows, found, strict=True):
    best = np.argsort(-probabilities)[:2]
    assert row[1::2] == [LABELS[i] for i in best]
    np.testing.assert_allclose([float(p) for p in row[2::2]], probabilities[best], rtol=1e-3)
  images = [decode_image(file.read_bytes()) for file in files]
  drawn = np.asarray(Image.open(folder / 'new/cards.png')).astype(int)
  wanted = answers.answers(images, LABELS, found, top=2)
  assert drawn.shape == wanted.shape
  assert (np.abs(drawn - wanted).max(-1) > 2).mean() < 1e-4  # but for a bar's last pixel


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(run, model, folder):
  _, file = model
  (folder / 'more/a.png').write_bytes(b'no image')
  argv = ['--labels', *LABELS, '--cards', 'cards.png']
  code, lines, errors = run(file, 'more', *argv)
  assert (code, len(lines), len(errors)) == (1, 4, 1)
  assert errors[0].startswith('more/a.png: ')
  code, lines, errors = run(file, 'more/a.png', *argv)
  assert (code, lines, len(errors)) == (1, [], 1)


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--labels', 'a', 'b'], "there is no image; 'b' is no file or folder"),
    (['--labels', 'a', 'no.png'], "there is no image; 'no.png' is no file or folder"),
    ([], 'there is no image'),
    (['no.png', '--labels', 'a'], 'no file no.png'),
    (['my.png'], "there are no labels; give --labels 'a photo of a cat' ..., or --prompts NAME"),
    (['--labels', 'more', 'my.png'], "each of 'more', 'my.png' is a file or folder; images that"),
    (['more', '--labels', 'a', 'my.png'], "'my.png' is an image among the labels; all images"),
    (['my.png', '--labels', ' '], "--labels has ' ' at 0, which is no text"),
    (['--labels', 'a' * 300], "a' is no file or folder"),
    (['my.png', '--labels', '@my.png'], "my.png is no text in UTF-8: 'utf-8' codec can't decode"),
    (['my.png', '--labels', '@no.txt'], "No such file or directory: 'no.txt'"),
    (['my.png', '--labels', 'a', '--templates', 'b'], "template 'b' does not have {} once"),
    (['my.png', '--prompts', 'mnist'], "unknown prompts 'mnist'; choose from 'cifar10'"),
    (['my.png', '--labels', 'a', '--top', '0'], '--top must be at least 1, got 0'),
    (['my.png', '--labels', 'a', '--batch-size', '0'], '--batch-size must be at least 1, got 0'),
  ],
)
def test_mistakes_are_one_sentence(run, model, folder, argv, message):
  code, lines, errors = run(model[1], *argv)
  assert (code, lines, len(errors)) == (1, [], 1)
  assert message in errors[0]


def test_a_model_without_a_text_tower(run, folder):
  spec = dict(type='objectives.supervised.Supervised', encoder=IMAGE, num_classes=2)
  objective = build_model(spec)
  image = np.zeros((1, 16, 16, 3), np.uint8)
  shapes = jax.eval_shape(
    lambda: nn.unbox(objective.init(jax.random.key(0), {'image': image}, method='logits'))
  )
  variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  made = Model(objective, variables, Preprocessing((16, 16), 0.9), Report('a'), spec)
  made.save(folder / 'a.npz')
  code, lines, errors = run('a.npz', 'my.png', '--labels', 'a')
  assert (code, lines) == (1, [])
  assert errors == [
    'vit_jax: error: a.npz has no text tower, so it cannot compare images with texts'
  ]
