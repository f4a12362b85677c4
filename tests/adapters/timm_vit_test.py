"""Vision Transformers that timm made, saved and opens: the same numbers in, and out again."""

import copy
import math
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax.adapters import formats, write
from vit_jax.adapters import timm as ours
from vit_jax.adapters.layout import Facts
from vit_jax.adapters.tensors import Tensors, open_tensors
from vit_jax.adapters.timm_models import architecture_of
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.models.transformer import ACTIVATIONS
from vit_jax.models.vit import ViT
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
hub = pytest.importorskip('timm.models._hub')
from timm.data import resolve_data_config  # noqa: E402 (after the skip)

REFUSED = "which no model here has|has no '(norm|blocks.0.norm1).bias'|is of no known format"
MODULES = ('vision_transformer', 'vision_transformer_hybrid', 'deit')

WIDTH, DEPTH, CLASSES = 32, 2, 3
SIZES = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=4, mlp_ratio=1.5, num_classes=CLASSES)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def sizes(patch, **fields):
  return dict(SIZES, patch_size=patch, img_size=4 * patch, **fields)


# By name: timm's function, and what differs from its arguments.
PEERS = {
  'deit': ('deit_tiny_patch16_224', sizes(16)),
  'no head': ('vit_base_patch8_224', sizes(8) | dict(num_classes=0)),
  'mean': ('vit_base_patch16_224', sizes(8, global_pool='avg', class_token=False)),
  'mean beside a class token': ('eva_large_patch14_196', sizes(14)),
  'mean of normed tokens': ('vit_base_patch16_siglip_gap_224', sizes(8)),
  'mean, class token, registers': (
    'vit_base_patch16_224', sizes(8, global_pool='avg', fc_norm=False, reg_tokens=2),
  ),
  'deit3': ('deit3_small_patch16_224', sizes(8)),
  'dinov2': ('vit_small_patch14_dinov2', sizes(14)),
  'dinov2 with registers': ('vit_small_patch14_reg4_dinov2', sizes(14)),
  'registers with positions': ('vit_base_patch16_224', sizes(8, reg_tokens=3)),
  'registers and mean': ('vit_base_patch16_reg4_gap_256', sizes(8)),
  'without biases': ('vit_base_patch16_224_miil', sizes(8)),
  'norm of queries and keys': ('vit_base_patch16_224', sizes(8, qk_norm=True)),
  'clip': ('vit_base_patch32_clip_224', sizes(32)),
  'clip of openai': ('vit_base_patch16_clip_quickgelu_224', sizes(8)),
  'siglip': ('vit_base_patch32_siglip_256', sizes(32)),
  'map and registers': ('vit_so150m_patch16_reg4_map_256', sizes(8)),
}  # fmt: skip
HYBRIDS = {
  'R': ('vit_tiny_r_s16_p8_224', dict(SIZES, patch_size=4, img_size=64)),
  'R26': ('vit_small_r26_s32_224', dict(SIZES, img_size=32)),
}
# Of these, our arrays are not theirs: a class token or a register has its position added.
FOLDED = {
  'deit3', 'mean beside a class token', 'mean, class token, registers', 'registers with positions',
  'map and registers',
}  # fmt: skip


def make(name, noise=0.1, **more):
  architecture, fields = {**PEERS, **HYBRIDS}.get(name, (name, {}))
  model = timm.create_model(architecture, **{**fields, **more}).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for key, parameter in model.named_parameters():  # Nothing stays at 0 or 1, and hides an error.
      if not key.endswith(('q_norm.bias', 'k_norm.bias')):
        parameter += noise * torch.randn(parameter.shape, generator=generator)
  return model


def save(model, folder):
  hub.save_for_hf(model, folder, safe_serialization=True, data_config=dict(mean=MEAN, std=STD))
  return folder


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function from a name of `PEERS` or `HYBRIDS` to the model and its folder."""
  made = {}

  def get(name):
    if name not in made:
      model = make(name)
      made[name] = model, save(model, tmp_path_factory.mktemp('peer'))
    return made[name]

  return get


def open_(folder, **kwargs):
  return load(folder, progress=False, **kwargs)


def images(height, width=None):
  shape = 2, height, width or height, 3
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def normalized(image):
  return ((image / 255 - MEAN) / STD).astype(np.float32)


@torch.no_grad()
def peer(model, image):
  """Its logits, or pooled features, and the tokens after each block."""
  outputs = []
  hooks = [b.register_forward_hook(lambda _, __, out: outputs.append(out)) for b in model.blocks]
  out = model(torch.tensor(normalized(image).transpose(0, 3, 1, 2).copy()))
  for hook in hooks:
    hook.remove()
  return out.numpy(), [tokens.numpy() for tokens in outputs]


def resized(model, height, width):
  """The peer for other images, its positions interpolated by its own code."""
  model = copy.deepcopy(model)
  model.set_input_size((height, width))
  return model


def error(mine, other):
  assert mine.shape == other.shape
  return np.abs(mine - other).max() / np.abs(other).max()


def errors(model, theirs, image):
  """Relative errors of the logits, and of the patches' tokens after each block."""
  result, blocks = peer(theirs, image)
  method = 'logits' if model.has_head else 'features'
  objective, depth = model.objective, len(blocks)

  @jax.jit
  def apply(variables, image, x):
    params = {'params': variables['params']['encoder']}
    return (
      objective.apply(variables, {'image': image}, method=method),
      objective.encoder.apply(params, x, train=False, blocks=range(depth)).blocks,
    )

  out, tokens = apply(model.variables, image, normalized(image))
  return [error(np.asarray(out), result)] + [
    error(np.asarray(mine), other[:, -mine.shape[1] :])
    for mine, other in zip(tokens, blocks, strict=True)
  ]


def check_like(model, theirs, image):
  found = errors(model, theirs, image)
  assert len(found) == 1 + model.objective.encoder.size.depth
  assert max(found) < 1e-4, found


def export(model, folder):
  model.save(folder, 'timm')
  return dict(open_tensors(folder / 'model.safetensors'))


# -- In.


@pytest.mark.parametrize('name', PEERS)
def test_numbers_are_those_of_timm(saved, name):
  theirs, folder = saved(name)
  model = open_(folder)
  report = model.report
  assert not (report.missing or report.resized or report.unused)
  check_like(model, theirs, images(*model.preprocessing.size))


@pytest.mark.parametrize('name', ['deit', 'deit3', 'dinov2 with registers', 'siglip'])
def test_numbers_at_another_resolution_are_those_of_timm(saved, name):
  theirs, folder = saved(name)
  patch = open_(folder).objective.encoder.patch[0]
  size = 3 * patch, 6 * patch  # fewer rows, more columns
  model = open_(folder, image_size=size)
  assert list(model.report.resized) == ['params/encoder/pos_embedding']
  check_like(model, resized(theirs, *size), images(*size))


@pytest.mark.parametrize('name', HYBRIDS)
def test_hybrids_give_the_numbers_of_timm(saved, name):
  theirs, folder = saved(name)
  model = open_(folder)
  assert model.objective.encoder.stem_constants == 'timm'
  assert not (model.report.missing or model.report.unused)
  check_like(model, theirs, images(*model.preprocessing.size))


def test_a_published_size_at_its_own_and_at_another_resolution(tmp_path):
  theirs = make('vit_tiny_patch16_224', noise=0.02)
  model = open_(save(theirs, tmp_path))
  assert model.spec['encoder']['variant'] == 'Ti/16'
  check_like(model, theirs, images(224))
  check_like(open_(tmp_path, image_size=160), resized(theirs, 160, 160), images(160))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['small', 'base', 'large'])
def test_larger_published_sizes(tmp_path, name):
  theirs = make(f'vit_{name}_patch16_224', noise=0.02)
  folder = save(theirs, tmp_path)
  native = errors(open_(folder), theirs, images(224))
  other = errors(open_(folder, image_size=160), resized(theirs, 160, 160), images(160))
  assert max(native + other) < 1e-4, (native, other)


def test_images_and_patches_that_are_no_squares_of_one_channel(tmp_path):
  fields = dict(SIZES, img_size=(32, 48), patch_size=(8, 16), in_chans=1)
  theirs = make('vit_base_patch16_224', **fields)
  hub.save_for_hf(theirs, tmp_path, safe_serialization=True, data_config=dict(mean=[0.5], std=[1]))
  model = open_(tmp_path)
  assert (model.preprocessing.size, model.preprocessing.channels) == ((32, 48), 1)
  assert (model.spec['encoder']['grid'], model.objective.encoder.patch) == ((4, 3), (8, 16))
  image = images(32, 48)[..., :1]
  with torch.no_grad():
    expected = theirs(torch.tensor(image.transpose(0, 3, 1, 2) / 255 - 0.5).float()).numpy()
  out = model(image, preprocessed=True)
  assert error(out, expected) < 1e-4


# -- What arrays do not say.

# Of each kind that shapes alone leave open: architecture, heads, activation, epsilon.
NAMES = {
  'vit_small_patch16_224': (6, 'gelu', 1e-6),
  'vit_medium_patch16_gap_256': (8, 'gelu', 1e-6),
  'vit_base_patch16_gap_224': (16, 'gelu', 1e-6),
  'vit_base_patch32_clip_quickgelu_224': (12, 'quick_gelu', 1e-5),
  'vit_base_patch16_siglip_224': (12, 'gelu', 1e-6),
  'vit_base_patch32_siglip_gap_256': (12, 'gelu_tanh', 1e-6),
  'vit_so400m_patch14_siglip_224': (16, 'gelu', 1e-6),
  'vit_so400m_patch16_siglip_gap_256': (16, 'gelu_tanh', 1e-6),
}


def described(architecture, facts=None, files=None):
  """What a model of timm is here, and the model; without weights."""
  model = timm.create_model(architecture, device='meta')
  shapes = {name: (tuple(x.shape), np.dtype('float32')) for name, x in model.state_dict().items()}
  if files is None:
    size = list(model.pretrained_cfg['input_size'])
    files = {'config.json': dict(architecture=architecture, pretrained_cfg=dict(input_size=size))}
  tensors = Tensors('a.safetensors', shapes, lambda name: np.zeros(shapes[name][0], np.float32))
  if not ours.matches(tensors):
    raise ValueError(f'{architecture} is of no known format')
  return ours.describe(tensors, Facts(facts or {}), files), model


def check_described(layout, model):
  """Whether fields and names are those of timm's model; its activation by its values."""
  encoder, block = build(layout.encoder), model.blocks[0]
  sizes = model.embed_dim, len(model.blocks), block.mlp.fc1.out_features, block.attn.num_heads
  assert encoder.size == sizes
  assert encoder.ln_eps == block.norm1.eps
  x = np.linspace(-3, 3, 61, dtype=np.float32)
  expected = block.mlp.act(torch.tensor(x)).numpy()
  np.testing.assert_allclose(ACTIVATIONS[encoder.activation](x), expected, atol=1e-6)
  grid, patch = model.patch_embed.grid_size, encoder.patch
  assert tuple(encoder.grid) == grid
  assert layout.preprocessing.size == tuple(g * p for g, p in zip(grid, patch, strict=True))
  assert encoder.norm_after_pooling == (not isinstance(model.fc_norm, torch.nn.Identity))
  pooling = {'token': 'token', 'avg': 'mean', 'map': 'map'}[model.global_pool]
  assert encoder.pooling == pooling
  assert {name for rule in layout.rules for name in rule.theirs} == set(model.state_dict())


@pytest.mark.parametrize('name', NAMES)
def test_an_architecture_says_what_its_arrays_do_not(name):
  layout, model = described(name)
  encoder = build(layout.encoder)
  assert (encoder.size.num_heads, encoder.activation, encoder.ln_eps) == NAMES[name]
  check_described(layout, model)


@pytest.mark.slow
def test_every_vision_transformer_of_timm_is_described_or_refused():
  names = [name for m in MODULES for name in timm.list_models(module=m)]
  refused = []
  for name in names:
    try:
      layout, model = described(name)
    except ValueError as e:
      assert re.search(REFUSED, str(e)), e
      refused.append(name)
    else:
      check_described(layout, model)
  assert len(names) - len(refused) >= 140
  assert {'vit_giant_patch14_dinov2', 'deit_base_distilled_patch16_224'} <= set(refused)


@pytest.mark.parametrize(
  ('name', 'facts'),
  [
    ('vit_medium_patch16_clip_224', ('activation', 'ln_eps')),
    ('vit_base_patch16_siglip_224', ('activation',)),
    ('vit_base_patch16_siglip_gap_224', ('activation',)),
    ('vit_small_patch14_reg4_dinov2', ()),
    ('deit_tiny_patch16_224', ()),
  ],
)
def test_without_config_json_what_nobody_says_is_asked_for(name, facts):
  values = dict(activation='quick_gelu', ln_eps=1e-3)
  said = {}
  for fact in facts:
    with pytest.raises(ValueError, match=f'a.safetensors does not say its {fact}; pass {fact}='):
      described(name, said, {})
    said[fact] = values[fact]
  layout, _ = described(name, said, {})
  assert {fact: layout.encoder[fact] for fact in facts} == said
  assert layout.objective['mean'] is None
  assert layout.preprocessing.crop_share is None


def test_heads_of_an_unknown_size_are_asked_for(saved, tmp_path):
  theirs, folder = saved('deit')
  shutil.copy(folder / 'model.safetensors', tmp_path)
  with pytest.raises(ValueError, match='does not say its num_heads; pass num_heads='):
    open_(tmp_path)
  model = open_(tmp_path, num_heads=4, mean=MEAN, std=STD)
  check_like(model, theirs, images(64))


def test_a_grid_that_is_no_square_is_asked_for(tmp_path):
  theirs = make('vit_base_patch16_224', **dict(sizes(8), img_size=(32, 56)))
  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  with pytest.raises(ValueError, match='does not say its grid, of 29 positions; pass grid='):
    open_(tmp_path / 'a.pth', num_heads=4)
  with pytest.raises(ValueError, match=r'has 29 positions, which are not those of grid=\(5, 6\)'):
    open_(tmp_path / 'a.pth', num_heads=4, grid=(5, 6))
  model = open_(tmp_path / 'a.pth', num_heads=4, grid=(4, 7), mean=MEAN, std=STD)
  check_like(model, theirs, images(32, 56))


def test_pooling_may_be_another_than_the_files(saved):
  theirs, folder = saved('deit')
  model = open_(folder, pooling='mean')
  image = images(64)
  x = torch.tensor(normalized(image).transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = theirs.forward_features(x)[:, 1:].mean(1).numpy()
  assert error(model.features(image, preprocessed=True), expected) < 1e-4
  with pytest.raises(ValueError, match="has not the arrays of pooling 'map', but of 'token'"):
    open_(folder, pooling='map')


# -- Refused.


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('deit_tiny_distilled_patch16_224', r"'dist_token' \(DeiT's second token, of distillation\)"),
    ('vit_giant_patch14_dinov2', 'a SwiGLU MLP'),
    ('vit_relpos_small_patch16_224', r"attn.rel_pos.mlp.fc1.weight' \(relative positions\)"),
    ('beit3_base_patch16_224', 'a norm inside the attention'),
    ('vit_small_resnet26d_224', 'a ResNet of another kind'),
    ('vit_base_patch16_rpn_224', "config.json has architecture 'vit_base_patch16_rpn_224'"),
    ('vit_base_patch16_radio_v3', "has no 'norm.bias', which its format has"),
  ],
)
def test_another_architecture_is_refused(name, match):
  with pytest.raises(ValueError, match=match):
    described(name)


@pytest.mark.parametrize(
  ('args', 'match'),
  [
    (dict(act_layer='silu'), "act_layer 'silu', which no model here has"),
    (dict(norm_layer='rmsnorm'), "norm_layer 'rmsnorm', which no model here has"),
    (dict(global_pool='avgmax'), "global_pool 'avgmax', which no model here has"),
    (dict(pool_include_prefix=True), 'by which a head looks at registers'),
  ],
)
def test_arguments_that_no_model_here_has_are_refused(args, match):
  files = {'config.json': {'architecture': 'vit_small_patch16_224', 'model_args': args}}
  with pytest.raises(ValueError, match=match):
    described('vit_small_patch16_224', files=files)


def test_a_bias_in_the_norm_of_queries_is_refused(tmp_path):
  theirs = make('norm of queries and keys')
  with torch.no_grad():
    theirs.blocks[1].attn.k_norm.bias += 1
  with pytest.raises(ValueError, match=r"blocks.1.attn.k_norm.bias' in .*: it has a bias that is"):
    open_(save(theirs, tmp_path))


# -- Images.


@pytest.mark.parametrize(
  'config',
  [
    dict(crop_pct=0.88, interpolation='bicubic'),
    dict(crop_pct=1.0, interpolation='bilinear'),
    dict(crop_pct=1.0, crop_mode='squash', interpolation='bicubic'),
    dict(crop_pct=0.8, crop_mode='squash', interpolation='bilinear'),
  ],
)
def test_images_of_any_size_give_timms_numbers(saved, tmp_path, config):
  theirs, _ = saved('deit')
  data = dict(mean=MEAN, std=STD, **config)
  hub.save_for_hf(theirs, tmp_path, safe_serialization=True, data_config=data)
  transform = timm.data.create_transform(**data, input_size=(3, 64, 64))
  image = images(96, 192)[0]
  with torch.no_grad():
    expected = theirs(transform(Image.fromarray(image))[None]).numpy()
  assert error(open_(tmp_path)(image), expected) < 1e-4


def test_sizes_that_the_patch_does_not_divide_are_rounded_down():
  layout, _ = described('vit_so400m_patch14_siglip_384')
  assert layout.preprocessing.size == (378, 378)


@pytest.mark.parametrize(
  ('config', 'match'),
  [
    (dict(crop_mode='border'), "unknown crop_mode 'border'; choose from 'center', 'squash'"),
    (dict(interpolation='hamming'), "unknown interpolation 'hamming'; choose from 'bilinear'"),
  ],
)
def test_what_no_transform_does_is_refused(config, match):
  files = {'config.json': {'architecture': 'vit_tiny_patch16_224', 'pretrained_cfg': config}}
  with pytest.raises(ValueError, match=match):
    described('vit_tiny_patch16_224', files=files)


def test_names_of_classes_are_read_and_written(saved, tmp_path):
  theirs, _ = saved('deit')
  names = ['cat', 'dog', 'bird']
  config = dict(label_names=names)
  hub.save_for_hf(theirs, tmp_path / 'in', safe_serialization=True, model_config=config)
  model = open_(tmp_path / 'in')
  assert model.classes == tuple(names)
  export(model, tmp_path / 'out')
  opened = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
  assert opened.pretrained_cfg['label_names'] == names


# -- Out.


@pytest.mark.parametrize('name', [*PEERS, *HYBRIDS])
def test_timm_opens_what_is_written_and_gives_its_own_numbers(saved, tmp_path, name):
  theirs, folder = saved(name)
  model = open_(folder)
  export(model, tmp_path / 'out')
  again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
  image = images(*model.preprocessing.size)
  out, blocks = peer(again, image)
  expected, their_blocks = peer(theirs, image)
  for mine, other in zip(blocks, their_blocks, strict=True):
    patches = math.prod(again.patch_embed.grid_size)
    np.testing.assert_allclose(mine[:, -patches:], other[:, -patches:], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  data = resolve_data_config(model=again)
  size = {'input_size': (3, *model.preprocessing.size)}
  expected = resolve_data_config(model=theirs) | size | dict(mean=MEAN, std=STD)
  assert {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()} == expected


@pytest.mark.parametrize('name', [*PEERS, *HYBRIDS])
def test_export_gives_the_file_back(saved, tmp_path, name):
  _, folder = saved(name)
  file, model = open_tensors(folder / 'model.safetensors'), open_(folder)
  _, layout = formats.open_checkpoint(folder)
  # By the rules that have read it, always; by those of export, but for what has been added up.
  variables = write.one_by_one(named(model.variables))
  same_rules = dict(write.their_arrays(layout.rules, variables))
  exported = export(model, tmp_path / 'out')
  for arrays in (same_rules, exported) if name not in FOLDED else (same_rules,):
    zeros = set(arrays) - set(file)
    assert name == 'without biases' or not zeros
    assert not any(arrays[key].any() for key in zeros)
    assert set(file) <= set(arrays)
    for key in file:
      if name in FOLDED and key in ('cls_token', 'reg_token', 'pos_embed'):
        continue
      np.testing.assert_array_equal(arrays[key], file[key])


def test_what_is_written_is_read_again(saved, tmp_path):
  model = open_(saved('dinov2 with registers')[1], image_size=42)
  export(model, tmp_path / 'out')
  again = open_(tmp_path / 'out')
  assert again.spec == model.spec
  image = images(60, 80)
  np.testing.assert_array_equal(again(image), model(image))


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (dict(variant='Ti/16'), 'vit_tiny_patch16_224'),
    (dict(variant='L/14'), 'vit_large_patch14_224'),
    (dict(variant='H/16'), 'vit_huge_patch14_224'),
    (dict(variant='B/8', ln_eps=1e-5), 'vit_base_patch16_clip_224'),
    (dict(variant='S/16', ln_eps=1e-5), 'vit_base_patch16_clip_224'),
    (dict(variant='B/16', width=384), 'vit_base_patch16_224'),
    (dict(variant='R50+L/32', stem_constants='timm'), 'vit_large_r50_s32_224'),
  ],
)
def test_the_architecture_that_is_written_is_one_of_timms(fields, expected):
  assert architecture_of(ViT(**fields)) == expected
  assert timm.is_model(expected)


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    (dict(positions='sincos2d', grid=None), "no place for positions='sincos2d'"),
    (dict(pre_logits=8), 'no place for pre_logits=8; it takes None'),
    (dict(conv_stem=(8, 8)), r'no place for conv_stem=\(8, 8\)'),
    (dict(ln_eps=1e-12), 'no place for ln_eps=1e-12; it takes 1e-06 or 1e-05'),
    (dict(variant='R+', patch_size=16), "no place for stem_constants='flax'; it takes 'timm'"),
  ],
)
def test_what_timm_has_no_place_for_is_refused(saved, fields, match):
  encoder = open_(saved('deit')[1]).objective.encoder
  with pytest.raises(ValueError, match=match):
    ours.export_rules(encoder.clone(**fields), CLASSES)


def test_a_bias_of_the_patches_is_no_part_of_clip(saved, tmp_path):
  model = open_(saved('clip')[1], encoder=dict(patch_bias=True))
  model.params['encoder']['embedding']['bias'] += 1
  with pytest.raises(ValueError, match="'params/encoder/embedding/bias' is not 0"):
    export(model, tmp_path / 'out')
