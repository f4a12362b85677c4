"""What preflight finds out, and how it says so: as data, as text and in the report."""

import json

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.data.digits import Digits
from vit_jax.data.stand_in import SIZE, StandIn
from vit_jax.preflight import advice, memory, summary, verdict
from vit_jax.preflight.compiling import inputs

LIMIT = 1 << 19
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.objective.augment=',
)


@pytest.fixture(scope='module')
def load(request):
  def loaded(name='configs/vit_digits.py', *overrides):
    return config_lib.load(str(request.config.rootpath / name), overrides)

  return loaded


@pytest.fixture(scope='module')
def found(load):
  """A config that LIMIT is too little for, with all advice."""
  told = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(advice, 'COMPILES', 2)
    config = load('configs/vit_digits.py', *TINY, '--config.batch_size=240')
    found = verdict.verdict(config, 'cpu:8', limit=LIMIT, progress=told.append)
  return found, told


def test_it_is_plain_data_with_all_numbers(found):
  found, _ = found
  assert json.loads(json.dumps(found)) == found
  assert found['devices'] == 8 and found['topology'] == 'cpu:8'
  assert found['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert found['batch']['image'] == [240, 8, 8, 1]
  assert found['missing_data'] == '' and found['examples'] == len(Digits('train'))
  assert found['flops']['step'] == sum(step for _, step in found['flops']['layers'].values())
  assert found['needed'] > found['limit'] == LIMIT
  assert found['fits'] is False
  (reduced,) = found['collectives']
  assert (reduced['kind'], reduced['group']) == ('all-reduce', 8)
  assert reduced['bytes'] == pytest.approx(found['bytes']['parameters'], rel=0.02)
  assert 'uncalibrated' not in found  # XLA estimates no cycles of a CPU.


def test_state_bytes_are_an_analytic_sum_to_one_percent(load, found):
  found, _ = found
  from vit_jax import experiment

  made = experiment.setup(load('configs/vit_digits.py', *TINY, '--config.batch_size=240'))
  like, _ = inputs(made)
  values = sum(leaf.size for leaf in jax.tree.leaves(like.params))
  # AdamW keeps two moments of each parameter, in float32 all three.
  assert found['bytes']['parameters'] == 4 * values
  assert found['bytes']['optimizer'] == pytest.approx(8 * values, rel=0.01)
  state = sum(found['bytes'].values()) - found['bytes']['batch']
  assert state == sum(memory.of_state(like).values()) == pytest.approx(12 * values, rel=0.01)


def test_where_it_does_not_fit_it_says_what_would(found):
  found, told = found
  largest = found['largest_batch']
  assert largest['fits'] < largest['too_large'] <= 240 and largest['compiles'] in (1, 2)
  assert largest['fits'] % 8 == 0
  by_label = {row['choice']: row for row in found['choices']}
  assert by_label["remat='full'"]['xla_flops'] > found['xla_flops']
  split = by_label["sharding='fsdp', mesh.data=1, mesh.fsdp=-1"]
  assert split['memory']['arguments'] < found['memory']['arguments']
  assert {row['kind'] for row in split['collectives']} >= {'all-gather'}
  assert len(told) == 1 + largest['compiles'] + len(found['choices'])
  assert all(text.startswith('compiling') for text in told)


def test_a_choice_that_cannot_be_says_why(found):
  found, _ = found
  (row,) = [row for row in found['choices'] if row['choice'] == 'accumulate=4']
  assert 'does not divide the 30 examples' in row['impossible']
  assert 'Not accumulate=4: accumulate is 4, which does not divide' in ' '.join(
    summary.text(found).split()
  )


def test_the_largest_batch_is_looked_for_when_asked(load, monkeypatch):
  monkeypatch.setattr(advice, 'COMPILES', 1)
  config = load('configs/vit_digits.py', *TINY, '--config.batch_size=8')
  found = verdict.verdict(config, 'cpu:8', limit=LIMIT, largest_batch=True)
  assert found['fits'] is True and 'choices' not in found
  assert found['largest_batch']['fits'] >= 8 and found['largest_batch']['compiles'] == 1


def test_without_advice_it_compiles_once(load):
  told = []
  config = load('configs/vit_digits.py', *TINY)
  found = verdict.verdict(config, 'cpu:8', limit=1000, advise=False, progress=told.append)
  assert found['fits'] is False and len(told) == 1
  assert not {'choices', 'largest_batch'} & set(found)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['--config.batch_size=12'], 'choose 8 or 16'),
    (['--config.mesh.fsdp=3'], 'there are 8'),
    (['--config.mesh.data=16'], 'there are 8'),
  ],
)
def test_what_cannot_be_is_one_sentence(load, overrides, message):
  with pytest.raises(ValueError, match=message) as error:
    verdict.verdict(load('configs/vit_digits.py', *overrides), 'cpu:8')
  assert '\n' not in str(error.value)


# -- Data that is not at hand.


def test_data_that_is_there_is_opened(load):
  source, missing = verdict.open_source(load())
  assert type(source) is Digits and missing == ''


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('configs/clip_laion.py', {'image', 'id', 'text'}),
    ('configs/vit_pretrain.py', {'image', 'id', 'label'}),
  ],
)
def test_other_data_has_a_stand_in(load, name, fields):
  config = load(name)
  source, missing = verdict.open_source(config)
  assert type(source) is StandIn and len(source) == SIZE
  assert 'prepared' in missing
  assert set(source[0]) == fields
  if 'label' in fields:
    assert source.num_classes == config.objective.num_classes


def test_a_stand_in_is_told_of(load, monkeypatch):
  class Missing:
    def __init__(self, split):
      raise FileNotFoundError(f'no digits of {split}')

  monkeypatch.setattr('vit_jax.data.digits.Digits', Missing)
  config = load('configs/vit_digits.py', *TINY)
  found = verdict.verdict(config, 'cpu:8', image=(8, 8, 1))
  assert found['batch']['image'] == [64, 8, 8, 1]
  text = summary.headline(found)
  assert 'The data cannot be opened (no digits of train)' in text
  assert '1,281,167 examples an epoch are assumed' in text
