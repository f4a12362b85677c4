import json
import textwrap

import ml_collections
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import units

pytestmark = pytest.mark.smoke

TEXT = """
  import ml_collections
  from ml_collections.config_dict import placeholder


  def get_config(arg='small'):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.total = dict(epochs=2)
    config.batch_size = 64
    config.data = dict(source=dict(type='data.digits.Digits', split='train'), host='decode')
    config.objective = dict(
      type='objectives.supervised.Supervised',
      variant=arg,
      encoder=dict(depth=2, rate=0.5, flag=False, size=(8, 8), name='a', nothing=placeholder(str)),
      number=placeholder(int), share=placeholder(float), shape=placeholder(tuple), plain=None,
    )
    config.optimizer = dict(
      warmup=dict(steps=placeholder(int)), decay=(('.*/bias', 0.0), ('.*/kernel', 1.0))
    )
    config.evals = dict(validation=dict(every=dict(steps=5)))
    return config
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'made.py'
  path.write_text(textwrap.dedent(TEXT))
  return str(path)


def mistake(path, *overrides, error=ValueError) -> str:
  with pytest.raises(error) as raised:
    config_lib.load(path, overrides)
  assert type(raised.value) is error
  assert '\n' not in str(raised.value)
  return str(raised.value)


# -- Files.


def test_a_file_with_and_without_an_argument(file):
  assert config_lib.load(file).objective.variant == 'small'
  assert config_lib.load(f'{file}:large').objective.variant == 'large'
  assert config_lib.load(f'{file}:a=1:b').objective.variant == 'a=1:b'


def test_a_loaded_config_is_locked(file):
  config = config_lib.load(file)
  with pytest.raises((AttributeError, KeyError)):
    config.sed = 1
  with pytest.raises((AttributeError, KeyError)):
    config.objective.widht = 1


def test_loading_twice_gives_two_configs(file):
  one, two = (config_lib.load(file, [f'--config.seed={i}']) for i in (1, 2))
  assert (one.seed, two.seed, config_lib.load(file).seed) == (1, 2, 0)


def test_a_misspelt_file_names_the_nearest(tmp_path):
  for name in ('vit_emoji.py', 'swin_emoji.py', 'notes.txt'):
    (tmp_path / name).write_text('')
  near = mistake(str(tmp_path / 'vit_emojis.py'), error=FileNotFoundError)
  assert near.endswith("vit_emojis.py'; did you mean 'vit_emoji.py', 'swin_emoji.py'?")
  near = mistake(str(tmp_path / 'vit_emoji:small'), error=FileNotFoundError)
  assert "vit_emoji'; did you mean 'vit_emoji.py'" in near
  far = mistake(str(tmp_path / 'x.py'), error=FileNotFoundError)
  assert far.endswith(f"; {tmp_path} has 'swin_emoji.py', 'vit_emoji.py'")
  for path in (str(tmp_path), '', str(tmp_path / 'no' / 'folder.py')):
    assert mistake(path, error=FileNotFoundError).startswith(f'there is no config {path!r}; ')


def test_a_file_that_is_no_config(tmp_path):
  (tmp_path / 'other.py').write_text('x = 1\n')
  assert mistake(str(tmp_path / 'other.py')).endswith(
    "other.py' is no config: it has no function 'get_config'"
  )
  (tmp_path / 'fixed.py').write_text('def get_config(): pass\n')
  assert mistake(f'{tmp_path / "fixed.py"}:B').endswith("takes no argument, so not 'B' either")


def test_an_error_inside_a_config_surfaces_as_itself(tmp_path):
  (tmp_path / 'bad.py').write_text('import no_such_module\n')
  with pytest.raises(ModuleNotFoundError, match='no_such_module'):
    config_lib.load(str(tmp_path / 'bad.py'))


# -- Overrides.


@pytest.mark.parametrize(
  ('field', 'text', 'value'),
  [
    ('seed', '7', 7),
    ('objective.encoder.depth', '-7', -7),
    ('objective.encoder.depth', '3', 3),
    ('objective.encoder.rate', '0.25', 0.25),
    ('objective.encoder.rate', '1e-3', 1e-3),
    ('objective.encoder.rate', '2', 2.0),
    ('objective.encoder.flag', 'true', True),
    ('objective.encoder.flag', 'True', True),
    ('objective.encoder.flag', 'false', False),
    ('objective.encoder.name', 'b', 'b'),
    ('objective.encoder.name', '', ''),
    ('objective.encoder.name', 'x=y | f(2, p=0.5)', 'x=y | f(2, p=0.5)'),
    ('objective.encoder.size', '(4, 2)', (4, 2)),
    ('objective.encoder.size', '(4,)', (4,)),
    ('optimizer.decay', "(('.*', 2.0),)", (('.*', 2.0),)),
    ('objective.encoder.nothing', 'text', 'text'),
    ('objective.number', '3', 3),
    ('objective.share', '0.5', 0.5),
    ('objective.shape', '(1, 2)', (1, 2)),
    ('objective.variant', 'large', 'large'),
    ('evals.validation.every.steps', '9', 9),
  ],
)
def test_a_flag_sets_a_field_of_any_kind(file, field, text, value):
  config = config_lib.load(file, [f'--config.{field}={text}'])
  for name in field.split('.'):
    config = config[name]
  assert config == value
  assert type(config) is type(value)


def test_a_flag_changes_its_field_only(file):
  changed = config_lib.load(file, ['--config.objective.encoder.depth=3', '--config.seed=4'])
  assert config_lib.differences(config_lib.plain(config_lib.load(file)), changed) == [
    'objective.encoder.depth: 2 -> 3',
    'seed: 0 -> 4',
  ]


def test_the_last_of_two_flags_counts(file):
  assert config_lib.load(file, ['--config.seed=1', '--config.seed=2']).seed == 2


def amount(config):
  return config_lib.plain(config)['total']


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ([], {'epochs': 2}),
    (['steps=10'], {'steps': 10}),
    (['epochs=0.5'], {'epochs': 0.5}),
    (['examples=1000'], {'examples': 1000}),
    (['steps=10', 'epochs=0.5'], {'epochs': 0.5}),
    (['epochs=0.5', 'steps=10'], {'steps': 10}),
    (['examples=1', 'epochs=0.5', 'steps=10'], {'steps': 10}),
  ],
)
def test_one_unit_replaces_the_other(file, flags, expected):
  config = config_lib.load(file, [f'--config.total.{flag}' for flag in flags])
  assert amount(config) == expected
  assert dict([units.unit(config.total)]) == expected
  # Other numbers of something keep their units.
  assert config_lib.plain(config)['evals'] == {'validation': {'every': {'steps': 5}}}


def test_half_an_epoch_replaces_the_steps_of_a_file(file):
  config = config_lib.load(file, ['--config.evals.validation.every.epochs=0.5'])
  assert config_lib.plain(config)['evals'] == {'validation': {'every': {'epochs': 0.5}}}


def test_an_amount_that_is_a_placeholder_can_be_set(file):
  assert config_lib.plain(config_lib.load(file))['optimizer']['warmup'] == {}
  config = config_lib.load(file, ['--config.optimizer.warmup.epochs=0.1'])
  assert config_lib.plain(config)['optimizer']['warmup'] == {'epochs': 0.1}


@pytest.mark.parametrize('value', ['2.5', "'2'", 'True', '-1', '[1]'])
def test_an_amount_that_is_none_is_left_for_the_error_about_it(tmp_path, value):
  path = tmp_path / 'made.py'
  path.write_text(textwrap.dedent(TEXT).replace('dict(epochs=2)', f'dict(steps={value})'))
  with pytest.raises(ValueError, match='steps of total must be a'):
    units.steps(config_lib.load(str(path)).total, batch_size=1, num_examples=1, name='total')


# -- Flags that cannot be applied.


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.sed=1', "unknown field 'sed' in --config.sed; config has 'batch_size', 'data', "),
    (
      '--config.objective.encoder.widht=1',
      "unknown field 'widht' in --config.objective.encoder.widht; "
      "config.objective.encoder has 'depth', 'flag', 'name', 'nothing', 'rate', 'size'",
    ),
    ('--config.=1', "unknown field '' in --config.; config has "),
    ('--config.total.hours=1', "config.total has 'epochs', 'examples', 'steps'"),
    ('--config.seed.x=1', 'unknown field --config.seed.x: config.seed is 0 and has no fields'),
    ('--config.seed=one', "--config.seed takes a value of type int, not 'one'"),
    ('--config.seed=1.5', "--config.seed takes a value of type int, not '1.5'"),
    ('--config.seed=', "--config.seed takes a value of type int, not ''"),
    ('--config.objective.encoder.rate=x', 'takes a value of type float'),
    ('--config.objective.encoder.flag=2', 'takes a value of type bool'),
    ('--config.objective.encoder.size=(1,', 'takes a value of type tuple'),
    ('--config.objective.encoder.size=x', 'takes a value of type tuple'),
    ('--config.objective.encoder.size=(8, x)', 'takes a value of type tuple'),
    ('--config.objective.number=x', 'takes a value of type int'),
    ('--config.objective=x', "--config.objective is no value; set one of its fields: 'encoder', "),
    ('--config.total=5', "is no value; set one of its fields: 'epochs', 'examples', 'steps'"),
    ('--config=x.py', "cannot read '--config=x.py'; write --config.field=value"),
    ('--config.seed', "cannot read '--config.seed'; write --config.field=value"),
    ('config.seed=1', "cannot read 'config.seed=1'; write --config.field=value"),
    ('5', "cannot read '5'; write --config.field=value"),
  ],
)
def test_a_flag_that_cannot_be_applied_names_the_choices(file, flag, message):
  assert message in mistake(file, flag)
  assert message in mistake(file, '--config.objective.encoder.depth=3', flag)


# -- Fields.


def test_an_unknown_or_missing_field(file):
  config = config_lib.load(file).unlock()
  config.optimiser = 1
  with pytest.raises(ValueError, match="unknown config field 'optimiser'; choose from 'seed', "):
    config_lib.check(config)
  for name in config_lib.FIELDS:
    if name not in config_lib.OPTIONAL:
      config = config_lib.load(file).unlock()
      del config[name]
      with pytest.raises(ValueError, match=f"the config lacks '{name}' \\("):
        config_lib.check(config)


def test_a_field_of_a_group_that_nothing_reads(file):
  config = config_lib.load(file).unlock()
  config.data.hots = 'decode'
  with pytest.raises(ValueError, match=r"unknown config field 'data\.hots'; choose from 'source'"):
    config_lib.check(config)
  del config.data.hots, config.data.host
  with pytest.raises(ValueError, match=r"the config lacks 'data\.host'"):
    config_lib.check(config)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'ema': {'dacay': 0.9}}, r"unknown config field 'ema\.dacay'; choose from 'decay', 'warmup'"),
    ({'ema': {'warmup': True}}, r"the config lacks 'ema\.decay'"),
    ({'ema': 0.9}, r"ema is 0\.9; it must be a dict of 'decay', 'warmup'"),
    ({'ema': {'decay': 1}}, r'ema\.decay must be a number of at least 0 and below 1, got 1'),
    ({'ema': {'decay': '0.9'}}, r"ema\.decay must be .* got '0\.9'"),
    ({'ema': {'decay': 0.9, 'warmup': 5}}, r'ema\.warmup must be True or False, got 5'),
    ({'accumulate': 0}, 'accumulate must be a whole number of at least 1, got 0'),
    ({'accumulate': 2.0}, r'accumulate must be a whole number of at least 1, got 2\.0'),
    ({'accumulate': True}, 'accumulate must be a whole number of at least 1, got True'),
  ],
)
def test_mistakes_in_averaging_and_accumulation(file, fields, message):
  config = config_lib.load(file).unlock()
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    config_lib.check(config)


@pytest.mark.parametrize(
  'fields', [{}, {'ema': None, 'accumulate': None}, {'ema': {'decay': None}}, {'accumulate': 4}]
)
def test_averaging_and_accumulation_are_optional(file, fields):
  config = config_lib.load(file).unlock()
  config.update(fields)
  config_lib.check(config)


@pytest.mark.parametrize('value', [np.float32(1), np.zeros(2), len, float, {1, 2}, b'x'])
def test_a_config_is_pure_data(file, value):
  config = config_lib.load(file).unlock()
  config.objective.odd = ((value,),)
  with pytest.raises(ValueError, match=r'config\.objective\.odd\[0\]\[0\] is .*a config holds'):
    config_lib.check(config)


# -- JSON, and what differs.


def test_json_round_trip(file):
  config = config_lib.load(file, ['--config.total.steps=10'])
  text = config_lib.to_json(config)
  saved = json.loads(text)
  assert saved['total'] == {'steps': 10}
  assert saved['objective']['encoder']['size'] == [8, 8]
  assert saved['objective']['encoder']['nothing'] is None
  assert config_lib.differences(saved, config) == []
  again = ml_collections.ConfigDict(saved)
  assert config_lib.to_json(again) == text
  assert config_lib.differences(saved, again) == []


def test_differences_name_the_field_and_both_values(file):
  saved = json.loads(config_lib.to_json(config_lib.load(file)))
  flags = ['--config.objective.encoder.size=(8,4)', '--config.total.steps=3']
  now = config_lib.load(file, flags).unlock()
  now.objective.new = 'x'
  del now.batch_size
  assert config_lib.differences(saved, now) == [
    'batch_size: 64 -> absent',
    'objective.encoder.size: [8, 8] -> [8, 4]',
    'objective.new: absent -> "x"',
    'total.epochs: 2.0 -> absent',
    'total.steps: absent -> 3',
  ]


def test_a_list_equals_a_tuple_and_an_int_the_same_float(file):
  saved = json.loads(config_lib.to_json(config_lib.load(file)))
  now = config_lib.plain(config_lib.load(file))
  now['total'] = {'epochs': 2}
  now['objective']['encoder']['size'] = (8, 8)
  assert config_lib.differences(saved, now) == []


def test_what_any_config_can_be_asked_for_by_a_flag(file):
  flags = ['--config.sharding=zero1', '--config.profile.steps=2:4']
  plain, asked = config_lib.load(file), config_lib.load(file, flags)
  assert (plain.sharding, asked.sharding) == (None, 'zero1')
  assert (plain.profile.steps, asked.profile.steps) == (None, '2:4')
  assert config_lib.differences(json.loads(config_lib.to_json(plain)), asked) == []
  assert config_lib.override(asked) == asked


@pytest.mark.parametrize('name', ['mesh', 'log'])
def test_what_does_not_change_a_result_may_differ(file, name):
  saved = json.loads(config_lib.to_json(config_lib.load(file)))
  now = config_lib.load(file).unlock()
  now[name] = dict(data=8) if name == 'mesh' else dict(every=dict(steps=1))
  now.data.num_workers = 3
  assert config_lib.differences(saved, now) == []
  assert config_lib.differences(json.loads(config_lib.to_json(now)), config_lib.load(file)) == []


def test_a_name_that_only_begins_like_a_free_one_does_not_differ_freely(file):
  saved = json.loads(config_lib.to_json(config_lib.load(file)))
  now = config_lib.load(file).unlock()
  now.logs = 1
  now.data.num_workers_2 = 1
  assert config_lib.differences(saved, now) == [
    'data.num_workers_2: absent -> 1',
    'logs: absent -> 1',
  ]
