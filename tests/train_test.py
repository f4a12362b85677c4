"""The loop: killed and resumed it ends in the same bits; mesh and workers do not matter."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from vit_jax import config as config_lib
from vit_jax import distributed, experiment, metrics, train
from vit_jax.evaluators import nearest_pixel

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs/vit_digits.py')
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.total.steps=6',
  '--config.checkpoint.every.steps=2',
  '--config.evals.validation.every.steps=2',
  '--config.log.every.steps=1',
)


def tiny(*overrides: str):
  return config_lib.load(CONFIG, [*TINY, *overrides])


def leaves(state) -> list[np.ndarray]:
  return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]


def assert_same_bits(a, b) -> None:
  for x, y in zip(leaves(a), leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def losses(workdir: Path) -> list[float]:
  return [row['train/loss'] for row in metrics.read(workdir) if 'train/loss' in row]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 6 steps that nothing interrupts."""
  workdir = tmp_path_factory.mktemp('whole')
  return train.train_and_evaluate(tiny(), workdir), workdir


@pytest.mark.smoke
def test_a_run_learns_and_leaves_what_it_should(whole):
  state, workdir = whole
  assert int(state.step) == 6
  assert losses(workdir)[0] == pytest.approx(np.log(10), rel=1e-5)
  assert losses(workdir)[-1] < losses(workdir)[0]
  for name in ('config.json', 'run.json', 'parameters.json', 'metrics.jsonl', 'report.html'):
    assert (workdir / name).stat().st_size > 0, name
  assert json.loads((workdir / 'config.json').read_text())['total'] == {'steps': 6}
  assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir())[-2:] == [4, 6]
  last = metrics.read(workdir)[-1]
  assert {'test/accuracy', 'validation/accuracy', 'train/loss', 'train/data_wait'} <= set(last)


def test_the_same_command_again_says_that_the_run_is_finished(whole, capsys):
  state, workdir = whole
  before = (workdir / 'metrics.jsonl').read_bytes()
  again = train.train_and_evaluate(tiny(), workdir)
  assert 'This run is finished: 6 of 6 steps' in capsys.readouterr().out
  assert_same_bits(state, again)
  assert (workdir / 'metrics.jsonl').read_bytes() == before


SCRIPT = """
  import os, signal, sys
  from vit_jax import cli, train
  sys.path.insert(0, {tests!r})
  from train_test import CONFIG, TINY

  step, workdir = int(sys.argv[1]), sys.argv[2]
  make = train.make_train_step

  def make_deadly(*args):
    inner = make(*args)
    import jax

    def die(at):
      if int(at) == step:
        os.kill(os.getpid(), signal.{signal})

    def deadly(state, batch):
      jax.debug.callback(die, state.step)
      return inner(state, batch)
    return deadly

  if step >= 0:
    train.make_train_step = make_deadly
  argv = ['--config', CONFIG, '--workdir', workdir, *TINY, *sys.argv[3:]]
  sys.exit(cli.main(['train', *argv]))
"""


def run_and_kill(step: int, workdir: Path, *overrides: str, name: str = 'SIGKILL'):
  """Runs in a process of its own that gets a signal while it computes step `step`."""
  script = textwrap.dedent(SCRIPT).format(tests=str(ROOT / 'tests'), signal=name)
  return subprocess.run(
    [sys.executable, '-c', script, str(step), str(workdir), *overrides],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.mark.parametrize('step', [1, 3, 5])
def test_killed_at_any_step_and_resumed_it_ends_in_the_same_bits(whole, step, tmp_path):
  killed = run_and_kill(step, tmp_path)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  state = train.train_and_evaluate(tiny(), tmp_path)
  assert int(state.step) == 6
  assert_same_bits(whole[0], state)
  assert losses(tmp_path) == losses(whole[1])


def test_sigterm_saves_and_exits_with_75(whole, tmp_path):
  ended = run_and_kill(2, tmp_path, name='SIGTERM')
  assert ended.returncode == distributed.UNFINISHED == 75, ended.stderr
  assert 'Stopped by SIGTERM after step' in ended.stdout
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert 2 < saved < 6
  assert not (tmp_path / 'report.html').exists()
  assert_same_bits(whole[0], train.train_and_evaluate(tiny(), tmp_path))


def test_an_interrupt_in_a_notebook_saves_and_returns_the_state(whole, tmp_path, monkeypatch):
  write = metrics.Writer.scalars

  def interrupting(self, step, values):
    write(self, step, values)
    if step == 3:
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(metrics.Writer, 'scalars', interrupting)
  state = train.train_and_evaluate(tiny(), tmp_path)
  assert int(state.step) == 3
  monkeypatch.undo()
  assert_same_bits(whole[0], train.train_and_evaluate(tiny(), tmp_path))


def test_workers_do_not_change_a_run(whole, tmp_path):
  state = train.train_and_evaluate(tiny('--config.data.num_workers=1'), tmp_path)
  assert_same_bits(whole[0], state)


@pytest.mark.parametrize('mesh', [(1, 8, 1), (2, 2, 2)])
def test_a_run_does_not_depend_on_the_mesh(mesh, tmp_path):
  axes = [f'--config.mesh.{k}={n}' for k, n in zip(('data', 'fsdp', 'tensor'), mesh, strict=True)]
  length = ('--config.total.steps=20', '--config.log.every.steps=1')
  train.train_and_evaluate(tiny(*axes, *length), tmp_path / 'mesh')
  train.train_and_evaluate(tiny(*length), tmp_path / 'data')
  np.testing.assert_allclose(losses(tmp_path / 'mesh'), losses(tmp_path / 'data'), rtol=1e-5)


def test_one_device_as_eight(tmp_path):
  length = '--config.total.steps=20'
  ended = subprocess.run(
    [
      *(sys.executable, '-m', 'vit_jax.main', '--config', 'configs/vit_digits.py'),
      *('--workdir', str(tmp_path / 'one'), *TINY, length),
    ],
    env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 0, ended.stderr
  assert '1 x cpu' in ended.stdout
  train.train_and_evaluate(tiny(length), tmp_path / 'eight')
  np.testing.assert_allclose(losses(tmp_path / 'one'), losses(tmp_path / 'eight'), rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good(tmp_path, monkeypatch):
  make = train.make_train_step

  def make_bad(*args):
    inner = make(*args)

    def bad(state, batch):
      new, values = inner(state, batch)
      return new, {**values, 'loss': values['loss'] / (state.step != 3)}

    return bad

  monkeypatch.setattr(train, 'make_train_step', make_bad)
  with pytest.raises(
    FloatingPointError, match=r'loss is inf at step 4; .* last good one is step 2'
  ):
    train.train_and_evaluate(tiny('--config.log.every.steps=50'), tmp_path)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['2']
  monkeypatch.undo()
  assert int(train.train_and_evaluate(tiny(), tmp_path).step) == 6


def test_another_config_in_the_same_workdir_is_refused(whole):
  before = {p: p.stat().st_mtime_ns for p in whole[1].rglob('*')}
  with pytest.raises(ValueError, match=r'seed: 0 -> 1.*choose another workdir'):
    train.train_and_evaluate(tiny('--config.seed=1'), whole[1])
  assert {p: p.stat().st_mtime_ns for p in whole[1].rglob('*')} == before


def test_evaluate_gives_what_the_run_ended_with(whole):
  last = metrics.read(whole[1])[-1]
  for name, value in experiment.evaluate(whole[1]).items():
    assert value == pytest.approx(last[name], rel=1e-6), name


# -- Micro-batches, and an average of the parameters.


def averaged():
  """`tiny` with both, and an optimizer whose state is in part factored and in part bfloat16."""
  config = tiny('--config.checkpoint.best=validation_ema/accuracy')
  with config.unlocked():
    config.accumulate = 2
    config.ema = dict(decay=0.9, warmup=True)
    config.optimizer.name = 'adafactor'
    config.optimizer.options = dict(min_dim_size_to_factor=8)
  return config


@pytest.fixture(scope='module')
def whole_averaged(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('averaged')
  return train.train_and_evaluate(averaged(), workdir), workdir


def test_the_average_is_evaluated_beside_the_parameters(whole_averaged):
  state, workdir = whole_averaged
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1} == {
    'float32',
    'bfloat16',
  }
  rows = metrics.read(workdir)
  for name in ('validation/loss', 'validation_ema/loss', 'validation_ema/accuracy'):
    assert [name in row for row in rows] == [row['step'] % 2 == 0 for row in rows], name
  assert rows[-1]['test_ema/loss'] != rows[-1]['test/loss']
  drawn = {p.parent.name for p in (workdir / 'pictures').rglob('*.png')}
  assert {'test', 'test_ema'} <= drawn
  assert 'test_ema' in (workdir / 'report.html').read_text()


def test_evaluate_gives_both(whole_averaged):
  _, workdir = whole_averaged
  last, results = metrics.read(workdir)[-1], experiment.evaluate(workdir)
  assert {'test/loss', 'test_ema/loss', 'validation/loss', 'validation_ema/loss'} <= set(results)
  for name, value in results.items():
    assert value == pytest.approx(last[name], rel=1e-6), name


def test_an_averaged_run_goes_on_in_the_same_bits(whole_averaged, tmp_path, monkeypatch):
  write = metrics.Writer.scalars

  def interrupting(self, step, values):
    write(self, step, values)
    if step == 3:
      os.kill(os.getpid(), signal.SIGINT)

  monkeypatch.setattr(metrics.Writer, 'scalars', interrupting)
  assert int(train.train_and_evaluate(averaged(), tmp_path).step) == 3
  monkeypatch.undo()
  assert_same_bits(whole_averaged[0], train.train_and_evaluate(averaged(), tmp_path))


def test_which_evaluators_see_the_average(monkeypatch):
  config = averaged()
  names = [name for name in experiment.build_evals(experiment.setup(config)) if 'pix' not in name]
  assert names == ['test', 'test_ema', 'validation', 'validation_ema']
  monkeypatch.setattr(nearest_pixel.NearestPixel, 'reads_state', False, raising=False)
  assert 'pixels_ema' not in experiment.build_evals(experiment.setup(config))
  with config.unlocked():
    config.evals.test_ema = config.evals.test
  with pytest.raises(ValueError, match=r'evals\.test_ema has the name of what evals\.test gives'):
    experiment.build_evals(experiment.setup(config))


# -- A frozen encoder.


def probe(**fields):
  """`tiny` with a head alone to train: each step takes the gradient off, and does nothing else."""
  config = tiny()
  with config.unlocked():
    config.update(fields)
    config.evals, config.checkpoint.best = {}, None
    config.objective.augment = ''
    config.optimizer = dict(
      name='sgd',
      learning_rate=1.0,
      schedule='constant',
      options=dict(momentum=0.0),
      freeze=('encoder/.*',),
    )
  return config


def steps_of(made):
  """The step that computes all gradients, that which computes those of the head, and arguments."""
  rng = np.random.default_rng(0)
  make, _ = experiment.prepare_state(made)
  batch = jax.tree.map(lambda x: rng.integers(0, 10, x.shape).astype(x.dtype), made.batch_spec)
  state = make()
  # The head begins at zero, and nothing would come through to the encoder.
  moved = jax.tree.map(
    lambda x: x + rng.normal(scale=0.1, size=x.shape).astype(x.dtype), state.params
  )
  steps = [
    train.make_train_step(made.objective, made.optimizer.tx, made.accumulate, None, frozen)
    for frozen in ((), made.optimizer.frozen)
  ]
  return steps, state.replace(params=moved), batch


@pytest.mark.parametrize('accumulate', [1, 2])
def test_frozen_parameters_cost_no_gradient(accumulate):
  made = experiment.setup(probe(accumulate=accumulate))
  with jax.set_mesh(made.mesh):
    steps, *arguments = steps_of(made)
    every, head = (jax.jit(step).lower(*arguments).compile() for step in steps)
    assert head.cost_analysis()['flops'] < every.cost_analysis()['flops'] / 2
    (expected, norms), (after, norms_of_head) = every(*arguments), head(*arguments)
  assert_same_bits(after.params['encoder'], arguments[0].params['encoder'])
  for a, b in zip(leaves(after.params['head']), leaves(expected.params['head']), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  assert 0 < norms_of_head['grad_norm'] < 0.99 * norms['grad_norm']


def test_to_freeze_changes_no_bit_of_a_step():
  made = experiment.setup(probe(), devices=jax.devices()[:1])
  with jax.set_mesh(made.mesh):
    steps, *arguments = steps_of(made)
    # One operation after another: XLA fuses a smaller program in another way, and rounds so.
    (expected, _), (after, _) = (step(*arguments) for step in steps)
  assert_same_bits(after, expected)
  assert_same_bits(after.params['encoder'], arguments[0].params['encoder'])
  assert not np.array_equal(leaves(after.params['head'])[1], leaves(arguments[0].params['head'])[1])


def test_the_norm_of_a_run_is_that_of_what_it_trains(tmp_path):
  one, two = (
    train.train_and_evaluate(probe(total=dict(steps=steps)), tmp_path / str(steps))
    for steps in (1, 2)
  )
  moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), one.params, two.params)
  norm = metrics.read(tmp_path / '2')[-1]['train/grad_norm']
  assert norm == pytest.approx(float(optax.tree.norm(moved)), rel=1e-4)
