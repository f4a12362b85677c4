"""A window of steps is traced and its parts told apart; what is trained does not change."""

from pathlib import Path

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import profile, train

ROOT = Path(__file__).parents[1]
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.total.steps=5',
  '--config.checkpoint.every.steps=2',
  '--config.evals.validation.every.steps=2',
)


def run(workdir: Path, *flags: str):
  return train.train_and_evaluate(
    config_lib.load(str(ROOT / 'configs/vit_digits.py'), [*TINY, *flags]), workdir
  )


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('traced')
  return run(workdir, '--config.profile.steps=2:4'), workdir


def test_the_trace_holds_the_steps_of_the_window(traced):
  _, workdir = traced
  (file,) = (workdir / profile.FOLDER).rglob('*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(file)).planes
  events = [e for plane in planes for line in plane.lines for e in line.events if e.name == 'train']
  assert sorted(dict(e.stats)['step_num'] for e in events) == [2, 3]


def test_the_parts_are_printed_and_add_up(tmp_path, capsys):
  run(tmp_path, '--config.profile.steps=1:4')
  rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
  shares = {row[0].strip(): float(row[2][:-1]) for row in rows if row and row[-1].endswith('%')}
  together = shares.pop('together')
  assert set(profile.PARTS) < set(shares)
  assert together == 100 and abs(sum(shares.values()) - 100) < 0.3
  assert shares['device'] > 0


def test_tracing_changes_no_parameter(traced, tmp_path):
  state, _ = traced
  plain = run(tmp_path)
  assert not (tmp_path / profile.FOLDER).exists()
  for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_finished_run_may_be_asked_for_another_window(traced):
  state, workdir = traced
  assert int(run(workdir, '--config.profile.steps=1:2').step) == int(state.step)


@pytest.mark.parametrize('window', ['5', '5:5', '6:5', '-1:5', 'a:b', '1:2:3', ''])
def test_what_is_no_window_says_how_to_write_one(window):
  with pytest.raises(ValueError, match="write 'first:last', such as '100:110'"):
    profile.parse(window, 1000)


def test_a_window_beyond_the_run_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(ValueError, match="'4:6', and the run has only 5 steps"):
    run(tmp_path / 'run', '--config.profile.steps=4:6')
  assert not (tmp_path / 'run').exists()


def test_a_run_that_resumes_within_the_window_traces_what_is_left(tmp_path):
  window = profile.Profile('2:6', tmp_path, start=4, total=10)
  with window.around(4, None) as done:
    done('device')
  with window.around(5, None) as done:
    done('device')
  assert 'steps 4 to 6' in window.text
  assert list((tmp_path / profile.FOLDER).rglob('*.xplane.pb'))


def test_an_interrupted_window_leaves_no_trace_running(tmp_path):
  window = profile.Profile('0:5', tmp_path, start=0, total=10)
  with window.around(0, None):
    pass
  window.close()
  window.close()
  with jax.profiler.trace(str(tmp_path / 'other')):  # A second trace at once would be refused.
    pass
  assert window.text == ''
