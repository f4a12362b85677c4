"""What 'config.json' says, what it leaves out, and files without one."""

import json

import numpy as np
import pytest

from vit_jax.adapters import hf
from vit_jax.adapters.hf_config import PLACEHOLDER
from vit_jax.adapters.layout import Facts
from vit_jax.adapters.tensors import Tensors

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=12)
SMALL = dict(image_size=32, patch_size=8, **SIZES)
TEXT = dict(SIZES, vocab_size=50)


def shapes(kind, **fields):
  """The names and shapes of a model of transformers, and no numbers."""
  family = kind.removesuffix('ForImageClassification').removesuffix('Model')
  with torch.device('meta'):
    model = getattr(transformers, kind)(getattr(transformers, f'{family}Config')(**fields))
  found = {name: (tuple(x.shape), np.dtype(np.float32)) for name, x in model.state_dict().items()}
  return Tensors('a.safetensors', found, {}.__getitem__), json.loads(model.config.to_json_string())


def describe(tensors, config=None, **facts):
  assert hf.matches(tensors)
  return hf.describe(tensors, Facts(facts), {} if config is None else {'config.json': config})


# -- What it says.


@pytest.mark.parametrize(
  ('theirs', 'ours'),
  [
    ('gelu', 'gelu'), ('gelu_new', 'gelu_tanh'), ('gelu_pytorch_tanh', 'gelu_tanh'),
    ('quick_gelu', 'quick_gelu'),
  ],
)  # fmt: skip
def test_the_activation_and_the_epsilon(theirs, ours):
  tensors, config = shapes('ViTModel', **SMALL, hidden_act=theirs, layer_norm_eps=1e-7)
  encoder = describe(tensors, config).encoder
  assert (encoder['activation'], encoder['ln_eps'], encoder['num_heads']) == (ours, 1e-7, 12)


def test_what_the_caller_says_goes_before_it():
  tensors, config = shapes('ViTModel', **SMALL, hidden_act='relu')
  encoder = describe(tensors, config, activation='gelu', ln_eps=1e-3, num_heads=4).encoder
  assert (encoder['activation'], encoder['ln_eps'], encoder['num_heads']) == ('gelu', 1e-3, 4)
  with pytest.raises(ValueError, match="a.safetensors: config.json has hidden_act 'relu'; known"):
    describe(tensors, config)


def test_classes_are_in_the_order_of_their_numbers():
  names = {i: f'class {i}' for i in range(12)}
  tensors, config = shapes('ViTForImageClassification', **SMALL, id2label=names)
  assert list(config['id2label'])[:3] == ['0', '1', '2']
  config['id2label'] = dict(sorted(config['id2label'].items()))  # '0', '1', '10', '11', '2'
  layout = describe(tensors, config)
  assert layout.objective['num_classes'] == 12
  assert list(layout.classes) == [f'class {i}' for i in range(12)]


def test_placeholders_are_no_names_of_classes():
  tensors, config = shapes('ViTForImageClassification', **SMALL, num_labels=3)
  assert config['id2label'] == {str(i): PLACEHOLDER.format(i) for i in range(3)}
  assert not describe(tensors, config).classes
  assert describe(tensors, config, classes=('a', 'b', 'c')).classes == ('a', 'b', 'c')
  config['id2label'] = {'0': 'a', '1': 'b'}  # of another head
  assert not describe(tensors, config).classes


# -- What it leaves out.


@pytest.mark.parametrize(
  ('kind', 'model_type', 'activation', 'eps'),
  [
    ('ViTModel', 'vit', 'gelu', 1e-12),
    ('ViTMSNModel', 'vit_msn', 'gelu', 1e-6),
    ('Dinov2Model', 'dinov2', 'gelu', 1e-6),
    ('Dinov2WithRegistersModel', 'dinov2_with_registers', 'gelu', 1e-6),
  ],
)
def test_a_key_that_is_left_out_is_the_default_of_transformers(kind, model_type, activation, eps):
  tensors, config = shapes(kind, **SMALL)
  assert config['layer_norm_eps'] == eps
  encoder = describe(tensors, {'model_type': model_type}).encoder
  assert encoder == describe(tensors, config).encoder
  assert (encoder['activation'], encoder['ln_eps'], encoder['num_heads']) == (activation, eps, 12)


@pytest.mark.parametrize(
  ('family', 'activation', 'eps'), [('CLIP', 'quick_gelu', 1e-5), ('Siglip', 'gelu_tanh', 1e-6)]
)
def test_a_tower_has_a_part_of_the_config(family, activation, eps):
  tensors, config = shapes(f'{family}Model', text_config=TEXT, vision_config=SMALL)
  kind = family.lower()
  whole = describe(tensors, config, tower='image').encoder
  assert (whole['activation'], whole['ln_eps'], whole['num_heads']) == (activation, eps, 12)
  for part in ({}, {'model_type': f'{kind}_vision_model'}):
    assert (
      describe(tensors, {'model_type': kind, 'vision_config': part}, tower='image').encoder == whole
    )
  assert describe(tensors, {'model_type': kind}, tower='image').encoder == whole
  twice = {'model_type': kind, 'vision_config': {}, 'vision_config_dict': {'hidden_act': 'gelu'}}
  assert describe(tensors, twice, tower='image').encoder['activation'] == 'gelu'


# -- Without it.


@pytest.mark.parametrize(('kind', 'eps'), [('ViTModel', 1e-12), ('Dinov2Model', 1e-6)])
def test_without_a_config_a_published_size_says_the_heads(kind, eps):
  sizes = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
  mlp = {} if 'Dino' in kind else dict(intermediate_size=1536)
  tensors, _ = shapes(kind, **sizes, **mlp, image_size=56, patch_size=14)
  encoder = describe(tensors).encoder
  assert encoder['variant'] == 'S/14'
  assert (encoder['activation'], encoder['ln_eps'], encoder['grid']) == ('gelu', eps, (4, 4))


def test_without_a_config_another_size_needs_its_heads():
  tensors, _ = shapes('ViTModel', **SMALL)
  with pytest.raises(ValueError, match='a.safetensors does not say its num_heads; pass num_heads='):
    describe(tensors)
  assert describe(tensors, num_heads=3).encoder['num_heads'] == 3


def test_without_a_config_clips_differ_too_much():
  tensors, _ = shapes('CLIPModel', text_config=TEXT, vision_config=SMALL)
  with pytest.raises(ValueError, match='does not say its activation'):
    describe(tensors, tower='image', num_heads=12)
  with pytest.raises(ValueError, match='does not say its ln_eps'):
    describe(tensors, tower='image', num_heads=12, activation='quick_gelu')
  said = dict(tower='image', num_heads=12, activation='quick_gelu', ln_eps=1e-5)
  assert describe(tensors, **said).encoder['pre_norm']


def test_a_grid_that_is_no_square_is_asked_for():
  tensors, config = shapes('ViTModel', **{**SMALL, 'image_size': [32, 48]})
  assert describe(tensors, config).encoder['grid'] == (4, 6)
  with pytest.raises(ValueError, match='does not say its grid, of 24 patches'):
    describe(tensors, num_heads=12)
  assert describe(tensors, num_heads=12, grid=(6, 4)).encoder['grid'] == (6, 4)


# -- Other architectures.


@pytest.mark.parametrize(
  ('kind', 'fields', 'match'),
  [
    ('DeiTForImageClassification', {}, "'deit.embeddings.distillation_token'.*of distillation"),
    ('DeiTModel', {}, "'embeddings.distillation_token'"),
    ('Dinov2Model', dict(use_swiglu_ffn=True), "'encoder.layer.0.mlp.*SwiGLU"),
    ('BeitModel', dict(use_relative_position_bias=True), "'layers.0..*which no model here has"),
    ('YolosModel', dict(image_size=[32, 32]), "'embeddings.detection_tokens'.*tokens of detection"),
  ],
)
def test_other_architectures_are_refused_by_an_array_of_theirs(kind, fields, match):
  tensors, config = shapes(kind, **{**SMALL, **fields})
  for known in (config, None):
    with pytest.raises(ValueError, match=f'a.safetensors has {match}'):
      describe(tensors, known)


def test_another_type_of_model_by_the_same_names_is_refused():
  tensors, config = shapes('ViTModel', **SMALL)
  config['model_type'] = 'dpt'
  with pytest.raises(ValueError, match="model_type 'dpt'; with these names it can be 'vit', "):
    describe(tensors, config)


def test_a_pooler_with_another_activation_is_refused():
  tensors, config = shapes('ViTModel', **SMALL, pooler_act='relu')
  with pytest.raises(ValueError, match='a.safetensors: config.json has a pooler_act that is not'):
    describe(tensors, config)


@pytest.mark.parametrize(
  'name', ['embeddings.position_embeddings', 'layers.0.mlp.fc1.weight', 'pooler.dense.bias']
)
def test_a_missing_array_is_a_sentence_that_names_it(name):
  tensors, config = shapes('ViTModel', **SMALL)
  del tensors.shapes[name]
  with pytest.raises(ValueError, match=f'a.safetensors has no {name!r}, which its format has'):
    describe(tensors, config)


def test_patches_that_are_a_matrix_are_refused():
  vision = {key: value for key, value in SMALL.items() if key != 'image_size'}
  tensors, _ = shapes('Siglip2Model', text_config=TEXT, vision_config=vision)
  with pytest.raises(ValueError, match=r'is \[48, 192\], which is no convolution'):
    describe(tensors)


@pytest.mark.parametrize('kind', ['ConvNextModel', 'SwinModel', 'BertModel'])
def test_files_of_other_models_are_not_taken_for_these(kind):
  tensors, _ = shapes(kind)
  assert not hf.matches(tensors)
