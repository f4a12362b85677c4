"""Models that transformers made, saved and opens: the same numbers in, and out again."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from vit_jax.adapters import hf
from vit_jax.adapters.tensors import open_tensors
from vit_jax.checkpoint import named
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, DEPTH, CLASSES = 32, 2, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=4)
MLP = dict(intermediate_size=48)
TEXT = dict(SIZES, **MLP, vocab_size=50)


def sizes(patch, **fields):
  return dict(SIZES, image_size=4 * patch, patch_size=patch, **fields)


def tower(patch, **fields):
  return dict(text_config=TEXT, vision_config=sizes(patch, **MLP, **fields))


# By name: the class of the model, and what its config is made of.
PEERS = {
  'vit': ('ViTForImageClassification', sizes(8, **MLP, num_labels=CLASSES, hidden_act='gelu_new')),
  'vit with a pooler': ('ViTModel', sizes(16, **MLP, pooler_output_size=20)),
  'vit without biases': ('ViTModel', sizes(8, **MLP, qkv_bias=False)),
  'masked autoencoder': ('ViTMAEModel', sizes(8, **MLP, mask_ratio=0.0)),
  'masked siamese': ('ViTMSNModel', sizes(8, **MLP)),
  'dinov2': ('Dinov2Model', sizes(14, mlp_ratio=2)),
  'dinov2 with registers': ('Dinov2WithRegistersModel', sizes(14, mlp_ratio=2)),
  'clip': ('CLIPModel', tower(8, hidden_act='gelu')),
  'clip, one tower': ('CLIPVisionModel', sizes(32, **MLP)),
  'siglip': ('SiglipModel', tower(16, layer_norm_eps=1e-3)),
  'siglip, one tower': ('SiglipVisionModel', sizes(8, **MLP)),
  'siglip with a classifier': ('SiglipForImageClassification', tower(8) | dict(num_labels=CLASSES)),
}
# One for each way in which they interpolate positions.
INTERPOLATED = (
  'vit', 'masked autoencoder', 'dinov2', 'dinov2 with registers', 'clip',
  'siglip with a classifier',
)  # fmt: skip
# What transformers opens again, of what is written from them.
EXPORTED = [name for name in PEERS if name != 'siglip with a classifier']


def make(name, **more):
  kind, fields = PEERS.get(name, (name, {}))
  family = re.sub('ForImageClassification$|VisionModel$|Model$', '', kind)
  vision = 'Vision' if 'VisionModel' in kind else ''
  config = getattr(transformers, f'{family}{vision}Config')(**{**fields, **more})
  model = getattr(transformers, kind)(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():  # Nothing is left at 0 or 1, where it would hide an error.
      parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
  return model


def save(model, folder, **kwargs):
  model.save_pretrained(folder, **kwargs)
  return folder


def normalized(image):
  return ((image / 255 - MEAN) / STD).astype(np.float32)


def images(height, width=None):
  shape = 2, height, width or height, 3
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@torch.no_grad()
def peer(model, image):
  """Its logits or else its pooled features, and the tokens after each block."""
  whole, model = model, model if hasattr(model, 'classifier') else vision(model)
  outputs = []
  hooks = [
    module.register_forward_hook(lambda _, __, out: outputs.append(out))
    for name, module in vision(whole).named_modules()
    if re.search(r'layers?\.\d+$', name)
  ]
  x = torch.tensor(normalized(image).transpose(0, 3, 1, 2).copy())
  kwargs = {} if 'Dinov2' in type(model).__name__ else {'interpolate_pos_encoding': True}
  if 'ViTMAE' in type(model).__name__:  # It would shuffle the patches.
    patch = model.config.patch_size
    count = image.shape[1] * image.shape[2] // patch**2
    kwargs['noise'] = torch.arange(count)[None].repeat(2, 1).float()
  out = model(x, **kwargs)
  for hook in hooks:
    hook.remove()
  assert len(outputs) == DEPTH
  result = out.get('logits', out.get('pooler_output'))
  result = out.last_hidden_state[:, 0] if result is None else result
  return result.numpy(), [tokens.numpy() for tokens in outputs]


def vision(model):
  for name in ('vision_model', 'vit'):
    model = getattr(model, name, model)
  return model


def close(ours, theirs):
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_like(model, theirs, image):
  result, blocks = peer(theirs, image)
  method = 'logits' if model.has_head else 'features'
  objective = model.objective

  @jax.jit
  def apply(variables, image, x):
    params = {'params': variables['params']['encoder']}
    return (
      objective.apply(variables, {'image': image}, method=method),
      objective.encoder.apply(params, x, train=False, blocks=range(DEPTH)).blocks,
    )

  ours, our_blocks = apply(model.variables, image, normalized(image))
  close(np.asarray(ours), result)
  for mine, other in zip(our_blocks, blocks, strict=True):
    close(np.asarray(mine), other[:, -mine.shape[1] :])


def open_(folder, **kwargs):
  """The model; of two towers, that of the images."""
  weights = next(folder.glob('*.safetensors*'), folder / 'pytorch_model.bin')
  if 'text_projection.weight' in open_tensors(weights) or 'logit_bias' in open_tensors(weights):
    kwargs['tower'] = 'image'
  return load(folder, progress=False, mean=MEAN, std=STD, **kwargs)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function from a name of `PEERS` to the model and its folder."""
  made = {}

  def get(name):
    if name not in made:
      model = make(name)
      made[name] = model, save(model, tmp_path_factory.mktemp('peer'))
    return made[name]

  return get


def export(model, folder):
  model.save(folder, 'transformers')
  return dict(open_tensors(folder / 'model.safetensors'))


# -- In.


@pytest.mark.parametrize('name', PEERS)
def test_numbers_are_those_of_transformers(saved, name):
  theirs, folder = saved(name)
  model = open_(folder)
  assert not (model.report.missing or model.report.resized)
  check_like(model, theirs, images(*model.preprocessing.size))


@pytest.mark.parametrize('name', INTERPOLATED)
def test_numbers_at_another_resolution_are_those_of_transformers(saved, name):
  theirs, folder = saved(name)
  patch = open_(folder).objective.encoder.patch[0]
  size = 3 * patch, 6 * patch  # fewer rows, more columns
  model = open_(folder, image_size=size)
  assert list(model.report.resized) == ['params/encoder/pos_embedding']
  check_like(model, theirs, images(*size))


@pytest.mark.parametrize('name', ['dinov2', 'clip'])
def test_images_of_any_size_give_the_numbers_of_processor_and_model(saved, tmp_path, name):
  theirs, folder = saved(name)
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  # Smaller than the learned positions are for, as of the published DINOv2.
  size = 28 if name == 'dinov2' else 32
  crop = {'height': size, 'width': size}
  processor = transformers.BitImageProcessorPil(size={'shortest_edge': 36}, crop_size=crop)
  processor.save_pretrained(tmp_path)
  tower = {} if name == 'dinov2' else {'tower': 'image'}
  model = load(tmp_path, progress=False, format='transformers', **tower)
  assert bool(model.report.resized) == (name == 'dinov2')
  image = images(72, 96)
  x = processor(images=list(image), return_tensors='pt')['pixel_values']
  with torch.no_grad():
    expected = vision(theirs)(x).pooler_output.numpy()
  close(model(image), expected)


def test_images_of_one_channel_that_are_no_squares(tmp_path):
  fields = dict(sizes(8, **MLP), image_size=[32, 48], num_channels=1)
  theirs = make('ViTModel', **fields)
  model = load(save(theirs, tmp_path), progress=False, mean=(0.5,), std=(0.5,))
  assert model.preprocessing.size == (32, 48)
  assert model.spec['encoder']['grid'] == (4, 6)
  image = images(32, 48)[..., :1]
  with torch.no_grad():
    x = torch.tensor(image.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=torch.float32)
    expected = theirs(x).pooler_output.numpy()
  close(model(image), expected)


def test_a_file_in_shards_is_the_same(saved, tmp_path):
  theirs, folder = saved('vit')
  shards = save(theirs, tmp_path, max_shard_size='20KB')
  assert len(list(shards.glob('*.safetensors'))) > 3
  one, many = open_(folder), open_(shards)
  for name, array in named(one.variables).items():
    np.testing.assert_array_equal(array, named(many.variables)[name])


@pytest.mark.parametrize('name', ['vit', 'vit with a pooler', 'dinov2', 'clip', 'siglip'])
def test_the_modules_own_names_are_read_too(saved, tmp_path, name):
  theirs, folder = saved(name)
  torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
  theirs.config.save_pretrained(tmp_path)
  one, other = open_(folder), open_(tmp_path)
  assert one.spec == other.spec
  for key, array in named(one.variables).items():
    np.testing.assert_array_equal(array, named(other.variables)[key])


def test_what_is_of_no_use_is_reported(saved):
  unused = open_(saved('clip')[1]).report.unused
  assert {'logit_scale', 'visual_projection.weight', 'text_projection.weight'} <= set(unused)
  assert all(name.startswith('text_model.') for name in unused if name.count('.') > 1)
  assert open_(saved('dinov2')[1]).report.unused == ['embeddings.mask_token']
  assert not open_(saved('vit')[1]).report.unused


@pytest.mark.parametrize('family', ['Dinov2', 'CLIP'])
def test_a_classifier_of_what_no_encoder_here_gives_is_reported(tmp_path, family):
  fields = sizes(8, mlp_ratio=2) if family == 'Dinov2' else tower(8)
  theirs = make(f'{family}ForImageClassification', **fields)
  model = open_(save(theirs, tmp_path))
  assert not model.has_head
  assert {'classifier.weight', 'classifier.bias'} <= set(model.report.unused)


def test_a_pooler_beside_a_classifier_is_left_out(saved, tmp_path):
  theirs, folder = saved('vit')
  state = dict(theirs.state_dict())
  state['vit.pooler.dense.weight'] = torch.ones(WIDTH, WIDTH)
  state['vit.pooler.dense.bias'] = torch.ones(WIDTH)
  torch.save(state, tmp_path / 'pytorch_model.bin')
  theirs.config.save_pretrained(tmp_path)
  model = open_(tmp_path)
  assert model.report.unused == ['vit.pooler.dense.weight', 'vit.pooler.dense.bias']
  image = images(32)
  np.testing.assert_array_equal(model(image), open_(folder)(image))


# -- Out.


@pytest.mark.parametrize('name', EXPORTED)
def test_transformers_opens_what_is_written_and_gives_its_own_numbers(saved, tmp_path, name):
  theirs, folder = saved(name)
  arrays = export(open_(folder), tmp_path / 'out')
  kind = json.loads((tmp_path / 'out' / 'config.json').read_text())['architectures'][0]
  kwargs = (
    {} if kind != 'ViTModel' or 'pooler.dense.bias' in arrays else {'add_pooling_layer': False}
  )
  again, info = getattr(transformers, kind).from_pretrained(
    tmp_path / 'out', output_loading_info=True, **kwargs
  )
  assert not any(info.values()), info
  patch = open_(folder).objective.encoder.patch[0]
  image = images(3 * patch, 6 * patch)
  ours, our_blocks = peer(again.eval(), image)
  expected, blocks = peer(theirs, image)
  for mine, other in zip(our_blocks, blocks, strict=True):
    np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
  if kind != 'ViTModel' or 'pooler.dense.bias' in arrays:
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', EXPORTED)
def test_export_gives_the_file_back(saved, tmp_path, name):
  _, folder = saved(name)
  file, model = open_tensors(folder / 'model.safetensors'), open_(folder)
  arrays = export(model, tmp_path / 'out')
  # One tower alone has no prefix since version 5; with one, every version opens it.
  theirs = {re.sub('^vision_model[.]', '', key): key for key in file}
  written = {re.sub('^vision_model[.]', '', key) for key in arrays}
  if name.startswith(('clip', 'siglip')):
    assert all(key.startswith('vision_model.') for key in arrays)
  lost = {key for short, key in theirs.items() if short not in written}
  assert lost <= set(model.report.unused)
  for key, array in arrays.items():
    short = re.sub('^vision_model[.]', '', key)
    if short.endswith('mask_token'):
      assert not array.any()
    elif short not in theirs:
      assert name == 'vit without biases' and not array.any()
    else:
      np.testing.assert_array_equal(array, file[theirs[short]])


@pytest.mark.parametrize('name', ['dinov2', 'dinov2 with registers'])
def test_a_head_on_the_class_token_of_dinov2(saved, tmp_path, name):
  model = open_(saved(name)[1], num_classes=CLASSES, classes=tuple('abcde'[:CLASSES]))
  rng = np.random.default_rng(0)
  head = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), model.params['head'])
  model.variables['params']['head'] = head
  export(model, tmp_path / 'out')
  theirs, info = transformers.AutoModelForImageClassification.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(info.values()), info
  image = images(4 * model.objective.encoder.patch[0])
  model = open_(tmp_path / 'out', image_size=image.shape[1])
  assert model.has_head
  close(model(image, preprocessed=True), peer(theirs.eval(), image)[0])


def test_what_is_written_is_read_again(saved, tmp_path):
  model = open_(saved('dinov2 with registers')[1])
  export(model, tmp_path / 'out')
  again = load(tmp_path / 'out', progress=False)
  assert again.spec == model.spec
  image = images(60, 80)
  np.testing.assert_array_equal(again(image), model(image))


def test_how_images_are_normalised_is_written_where_it_is_known(saved):
  folder = saved('vit')[1]
  assert list(hf.companions(load(folder, progress=False))) == ['config.json']
  model = open_(folder)
  images_file = hf.companions(model)['preprocessor_config.json']
  assert (images_file['image_mean'], images_file['image_std']) == (list(MEAN), list(STD))
  model.spec = {key: x for key, x in model.spec.items() if key not in ('mean', 'std')}
  assert hf.companions(model)['preprocessor_config.json'] == images_file


@pytest.mark.parametrize(
  ('name', 'fields', 'match'),
  [
    ('vit', dict(pooling='mean'), "ViT has no place for pooling='mean'; it takes 'token'"),
    ('vit', dict(pre_logits=8), 'ViT has no place for pre_logits=8; it takes None'),
    ('dinov2', dict(qk_norm=True), 'DINOv2 has no place for qk_norm=True'),
    ('dinov2', dict(layer_scale=None, registers=2), 'DINOv2 has LayerScale in every block'),
    ('dinov2', dict(mlp_dim=40), 'a multiple of the width, not 40'),
    ('clip', dict(pooling='map'), "CLIP has no place for pooling='map'; it takes 'token'"),
    ('siglip', dict(pre_logits=8), 'SigLIP has no place for pre_logits=8'),
    ('siglip', dict(variant='R26+S/32', patch_size=None), 'a plain ViT, not a ViT with a stem'),
  ],
)
def test_what_transformers_has_no_place_for_is_refused(saved, name, fields, match):
  model = open_(saved(name)[1])
  classes = CLASSES if model.has_head else None
  with pytest.raises(ValueError, match=match):
    hf.export_rules(model.objective.encoder.clone(**fields), classes)


def test_a_bias_of_the_patches_is_no_part_of_clip(saved, tmp_path):
  model = open_(saved('clip')[1], encoder=dict(patch_bias=True))
  model.params['encoder']['embedding']['bias'] += 1
  with pytest.raises(ValueError, match="'params/encoder/embedding/bias' is not 0"):
    export(model, tmp_path / 'out')
