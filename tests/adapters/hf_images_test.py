"""What an image goes through, as the image processors of transformers do it."""

import json

import numpy as np
import pytest

from vit_jax.adapters import hf_images
from vit_jax.adapters.layout import Preprocessing
from vit_jax.model import Model

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

HALF = [0.5, 0.5, 0.5]


def read(keys, *, patch=(8, 8), channels=3, processor='ViTImageProcessor'):
  files = {hf_images.FILE: keys}
  return hf_images.read_preprocessing('a.bin', files, (64, 64), patch, channels, processor)


def preprocess(preprocessing, image):
  return Model(None, {}, preprocessing, None, {'type': 'x'}).preprocess(image)[0]


def image(height=96, width=144):
  smooth = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
  return np.kron(smooth, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize(
  ('kind', 'fields'),
  [
    ('ViT', dict(size={'height': 32, 'width': 48})),
    ('Siglip', dict(size={'height': 32, 'width': 32})),
    ('CLIP', dict(size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32})),
    ('Bit', dict(size={'shortest_edge': 48}, crop_size={'height': 32, 'width': 40})),
    ('DeiT', dict(size={'height': 48, 'width': 48}, crop_size={'height': 32, 'width': 32})),
    ('ViT', dict(size={'height': 32, 'width': 32}, resample=1)),
    ('ViT', dict(size={'height': 32, 'width': 32}, do_normalize=False)),
  ],
)
def test_pixels_are_those_of_transformers(tmp_path, kind, fields):
  processor = getattr(transformers, f'{kind}ImageProcessorPil')(**fields)
  processor.save_pretrained(tmp_path)
  keys = json.loads((tmp_path / hf_images.FILE).read_text())
  preprocessing, mean, std = read(keys)
  expected = processor(images=image(), return_tensors='np')['pixel_values'][0]
  ours = preprocess(preprocessing, image())
  ours = (ours / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(ours.transpose(2, 0, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
  ('keys', 'host'),
  [
    # As the files of 2021 and 2022 say it: one number.
    (dict(size=64, feature_extractor_type='ViTFeatureExtractor', resample=2), 'resize(64)'),
    (
      dict(
        size=64, crop_size=64, do_center_crop=True, feature_extractor_type='CLIPFeatureExtractor'
      ),
      "resize_small(64, interpolation='bicubic') | central_crop(64)",
    ),
    (
      dict(
        size=72, crop_size=64, do_center_crop=True, feature_extractor_type='DeiTFeatureExtractor'
      ),
      "resize(72, 72, 'bicubic') | central_crop(64, 64)",
    ),
    (dict(size=64, crop_size=56, do_center_crop=False, resample=2), 'resize(64)'),
    (dict(size=[64, 80], resample=3), "resize(64, 80, interpolation='bicubic')"),
  ],
)
def test_older_files(keys, host):
  preprocessing, mean, std = read(keys)
  assert preprocessing.host == f'decode(channels=3) | {host}'
  assert mean is None and std is None


def test_a_number_alone_is_what_the_family_means():
  assert read(dict(size=64))[0].crop_share is None
  keys = dict(size=64, crop_size=64)
  assert read(keys, processor='CLIPImageProcessor')[0].crop_share == 1.0


def test_the_shorter_side_is_exact():
  for shorter in range(32, 600):
    keys = dict(size={'shortest_edge': shorter}, crop_size=32)
    assert f'resize_small({shorter},' in read(keys, processor='CLIPImageProcessor')[0].host


def test_a_size_that_patches_do_not_divide_is_rounded_down():
  keys = dict(size={'height': 384, 'width': 384}, resample=3)
  assert read(keys, patch=(14, 14))[0].size == (378, 378)


def test_without_the_file_only_the_size_is_known():
  found = hf_images.read_preprocessing('a.bin', {}, (64, 48), (8, 8), 1, 'ViTImageProcessor')
  assert found == (Preprocessing((64, 48), channels=1), None, None)


@pytest.mark.parametrize(
  ('keys', 'match'),
  [
    (dict(size=64, resample=0), 'resample is 0; known are'),
    (dict(size=64, do_resize=False), 'does not resize'),
    (dict(), 'does not resize'),
    (dict(size={'shortest_edge': 64}), 'images have no one size'),
    (dict(size={'longest_edge': 64}, crop_size=64), 'images have no one size'),
    (dict(size={'shortest_edge': 56}, crop_size=64), 'images have no one size'),
    (dict(size=64, do_rescale=False), 'not scaled by 1/255'),
    (dict(size=64, rescale_factor=1 / 127.5), 'not scaled by 1/255'),
    (
      dict(size=64, image_mean=[0.5, 0.5], image_std=HALF),
      'neither one number nor one for each of 3',
    ),
  ],
)
def test_what_we_have_no_transform_for_is_refused(keys, match):
  with pytest.raises(ValueError, match=f'preprocessor_config.json beside a.bin: .*{match}'):
    read(keys)


@pytest.mark.parametrize(
  'preprocessing',
  [
    Preprocessing((32, 48), None, 'bilinear'),
    Preprocessing((32, 32), 32 / 36, 'bicubic'),
    Preprocessing((32, 40), 1.0, 'lanczos'),
  ],
)
def test_what_is_written_is_read_again_and_opened_by_transformers(tmp_path, preprocessing):
  keys = hf_images.write_preprocessing(preprocessing, 0.5, (0.2, 0.3, 0.4))
  assert read(keys) == (preprocessing, HALF, [0.2, 0.3, 0.4])
  (tmp_path / hf_images.FILE).write_text(json.dumps(keys))
  kind = keys['image_processor_type']
  processor = getattr(transformers, f'{kind}Pil').from_pretrained(tmp_path)
  expected = processor(images=image(), return_tensors='np')['pixel_values'][0]
  ours = (preprocess(preprocessing, image()) / 255 - HALF) / (0.2, 0.3, 0.4)
  np.testing.assert_allclose(ours.transpose(2, 0, 1), expected, atol=1e-5)


def test_what_it_cannot_say_is_not_written():
  assert hf_images.write_preprocessing(Preprocessing((32, 32)), None, 0.5) is None
  own = Preprocessing((32, 32), transforms='decode | resize(32)')
  assert hf_images.write_preprocessing(own, 0.5, 0.5) is None
