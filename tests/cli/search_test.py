"""`vit_jax search`: the images of a source that a text fits best, as a table and a picture."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.cli import search
from vit_jax.data.emoji import Emoji
from vit_jax.image_text import ImageTextModel
from vit_jax.model import Model
from vit_jax.plots import images
from vit_jax.pretrained import build_model

TOKENIZER = dict(vocab_size=1024, context=12)
ENCODER = dict(width=16, depth=1, num_heads=2, mlp_dim=24)
IMAGE = dict(type='models.vit.ViT', patch_size=8, grid=(2, 2), **ENCODER)
TEXT = dict(type='models.text.TextTransformer', **TOKENIZER, **ENCODER, projection=8, end_id=1023)
QUERY = 'Sad animal!'
FACES = "emoji:all,styles=('twitter', 'google'),within=('cat-face', 'monkey-face')"


def make(spec, method='__call__', **options):
  """What a model of images of 16x16 is made of: random numbers."""
  objective = build_model(spec)
  batch = {'image': np.zeros((1, 16, 16, 3), np.uint8), 'text': np.zeros((1, 12), np.int32)}
  shapes = jax.eval_shape(
    lambda: nn.unbox(objective.init(jax.random.key(0), batch, method=method, **options))
  )
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
  return objective, variables, Preprocessing((16, 16), None), Report('a'), spec


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model of images and texts, and the file of it."""
  file = tmp_path_factory.mktemp('search') / 'a.npz'
  spec = dict(type='objectives.clip.CLIP', image=IMAGE, text=TEXT, projection=8)
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', **TOKENIZER)
  made = ImageTextModel(*make(spec, train=False), (), tokenizer)
  made.save(file)
  return made, file


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
  """A function that runs the command; its exit code, and the lines on stdout and stderr."""
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    capfd.readouterr()
    code = cli.main(['search', *map(str, argv)])
    out = capfd.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()

  return run


def rows(lines):
  """Names and cosines of a table."""
  cells = [line.rsplit(maxsplit=1) for line in lines[2:-1]]
  return [name for name, _ in cells], [float(cosine) for _, cosine in cells]


def ranked(made, drawings):
  """The numbers of drawings from the best to the worst, and their cosines."""
  text = made.text_embeddings([QUERY])[0].astype(np.float64)
  found = np.array([made.embeddings(drawing)[0] @ text for drawing in drawings])
  order = sorted(range(len(drawings)), key=lambda i: -found[i])
  return order, found[order]


@pytest.mark.parametrize('batch_size', [7, 64])
def test_the_best_drawings_as_a_table_and_a_picture(run, model, tmp_path, batch_size):
  made, file = model
  code, lines, errors = run(file, QUERY, '--source', FACES, '--batch-size', batch_size)
  assert (code, errors, lines[0].split()) == (0, [], ['image', 'cosine'])
  source = Emoji('all', ('twitter', 'google'), within=('cat-face', 'monkey-face'))
  drawings = [source[i]['image'] for i in range(len(source))]
  order, cosines = ranked(made, drawings)
  names, found = rows(lines)
  about = source.table()
  assert names == [f'{about[i]["name"]} ({about[i]["style"]})' for i in order[:5]]
  np.testing.assert_allclose(found, cosines[:5], atol=6e-4)
  assert lines[-1] == 'search-sad-animal.png'
  picture = np.asarray(Image.open(tmp_path / 'search-sad-animal.png'))
  y = images.GAP + images.TITLE
  for k, i in enumerate(order[:5]):
    x = images.GAP + k * (128 + images.GAP)
    shown = picture[y : y + 128, x : x + 128]
    np.testing.assert_array_equal(shown, images.enlarge(drawings[i], 128))


def test_a_folder_of_ones_own_images(run, model, tmp_path):
  made, file = model
  rng = np.random.default_rng(0)
  drawn = {}
  for name in ('b.png', 'deep/er/a.png', 'deep/c.png'):
    path = tmp_path / 'mine' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn[f'mine/{name}'] = rng.integers(0, 256, (40, 300, 3), np.uint8)
    Image.fromarray(drawn[f'mine/{name}']).save(path)
  (tmp_path / 'mine/broken.png').write_bytes(b'no image')
  code, lines, errors = run(file, QUERY, '--source', 'mine', '--out', 'new/a.png', '--top', 9)
  assert (code, len(errors), lines[-1]) == (1, 1, 'new/a.png')
  assert errors[0].startswith('mine/broken.png: ')
  order, cosines = ranked(made, list(drawn.values()))
  names, found = rows(lines)
  assert names == [list(drawn)[i] for i in order]
  np.testing.assert_allclose(found, cosines, atol=6e-4)
  picture = np.asarray(Image.open(tmp_path / 'new/a.png'))
  assert picture.shape[1] == images.GAP + 3 * (128 + images.GAP)
  code, lines, errors = run(file, QUERY, '--source', 'folder:mine/deep,split=', '--top', 1)
  assert (code, errors) == (0, [])
  assert rows(lines)[0] == ['mine/deep/er/a.png']  # Folders are classes, `c.png` has none.


def test_by_default_every_emoji_is_looked_at_once():
  source = search.open_source(search.SOURCE)
  assert len(source) == len(source.rows) == 1629
  assert search.name_of(source, 0) == 'grinning face (google)'


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--source', 'emojis'], "unknown source 'emojis' in 'emojis'; choose from 'array_record'"),
    (['--source', 'empty'], 'no image in empty: none of its files ends in'),
    (['--source', 'broken'], 'none of the 1 images could be read'),
    (
      ['--source', 'csv:a.csv,text_key=text,image_key=None,label_key=None'],
      "examples of the source have ['id', 'text']",
    ),
    (['--top', '0'], '--top must be at least 1, got 0'),
    (['--batch-size', '0'], '--batch-size must be at least 1, got 0'),
  ],
)
def test_mistakes_are_one_sentence(run, model, tmp_path, argv, message):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken/a.png').write_bytes(b'no image')
  (tmp_path / 'a.csv').write_text('text\na cat\n')
  code, lines, errors = run(model[1], QUERY, *argv)
  assert (code, lines) == (1, [])
  assert message in errors[-1]
  assert len(errors) == 1 + ('broken' in argv)


def test_a_model_without_a_text_tower(run, tmp_path):
  spec = dict(type='objectives.supervised.Supervised', encoder=IMAGE, num_classes=2)
  Model(*make(spec, 'logits')).save(tmp_path / 'a.npz')
  code, lines, errors = run('a.npz', QUERY)
  assert (code, lines) == (1, [])
  assert errors == [
    'vit_jax: error: a.npz has no text tower, so it cannot compare images with texts'
  ]
