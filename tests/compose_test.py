import types

import pytest

from vit_jax import augment, compose
from vit_jax.compose import Call
from vit_jax.data import transforms

pytestmark = pytest.mark.smoke


def make_module(**functions):
  module = types.ModuleType('made')
  for name, function in functions.items():
    function.__module__ = 'made'
    setattr(module, name, function)
  return module


def add(number, times=1):
  return lambda text: text + f'+{number}' * times


def twice():
  return lambda text: f'({text})*2'


def _hidden():
  return None


def mistake(text, module=None) -> str:
  with pytest.raises(ValueError) as error:
    compose.build(text, module or make_module(add=add, twice=twice, _hidden=_hidden))
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ('text', 'calls'),
  [
    ('', []),
    ('  ', []),
    ('flip', [Call('flip', (), {})]),
    ('flip()', [Call('flip', (), {})]),
    (' a|b() |c(1) ', [Call('a', (), {}), Call('b', (), {}), Call('c', (1,), {})]),
    ('a | a | a', [Call('a', (), {})] * 3),
    ('crop(32, min_area=0.2)', [Call('crop', (32,), {'min_area': 0.2})]),
    (
      "f(-1, 1e-3, (2, 3), [4], {'k': None}, 'a | b', True, size=(-1, +2))",
      [Call('f', (-1, 1e-3, (2, 3), [4], {'k': None}, 'a | b', True), {'size': (-1, 2)})],
    ),
  ],
)
def test_calls_in_order_with_literal_arguments(text, calls):
  assert compose.parse(text) == calls


def test_built_in_the_order_in_which_they_are_written():
  text = 'x'
  for f in compose.build('add(1) | twice | add(2, times=2)', make_module(add=add, twice=twice)):
    text = f(text)
  assert text == '(x+1)*2+2+2'


def test_each_name_makes_a_transform_of_its_own():
  first, second = compose.build('twice | twice', make_module(twice=twice))
  assert first is not second


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('add(x)', "arguments in 'add(x)' must be literals: 'add(x)'"),
    ('add(1 + 1)', 'must be literals'),
    ('add(twice())', 'must be literals'),
    ('add(__import__("os"))', 'must be literals'),
    ('add(lambda: 1)', 'must be literals'),
    ('add({[]: 1})', 'must be literals'),
    ('add(*(1,))', 'must be literals'),
    ("add(**{'number': 1})", 'cannot read "add(**{\'number\': 1})"'),
    ('add(number=1, number=2)', 'cannot read'),
    ('twice + twice', "cannot read 'twice + twice'"),
    ('twice | (add(1) | twice)', "cannot read 'add(1) | twice'"),
    ('twice and twice', "cannot read 'twice and twice'"),
    ('os.remove("x")', 'cannot read'),
    ('twice()()', "cannot read 'twice()()'"),
    ('3', "cannot read '3' in '3'; write name(argument, ...) | ..."),
    ('twice |', "cannot read the transforms 'twice |'"),
    ('| twice', "cannot read the transforms '| twice'"),
    ('twice twice', 'cannot read the transforms'),
    ('add(1', "cannot read the transforms 'add(1'"),
    ('x = 3', 'cannot read the transforms'),
  ],
)
def test_what_is_no_chain_of_calls_with_literals(text, message):
  assert message in mistake(text)


@pytest.mark.parametrize('text', [None, 3, ('twice',)])
def test_what_is_no_string(text):
  assert mistake(text) == f"transforms are a string such as 'decode | flip', not {text!r}"


def test_an_unknown_name_lists_the_public_ones_only():
  assert mistake('twice | thrice') == (
    "unknown transform 'thrice' in 'twice | thrice'; choose from 'add', 'twice'"
  )
  for name in ('_hidden', '__doc__', 'print'):
    assert f'unknown transform {name!r}' in mistake(name)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('add', "missing a required argument: 'number'"),
    ('twice(1)', 'too many positional arguments'),
    ('add(1, size=2)', "got an unexpected keyword argument 'size'"),
    ('add(1, number=2)', "multiple values for argument 'number'"),
  ],
)
def test_wrong_arguments_show_the_signature(text, message):
  error = mistake(text)
  assert message in error
  assert f'it is {text.partition("(")[0]}(' in error


@pytest.mark.parametrize('module', [transforms, augment])
def test_real_modules_offer_their_own_public_functions_only(module):
  known = compose.choices(module)
  assert 'flip' in known
  assert 'compose' not in known
  for name, function in known.items():
    assert name[0] != '_'
    assert function.__module__.startswith(module.__package__)
    assert function.__doc__, name
  assert "unknown transform 'flop' in 'flop'; choose from " in mistake('flop', module)
