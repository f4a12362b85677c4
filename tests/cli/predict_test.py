"""`vit_jax predict`: tables and files of answers, from images wherever they are."""

import csv

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.model import Model
from vit_jax.pretrained import build_model

CLASSES = ('tabby cat', 'dog', 'fox')


def make(**fields):
  """A model of four outputs, with names for three."""
  encoder = dict(
    type='models.vit.ViT', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=24, grid=(2, 2)
  )
  spec = dict(type='objectives.supervised.Supervised', encoder=encoder, num_classes=4) | fields
  objective = build_model(spec)
  method = 'logits' if spec['num_classes'] else 'features'
  image = np.zeros((1, 16, 16, 3), np.uint8)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    jax.eval_shape(
      lambda: nn.unbox(objective.init(jax.random.key(0), {'image': image}, method=method))
    ),
  )
  return Model(objective, variables, Preprocessing((16, 16), 0.9), Report('a'), spec, CLASSES)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The model, and the file of it."""
  file = tmp_path_factory.mktemp('predict') / 'a.npz'
  made = make()
  made.save(file)
  return made, file


@pytest.fixture
def images(tmp_path):
  """A folder of 5 images among other files; by path, what is in them."""
  rng = np.random.default_rng(0)
  folder, found = tmp_path / 'images', {}
  for name in ('b.png', 'a.JPG', 'deep/er/c.webp', 'deep/d.gif', 'e.jpeg'):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = rng.integers(10, 40, 2)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    with Image.open(path) as image:
      found[str(path)] = image.convert('RGB')
  (folder / 'notes.txt').write_text('x')
  (folder / '.hidden').mkdir()
  (folder / '.hidden/f.png').write_bytes((folder / 'b.png').read_bytes())
  return folder, found


@pytest.fixture
def run(capfd):
  """A function that runs the command; its exit code, and the lines on stdout and stderr."""

  def run(*argv):
    capfd.readouterr()
    code = cli.main(['predict', *map(str, argv)])
    out = capfd.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()

  return run


def answers(probabilities, top):
  """Classes with probabilities, by hand."""
  names = (*CLASSES, '3')
  order = sorted(range(4), key=lambda i: -probabilities[i])[:top]
  return [(names[i], float(probabilities[i])) for i in order]


@pytest.mark.parametrize('batch_size', [1, 2, 32])
def test_a_table_of_a_folder(run, model, images, batch_size):
  made, file = model
  folder, found = images
  code, lines, errors = run(file, folder, '--top', 3, '--batch-size', batch_size)
  assert (code, errors) == (0, [])
  assert lines[0].split() == ['image', 'best', '2.', '3.']
  paths = sorted(found)
  assert [line.split()[0] for line in lines[2:]] == paths
  for path, line in zip(paths, lines[2:], strict=True):
    expected = answers(made.probabilities(found[path])[0], 3)
    assert line.split()[1:] == ' '.join(f'{name} {p:.3f}' for name, p in expected).split()


def test_an_image_that_is_named_twice_is_answered_once(run, model, images):
  _, file = model
  folder, found = images
  code, lines, errors = run(file, folder, sorted(found)[0])
  assert (code, errors, len(lines)) == (0, [], 2 + len(found))


def test_a_file_of_answers(run, model, images, tmp_path):
  made, file = model
  _, found = images
  out = tmp_path / 'answers.csv'
  paths = list(found)[::-1]
  code, lines, errors = run(file, *paths, '--csv', out)
  assert (code, lines, errors) == (0, [f'{out}: 5 images'], [])
  with out.open(newline='') as f:
    header, *rows = csv.reader(f)
  assert header[:3] == ['image', 'class_1', 'probability_1']
  assert len(header) == 9  # Four classes are all there are.
  assert [row[0] for row in rows] == paths
  for path, *cells in rows:
    expected = answers(made.probabilities(found[path])[0], 4)
    assert cells[::2] == [name for name, _ in expected]
    np.testing.assert_allclose([float(p) for p in cells[1::2]], [p for _, p in expected], rtol=1e-4)


def test_an_image_that_cannot_be_read_is_named_and_the_rest_goes_on(run, model, images):
  _, file = model
  folder, _ = images
  (folder / 'a.JPG').write_bytes((folder / 'a.JPG').read_bytes()[:200])
  (folder / 'b.png').write_bytes(b'')
  code, lines, errors = run(file, folder, '--batch-size', 1)
  assert code == 1
  assert len(lines) == 2 + 3
  assert len(errors) == 2
  assert errors[0].startswith(f'{folder / "a.JPG"}: ')
  assert errors[1].startswith(f'{folder / "b.png"}: ')
  code, lines, errors = run(file, folder / 'b.png')
  assert (code, lines, len(errors)) == (1, [], 1)


def test_classes_that_do_not_exclude_each_other(run, images, tmp_path):
  folder, found = images
  made = make(loss='sigmoid')
  made.save(tmp_path / 'a.npz')
  _, lines, _ = run(tmp_path / 'a.npz', folder / 'b.png', '--top', 1)
  logits = made(found[str(folder / 'b.png')])[0]
  assert lines[-1].endswith(f'{1 / (1 + np.exp(-logits.max())):.3f}')


def test_what_nobody_knows_is_warned_of(run, model, images):
  _, file = model
  folder, _ = images
  arrays = dict(np.load(file))
  del arrays['params/head/bias']
  np.savez(folder / 'b.npz', **arrays)
  code, lines, errors = run(folder / 'b.npz', folder / 'b.png')
  assert code == 0
  assert len(lines) == 3
  assert errors[-1] == '  missing: params/head/bias'


def test_mistakes_are_one_sentence(run, model, images, tmp_path):
  _, file = model
  folder, _ = images
  make(num_classes=None).save(tmp_path / 'headless.npz')
  (tmp_path / 'empty').mkdir()
  for argv, message in [
    (
      [tmp_path / 'headless.npz', folder],
      'headless.npz has no head, so it gives features and knows',
    ),
    ([file, tmp_path / 'no.png'], f'no file {tmp_path / "no.png"}'),
    (
      [file, folder, tmp_path / 'empty'],
      f'no image in {tmp_path / "empty"}: none of its files ends',
    ),
    ([file, folder, '--top', 0], '--top must be at least 1, got 0'),
    ([file, folder, '--batch-size', 0], '--batch-size must be at least 1, got 0'),
    ([file, folder, '--csv', tmp_path / 'no' / 'a.csv'], 'No such file or directory'),
    ([file, folder, '--step', 'best'], "step 'best': of the folder of a run alone"),
    ([tmp_path / 'no.npz', folder], f'no file {tmp_path / "no.npz"}'),
    ([file, folder, '--fact', 'image_size=8'], "unknown fact 'image_size'; choose from"),
  ]:
    code, lines, errors = run(*argv)
    assert (code, lines, len(errors)) == (1, [], 1), argv
    assert message in errors[0]
