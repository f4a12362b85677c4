"""The start scripts: shells take them, they start what they should, and start it again."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vit_jax import distributed
from vit_jax.cli import train as cli_train

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = [LAUNCH / name for name in ('tpu_pod.sh', 'slurm.sbatch', 'xla_flags.sh')]


def run(command, **variables) -> subprocess.CompletedProcess:
  return subprocess.run(
    list(map(str, command)),
    env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.name)
def test_shells_take_it(script):
  if shutil.which('shellcheck') is None:
    pytest.skip('shellcheck is not installed')
  done = run(['shellcheck', '-x', script])
  assert done.returncode == 0, done.stdout


# -- Flags.


def flags(platform: str, **variables: str) -> dict[str, str]:
  """XLA's variables after the script, in a shell that stops at every mistake."""
  code = 'set -euo pipefail; source launch/xla_flags.sh; env'
  keep = {'PATH': os.environ['PATH'], 'JAX_PLATFORMS': platform, **variables}
  done = subprocess.run(
    ['bash', '-c', code], env=keep, cwd=ROOT, capture_output=True, text=True, check=True
  )
  lines = dict(line.split('=', 1) for line in done.stdout.splitlines() if '=' in line)
  return {k: v for k, v in lines.items() if k in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')}


def test_a_platform_gets_its_own_flags_alone():
  assert flags('cpu') == {}
  assert flags('cpu', XLA_FLAGS='--xla_a=1') == {'XLA_FLAGS': '--xla_a=1'}
  (name, tpu), *others = flags('tpu,cpu').items()
  assert (name, others) == ('LIBTPU_INIT_ARGS', [])
  assert 'async_collective_fusion' in tpu and '_gpu_' not in tpu
  (name, gpu), *others = flags('cuda').items()
  assert (name, others) == ('XLA_FLAGS', [])
  assert all(word.startswith('--xla_gpu_') for word in gpu.split())


def test_what_is_set_already_comes_last():
  assert flags('cuda', XLA_FLAGS='--xla_a=1')['XLA_FLAGS'].endswith(' --xla_a=1')
  assert flags('tpu', LIBTPU_INIT_ARGS='--xla_b=2')['LIBTPU_INIT_ARGS'].endswith(' --xla_b=2')


def test_xla_knows_the_flags_for_gpus():
  code = 'import jax; print(jax.device_count())'
  good = run([sys.executable, '-c', code], **flags('cuda'))
  assert good.stdout.strip() == '1', good.stderr
  bad = run([sys.executable, '-c', code], XLA_FLAGS='--xla_gpu_no_such_flag=true')
  assert bad.returncode and 'Unknown flag' in bad.stderr


def write_programs(folder: Path, **texts: str) -> dict[str, str]:
  """Variables with a PATH on which these programs come first."""
  for name, text in texts.items():
    (folder / name).write_text(textwrap.dedent(text).lstrip())
    (folder / name).chmod(0o755)
  path = [str(folder), str(Path(sys.executable).parent), os.environ['PATH']]
  return {'PATH': os.pathsep.join(path), 'PYTHONPATH': str(ROOT)}


# -- SLURM.

# Two tasks on this machine with the variables that JAX looks for. Once they train they get SIGTERM,
# as at the end of a job's time; ends as the worse of them.
SRUN = f"""
  #!{sys.executable}
  import os, pathlib, subprocess, sys, time
  flag, *command = sys.argv[1:]
  assert flag == '--kill-on-bad-exit=1', flag
  tasks = [
    subprocess.Popen(command, env={{
      **os.environ, 'SLURM_NTASKS': '2', 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '1',
      'SLURM_STEP_NODELIST': 'localhost', 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i),
    }}) for i in range(2)
  ]
  log = pathlib.Path(command[command.index('--workdir') + 1], 'metrics.jsonl')
  while not (log.exists() and log.stat().st_size) and all(t.poll() is None for t in tasks):
    time.sleep(0.1)
  for task in tasks:
    task.terminate()
  sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
  #!/bin/sh
  echo "scontrol $*"
"""
TINY = (
  *('--config', 'configs/vit_digits.py', '--config.batch_size=16'),
  *('--config.objective.encoder.width=16', '--config.objective.encoder.depth=1'),
  *('--config.objective.encoder.num_heads=2', '--config.objective.encoder.mlp_dim=16'),
  *('--config.total.steps=100000', '--config.log.every.steps=1'),
)


def test_slurm_starts_a_task_a_process_and_goes_back_into_the_queue_after_a_signal(tmp_path):
  variables = write_programs(tmp_path, srun=SRUN, scontrol=SCONTROL)
  job = os.getpid()  # JAX makes its port of it.
  done = run(
    ['bash', LAUNCH / 'slurm.sbatch', *TINY, '--workdir', tmp_path / 'run'],
    **variables,
    SLURM_SUBMIT_DIR=ROOT,
    SLURM_JOB_ID=job,
    XLA_FLAGS='--xla_force_host_platform_device_count=2',
  )
  assert done.returncode == 75, done.stdout + done.stderr
  assert 'process 0 of 2, 2 local devices of 4\n' in done.stdout
  (step,) = re.findall(r'Stopped by a signal to one of the 2 .* after step (\d+) of', done.stdout)
  assert [p.name for p in (tmp_path / 'run/checkpoints').iterdir()] == [step]
  assert done.stdout.endswith(f'scontrol requeue {job}\n')


@pytest.mark.parametrize('code', [0, 1, 137])
def test_slurm_ends_as_the_run_did(tmp_path, code):
  variables = write_programs(tmp_path, srun=f'#!/bin/sh\nexit {code}\n', scontrol=SCONTROL)
  done = run(['bash', LAUNCH / 'slurm.sbatch'], **variables, SLURM_SUBMIT_DIR=ROOT)
  assert (done.returncode, done.stdout) == (code, '')


# -- Cloud TPU.

# Writes down how it was called, and does what the next of ANSWERS to such a call says.
GCLOUD = f"""
  #!{sys.executable}
  import json, pathlib, sys
  folder = pathlib.Path(__file__).parent
  call = sys.argv[1:]
  with (folder / 'calls').open('a') as calls:
    calls.write(json.dumps(call) + '\\n')
  answers = json.loads((folder / 'answers').read_text())
  for name, rest in answers.items():
    if name in ' '.join(call) and rest:
      text, code = rest.pop(0)
      (folder / 'answers').write_text(json.dumps(answers))
      print(text)
      sys.exit(code)
"""
RECIPE = ('--config', 'configs/vit_i21k.py:B/16', '--workdir', '/mnt/my runs', '--config.seed=1')


def launch(folder: Path, answers: dict, *arguments: str, **variables):
  """Runs the script; returns it and the calls of gcloud, as 'tpu-vm ssh' and the rest."""
  path = write_programs(folder, gcloud=GCLOUD)
  (folder / 'answers').write_text(json.dumps(answers))
  done = run(['bash', LAUNCH / 'tpu_pod.sh', *arguments], **path, PAUSE=0, **variables)
  file = folder / 'calls'
  calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
  assert all(call[:2] == ['compute', 'tpus'] for call in calls)
  return done, [(' '.join(call[2:4]), call[4:]) for call in calls]


def test_a_tpu_slice_trains_on_all_hosts(tmp_path):
  done, calls = launch(tmp_path, {'tpu-vm describe': [['READY', 0]]}, 'pod', 'eu-1', *RECIPE)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'The run is finished.'
  names = [name for name, _ in calls]
  assert names == ['tpu-vm describe', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh']
  assert calls[1][1] == ['--recurse', str(ROOT), 'pod:', '--zone=eu-1', '--worker=all']
  assert '[v]it_jax.main' in calls[2][1][-1] and "--python venv -e '.[tpu]'" in calls[2][1][-1]
  *place, command = calls[3][1]
  assert place == ['pod', '--zone=eu-1', '--worker=all']
  # As a shell there reads it.
  words = shlex.split(command.removeprefix('--command='))
  assert words[:2] == ['cd', ROOT.name]
  assert words[words.index('vit_jax.main') + 1 :] == list(RECIPE)
  assert 'launch/xla_flags.sh' in words


def test_a_slice_that_is_taken_away_is_asked_for_again_and_goes_on(tmp_path):
  answers = {
    'tpu-vm describe': [['', 1], ['CREATING', 0], ['READY', 0], ['PREEMPTED', 0], ['READY', 0]],
    'queued-resources describe': [['', 1], ['PROVISIONING', 0], ['SUSPENDED', 0]],
    'vit_jax.main --config': [['', 255], ['', 0]],
  }
  done, calls = launch(tmp_path, answers, 'pod', 'eu-1', *RECIPE, TYPE='v5litepod-256', QUICK=0)
  assert done.returncode == 0, done.stderr
  create = ('pod', '--node-id=pod', '--zone=eu-1', '--accelerator-type=v5litepod-256')
  made = [rest for name, rest in calls if name == 'queued-resources create']
  assert len(made) == 2
  assert tuple(made[0][:4]) == create and made[0][-1] == '--spot'
  assert [name for name, _ in calls if 'delete' in name or 'create' in name] == [
    'queued-resources create',
    'queued-resources delete',
    'queued-resources create',
  ]
  assert sum('vit_jax.main --config' in rest[-1] for _, rest in calls) == 2


def test_what_fails_at_once_three_times_is_given_up(tmp_path):
  answers = {'tpu-vm describe': [['READY', 0]] * 9, 'vit_jax.main --config': [['', 1]] * 9}
  done, calls = launch(tmp_path, answers, 'pod', 'eu-1', *RECIPE)
  assert done.returncode == 1
  assert 'failed three times within 120 seconds of its start' in done.stderr
  assert sum('vit_jax.main --config' in rest[-1] for _, rest in calls) == 3


def test_a_slice_that_is_not_there(tmp_path):
  done, _ = launch(tmp_path, {'tpu-vm describe': [['', 1]] * 9}, 'pod', 'eu-1', *RECIPE)
  assert done.returncode == 1
  assert 'there is no TPU pod in eu-1; TYPE=v5litepod-16' in done.stderr
  done, _ = launch(tmp_path, {}, 'pod')
  assert done.returncode == 2 and 'usage: ' in done.stderr


# -- Kubernetes.


def test_the_pods_of_a_job_find_each_other():
  yaml = pytest.importorskip('yaml')
  service, job = yaml.safe_load_all((LAUNCH / 'kubernetes.yaml').read_text())
  spec = job['spec']
  pod = spec['template']['spec']
  assert service['spec']['clusterIP'] == 'None'
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  assert pod['subdomain'] == service['metadata']['name']
  assert spec['completionMode'] == 'Indexed' and spec['completions'] == spec['parallelism']
  rules = [rule for rule in spec['podFailurePolicy']['rules'] if 'onExitCodes' in rule]
  actions = {code: rule['action'] for rule in rules for code in rule['onExitCodes']['values']}
  assert actions == {1: 'FailJob', 2: 'FailJob', distributed.UNFINISHED: 'Ignore'}
  (container,) = pod['containers']
  command = container['args'][0].partition('vit_jax.main')[2].replace('\\\n', ' ')
  argv = shlex.split(command.replace('$JOB_COMPLETION_INDEX', '3'))
  parser = argparse.ArgumentParser()
  cli_train.add_arguments(parser)
  args = parser.parse_args(argv)
  assert args.processes == spec['parallelism'] and args.process == 3
  name = f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}'
  assert args.coordinator == f'{name}:8476'
