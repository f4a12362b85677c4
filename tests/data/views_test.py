"""Views of one decoded image: each has draws of its own, and all follow from seed and step."""

import io
import itertools
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from vit_jax import compose
from vit_jax.data import decode, jpeg, prefetch, transforms
from vit_jax.data.emoji import Emoji
from vit_jax.data.pipeline import TrainPipeline, eval_batches
from vit_jax.data.spec import batch_spec

HOST = 'decode | views(2) | random_resized_crop(8, min_area=0.2) | flip'
IN_ONE = 'decode_random_resized_crop(8, min_area=0.2, views=2) | flip'


def photograph(h, w, phase=0.0):
  """Smooth enough that two resampling filters see nearly the same, [h, w, 3] uint8."""
  y, x = np.mgrid[:h, :w] / max(h, w)
  waves = [np.sin(9 * x + 4 * y + phase), np.cos(7 * y - 3 * x), np.sin(12 * x * y + 1)]
  return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def encode(pixels, kind='PNG', **kwargs):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **kwargs)
  return file.getvalue()


def run(host, example, seed=0):
  example = example if isinstance(example, dict) else {'image': example}
  rng = np.random.default_rng(seed)
  for transform in compose.build(host, transforms):
    example = transform(example, rng)
  return example


class Pictures:
  """Encoded pictures of different sizes."""

  def __init__(self, n=10, kind='PNG', size=20):
    self.files = [encode(photograph(size + i, size + 7, i), kind) for i in range(n)]

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    return {'image': self.files[i], 'label': np.int32(i % 3), 'id': np.int64(i)}


def sharding(devices=1):
  return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ('data',)), P('data'))


def train(source, steps, start=0, host=HOST, devices=1, **kwargs):
  with TrainPipeline(
    source, host=host, batch_size=4, seed=3, sharding=sharding(devices), start_step=start, **kwargs
  ) as batches:
    return [jax.tree.map(np.asarray, next(batches)) for _ in range(steps)]


def assert_same(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


# -- The transform.


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_views_stand_in_the_place_of_the_image(channels):
  image = np.random.default_rng(0).integers(0, 256, (11, 13, channels), np.uint8)
  example = {'image': image, 'label': np.int32(2), 'id': np.int64(5)}
  out = run('decode | views(3)', example)
  assert out.keys() == {'views', 'label', 'id'} and (out['label'], out['id']) == (2, 5)
  np.testing.assert_array_equal(out['views'], [image] * 3)
  assert example['image'] is image


def test_one_view_is_the_image_of_the_chain_without_it():
  data = encode(photograph(40, 50))
  chain = 'random_resized_crop((9, 12)) | flip | randaugment | pad_crop(9, 2)'
  for seed in range(5):
    one = run(f'decode | views(1) | {chain}', data, seed)['views']
    np.testing.assert_array_equal(one[0], run(f'decode | {chain}', data, seed)['image'])
    assert len(one) == 1


@pytest.mark.parametrize('seed', range(4))
def test_views_are_the_parts_of_the_image_that_were_drawn(seed):
  image = photograph(61, 83)
  crop = transforms.random_resized_crop((10, 8), min_area=0.2)
  draw = crop.keywords['function'].keywords['draw']
  rng = np.random.default_rng(seed)
  boxes = [draw(61, 83, rng) for _ in range(3)]
  assert len(set(boxes)) == 3
  expected = [
    np.asarray(Image.fromarray(image[t : t + h, x : x + w]).resize((8, 10), Image.BILINEAR))
    for t, x, h, w in boxes
  ]
  mirrored = rng.random(3) < 0.5
  expected = [e[:, ::-1] if m else e for e, m in zip(expected, mirrored, strict=True)]
  host = 'decode | views(3) | random_resized_crop((10, 8), min_area=0.2) | flip'
  np.testing.assert_array_equal(run(host, encode(image), seed)['views'], expected)


def test_draws_of_two_views_have_nothing_to_do_with_each_other():
  ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))[..., None]
  host = 'views(2) | random_resized_crop(4, min_area=0.1, max_area=0.3) | flip'
  pairs = np.stack([run(host, ramp, seed)['views'] for seed in range(600)]).astype(float)
  mirrored = pairs[:, :, 0, 0, 0] > pairs[:, :, 0, -1, 0]  # [600, 2]
  centres = pairs.mean((2, 3, 4))  # [600, 2]
  for values in (mirrored, centres):
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.12  # 3 standard deviations of chance
  assert np.abs(mirrored.mean(0) - 0.5).max() < 0.07
  assert abs(np.diff(centres.mean(0))[0]) < 3 * np.sqrt(2 * centres.var() / 600)


@pytest.mark.parametrize(
  'tail',
  [
    'resize(5, 6)', 'resize_small(9)', 'central_crop(7)', 'pad_crop(12, 3)', 'flip', 'randaugment',
    'decode', 'decode_random_resized_crop(6)',
  ],
)  # fmt: skip
def test_every_transform_takes_views_and_pickles(tail):
  image = photograph(12, 15)
  made = compose.build(f'views(2) | {tail}', transforms)
  again = pickle.loads(pickle.dumps(made))
  results = []
  for chain in (made, again):
    example, rng = {'image': image}, np.random.default_rng(1)
    for transform in chain:
      example = transform(example, rng)
    results.append(example['views'])
  rng = np.random.default_rng(1)
  (plain,) = compose.build(tail, transforms)
  expected = np.stack([plain({'image': image}, rng)['image'] for _ in range(2)])
  for views in results:
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views, expected)


def test_mistakes_are_one_sentence():
  image, data = photograph(9, 9), encode(photograph(9, 9))
  for host, value, message in [
    ('views(2) | decode', data, "image is still encoded; put 'decode' first"),
    ('decode | views(2) | views(2)', data, 'has views already; make them once'),
    ('views(2) | decode_random_resized_crop(4, views=2)', image, 'has views already'),
    ('decode_random_resized_crop(4, views=2) | views(2)', data, 'has views already'),
    ('views(0)', image, r"transform 'views' in 'views\(0\)': number of views 0 is no positive"),
    ('views', image, 'missing a required argument'),
    ('views(2)', image.astype(np.float32), r'image is float32 \[9, 9, 3\]'),
    ('views(2) | pad_crop(20, 1)', image, 'choose a smaller size'),
  ]:
    with pytest.raises(ValueError, match=message) as error:
      run(host, value)
    assert '\n' not in str(error.value)


# -- Decoding and cropping in one.


@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('shape', [(301, 403), (1203, 1601), (67, 45)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_decoding_and_cropping_in_one_takes_the_same_parts(kind, shape, fast, monkeypatch):
  if not fast:
    monkeypatch.setattr(jpeg, 'installed', lambda: False)
  data = encode(photograph(*shape), kind, **({'quality': 95} if kind == 'JPEG' else {}))
  for seed in range(4):
    two = run('decode | views(3) | random_resized_crop((32, 40)) | flip', data, seed)['views']
    one = run('decode_random_resized_crop((32, 40), views=3) | flip', data, seed)['views']
    assert one.shape == (3, 32, 40, 3)
    np.testing.assert_allclose(one.astype(int), two.astype(int), atol=0 if kind == 'PNG' else 6)


def test_in_one_it_crops_arrays_as_they_are():
  image = photograph(40, 50)
  for seed in range(4):
    two = run('views(2) | random_resized_crop(12)', image, seed)['views']
    one = run('decode_random_resized_crop(12, views=2)', image, seed)['views']
    np.testing.assert_array_equal(one, two)


def test_the_smallest_part_decides_at_which_scale_a_jpeg_is_decoded():
  data = encode(photograph(800, 800), 'JPEG', quality=95)
  whole, half, small = (0, 0, 800, 800), (100, 50, 400, 400), (30, 40, 120, 130)

  def cut(*boxes):
    return decode.decode_boxes(data, 3, lambda h, w: boxes, (100, 100))

  np.testing.assert_array_equal(cut(half, half), np.concatenate([cut(half)] * 2))
  np.testing.assert_array_equal(cut(whole, half)[1], cut(half)[0])
  np.testing.assert_array_equal(cut(whole, small)[1], cut(small)[0])
  pixels = Image.open(io.BytesIO(data)).resize((100, 100), Image.BILINEAR)
  exact = np.abs(cut(whole, small)[0].astype(int) - pixels).max()
  reduced = np.abs(cut(whole)[0].astype(int) - pixels).max()
  assert exact <= 1 < reduced  # By the same filter only at full scale.


# -- The pipeline.


@pytest.mark.parametrize('host', [HOST, IN_ONE])
def test_a_batch_is_a_function_of_seed_and_step(host, monkeypatch):
  monkeypatch.setattr(prefetch, 'MIN_SHARED_BYTES', 100)  # These views take the way of large ones.
  source = Pictures(kind='JPEG')
  reference = train(source, 4, host=host)
  for batch in reference:
    assert batch['views'].shape == (4, 2, 8, 8, 3) and batch['views'].dtype == np.uint8
    assert 'image' not in batch
    assert (batch['views'][:, 0] != batch['views'][:, 1]).any((1, 2, 3)).all()
  assert_same(train(source, 4, host=host, devices=4), reference)
  for workers in (1, 2):
    assert_same(train(source, 2, 2, host=host, num_workers=workers), reference[2:])


def test_an_example_has_other_views_in_the_next_epoch():
  batches = train(Pictures(4), 3)
  views = [batch['views'][np.argsort(batch['id'])] for batch in batches]
  for a, b in itertools.pairwise(views):
    assert (a != b).any((2, 3, 4)).all()


def test_evaluation_covers_every_example_once():
  source = Pictures()
  with eval_batches(source, host=HOST, batch_size=4, sharding=sharding()) as batches:
    batches = [jax.tree.map(np.asarray, batch) for batch in batches]
  assert [batch['views'].shape for batch in batches] == [(4, 2, 8, 8, 3)] * 3
  mask = np.concatenate([batch['_mask'] for batch in batches])
  ids = np.concatenate([batch['id'] for batch in batches])
  np.testing.assert_array_equal(ids[mask], np.arange(10))


def test_packaged_drawings_keep_their_alpha():
  emoji = Emoji(split='validation', styles=('google',), alpha=True)
  host = 'decode | views(2) | random_resized_crop(32, min_area=0.2) | flip'
  (batch,) = train(emoji, 1, host=host)
  assert batch['views'].shape == (4, 2, 32, 32, 4)
  assert len(np.unique(batch['views'][..., 3])) > 2


@pytest.mark.parametrize('host', [HOST, IN_ONE, 'decode | central_crop(8) | views(2)'])
def test_the_spec_is_what_the_pipeline_gives(host):
  source = Pictures()
  spec = batch_spec(source, host, batch_size=4)
  (batch,) = train(source, 1, host=host)
  assert {key: (s.shape, s.dtype) for key, s in spec.items()} == {
    key: (value.shape, value.dtype) for key, value in batch.items()
  }


def test_views_of_several_shapes_are_named():
  with pytest.raises(ValueError, match=r"'views' has \d shapes in one batch.*crop or resize"):
    train(Pictures(), 1, host='decode | views(2) | flip')
