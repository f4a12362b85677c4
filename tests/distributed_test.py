"""Several processes are as one, also when one is killed and when others go on with the run."""

import re
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import distributed, metrics, train

ROOT = Path(__file__).parents[1]
STEPS, SAVED = 24, 4

# A small ViT on emoji, evaluated in every way that an evaluator uses the devices.
CONFIG = """
import ml_collections


def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(steps=24)
  config.batch_size = 16
  emoji = dict(type='data.emoji.Emoji', label='category', alpha=True, styles=('google',))
  host = 'decode(channels=4)'
  config.data = dict(source=dict(**emoji, split='train'), host=host + ' | flip')
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=8,
    augment='background(p=0)', eval_augment='background(p=0)',
    encoder=dict(type='models.vit.ViT', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32,
                 pooling='mean', dropout=0.1),
  )
  config.optimizer = dict(name='adamw', learning_rate=1e-3)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = 'fsdp'
  few = dict(**emoji, split='validation')
  config.evals = dict(
    validation=dict(type='evaluators.classification.Classification', source=few, host=host,
                    every=dict(steps=8)),
    knn=dict(type='evaluators.knn.KNN', train=few, source=few, host=host, k=5, baselines=()),
    pixels=dict(type='evaluators.nearest_pixel.NearestPixel', train=few, source=few, host=host),
  )
  config.log = dict(every=dict(steps=1))
  config.checkpoint = dict(every=dict(steps=4), keep_last=2)
  return config
"""

# `python -m vit_jax.main`, in which process KILLED ends or is stopped after a step.
PROCESS = """
  import os, signal, sys, time
  from pathlib import Path
  from vit_jax import cli, train
  name, number, victim, at, saved, *argv = sys.argv[1:]
  between = train.Loop._between_steps

  def and_a_signal(self, state, step):
    state = between(self, state, step)
    if step >= int(at) and name == 'SIGTERM':
      time.sleep(0.3)  # Steps of that length: there are some left when all have agreed.
    if step == int(at) and number == victim:
      while not (self.checkpoints.folder / saved).exists():
        time.sleep(0.05)
      os.kill(os.getpid(), getattr(signal, name))
    return state

  train.Loop._between_steps = and_a_signal
  sys.exit(cli.main(['train', *argv]))
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The config's file."""
  file = tmp_path_factory.mktemp('config') / 'tiny.py'
  file.write_text(CONFIG)
  return str(file)


def flags(workdir: Path, *overrides: str) -> list[str]:
  found = ['--coordinator', 'ADDRESS', '--processes', 'COUNT', '--process', 'NUMBER']
  return [*found, '--workdir', str(workdir), *overrides]


def interrupted(config: str, workdir: Path, name: str, victim: int, at: int, *overrides: str):
  """The command of a run in which a process gets a signal after step `at`."""
  script = textwrap.dedent(PROCESS)
  words = [name, 'NUMBER', str(victim), str(at), str(SAVED)]
  command = [sys.executable, '-c', script, *words, '--config', config]
  return [*command, *flags(workdir, '--heartbeat-timeout', '10', *overrides)]


def losses(workdir: Path) -> dict[int, float]:
  return {row['step']: row['train/loss'] for row in metrics.read(workdir) if 'train/loss' in row}


def leaves(state) -> list[np.ndarray]:
  return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """The run of one process that nothing interrupts: its state and its folder."""
  workdir = tmp_path_factory.mktemp('whole')
  return train.train_and_evaluate(config_lib.load(config), workdir), workdir


@pytest.fixture(scope='module')
def killed(config, tmp_path_factory, run_processes):
  """Two processes, one of which SIGKILL ends: both, and their run's folder."""
  workdir = tmp_path_factory.mktemp('killed')
  command = interrupted(config, workdir, 'SIGKILL', 1, 6)
  return run_processes(command, check=False), workdir


@pytest.fixture(scope='module')
def stopped(config, killed, tmp_path_factory, run_processes):
  """Two processes that go on with it until SIGTERM comes to one: both, and their run's folder."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  shutil.copytree(killed[1], workdir)
  command = interrupted(config, workdir, 'SIGTERM', 1, 7, '--config.log.every.steps=1000')
  return run_processes(command, check=False), workdir


def test_a_killed_process_ends_the_others_with_one_sentence(killed, whole):
  (first, second), workdir = killed
  assert second.returncode == -signal.SIGKILL, second.stderr
  # 75, or JAX was faster: it aborts.
  assert first.returncode in (distributed.UNFINISHED, -signal.SIGABRT), first.stderr
  said = [line for line in first.stderr.splitlines() if line.startswith('vit_jax: ')]
  assert len(said) == 1, first.stderr
  assert said[0].endswith(f'the same command goes on with the run after step {SAVED}')
  assert first.stdout.startswith('process 0 of 2, 4 local devices of 8\n')
  before = losses(workdir)
  assert list(before) == list(range(1, 7))
  for step, loss in before.items():
    assert loss == pytest.approx(losses(whole[1])[step], rel=1e-5), step


def test_a_signal_to_one_stops_and_saves_all_after_the_same_step(stopped):
  (first, second), workdir = stopped
  assert f'resuming after step {SAVED} of' in first.stdout
  assert second.stdout.replace('[Gloo]', '').count('step') == 0, 'only process 0 prints'
  assert [first.returncode, second.returncode] == 2 * [distributed.UNFINISHED], first.stderr
  (step,) = re.findall(
    r'Stopped by a signal to one of the 2 processes after step (\d+) of 24, and', first.stdout
  )
  assert 7 < int(step) < STEPS
  assert max(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == int(step)


def assert_ends_as(whole, state, workdir: Path) -> None:
  """Losses from where it was stopped, the evaluation and the state are those of one process."""
  expected, found = losses(whole[1]), losses(workdir)
  assert STEPS in found and len(found) > 10
  for step, loss in found.items():
    assert loss == pytest.approx(expected[step], rel=1e-5), step
  last, other = metrics.read(whole[1])[-1], metrics.read(workdir)[-1]
  names = [name for name in last if not name.startswith('train/') and name != 'step']
  assert {'validation/loss', 'knn/accuracy', 'pixels/accuracy'} <= {*names}
  for name in names:
    assert other[name] == pytest.approx(last[name], rel=1e-5, abs=1e-6), name
  for a, b in zip(leaves(whole[0]), leaves(state), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  pictures = [sorted(p.name for p in (w / 'pictures').rglob('*')) for w in (whole[1], workdir)]
  assert pictures[0] == pictures[1]
  assert (workdir / 'report.html').exists()


def test_one_process_goes_on_on_another_mesh(config, whole, stopped, tmp_path):
  workdir = shutil.copytree(stopped[1], tmp_path / 'run')
  other = config_lib.load(config, ['--config.mesh.fsdp=4', '--config.sharding=fsdp'])
  assert_ends_as(whole, train.train_and_evaluate(other, workdir), workdir)


def test_one_device_goes_on(config, whole, stopped, tmp_path, run_processes):
  workdir = shutil.copytree(stopped[1], tmp_path / 'run')
  command = [sys.executable, '-m', 'vit_jax.main', '--config', config, '--workdir', str(workdir)]
  run_processes(command, count=1, devices=1)
  # Finished: reads what the other has saved.
  assert_ends_as(whole, train.train_and_evaluate(config_lib.load(config), workdir), workdir)


def test_four_processes_go_on_on_another_mesh_and_sharding(
  config, whole, stopped, tmp_path, run_processes
):
  workdir = shutil.copytree(stopped[1], tmp_path / 'run')
  command = [sys.executable, '-m', 'vit_jax.main', '--config', config]
  mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2', '--config.sharding=zero1']
  done = run_processes([*command, *flags(workdir, *mesh)], count=4)
  assert done[0].stdout.startswith('process 0 of 4, 2 local devices of 8\n')
  assert_ends_as(whole, train.train_and_evaluate(config_lib.load(config), workdir), workdir)


def test_evaluate_says_the_same_with_two_processes(config, whole, run_processes):
  command = [sys.executable, '-m', 'vit_jax', 'evaluate', str(whole[1])]
  found = ['--coordinator', 'ADDRESS', '--processes', 'COUNT', '--process', 'NUMBER']
  first, second = run_processes([*command, *found])
  table = metrics.final_table({k: v for k, v in metrics.read(whole[1])[-1].items() if k != 'step'})
  rows = [line for line in table.splitlines() if line.startswith(('validation', 'knn', 'pixels'))]
  assert len(rows) > 5
  for row in rows:
    assert row in first.stdout
  assert 'accuracy' not in second.stdout


# -- Mistakes.


def mistake(run_processes, *arguments: str, **options) -> list[str]:
  """The one line that each process says of a command that must fail."""
  command = [sys.executable, '-m', 'vit_jax.main', *arguments]
  lines = []
  for process in run_processes(command, check=False, **options):
    assert process.returncode not in (0, distributed.UNFINISHED), process.stdout
    said = [line for line in process.stderr.splitlines() if line.startswith('vit_jax: ')]
    assert len(said) == 1, process.stderr
    lines += said
  return lines


def test_processes_with_different_configs(config, tmp_path, run_processes):
  workdir = tmp_path / 'run'
  seeds = flags(workdir, '--config.seed=NUMBER')
  for line in mistake(run_processes, '--config', config, *seeds):
    assert 'process 1 has another config than process 0; start all with the same command' in line
  assert not workdir.exists()


def test_a_mistake_of_one_ends_the_others(config, tmp_path, run_processes):
  """0.0 on process 0, which is refused, and 0.1 on the other."""
  rate = '--config.optimizer.learning_rate=0.NUMBER'
  command = [sys.executable, '-m', 'vit_jax.main', '--config', config]
  first, second = run_processes([*command, *flags(tmp_path / 'run', rate)], check=False)
  assert first.returncode == 1
  assert 'vit_jax: process 0: error: optimizer.learning_rate must be a number > 0' in first.stderr
  assert second.returncode in (distributed.UNFINISHED, -signal.SIGABRT), second.stderr
  (said,) = [line for line in second.stderr.splitlines() if line.startswith('vit_jax: ')]
  assert said.endswith('the same command goes on with the run')


TOGETHER = """
  import os, signal, sys, time
  from pathlib import Path
  from vit_jax import distributed
  from vit_jax.interrupt import Interrupt
  address, number, folder = sys.argv[1:]
  times = dict(start_timeout=60, heartbeat_timeout=60)
  distributed.initialize(address, 2, int(number), **times, heeds_notice=True)
  assert distributed.gather(2**40 + int(number)) == [2**40, 2**40 + 1]
  assert distributed.differing('same') == []
  assert distributed.differing(number) == [1]
  own = Path(folder, number)
  if number == '0':
    own.touch()
  distributed.check_shared(Path(folder, '0'))
  try:
    distributed.check_shared(own, patience=0)
  except ValueError as e:
    print(e)
  step = 0
  with Interrupt() as interrupt:
    while not interrupt.stops(step) and step < 1000:
      distributed.gather(step)  # As a training step, none is far ahead of another.
      time.sleep(0.01)
      step += 1
      if step == 5 and number == '1':
        os.kill(os.getpid(), signal.SIGINT)
  print(f'after step {step}: {interrupt.requested}')
"""


def test_two_processes_agree(tmp_path, run_processes):
  """On what differs, on a folder that they do not share, and when to stop after one's Ctrl-C."""
  script = textwrap.dedent(TOGETHER)
  done = run_processes([sys.executable, '-c', script, 'ADDRESS', 'NUMBER', str(tmp_path)])
  stops = set()
  for number, process in enumerate(done):
    file = tmp_path / str(number)
    said = f'process 1 does not see {file}, which process 0 has written; all processes need one'
    assert said in process.stdout
    stops.add(process.stdout.splitlines()[-1])
  (stop,) = stops
  step = int(re.fullmatch(r'after step (\d+): a signal to one of the 2 processes', stop)[1])
  assert 5 < step < 1000


@pytest.mark.parametrize('number', [0, 1])
def test_alone_it_ends_in_the_stated_time(config, tmp_path, run_processes, number):
  arguments = ['--coordinator', 'ADDRESS', '--processes', '2', '--process', str(number)]
  (line,) = mistake(
    run_processes,
    *('--config', config, '--workdir', str(tmp_path / 'run'), '--start-timeout', '2', *arguments),
    count=1,
  )
  assert 'did not come together in 2 s; start all of them, with the same coordinator' in line
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (dict(processes=2), r'--coordinator is missing: several processes need --coordinator HOST:P'),
    (dict(coordinator='a:1', process=0), '--processes is missing'),
    (dict(coordinator='a:1', processes=2), '--process is missing'),
    (dict(coordinator='a:1', processes=2, process=2), 'numbered 0 to 1'),
    (dict(coordinator='a:1', processes=2, process=-1), 'numbered 0 to 1'),
    (dict(coordinator='a', processes=2, process=0), "'a' is no HOST:PORT, such as 10.0.0.2:8476"),
  ],
)
def test_flags_that_do_not_fit_together(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(**arguments, start_timeout=1, heartbeat_timeout=10)


SLURM = {'SLURM_JOB_ID': '7', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}


@pytest.mark.parametrize(
  ('environment', 'found'),
  [
    ({}, None),
    (SLURM, 'slurm'),
    ({**SLURM, 'SLURM_NTASKS': '1'}, None),
    # A shell within an allocation, and a step of one task.
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, None),
    ({**SLURM, 'SLURM_STEP_NUM_TASKS': '1'}, None),
    (POD, None),
    ({**POD, 'JOB_COMPLETION_INDEX': '0'}, 'k8s'),
  ],
)
def test_who_starts_several_processes(environment, found):
  assert distributed.detect(environment) == found


def test_one_process_is_alone(capfd):
  distributed.initialize(processes=1, start_timeout=1, heartbeat_timeout=10)
  distributed.initialize(start_timeout=1, heartbeat_timeout=10)
  assert not jax.distributed.is_initialized()
  assert distributed.number is None
  assert distributed.gather(2**40) == [2**40]
  assert distributed.differing('a') == []
  assert capfd.readouterr() == ('', '')
