"""The published checkpoints: their figures against the models and the libraries that have them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import vit_jax
from vit_jax.adapters import published as module
from vit_jax.adapters.published import list_checkpoints, published
from vit_jax.models.vit import ViT

ROWS = list(module._read().values())
VIT_ROWS = [row for row in ROWS if row.format in ('vision_transformer', 'big_vision')]
TIMM_ROWS = [row for row in ROWS if row.format == 'timm']
HUB_ROWS = [row for row in ROWS if row.format == 'transformers']
CLIP_ROWS = [row for row in ROWS if row.format == 'open_clip']
CLASSES = {'ImageNet-21k': 21843, 'ImageNet-1k': 1000, 'ImageNet-21k, then ImageNet-1k': 1000}

# In MiB, from the README of google-research/vision_transformer.
SIZES = {
  'augreg/L/16-i21k': 1243,
  'augreg/B/16-i21k': 391,
  'augreg/S/16-i21k': 115,
  'augreg/R50+L/32-i21k': 1337,
  'augreg/R26+S/32-i21k': 170,
  'augreg/Ti/16-i21k': 37,
  'augreg/B/32-i21k': 398,
  'augreg/S/32-i21k': 118,
  'augreg/R+Ti/16-i21k': 40,
}

# Width, depth, heads and hidden features of the MLP.
WIDTHS = {
  'S': (384, 12, 6, 1536),
  'B': (768, 12, 12, 3072),
  'L': (1024, 24, 16, 4096),
  'So400m': (1152, 27, 16, 4304),
}
# Of CLIP's text towers; SigLIP's are of the size of its image towers.
TEXT_WIDTHS = {'B': (512, 12, 8, 2048), 'L': (768, 12, 12, 3072)}
# Where SigLIP's texts are not of 64 tokens; so in open_clip's config of the same weights.
CONTEXTS = {'siglip/So400m/14-224': 16}
# What transformers calls them.
FAMILIES = {
  'dinov2': 'Dinov2',
  'dinov2-registers': 'Dinov2WithRegisters',
  'clip': 'CLIP',
  'siglip': 'Siglip',
}


def ids(rows):
  return [row.name for row in rows]


def patch(row):
  return int(row.variant.partition('/')[2])


def test_names_are_unique():
  text = Path(module.__file__).with_name('published.csv').read_text(encoding='utf-8')
  assert len(text.splitlines()) == len(ROWS) + 1


@pytest.mark.parametrize('row', ROWS, ids=ids(ROWS))
def test_a_row_is_well_formed(row):
  assert row.format in ('vision_transformer', 'big_vision', 'timm', 'transformers', 'open_clip')
  assert row.data in (*CLASSES, 'LVD-142M', 'WIT-400M', 'WebLI')
  assert re.fullmatch(
    r'https://storage\.googleapis\.com/\S+\.npz|hf://[\w-]+/[\w.-]+(/open_clip_model.safetensors)?',
    row.location,
  )
  assert re.fullmatch(r'https://\S+', row.source)
  assert row.accuracy is None or (60 < row.accuracy < 90 and row.data.endswith('ImageNet-1k'))
  if row.data in CLASSES:
    assert ('-i21k' if row.data == 'ImageNet-21k' else '-i1k') in row.name
  if row.variant.startswith('ResNet-'):
    assert f'/{row.variant.removeprefix("ResNet-")}-' in row.name
    return
  assert row.resolution in (224, 518) or row.name.endswith(f'-{row.resolution}')
  if row.format == 'open_clip':
    assert f'/{row.variant}' in row.name
    return
  assert row.resolution % patch(row) == 0
  assert f'/{row.variant}'.replace('R+Ti/32', 'R+Ti/16') in row.name


@pytest.mark.parametrize('row', VIT_ROWS, ids=ids(VIT_ROWS))
def test_our_model_has_as_many_parameters(row):
  encoder = ViT(row.variant, scan=True)
  if row.name.startswith('vit/') and row.data == 'ImageNet-21k':
    encoder = encoder.clone(pre_logits=encoder.size.width)  # Section 3.1, arXiv:2010.11929.
  if row.format == 'big_vision':  # Its configs/vit_s16_i1k.py.
    encoder = encoder.clone(pooling='mean', positions='sincos2d', pre_logits=384)
  image = jax.ShapeDtypeStruct((1, row.resolution, row.resolution, 3), jnp.float32)
  variables, out = jax.eval_shape(
    lambda image: encoder.init_with_output(jax.random.key(0), image, train=False)[::-1], image
  )
  head = (out.pooled.shape[1] + 1) * CLASSES[row.data]
  assert sum(x.size for x in jax.tree.leaves(variables)) + head == row.parameters


@pytest.mark.parametrize('name', SIZES)
def test_a_published_file_is_of_that_size(name):
  # float32; the file has names too, and its size was rounded.
  assert abs(4 * published(name).parameters / 2**20 - SIZES[name]) < 0.75


@pytest.mark.parametrize('row', TIMM_ROWS, ids=ids(TIMM_ROWS))
def test_timm_has_that_model(row):
  torch, timm = (pytest.importorskip(name) for name in ('torch', 'timm'))
  name = row.location.removeprefix('hf://timm/')
  with torch.device('meta'):
    model = timm.create_model(name)
  assert sum(p.numel() for p in model.parameters()) == row.parameters
  config = timm.get_pretrained_cfg(name)
  assert config.hf_hub_id in (f'timm/{name}', 'timm/')
  assert row.resolution == (config.test_input_size or config.input_size)[1]
  if not row.variant.startswith('ResNet-'):
    return
  import torchvision

  weights = torchvision.models.get_model_weights(row.variant.replace('-', '').lower())
  weights = next(w for w in weights if w.url == config.url)
  assert weights.meta['_metrics']['ImageNet-1K']['acc@1'] == row.accuracy
  assert weights.meta['num_params'] == row.parameters


def test_timm_converts_the_same_files():
  timm = pytest.importorskip('timm')
  configs = map(timm.get_pretrained_cfg, timm.list_models('vit_*', pretrained=True))
  there = {config.url: config for config in configs}
  rows = [row for row in VIT_ROWS if row.source.startswith('https://github.com/huggingface/')]
  rows = [row for row in rows if row.name.startswith(('augreg', 'sam'))]
  assert len(rows) == 14
  for row in rows:
    assert there[row.location].input_size == (3, row.resolution, row.resolution)
    assert there[row.location].num_classes == CLASSES[row.data]


def sizes_of(widths):
  width, depth, heads, hidden = widths
  return dict(
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    intermediate_size=hidden,
  )


@pytest.mark.parametrize('row', CLIP_ROWS, ids=ids(CLIP_ROWS))
def test_open_clip_has_that_model(row):
  torch, open_clip = (pytest.importorskip(name) for name in ('torch', 'open_clip'))
  config = open_clip.get_model_config(row.variant)
  with torch.device('meta'):
    model = open_clip.model.CLIP(**config)
  assert sum(p.numel() for p in model.parameters()) == row.parameters
  assert row.resolution == config['vision_cfg']['image_size']
  repository = open_clip.get_pretrained_cfg(row.variant, 'openai')['hf_hub']
  assert row.location == f'hf://{repository}open_clip_model.safetensors'


@pytest.mark.parametrize('row', HUB_ROWS, ids=ids(HUB_ROWS))
def test_transformers_has_as_many_parameters(row):
  torch, transformers = (pytest.importorskip(name) for name in ('torch', 'transformers'))
  family = FAMILIES[row.name.partition('/')[0]]
  size = row.variant.partition('/')[0]
  fields = dict(image_size=row.resolution, patch_size=patch(row), **sizes_of(WIDTHS[size]))
  if family == 'CLIP':
    text = TEXT_WIDTHS[size]
    fields = dict(text_config=sizes_of(text), vision_config=fields, projection_dim=text[0])
  elif family == 'Siglip':
    text = dict(sizes_of(WIDTHS[size]), max_position_embeddings=CONTEXTS.get(row.name, 64))
    fields = dict(text_config=text, vision_config=fields)
  config = getattr(transformers, f'{family}Config')(**fields)
  with torch.device('meta'):
    model = getattr(transformers, f'{family}Model')(config)
  # DINOv2's mask token is for training alone.
  sizes = {k: p.numel() for k, p in model.named_parameters() if not k.endswith('.mask_token')}
  assert sum(sizes.values()) == row.parameters


def test_a_name_gives_its_row():
  row = published('augreg/B/16-i1k-384')
  assert row == module.Published(
    'augreg/B/16-i1k-384',
    'B/16',
    'vision_transformer',
    'ImageNet-21k, then ImageNet-1k',
    384,
    86_859_496,
    'https://storage.googleapis.com/vit_models/augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-'
    'do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384.npz',
    85.49,
    'https://github.com/google-research/vision_transformer#available-vit-models',
  )


def test_an_unknown_name_shows_those_like_it():
  with pytest.raises(ValueError, match=r"unknown checkpoint 'augreg/B16-i21k'; did you mean 'augr"):
    published('augreg/B16-i21k')
  with pytest.raises(ValueError, match=r"checkpoint 'nothing'; choose from 'vit/.* and \d+ more"):
    published('nothing')


def test_the_table_of_a_variant(capsys):
  rows = vit_jax.list_checkpoints('R50+L/32')
  assert ids(rows) == ['augreg/R50+L/32-i21k', 'augreg/R50+L/32-i1k', 'augreg/R50+L/32-i1k-384']
  header, rule, first, _, third, *rest = capsys.readouterr().out.splitlines()
  columns = ['name', 'variant', 'data', 'resolution', 'parameters', 'accuracy', 'source']
  assert header.split() == columns
  assert set(rule) == {'-'}
  assert len(rule) == len(header)
  assert first.split() == [
    'augreg/R50+L/32-i21k',
    'R50+L/32',
    'ImageNet-21k',
    '224',
    '350.4M',
    '[1]',
  ]
  assert re.split('  +', third) == [
    'augreg/R50+L/32-i1k-384', 'R50+L/32', 'ImageNet-21k, then ImageNet-1k', '384', '329.1M',
    '85.99%', '[1]',
  ]  # fmt: skip
  assert third.index('85.99%') + 6 == header.index('accuracy') + 8  # to the right
  assert third.index('[1]') == first.index('[1]') == header.index('source')
  assert rest == [
    '',
    'accuracy: top-1 on ImageNet-1k, as published',
    f'[1] {rows[0].source}',
    f'[2] {rows[1].source}',
  ]


def test_without_a_variant_the_table_has_all(capsys):
  rows = list_checkpoints()
  lines = capsys.readouterr().out.splitlines()
  assert rows == ROWS
  assert [line.split()[0] for line in lines[2 : 2 + len(ROWS)]] == ids(ROWS)
  assert lines[2 + len(ROWS)] == ''


def test_an_unknown_variant_shows_those_there_are(capsys):
  with pytest.raises(
    ValueError, match=r"unknown variant 'B16'; choose from .*'B/16', .*'ResNet-50'"
  ):
    list_checkpoints('B16')
  assert capsys.readouterr().out == ''


def test_a_list_imports_nothing_large():
  large = ('numpy', 'jax', 'flax', 'fsspec', 'torch')
  code = f"""
import sys, vit_jax
vit_jax.list_checkpoints('B/16')
print([m for m in {large!r} if m in sys.modules])
"""
  environment = {**os.environ, 'PYTHONPATH': str(Path(vit_jax.__file__).parents[1])}
  out = subprocess.check_output([sys.executable, '-c', code], env=environment, text=True)
  assert out.splitlines()[-1] == '[]'
