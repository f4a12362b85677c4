"""Weights of another run: values change, names and shapes never, and both differences are said."""

from pathlib import Path

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, train
from vit_jax.checkpoint import named
from vit_jax.init_from import init_from
from vit_jax.objectives.distillation import TEACHER

ROOT = Path(__file__).parents[1]
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.total.steps=3',
  '--config.checkpoint.every.steps=1',
  '--config.evals.validation.every.steps=1',
)


def digits(*flags: str):
  return config_lib.load(str(ROOT / 'configs/vit_digits.py'), [*TINY, *flags])


def changed(config, **fields):
  """A copy of a config with other fields."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, value in fields.items():
      config[name] = value
  return config_lib.override(config)


def first(config):
  """The state that a run of `config` would start from scratch."""
  made = experiment.setup(config)
  with jax.set_mesh(made.mesh):
    return experiment.prepare_state(made)[0]()


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  """A run of 3 steps, and its parameters by name."""
  workdir = tmp_path_factory.mktemp('learned')
  state = train.train_and_evaluate(digits(), workdir)
  return workdir, named(jax.device_get(state))


def test_the_same_model_gets_all_parameters_and_nothing_else(learned):
  workdir, wanted = learned
  state, text = init_from(first(digits('--config.seed=5')), {'workdir': str(workdir)})
  for name, leaf in named(state).items():
    if name.startswith('params/'):
      np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)
  assert int(state.step) == 0 and not any(map(np.any, jax.tree.leaves(state.opt_state)))
  assert text.endswith(f'step 3: {sum(n.startswith("params/") for n in wanted)} arrays taken')


def test_a_run_starts_from_them_once_and_then_goes_on_by_itself(learned, tmp_path, capsys):
  workdir, wanted = learned
  config = changed(digits(), init_from={'workdir': str(workdir), 'step': '3', 'rules': None})
  config = config_lib.override(config, ['--config.optimizer.learning_rate=1e-20'])
  state = train.train_and_evaluate(config, tmp_path / 'run')
  # No update to speak of: what it ends with is what it started from.
  for name, leaf in named(state.params).items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  assert f'starting from {workdir}, step 3' in capsys.readouterr().out
  train.train_and_evaluate(config, tmp_path / 'run')
  assert 'starting from' not in capsys.readouterr().out


def test_differences_are_said_in_both_directions(learned):
  workdir, wanted = learned
  deeper = first(digits('--config.objective.encoder.depth=2'))
  before = named(jax.device_get(deeper))
  rules = (('params/head/.*', 'elsewhere'), ('(params/.*)', r'\1'))
  state, text = init_from(deeper, {'workdir': str(workdir), 'rules': rules})
  after = named(state)
  for name in before:
    if 'block_1' in name or 'head' in name:
      np.testing.assert_array_equal(after[name], before[name])
  np.testing.assert_array_equal(
    after['params/encoder/norm/scale'], wanted['params/encoder/norm/scale']
  )
  kept, unused = text.split('; as they were: ')[1].split('; not used: ')
  assert "'params/encoder/block_1/" in kept and 'more' in kept
  assert unused == "'params/head/bias', 'params/head/kernel'"


def test_an_average_starts_from_the_new_parameters(learned):
  workdir, wanted = learned
  config = changed(digits(), ema={'decay': 0.9, 'warmup': None})
  state, _ = init_from(first(config), {'workdir': str(workdir)})
  for name, leaf in named(state.ema).items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  # Donated together, they must not share memory.
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
    shards = zip(a.addressable_shards, b.addressable_shards, strict=True)
    assert all(x.data.unsafe_buffer_pointer() != y.data.unsafe_buffer_pointer() for x, y in shards)


def test_a_teacher_is_taken_from_a_run(learned):
  workdir, wanted = learned
  student = digits().objective
  config = changed(
    digits(),
    objective={
      'type': 'objectives.distillation.Distillation',
      'student': student.to_dict(),
      'teacher': student.to_dict(),
    },
    evals={},
    checkpoint={'every': {'steps': 1}},
  )
  state, text = init_from(first(config), {'workdir': str(workdir), 'rules': (TEACHER,)})
  teacher = named(state.model_state['teacher']['frozen']['variables']['params'])
  assert teacher
  for name, leaf in teacher.items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  assert "as they were: 'params/student/" in text


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'step': 77}, 'has no checkpoint of step 77; it has 2, 3'),
    ({'rules': (('params/(', 'x'),)}, r"init_from.rules has \('params/\(', 'x'\), no \(pattern"),
    ({'rules': (('nothing', 'params/x'),)}, 'init_from finds nothing in .* for this model'),
    ({'rules': (('params/.*', 'params/head/bias'),)}, "takes 'params/head/bias' from both"),
  ],
)
def test_what_cannot_be_is_one_sentence(learned, fields, message):
  workdir, _ = learned
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    init_from(first(digits()), {'workdir': str(workdir), **fields})


def test_other_shapes_are_refused_by_name(learned):
  workdir, _ = learned
  wider = first(digits('--config.objective.encoder.mlp_dim=24'))
  with pytest.raises(ValueError, match=r"fc_1/bias' in .* is float32 \[16\], .* float32 \[24\]"):
    init_from(wider, {'workdir': str(workdir)})


def test_no_run(tmp_path):
  with pytest.raises(FileNotFoundError, match="is no run's folder"):
    init_from(first(digits()), {'workdir': str(tmp_path)})
