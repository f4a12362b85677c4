import re
import sys

import ml_collections
import pytest

from vit_jax.build import build, resolve
from vit_jax.models.vit import ViT
from vit_jax.objectives.supervised import Supervised

pytestmark = pytest.mark.smoke

ENCODER = dict(
  type='models.vit.ViT', patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=8, pooling='mean'
)


def mistake(spec, **extra) -> str:
  """The one sentence that building `spec` ends in."""
  with pytest.raises(ValueError) as error:
    build(spec, **extra)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A function that writes modules of somebody's package, 'theirs', which can then be imported."""
  monkeypatch.syspath_prepend(str(tmp_path))
  folder = tmp_path / 'theirs'
  folder.mkdir()

  def write(**modules: str) -> None:
    for name, text in {'__init__': '', **modules}.items():
      (folder / f'{name}.py').write_text(text)

  yield write
  for name in [n for n in sys.modules if n.partition('.')[0] == 'theirs']:
    del sys.modules[name]


# -- What is built.


@pytest.mark.parametrize(
  'spec_type', [dict, ml_collections.ConfigDict, ml_collections.FrozenConfigDict]
)
def test_nested_specs_are_built_first(spec_type):
  spec = dict(type='objectives.supervised.Supervised', num_classes=3, encoder=ENCODER)
  objective = build(spec_type(spec))
  assert type(objective) is Supervised
  assert type(objective.encoder) is ViT
  assert (objective.num_classes, objective.encoder.width) == (3, 8)


def test_specs_inside_plain_dicts_are_built_and_other_values_stay(package):
  package(parts='class Holder:\n  def __init__(self, parts, sizes): self.__dict__.update(vars())\n')
  config = ml_collections.ConfigDict(
    dict(type='theirs.parts.Holder', parts=dict(a=ENCODER, b=dict(type='builtins.len', c=1)))
  )
  del config.parts.b
  config.sizes = ((1, 2), 'x')
  for spec in (config, config.to_dict(), dict(config)):
    holder = build(spec)
    assert type(holder.parts['a']) is ViT
    assert holder.sizes == ((1, 2), 'x')


def test_extra_arguments_reach_the_object_and_not_its_parts(package):
  package(parts='def pair(mesh, part): return mesh, part\ndef one(): return 1\n')
  made = build(dict(type='theirs.parts.pair', part=dict(type='theirs.parts.one')), mesh='mesh')
  assert made == ('mesh', 1)


def test_the_spec_is_not_changed():
  spec = dict(type='objectives.supervised.Supervised', num_classes=3, encoder=dict(ENCODER))
  build(spec)
  assert spec == dict(type='objectives.supervised.Supervised', num_classes=3, encoder=ENCODER)


@pytest.mark.parametrize('path', ['models.vit.ViT', 'vit_jax.models.vit.ViT'])
def test_a_path_may_name_the_package(path):
  assert resolve(path) is ViT


def test_a_path_may_lead_into_any_package(package):
  package(method='class Method:\n  def __init__(self, width=3): self.width = width\n')
  made = build(dict(type='theirs.method.Method', width=5))
  assert (type(made).__module__, made.width) == ('theirs.method', 5)


def test_an_encoder_of_ones_own_in_our_objective(package):
  package(encoders='import flax.linen as nn\nclass Tiny(nn.Module):\n  width: int = 4\n')
  encoder = dict(type='theirs.encoders.Tiny', width=7)
  spec = dict(type='objectives.supervised.Supervised', num_classes=2, encoder=encoder)
  assert build(spec).encoder.width == 7


# -- Mistakes.


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('models.vti.ViT', "did you mean 'vit'? modules in vit_jax.models are 'attention', "),
    ('model.vit.ViT', "did you mean 'models'? packages in vit_jax are 'adapters', "),
    ('quantum.vit.ViT', "'quantum.vit.ViT'; packages in vit_jax are 'adapters', "),
    ('objectives.supervised.Supervise', "did you mean 'Supervised'? vit_jax.objectives.supervised"),
    ('theirs.methods.Method', "did you mean 'method'? modules in theirs are 'method'"),
    ('theirs.method.Methods', "did you mean 'Method'? theirs.method has 'Method'"),
  ],
)
def test_an_unknown_type_lists_the_choices(path, message, package):
  package(method='import math, decimal\nfrom decimal import Decimal\nclass Method: pass\n')
  assert mistake(dict(type=path)).startswith(f'unknown type {path!r}; ')
  assert message in mistake(dict(type=path))


@pytest.mark.parametrize('path', ['ViT', '', 'models..ViT', '.models.ViT', 'models.vit.', 5, None])
def test_what_is_no_dotted_path(path):
  assert mistake(dict(type=path)) == (f"type {path!r} is no dotted path such as 'models.vit.ViT'")


def test_what_is_no_class_or_function():
  assert mistake(dict(type='models.vit.VARIANTS')) == (
    "type 'models.vit.VARIANTS' is no class or function, but dict"
  )


@pytest.mark.parametrize('spec', [{}, {'width': 3}, None, 'models.vit.ViT', ['type'], 3])
def test_what_is_no_spec(spec):
  assert mistake(spec) == f"cannot build {spec!r}: it is no dict(type='models.vit.ViT', ...)"


def test_an_unknown_field_lists_the_fields_that_a_config_can_set():
  text = mistake(dict(ENCODER, widht=3))
  assert text.startswith("unknown field 'widht' of models.vit.ViT; choose from 'variant', ")
  assert "'width'" in text
  assert "'parent'" not in text
  assert "'name'" not in text  # Linen's own.


def test_an_unknown_field_of_a_nested_spec_names_the_nested_type():
  spec = dict(type='objectives.supervised.Supervised', num_classes=2)
  assert 'of models.vit.ViT' in mistake(dict(spec, encoder=dict(ENCODER, num_classes=2)))


def test_a_field_that_the_code_sets_is_no_choice(package):
  package(parts='def pair(mesh, part): return mesh, part\n')
  spec = dict(type='theirs.parts.pair', mesh=1, part=2)
  assert mistake(spec, mesh='mesh') == (
    "unknown field 'mesh' of theirs.parts.pair; choose from 'part'"
  )


def test_a_missing_field():
  text = mistake(dict(type='objectives.supervised.Supervised', num_classes=2))
  assert re.match(r"objectives\.supervised\.Supervised: missing .*'encoder'; its fields are", text)
  text = mistake(dict(type='data.tfds.Tfds'))
  assert "missing a required argument: 'name'; its fields are 'name', 'split'" in text


def test_a_missing_field_where_any_field_is_taken(package):
  package(parts='def any_(width, **options): return width, options\n')
  assert build(dict(type='theirs.parts.any_', width=1, b=2)) == (1, {'b': 2})
  assert "missing a required argument: 'width'" in mistake(dict(type='theirs.parts.any_', b=2))


# -- An error inside somebody's module is theirs, not an unknown type.


@pytest.mark.parametrize(
  ('text', 'error', 'message'),
  [
    ('import no_such_module', ModuleNotFoundError, 'no_such_module'),
    ('import theirs.helper', ModuleNotFoundError, 'theirs.helper'),
    ('import vit_jax.no_such_module', ModuleNotFoundError, 'vit_jax.no_such_module'),
    ('from math import no_such_name', ImportError, 'no_such_name'),
    ('1 / 0', ZeroDivisionError, 'division'),
    ('def f(:', SyntaxError, 'invalid syntax'),
  ],
)
def test_an_error_on_import_surfaces_as_itself(text, error, message, package):
  package(method=f'{text}\nclass Method: pass\n')
  with pytest.raises(error, match=message) as raised:
    build(dict(type='theirs.method.Method'))
  assert type(raised.value) is error
  assert 'unknown type' not in str(raised.value)


def test_an_error_while_building_surfaces_as_itself(package):
  package(method='class Method:\n  def __init__(self): len(5)\n')
  with pytest.raises(TypeError, match='has no len'):
    build(dict(type='theirs.method.Method'))
