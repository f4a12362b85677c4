"""A model of images and texts gives what its objective gives, and survives being written."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.image_text import ImageTextModel
from vit_jax.pretrained import build_model

VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=24, grid=(2, 2)
)  # fmt: skip
TEXT = dict(
  type='models.text.TextTransformer', vocab_size=600, context=8, width=16, depth=1, num_heads=2,
  mlp_dim=24, causal=True, end_id=599, projection=12,
)  # fmt: skip
TOKENIZER = {'type': 'data.tokenizers.clip.ClipBpe', 'vocab_size': 600, 'context': 8}


def make(tokenizer=TOKENIZER, **fields):
  spec = dict(type='objectives.clip.CLIP', image=VIT, text=TEXT, projection=12, mean=0.4, std=0.3)
  spec.update(fields)
  objective = build_model(spec)
  batch = {'image': np.zeros((1, 16, 16, 3), np.uint8), 'text': np.zeros((1, 8), np.int32)}
  variables = jax.tree.map(
    lambda x: np.random.default_rng(1).normal(0, 0.3, x.shape).astype(np.float32),
    jax.eval_shape(lambda: nn.unbox(objective.init(jax.random.key(0), batch, train=False))),
  )
  made = objective, variables, Preprocessing((16, 16)), Report('a.npz'), spec
  return ImageTextModel(*made, tokenizer_spec=tokenizer)


@pytest.fixture(scope='module')
def model():
  return make()


def images(count):
  return np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_images_and_texts_lie_where_the_objective_puts_them(model):
  texts = ['a red cat', 'rain', 'a very long text that does not fit in eight tokens at all']
  tokens = np.stack([model.tokenizer(text) for text in texts])
  batch = {'image': images(5), 'text': tokens}
  expected = model.objective.apply(model.variables, batch, method='embeddings')
  np.testing.assert_allclose(model.embeddings(images(5), batch_size=2), expected, atol=1e-6)
  np.testing.assert_allclose(model(images(5)), expected, atol=1e-6)
  expected = model.objective.apply(model.variables, batch, method='text_embeddings')
  np.testing.assert_allclose(model.text_embeddings(texts, batch_size=2), expected, atol=1e-6)


def test_a_label_is_the_mean_of_its_templates(model):
  labels, templates = ['cat', 'dog'], ['a {}', 'the {}!', '{}']
  made = model.classifier(labels, templates)
  for row, label in zip(made, labels, strict=True):
    mean = model.text_embeddings([t.replace('{}', label) for t in templates]).mean(0)
    np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_similarity_has_the_scale_and_the_bias(loss):
  model = make(loss=loss)
  image, text = model.embeddings(images(3)), model.text_embeddings(['cat', 'dog'])
  expected = np.exp(model.params['log_scale']) * image @ text.T
  if loss == 'sigmoid':
    expected = expected + model.params['logit_bias']
  np.testing.assert_allclose(model.similarity(image, text), expected, rtol=1e-5)


BAG = dict(type='models.text.CBOW', vocab_size=600, width=16, projection=12, end_id=599)


@pytest.mark.parametrize(('ending', 'text'), [('npz', TEXT), ('safetensors', TEXT), ('npz', BAG)])
def test_a_file_brings_both_towers_and_the_tokenizer_back(tmp_path, ending, text):
  model, path = make(text=text), tmp_path / f'clip.{ending}'
  assert not model.save(path).unsaid
  read = vit_jax.load(path)
  assert read.has_text and not read.has_head
  assert not read.report.missing and not read.report.unused
  np.testing.assert_array_equal(read.embeddings(images(2)), model.embeddings(images(2)))
  np.testing.assert_array_equal(read.text_embeddings(['cat']), model.text_embeddings(['cat']))


def test_one_tower_alone(model, tmp_path):
  model.save(tmp_path / 'clip.npz')
  alone = vit_jax.load(tmp_path / 'clip.npz', tower='image')
  assert not alone.has_text
  assert 'params/text/' in ' '.join(alone.report.unused)
  batch = {'image': images(2)}
  expected = model.objective.apply(model.variables, batch, method='features')
  np.testing.assert_allclose(alone.features(images(2)), expected, atol=1e-6)
  np.testing.assert_allclose(alone.tokens(images(2)), model.tokens(images(2)), atol=1e-6)
  with pytest.raises(ValueError, match="unknown tower 'text'; choose from 'both', 'image'"):
    vit_jax.load(tmp_path / 'clip.npz', tower='text')


def test_positions_of_the_image_tower_are_resized(model, tmp_path):
  model.save(tmp_path / 'clip.npz')
  larger = vit_jax.load(tmp_path / 'clip.npz', image_size=32)
  assert list(larger.report.resized) == ['params/image/pos_embedding']
  assert larger.embeddings(images(2)).shape == (2, 12)


def test_what_cannot_be_is_said(model, tmp_path):
  model.save(tmp_path / 'clip.npz')
  with pytest.raises(ValueError, match="no head; tower='image' loads the other alone"):
    vit_jax.load(tmp_path / 'clip.npz', num_classes=3)
  with pytest.raises(ValueError, match='a list of one or more strings'):
    model.text_embeddings('cat')
  with pytest.raises(ValueError, match='a list of one or more strings'):
    model.text_embeddings([])
  with pytest.raises(ValueError, match='nobody says the tokenizer of a.npz'):
    make(tokenizer=None).text_embeddings(['cat'])
  with pytest.raises(ValueError, match='embeddings and no classes'):
    model.probabilities(images(1))
  with pytest.raises(ValueError, match="'os.system' is no tokenizer of vit_jax"):
    make(tokenizer={'type': 'os.system'}).save(tmp_path / 'evil.npz')
