"""Host transforms against slow references and known geometry."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax import compose
from vit_jax.data import decode, jpeg, transforms
from vit_jax.data.substitute import BadExample

RNG = np.random.default_rng


def picture(h, w, channels=3, seed=0):
  """Smooth enough to be an image, rough enough to be a test."""
  pixels = RNG(seed).integers(0, 256, (h, w, channels), np.uint8)
  pixels[: h // 2, : w // 2] //= 4
  return pixels


def run(transform, image, seed=0):
  return transform({'image': image, 'id': 7}, RNG(seed))['image']


def encode(image, kind='PNG', **kwargs):
  file = io.BytesIO()
  image.save(file, kind, **kwargs)
  return file.getvalue()


def triangle(n, m):
  """The matrix [m, n] of bilinear resizing with antialiasing, from the definition."""
  scale = n / m
  weights = np.zeros((m, n))
  for i in range(m):
    for j in range(n):
      weights[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1))
  return weights / weights.sum(1, keepdims=True)


def reference_resize(image, h, w):
  return np.einsum(
    'yh,hwc,xw->yxc', triangle(image.shape[0], h), image, triangle(image.shape[1], w)
  )


def test_configs_can_name_exactly_these():
  assert set(compose.choices(transforms)) == {
    'decode', 'decode_random_resized_crop', 'random_resized_crop', 'resize_small', 'resize',
    'central_crop', 'channels', 'pad_crop', 'flip', 'randaugment', 'views', 'caption', 'template',
    'tokenize',
  }  # fmt: skip


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_every_transform_keeps_the_contract_and_pickles(channels):
  image = picture(20, 27, channels)
  for text, shape in {
    'decode': (20, 27),
    'random_resized_crop(12, min_area=0.2)': (12, 12),
    'decode_random_resized_crop(12, min_area=0.2)': (12, 12),
    'random_resized_crop((10, 16))': (10, 16),
    'resize_small(10)': (10, 14),
    'resize(9)': (9, 9),
    'resize(9, 30)': (9, 30),
    'central_crop(12)': (12, 12),
    'central_crop(11, 8)': (11, 8),
    'pad_crop(20, 4)': (20, 20),
    'pad_crop((28, 9), padding=4)': (28, 9),
    'flip': (20, 27),
    'flip(p=1)': (20, 27),
    'randaugment': (20, 27),
    'randaugment(3, magnitude=15.5)': (20, 27),
  }.items():
    (transform,) = compose.build(text, transforms)
    example = {'image': image, 'label': np.int32(3), 'id': np.int64(5)}
    before = image.copy()
    out = transform(example, RNG(0))
    assert out['image'].dtype == np.uint8 and out['image'].shape == (*shape, channels), text
    assert (out['label'], out['id']) == (3, 5)
    np.testing.assert_array_equal(image, before)  # nothing is changed in place
    again = pickle.loads(pickle.dumps(transform))(example, RNG(0))
    np.testing.assert_array_equal(again['image'], out['image'])


@pytest.mark.parametrize(('h', 'w'), [(13, 9), (24, 24), (50, 61), (7, 60), (1, 1)])
@pytest.mark.parametrize('channels', [1, 3])
def test_resize_is_the_antialiased_triangle_filter(h, w, channels):
  image = picture(37, 41, channels)
  ours = run(transforms.resize(h, w), image)
  np.testing.assert_allclose(ours, reference_resize(image, h, w), atol=1.01)


def test_other_filters_are_torchs_with_antialiasing():
  torch = pytest.importorskip('torch')
  image = picture(40, 52)
  pixels = torch.tensor(image.astype(np.float32).transpose(2, 0, 1)[None])
  expected = torch.nn.functional.interpolate(pixels, (24, 20), mode='bicubic', antialias=True)
  expected = expected.numpy()[0].transpose(1, 2, 0).clip(0, 255)
  resized = run(transforms.resize(24, 20, interpolation='bicubic'), image)
  assert np.abs(resized - expected).max() <= 1.01  # Pillow rounds after each axis.
  shorter = run(transforms.resize_small(20, interpolation='bicubic'), image)
  np.testing.assert_array_equal(
    shorter, run(transforms.resize(20, 26, interpolation='bicubic'), image)
  )
  lanczos = run(transforms.resize(24, 20, interpolation='lanczos'), image)
  assert not np.array_equal(lanczos, resized)
  with pytest.raises(ValueError, match="unknown interpolation 'cubic'; choose from 'bilinear', 'b"):
    transforms.resize(24, interpolation='cubic')


def test_colour_of_transparent_pixels_does_not_leak():
  image = np.zeros((16, 16, 4), np.uint8)
  image[:, :7] = (0, 200, 0, 255)  # opaque green beside transparent red
  image[:, 7:] = (255, 0, 0, 0)
  out = run(transforms.resize(4), image)
  assert 0 < out[0, 1, 3] < 255  # a mixed pixel
  assert out[0, 1, 0] == 0 and abs(int(out[0, 1, 1]) - 200) <= 1


def test_resize_small_keeps_the_aspect():
  for (h, w), size, expected in [
    ((375, 500), 256, (256, 341)),
    ((500, 375), 256, (341, 256)),
    ((10, 10), 33, (33, 33)),
    ((3, 1000), 2, (2, 667)),
    ((300, 301), 1, (1, 1)),
  ]:
    assert run(transforms.resize_small(size), np.zeros((h, w, 3), np.uint8)).shape == (*expected, 3)


def test_inception_crop_draws_areas_and_aspects_in_range():
  h, w, low, high = 300, 400, 0.1, 0.6
  draw = (
    transforms.random_resized_crop(8, low, high, 0.5, 2.0).keywords['function'].keywords['draw']
  )
  rng = RNG(0)
  boxes = np.array([draw(h, w, rng) for _ in range(2000)])
  top, left, height, width = boxes.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + height <= h).all() and (left + width <= w).all()
  assert (top == 0).any() and (top + height == h).any()  # the borders are reached
  area, aspect = height * width / (h * w), width / height
  rounding = 0.5 / height + 0.5 / width
  assert (area > low * (1 - rounding)).all() and (area < high * (1 + rounding)).all()
  assert (aspect > 0.5 * (1 - rounding)).all() and (aspect < 2 * (1 + rounding)).all()
  # Small crops always fit, so below 0.3 the area is uniform and the aspect log-uniform.
  small = area < 0.3
  assert abs(small.mean() - 0.4) < 0.06
  np.testing.assert_allclose(
    np.quantile(area[small], [0.25, 0.5, 0.75]), [0.15, 0.2, 0.25], atol=0.015
  )
  assert abs(np.log(aspect[small]).mean()) < 0.05
  assert abs(np.log(aspect[small]).std() - 2 * np.log(2) / np.sqrt(12)) < 0.03


def test_inception_crop_of_the_whole_is_a_resize():
  image = picture(24, 24)
  whole = transforms.random_resized_crop(24, 1, 1, 1, 1)
  np.testing.assert_array_equal(run(whole, image), image)
  crop = transforms.random_resized_crop((9, 11), 1, 1, 1, 1)
  np.testing.assert_array_equal(run(crop, image), run(transforms.resize(9, 11), image))


@pytest.mark.parametrize(
  ('h', 'w', 'box'), [(4, 900, (0, 447, 4, 5)), (900, 4, (447, 0, 5, 4)), (1, 1, (0, 0, 1, 1))]
)
def test_inception_crop_of_a_sliver_falls_back_to_the_centre(h, w, box):
  draw = transforms.random_resized_crop(8, min_area=0.9).keywords['function'].keywords['draw']
  assert draw(h, w, RNG(0)) == box


@pytest.mark.parametrize('given', [1, 3, 4])
@pytest.mark.parametrize('made', [1, 3, 4])
def test_channels_are_those_of_decode(given, made):
  image = picture(9, 7, given)
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if given == 1 else image).save(file, 'png')
  changed = run(transforms.channels(made), image)
  assert changed.shape == (9, 7, made)
  decoded = transforms.decode(channels=made)({'image': file.getvalue()}, RNG(0))['image']
  np.testing.assert_array_equal(changed, decoded)


def test_channels_of_another_number_is_an_error():
  with pytest.raises(ValueError, match='no image of 2 channels; choose from 1, 3, 4'):
    transforms.channels(2)


def test_central_crop():
  image = np.arange(7 * 8, dtype=np.uint8).reshape(7, 8, 1)
  np.testing.assert_array_equal(run(transforms.central_crop(3), image)[..., 0], image[2:5, 2:5, 0])
  np.testing.assert_array_equal(
    run(transforms.central_crop(4, 3), image)[..., 0], image[1:5, 2:5, 0]
  )
  np.testing.assert_array_equal(run(transforms.central_crop(7, 8), image), image)
  # A smaller image is enlarged until it covers the crop.
  large = run(transforms.resize(14, 16), image)
  np.testing.assert_array_equal(run(transforms.central_crop(14, 10), image), large[:, 3:13])


def test_pad_crop_shifts_by_every_offset_and_fills_with_zeros():
  image = 1 + np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = {
    padded[t : t + 6, left : left + 6].tobytes(): (t, left) for t in range(5) for left in range(5)
  }
  transform = transforms.pad_crop(6, padding=2)
  counts = dict.fromkeys(windows.values(), 0)
  for seed in range(1000):
    counts[windows[run(transform, image, seed).tobytes()]] += 1
  assert min(counts.values()) > 15  # 40 expected of each


def test_flip_is_exactly_reversed():
  image = picture(6, 9)
  mirrored = run(transforms.flip(p=1), image)
  np.testing.assert_array_equal(mirrored, image[:, ::-1])
  np.testing.assert_array_equal(run(transforms.flip(p=1), mirrored), image)
  np.testing.assert_array_equal(run(transforms.flip(p=0), image), image)
  flipped = [np.array_equal(run(transforms.flip(), image, seed), mirrored) for seed in range(1000)]
  assert abs(np.mean(flipped) - 0.5) < 0.06


def test_decode_returns_the_pixels_of_every_mode():
  pixels = picture(9, 11)
  rgba = picture(9, 11, 4)
  grey = Image.fromarray(pixels[..., 0])
  decode = transforms.decode()
  np.testing.assert_array_equal(run(decode, encode(Image.fromarray(pixels))), pixels)
  np.testing.assert_array_equal(run(decode, encode(grey)), np.repeat(pixels[..., :1], 3, 2))
  np.testing.assert_array_equal(run(transforms.decode(1), encode(grey)), pixels[..., :1])
  np.testing.assert_array_equal(run(transforms.decode(4), encode(Image.fromarray(rgba))), rgba)
  opaque = run(transforms.decode(4), encode(Image.fromarray(pixels)))
  np.testing.assert_array_equal(opaque, np.dstack([pixels, np.full((9, 11), 255, np.uint8)]))
  palette = Image.fromarray(pixels).quantize(16)
  np.testing.assert_array_equal(run(decode, encode(palette)), np.asarray(palette.convert('RGB')))
  np.testing.assert_array_equal(
    run(decode, encode(palette, 'GIF')), np.asarray(palette.convert('RGB'))
  )
  black_white = Image.fromarray(pixels[..., 0] > 100)
  np.testing.assert_array_equal(
    run(transforms.decode(1), encode(black_white))[..., 0], 255 * (pixels[..., 0] > 100)
  )


def test_decode_composites_transparency_on_white():
  rgba = picture(9, 11, 4)
  alpha = rgba[..., 3:] / 255
  out = run(transforms.decode(), encode(Image.fromarray(rgba)))
  np.testing.assert_allclose(out, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), 'P')
  palette.putpalette([10, 20, 30, 40, 50, 60])
  out = run(transforms.decode(), encode(palette, transparency=0))
  np.testing.assert_array_equal(out, [[[255, 255, 255], [40, 50, 60]]])


def test_decode_scales_16_bits():
  deep = np.array([[0, 257, 32768, 65535]], np.uint16)
  out = run(transforms.decode(), encode(Image.fromarray(deep)))
  np.testing.assert_array_equal(out[0, :, 0], [0, 1, 128, 255])
  np.testing.assert_array_equal(
    run(transforms.decode(1), encode(Image.fromarray(deep)))[0, :, 0], [0, 1, 128, 255]
  )


def test_decode_jpeg_of_any_colour_space():
  y, x = np.mgrid[:32, :40]
  image = Image.fromarray(np.stack([4 * y, 3 * x + 60, 150 - 2 * y], -1).astype(np.uint8))
  for mode in ('RGB', 'CMYK'):
    out = run(transforms.decode(), encode(image.convert(mode), 'JPEG', quality=95))
    assert np.abs(out.astype(int) - np.asarray(image)).mean() < 3, mode


def test_decode_leaves_the_orientation_unless_told():
  pixels = picture(4, 6)
  exif = Image.Exif()
  exif[0x0112] = 6  # turn 90 degrees clockwise
  data = encode(Image.fromarray(pixels), exif=exif)
  np.testing.assert_array_equal(run(transforms.decode(), data), pixels)
  np.testing.assert_array_equal(run(transforms.decode(orient=True), data), np.rot90(pixels, -1))


def test_decode_leaves_arrays_alone():
  pixels = picture(4, 6)
  assert run(transforms.decode(), pixels) is pixels


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP'])
def test_broken_files_are_bad_examples(kind):
  data = encode(Image.fromarray(picture(40, 40)), kind)
  for broken in (b'', b'hello', data[: len(data) // 2], data[:20], bytes(len(data))):
    with pytest.raises(BadExample):
      run(transforms.decode(), broken)


def test_mistakes_name_the_choices():
  image = picture(8, 8)
  for build, message in [
    (lambda: transforms.decode(2), 'choose from 1, 3, 4'),
    (lambda: transforms.views(0), 'number of views 0 is no positive integer'),
    (lambda: transforms.views(1.5), 'number of views 1.5 is no positive integer'),
    (lambda: transforms.decode_random_resized_crop(8, views=0), 'number of views 0 is no positive'),
    (lambda: transforms.flip(1.5), r'not in \[0, 1\]'),
    (lambda: transforms.randaugment(0), 'num_layers 0 is no positive integer'),
    (lambda: transforms.randaugment(2, -1), r'magnitude -1 is not in \[0, 30\]'),
    (lambda: transforms.randaugment(2, 31), r'magnitude 31 is not in \[0, 30\]'),
    (lambda: transforms.random_resized_crop(8, 0.5, 0.2), 'min_area <= max_area'),
    (
      lambda: transforms.random_resized_crop(8, min_aspect=2, max_aspect=1),
      'min_aspect <= max_aspect',
    ),
    (lambda: transforms.random_resized_crop((8, 8, 8)), r'\(height, width\)'),
    (lambda: transforms.resize_small(0), 'positive integer'),
    (lambda: transforms.pad_crop(8, -1), 'negative'),
    (lambda: run(transforms.pad_crop(13, 2), image), 'smaller size'),
    (lambda: run(transforms.flip(), b'123'), "put 'decode' first"),
    (lambda: run(transforms.views(2), b'123'), "put 'decode' first"),
    (
      lambda: run(transforms.flip(), image.astype(np.float32)),
      r'float32 \[8, 8, 3\]; host transforms take uint8',
    ),
    (lambda: run(transforms.resize(4), image[..., :2]), 'C of 1, 3 or 4'),
    (lambda: run(transforms.resize(4), image[..., 0]), 'C of 1, 3 or 4'),
  ]:
    with pytest.raises(ValueError, match=message):
      build()


def photograph(h, w):
  """Smooth enough that two resampling filters see nearly the same, [h, w, 3] uint8."""
  y, x = np.mgrid[:h, :w] / max(h, w)
  waves = [np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y + 1)]
  return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize('shape', [(301, 403), (1203, 1601), (67, 45)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_decoding_and_cropping_in_one_takes_the_same_part(shape, kind):
  data = encode(
    Image.fromarray(photograph(*shape)), kind, **({'quality': 95} if kind == 'JPEG' else {})
  )
  for seed in range(12):
    two = run(transforms.random_resized_crop((32, 40)), run(transforms.decode(), data), seed)
    one = run(transforms.decode_random_resized_crop((32, 40)), data, seed)
    np.testing.assert_allclose(one.astype(int), two.astype(int), atol=0 if kind == 'PNG' else 6)


def test_a_large_jpeg_is_decoded_at_the_smallest_scale_that_covers_the_crop(monkeypatch):
  from PIL import JpegImagePlugin

  loaded = []
  load = JpegImagePlugin.JpegImageFile.load

  def spy(self):
    loaded.append(self.size)
    return load(self)

  data = encode(Image.fromarray(photograph(800, 800)), 'JPEG')
  monkeypatch.setattr(jpeg, 'installed', lambda: False)
  monkeypatch.setattr(JpegImagePlugin.JpegImageFile, 'load', spy)
  for part, side in [(800, 100), (799, 200), (400, 200), (399, 400), (99, 800)]:
    loaded.clear()
    decode.decode_boxes(data, 3, lambda h, w: [(0, 0, part, part)], (100, 100))  # noqa: B023
    assert loaded[0] == (side, side), part


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_every_kind_of_file_is_decoded_and_cropped(channels):
  image = Image.fromarray(photograph(301, 403))
  crop = transforms.decode_random_resized_crop(24, channels=channels)
  for mode, kind in [
    ('RGB', 'JPEG'),
    ('L', 'JPEG'),
    ('CMYK', 'JPEG'),
    ('RGBA', 'PNG'),
    ('P', 'PNG'),
  ]:
    data = encode(image.convert(mode), kind)
    whole = transforms.decode(channels)
    two = run(transforms.random_resized_crop(24), run(whole, data), 5)
    one = run(crop, data, 5)
    assert one.shape == (24, 24, channels)
    np.testing.assert_allclose(one.astype(int), two.astype(int), atol=8, err_msg=f'{mode} {kind}')


def test_what_is_broken_is_a_bad_example_to_it_too():
  data = encode(Image.fromarray(photograph(64, 64)), 'JPEG')
  for broken in (data[: len(data) // 2], b'no image', b''):
    with pytest.raises(BadExample):
      run(transforms.decode_random_resized_crop(8), broken)
  with pytest.raises(ValueError, match='no image of 2 channels'):
    transforms.decode_random_resized_crop(8, channels=2)
