"""A model takes any images, in any number, and gives what its parts give by hand."""

import io
import math
import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.model import Model, method_of
from vit_jax.pretrained import build_model

VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=24, grid=(2, 2)
)  # fmt: skip


def make(encoder=VIT, *, preprocessing=None, **fields):
  """A model with random weights, and statistics where it has them."""
  preprocessing = preprocessing or Preprocessing((16, 16))
  spec = dict(
    type='objectives.supervised.Supervised', encoder=encoder, num_classes=5, mean=0.4, std=0.3
  )
  spec.update(fields)
  objective = build_model(spec)
  image = np.zeros((1, *preprocessing.size, preprocessing.channels), np.uint8)
  variables = jax.tree.map(
    lambda x: np.random.default_rng(1).normal(0, 0.3, x.shape).astype(np.float32),
    jax.eval_shape(
      lambda: nn.unbox(objective.init(jax.random.key(0), {'image': image}, method=method_of(spec)))
    ),
  )
  if 'batch_stats' in variables:
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
  return Model(objective, variables, preprocessing, Report('a.npz'), spec, 'abcde')


@pytest.fixture(scope='module')
def model():
  return make()


def pixels(*shape):
  return np.random.default_rng(math.prod(shape)).integers(0, 256, shape, np.uint8)


def png(image, **options):
  file = io.BytesIO()
  image.save(file, 'PNG', **options)
  return file.getvalue()


def close(a, b, tolerance=1e-5):
  assert a.shape == b.shape
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -- What an image may be.


def test_the_same_image_in_every_form_gives_the_same_numbers(model):
  array = pixels(23, 31, 3)
  image = Image.fromarray(array)
  expected = model(array)
  assert expected.shape == (1, 5)
  assert expected.dtype == np.float32
  for form in (array[None], [array], image, [image], png(image), (png(image),), list(array[None])):
    np.testing.assert_array_equal(model(form), expected)


def test_images_of_different_sizes_are_each_what_they_are_alone(model):
  images = [pixels(23, 31, 3), pixels(16, 16, 3), pixels(5, 7, 3), pixels(40, 9)]
  forms = [images[0], Image.fromarray(images[1]), png(Image.fromarray(images[2])), images[3]]
  close(model(forms), np.concatenate([model(image) for image in images]))


def noise(mode):
  if mode == 'P':
    return Image.fromarray(pixels(20, 30, 3)).quantize(16)
  if mode == 'I;16':
    return Image.fromarray(pixels(20, 30).astype(np.uint16) << 8 | pixels(30, 20).reshape(20, 30))
  if mode == '1':
    return Image.fromarray(pixels(20, 30)).convert('1')
  channels = len(Image.new(mode, (1, 1)).getbands())
  return Image.frombytes(mode, (30, 20), pixels(20, 30, channels).tobytes())


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr', 'I;16', '1'])
def test_every_mode_of_pillow(model, mode):
  image = noise(mode)
  if mode in ('LA', 'RGBA'):  # Transparency shows white.
    white = Image.new('RGBA', image.size, 'white')
    expected = Image.alpha_composite(white, image.convert('RGBA')).convert('RGB')
  elif mode == 'I;16':
    expected = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert('RGB')
  else:
    expected = image.convert('RGB')
  np.testing.assert_array_equal(model(image), model(np.asarray(expected)))


def test_gray_and_transparent_models_take_all_images_too():
  gray = make(preprocessing=Preprocessing((16, 16), channels=1), mean=0.5, std=0.5)
  colour = Image.fromarray(pixels(16, 16, 3))
  for form in (colour, np.asarray(colour), png(colour), png(colour.convert('L'))):
    np.testing.assert_array_equal(
      gray.preprocess(form)[0, :, :, 0], np.asarray(colour.convert('L'))
    )
  clear = make(preprocessing=Preprocessing((16, 16), channels=4), eval_augment='background(p=0)')
  drawn = pixels(16, 16, 4)
  drawn[:8, :, 3] = 0
  np.testing.assert_array_equal(clear.preprocess(drawn)[0], drawn)
  np.testing.assert_array_equal(clear.preprocess(png(Image.fromarray(drawn)))[0], drawn)
  opaque = clear.preprocess(colour)[0]
  np.testing.assert_array_equal(opaque[:, :, :3], np.asarray(colour))
  assert (opaque[:, :, 3] == 255).all()
  # What is opaque gives what the colours alone do.
  close(clear(colour), make()(colour))
  # What is not shows white, but for rounding.
  close(clear(drawn), make()(Image.fromarray(drawn)), 5e-3)
  assert np.abs(clear(drawn) - make()(drawn[:, :, :3])).max() > 0.03


@pytest.mark.parametrize(
  'image', [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), 'cat.jpg', b'no image']
)
def test_what_is_no_image_is_a_sentence(model, image):
  with pytest.raises(ValueError, match=r'an image is|cannot identify'):
    model([image])


def test_no_images(model):
  for nothing in ([], np.zeros((0, 16, 16, 3), np.uint8)):
    with pytest.raises(ValueError, match='there are no images'):
      model(nothing)


# -- What it goes through.


def test_squashed_images_are_pillows():
  image = Image.fromarray(pixels(50, 37, 3))
  model = make(
    preprocessing=Preprocessing((16, 24), None, 'bicubic'), encoder=VIT | {'grid': (2, 3)}
  )
  expected = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(model.preprocess(image)[0], expected)
  assert model(image).shape == (1, 5)


@pytest.mark.parametrize(('height', 'width'), [(50, 37), (37, 50), (9, 20)])
def test_cropped_images_are_pillows(height, width):
  image = Image.fromarray(pixels(height, width, 3))
  model = make(preprocessing=Preprocessing((16, 16), 0.9))
  scale = 17 / min(height, width)  # 16 / 0.9, rounded down
  resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
  left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
  expected = np.asarray(resized.crop((left, top, left + 16, top + 16)))
  np.testing.assert_array_equal(model.preprocess(image)[0], expected)


def test_transforms_of_a_run_and_then_its_size():
  host = 'decode(channels=3, orient=True) | resize_small(20)'
  model = make(preprocessing=Preprocessing((16, 16), transforms=host))
  image = Image.fromarray(pixels(40, 60, 3))
  exif = Image.Exif()
  exif[0x0112] = 6  # A camera on its side.
  turned = image.rotate(-90, expand=True)
  expected = turned.resize((20, 30), Image.Resampling.BILINEAR).resize(
    (16, 16), Image.Resampling.BILINEAR
  )
  np.testing.assert_array_equal(model.preprocess(png(image, exif=exif))[0], np.asarray(expected))
  model = make()
  squashed = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(model.preprocess(png(image, exif=exif))[0], squashed)


def test_colours_that_nobody_knows_are_asked_for():
  for name in ('mean', 'std'):
    model = make(**{name: None})
    with pytest.raises(ValueError, match=rf'nobody says by which {name} .* load\(\.\.\., {name}='):
      model(pixels(16, 16, 3))


# -- What it gives.


@pytest.mark.parametrize(
  'encoder',
  [
    VIT,
    VIT | dict(scan=True, pooling='map', registers=2),
    dict(type='models.resnet.ResNet', blocks=(1, 1), width=8),
  ],
)
def test_logits_features_and_tokens_are_those_of_the_modules(encoder):
  model = make(encoder)
  images = pixels(3, 16, 16, 3)
  variables = {name: collection['encoder'] for name, collection in model.variables.items()}
  normalised = (images.astype(np.float32) / 255 - 0.4) / 0.3
  features = model.objective.encoder.apply(variables, normalised, train=False)
  close(model.features(images), np.asarray(features.pooled))
  close(model.tokens(images), np.asarray(features.tokens))
  head = model.params['head']
  close(model(images), features.pooled @ head['kernel'] + head['bias'])


def test_probabilities_are_of_one_class_or_of_each():
  images = pixels(3, 16, 16, 3)
  logits = np.exp(make()(images).astype(np.float64))
  close(make().probabilities(images), logits / logits.sum(1, keepdims=True))
  close(make(loss='sigmoid').probabilities(images), logits / (1 + logits))


def test_without_a_head_there_are_features_alone():
  model = make(num_classes=None)
  images = pixels(2, 16, 16, 3)
  assert not model.has_head
  np.testing.assert_array_equal(model(images), model.features(images))
  with pytest.raises(ValueError, match='a.npz has no head, so it gives features and no classes'):
    model.probabilities(images)


def test_results_are_float32_whatever_is_computed_in():
  images = pixels(2, 16, 16, 3)
  half = make(VIT | dict(dtype='bfloat16'))
  assert half.features(images).dtype == half.tokens(images).dtype == np.float32
  assert np.abs(half.features(images) - make().features(images)).max() < 0.1


# -- How many at once.


def test_the_number_at_once_changes_nothing(model):
  images = pixels(7, 16, 16, 3)
  one_by_one = np.concatenate([model(image) for image in images])
  for batch_size in (1, 2, 3, 5, 7, 64):
    close(model(images, batch_size=batch_size), one_by_one)
  with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
    model(images, batch_size=0)


def test_few_shapes_are_compiled():
  model = make()
  for count in range(1, 12):
    assert model(pixels(count, 16, 16, 3), batch_size=4).shape == (count, 5)
  # 4, and rests of 1 and 2; one of 3 is padded to 4.
  assert model._function('logits')._cache_size() == 3
  model(pixels(4, 30, 20, 3), batch_size=4)
  assert model._function('logits')._cache_size() == 3


def test_what_was_preprocessed_is_not_resized_again():
  model = make(preprocessing=Preprocessing((16, 16), 0.5))
  images = [pixels(30, 40, 3), pixels(50, 20, 3)]
  batch = model.preprocess(images)
  np.testing.assert_array_equal(model(batch, preprocessed=True), model(images))
  assert np.abs(model(batch) - model(images)).max() > 1e-3


# -- A program that JAX runs alone.

PROGRAM = """
import sys
sys.modules['vit_jax'] = sys.modules['flax'] = None  # Importing them fails.
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
images = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([program.call(images[:2]), program.call(images[2:])]))
"""


@pytest.mark.parametrize(
  ('encoder', 'fields'),
  [
    (VIT | dict(scan=True), dict(num_classes=None)),
    (
      dict(type='models.lora.LoRA', encoder=VIT, kernels=('.*/query/kernel',), rank=2),
      dict(eval_augment='background(p=0.5)', preprocessing=Preprocessing((16, 16), channels=4)),
    ),
    (dict(type='models.resnet.ResNet', blocks=(1, 1), width=8), {}),
  ],
)
def test_an_exported_program_needs_jax_alone(tmp_path, encoder, fields):
  model = make(encoder, **fields)
  images = pixels(5, 16, 16, model.preprocessing.channels)
  np.save(tmp_path / 'images.npy', images)
  model.export(tmp_path / 'a.jaxexport')
  files = [str(tmp_path / name) for name in ('a.jaxexport', 'images.npy', 'out.npy')]
  environment = {**os.environ, 'XLA_FLAGS': ''}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *files],
    env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  close(np.load(tmp_path / 'out.npy'), model(images))


def test_an_exported_program_says_what_it_takes(tmp_path, model):
  model.export(tmp_path / 'any')
  program = export.deserialize(bytearray((tmp_path / 'any').read_bytes()))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  assert str(program.in_avals[0]) == 'uint8[batch,16,16,3]'
  model.export(tmp_path / 'three', batch_size=3, platforms=('cpu',))
  program = export.deserialize(bytearray((tmp_path / 'three').read_bytes()))
  assert program.platforms == ('cpu',)
  images = pixels(3, 16, 16, 3)
  close(np.asarray(program.call(images)), model(images))
  with pytest.raises(ValueError, match='shape'):
    program.call(images[:2])
  assert sorted(p.name for p in tmp_path.iterdir()) == ['any', 'three']


def test_an_export_that_fails_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match='nobody says by which mean'):
    make(mean=None).export(tmp_path / 'a.jaxexport')
  assert list(tmp_path.iterdir()) == []
