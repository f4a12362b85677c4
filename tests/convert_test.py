"""Models go out and come back bit for bit, and what a file cannot say is said."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax import convert
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.adapters.tensors import open_tensors
from vit_jax.checkpoint import named
from vit_jax.model import Model, method_of
from vit_jax.pretrained import build_model, load

VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=24, grid=(2, 2),
)  # fmt: skip
LORA = dict(type='models.lora.LoRA', rank=2, alpha=8.0)
RESNET = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8)
# As the publishers have it.
FLAX = VIT | dict(activation='gelu_tanh', position_resize='bilinear_zoom')
HUB = VIT | dict(position_resize='bicubic_plain', ln_eps=1e-12)
TIMM = VIT | dict(position_resize='bicubic')
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def make(encoder=VIT, *, preprocessing=None, classes='abcde', **fields):
  """A model with random weights, and statistics where it has them."""
  preprocessing = preprocessing or Preprocessing((16, 16))
  spec = dict(type='objectives.supervised.Supervised', encoder=encoder, num_classes=5)
  spec.update(fields)
  objective = build_model(spec)
  image = np.zeros((1, *preprocessing.size, preprocessing.channels), np.uint8)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    jax.eval_shape(
      lambda: nn.unbox(objective.init(jax.random.key(0), {'image': image}, method=method_of(spec)))
    ),
  )
  if 'batch_stats' in variables:
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
  return Model(objective, variables, preprocessing, Report('a'), spec, classes)


def assert_same(model, loaded, images=IMAGES):
  assert not (loaded.report.missing or loaded.report.unused or loaded.report.resized)
  np.testing.assert_array_equal(loaded(images), model(images))


# -- Our own.


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
@pytest.mark.parametrize(
  ('encoder', 'fields'),
  [
    (VIT | dict(patch_size=(8, 4), grid=(2, 4), pooling='map'), dict(mean=(0.1, 0.2, 0.3))),
    (VIT, dict(num_classes=None, classes=())),
    (RESNET, dict(loss='sigmoid', preprocessing=Preprocessing((16, 16), 0.875, 'bicubic'))),
    (VIT, dict(eval_augment='background(p=0)', preprocessing=Preprocessing((16, 16), channels=4))),
  ],
)
def test_our_own_files_give_the_model_back(tmp_path, suffix, encoder, fields):
  model = make(encoder, **fields)
  file = tmp_path / f'a{suffix}'
  written = model.save(file)
  images = [IMAGES[0], IMAGES[1][:9]]
  back = load(file)
  assert_same(model, back, images)
  assert back.preprocessing == model.preprocessing
  assert back.classes == model.classes
  assert back.spec.get('loss') == model.spec.get('loss')
  names = set(named(model.variables))
  assert set(open_tensors(file)) == names | {'vit_jax'}
  count = sum(x.size for x in named(model.params).values())
  assert (written.arrays, written.parameters) == (len(names), count)
  assert str(written) == (
    f'wrote {file} (vit_jax): {count:,} parameters in {len(names)} arrays, '
    f'{file.stat().st_size / 1e6:.1f} MB'
  )
  again = tmp_path / f'b{suffix}'
  back.save(again)
  assert again.read_bytes() == file.read_bytes()


def test_stacked_blocks_are_written_one_by_one(tmp_path):
  model = make(VIT | dict(scan=True))
  model.save(tmp_path / 'a.npz')
  assert not any('blocks' in name for name in open_tensors(tmp_path / 'a.npz'))
  looped = load(tmp_path / 'a.npz')
  np.testing.assert_allclose(looped(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)
  assert_same(model, load(tmp_path / 'a.npz', encoder=dict(scan=True)))


@pytest.mark.parametrize('scan', [False, True])
def test_products_of_lora_are_added(tmp_path, scan):
  kernels = (('blocks' if scan else 'block_.') + '/.*/(query|out|fc_1)/kernel',)
  model = make(LORA | dict(encoder=VIT | dict(scan=scan), kernels=kernels))
  model.save(tmp_path / 'a.npz')
  assert not any('lora' in name for name in open_tensors(tmp_path / 'a.npz'))
  merged = load(tmp_path / 'a.npz')
  np.testing.assert_allclose(merged(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
  params = model.params['encoder']
  block = params['lora']['blocks' if scan else 'block_1']['mlp']['fc_1']['kernel']
  base = params['encoder']['blocks' if scan else 'block_1']['mlp']['fc_1']['kernel']
  a, b, kernel = (x[1] if scan else x for x in (block['a'], block['b'], base))
  np.testing.assert_allclose(
    merged.params['encoder']['block_1']['mlp']['fc_1']['kernel'], kernel + 8 / 2 * a @ b, rtol=1e-5
  )


def test_lora_around_batch_statistics(tmp_path):
  model = make(LORA | dict(encoder=RESNET, kernels=('stage_0_block_0/conv_1/kernel',)))
  model.save(tmp_path / 'a.npz')
  np.testing.assert_allclose(load(tmp_path / 'a.npz')(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_another_size_is_kept(tmp_path):
  make().save(tmp_path / 'a.npz')
  larger = load(tmp_path / 'a.npz', image_size=(32, 24))
  larger.save(tmp_path / 'b.npz')
  assert_same(larger, load(tmp_path / 'b.npz'), [IMAGES[0]])


def test_a_module_of_another_package_cannot_be_read_from_a_file(tmp_path):
  model = make()
  model.spec = {**model.spec, 'type': 'vit_jax.objectives.supervised.Supervised'}
  with pytest.raises(ValueError, match="'vit_jax.objectives.supervised.Supervised' is no model of"):
    model.save(tmp_path / 'a.npz')
  assert list(tmp_path.iterdir()) == []


# -- Those of others.


@pytest.mark.parametrize(
  ('format', 'destination', 'encoder', 'fields'),
  [
    ('vision_transformer', 'a.npz', FLAX, dict(mean=0.5, std=0.5, classes=())),
    ('vision_transformer', 'a.npz', FLAX | dict(scan=True), dict(num_classes=None, classes=())),
    ('timm', 'a', TIMM, dict(preprocessing=Preprocessing((16, 16), 0.9, 'bicubic'))),
    ('timm', 'a.safetensors', TIMM | dict(pooling='map', registers=2), dict(mean=0.1, std=0.2)),
    ('transformers', 'a', HUB, dict(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))),
    ('transformers', 'a.safetensors', HUB, dict(preprocessing=Preprocessing((16, 16), 0.8))),
  ],
)
def test_formats_of_others_give_the_model_back(tmp_path, format, destination, encoder, fields):
  model = make(encoder, **fields)
  written = model.save(tmp_path / destination, format)
  assert list(written.unsaid) == []
  back = load(tmp_path / destination)
  assert_same(convert.plain(model), back)
  assert back.preprocessing == model.preprocessing
  assert back.classes == model.classes
  back.save(tmp_path / 'again' / destination, format)
  weights = [p for p in tmp_path.rglob('*') if p.suffix in ('.npz', '.safetensors')]
  assert len(weights) == 2
  assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_a_format_does_not_say_is_said(tmp_path):
  model = make(VIT, mean=(0.1, 0.2, 0.3), preprocessing=Preprocessing((16, 16), 0.9))
  written = model.save(tmp_path / 'a.npz', 'vision_transformer')
  lines = str(written).splitlines()[1:]
  assert lines == [
    "  not said in it: position_resize 'bicubic', which a reader takes for 'bilinear_zoom'",
    "  not said in it: activation 'gelu', which a reader takes for 'gelu_tanh'",
    '  not said in it: mean [0.1, 0.2, 0.3], which a reader takes for [0.5, 0.5, 0.5]',
    "  not said in it: preprocessing 'decode(channels=3) | resize_small(17) | central_crop(16)', "
    "which a reader takes for 'decode(channels=3) | resize(16)'",
    '  not said in it: the names of the classes',
  ]
  back = load(tmp_path / 'a.npz', activation='gelu', mean=(0.1, 0.2, 0.3))
  np.testing.assert_array_equal(back(IMAGES, preprocessed=True), model(IMAGES, preprocessed=True))


def test_heads_that_no_published_size_has_are_asked_for(tmp_path):
  model = make(HUB)
  model.save(tmp_path / 'a', 'transformers')
  (tmp_path / 'a/config.json').unlink()
  with pytest.raises(ValueError, match='does not say its num_heads; pass num_heads='):
    load(tmp_path / 'a')


def test_transformers_opens_what_was_written(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = make(HUB, mean=0.4, std=0.3)
  model.save(tmp_path / 'a', 'transformers')
  theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / 'a').eval()
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'a')
  with torch.no_grad():
    logits = theirs(**processor(list(IMAGES), return_tensors='pt')).logits
  np.testing.assert_allclose(model(IMAGES), logits.numpy(), rtol=1e-4, atol=1e-5)
  assert theirs.config.id2label == dict(enumerate('abcde'))


def test_timm_opens_what_was_written(tmp_path):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm')
  model = make(TIMM, mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
  model.save(tmp_path / 'a', 'timm')
  theirs = timm.create_model(f'local-dir:{tmp_path / "a"}', pretrained=True).eval()
  transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
  from PIL import Image

  x = torch.stack([transform(Image.fromarray(image)) for image in IMAGES])
  with torch.no_grad():
    logits = theirs(x).numpy()
  np.testing.assert_allclose(model(IMAGES), logits, rtol=1e-4, atol=1e-5)


# -- What is refused.


@pytest.mark.parametrize(
  ('format', 'encoder', 'fields', 'message'),
  [
    ('vision_transformer', VIT | dict(registers=1), {}, 'no place for registers=1; it takes 0'),
    ('vision_transformer', RESNET, {}, 'vision_transformer takes a ViT, not ResNet'),
    ('timm', VIT, dict(eval_augment='hue'), "timm has no place for eval_augment='hue'"),
    ('transformers', VIT | dict(qk_norm=True), {}, 'no place for qk_norm=True; it takes False'),
    ('transformers', RESNET, {}, 'transformers takes a plain ViT, not ResNet'),
  ],
)  # fmt: skip
def test_what_a_format_has_no_place_for_is_a_sentence(tmp_path, format, encoder, fields, message):
  destination = tmp_path / ('a.npz' if format == 'vision_transformer' else 'a')
  with pytest.raises(ValueError, match=message) as raised:
    make(encoder, **fields).save(destination, format)
  assert '\n' not in str(raised.value)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('name', 'format', 'message'),
  [
    ('a', None, r"say the format of .*/a; choose from 'vit_jax', 'vision_transformer', 'timm'"),
    ('a.bin', 'timm', r"timm is written as .safetensors or a folder, and not as 'a.bin'"),
    ('a.npz', 'transformers', 'transformers is written as .safetensors or a folder'),
    ('a.safetensors', 'vision_transformer', 'vision_transformer is written as .npz, and not as'),
    ('a', 'vit_jax', 'vit_jax is written as .npz or .safetensors, and not as'),
    ('a.npz', 'npz', "unknown format 'npz'; choose from 'vit_jax', 'vision_transformer'"),
  ],
)
def test_destinations_that_cannot_be(tmp_path, name, format, message):
  with pytest.raises(ValueError, match=message):
    convert.destination(tmp_path / name, format)


def test_nothing_is_written_over_unasked(tmp_path):
  file = tmp_path / 'a.npz'
  make().save(file)
  before = file.read_bytes()
  with pytest.raises(FileExistsError, match=r'a.npz is there already; --force \(overwrite=True\)'):
    make(mean=0.1).save(file)
  assert file.read_bytes() == before
  make(mean=0.1).save(file, overwrite=True)
  assert file.read_bytes() != before
  folder = tmp_path / 'b'
  folder.mkdir()
  (folder / 'config.json').write_text('{"of": "somebody else"}')
  with pytest.raises(FileExistsError, match='config.json is there already'):
    make(HUB).save(folder, 'transformers')
  with pytest.raises(FileExistsError, match='config.json is there already'):
    make(HUB).save(folder / 'a.safetensors', 'transformers')
  assert len(list(folder.iterdir())) == 1


def test_companions_of_an_older_model_do_not_stay(tmp_path):
  make(HUB, mean=0.1).save(tmp_path / 'a', 'transformers')
  assert (
    json.loads((tmp_path / 'a/preprocessor_config.json').read_text())['image_mean'] == [0.1] * 3
  )
  make(HUB, mean=None).save(tmp_path / 'a', 'transformers', overwrite=True)
  assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['config.json', 'model.safetensors']
  with pytest.raises(ValueError, match='nobody says by which mean'):
    load(tmp_path / 'a')(IMAGES)
