"""Checkpoints: the best and the last stay; a broken one, or a full disk, is one sentence."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.checkpoint import Checkpoints, read_json, write_json
from vit_jax.state import TrainState

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))


def make_state(mesh, value: float = 0.0, width: int = 8, dtype=jnp.float32, name: str = 'kernel'):
  whole = sharding.replicated(mesh)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))

  def make():
    params = {name: jnp.full((width, 4), value, dtype)}
    return TrainState(jnp.int32(value), params, {}, ({'mu': params}, ()), jax.random.PRNGKey(3))

  like = jax.eval_shape(make)
  placed = jax.tree.map(lambda x: split if x.ndim == 2 else whole, like)
  return jax.jit(make, out_shardings=placed)()


def like(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def test_a_state_comes_back_in_its_shards_also_on_another_mesh(mesh, tmp_path):
  state = make_state(mesh, 5)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, state, {})
  other = make_state(sharding.make_mesh(dict(data=-1)), 0)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest == 5
    same, moved = checkpoints.restore(like(state)), checkpoints.restore(like(other))
  for a, b, c in zip(*(jax.tree.leaves(s) for s in (state, same, moved)), strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)
    assert a.sharding == b.sharding and a.dtype == b.dtype
  assert moved.params['kernel'].sharding == other.params['kernel'].sharding


def test_the_config_lies_beside_every_state(mesh, tmp_path):
  config = {'seed': 3, 'data': {'styles': ['google']}}
  with Checkpoints(tmp_path, config=config) as checkpoints:
    checkpoints.save(5, make_state(mesh, 5), {})
  assert read_json(tmp_path / 'checkpoints/5/config/metadata') == config


def test_the_best_and_the_last_stay(mesh, tmp_path):
  scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.5, 5: 0.2, 6: None}
  with Checkpoints(tmp_path, keep_last=2, keep_best=1, best='val/accuracy') as checkpoints:
    for step, score in scores.items():
      metrics = {} if score is None else {'val/accuracy': score, 'val/loss': 1.0}
      checkpoints.save(step, make_state(mesh, step), metrics)
    checkpoints.wait()
    assert checkpoints.steps == [2, 5, 6]
    assert (checkpoints.find('best'), checkpoints.find('last')) == (2, 6)
  with Checkpoints(tmp_path / 'low', keep_last=1, best='val/loss', mode='min') as checkpoints:
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0), 1):
      checkpoints.save(step, make_state(mesh, step), {'val/loss': loss})
    checkpoints.wait()
    assert checkpoints.steps == [2, 4]


def test_saving_is_not_disturbed_by_the_next_step(mesh, tmp_path):
  """The next step donates the buffers that are still being written."""
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = make_state(mesh, 0, width=100_000)
  with Checkpoints(tmp_path, keep_last=4) as checkpoints:
    for i in range(1, 5):
      state = step(state)
      checkpoints.save(i, state, {})
    checkpoints.wait()
    for i in range(1, 5):
      np.testing.assert_array_equal(checkpoints.restore(like(state), i).params['kernel'], i)


def test_a_metric_that_no_evaluator_gives(mesh, tmp_path):
  with (
    Checkpoints(tmp_path, best='val/acuracy') as checkpoints,
    pytest.raises(ValueError, match="'val/acuracy'.* choose from 'val/accuracy', 'val/loss'"),
  ):
    checkpoints.save(1, make_state(mesh), {'val/loss': 1.0, 'val/accuracy': 0.5})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps == [1]  # Nothing is lost by it.


def test_truncated_metrics_are_one_sentence(mesh, tmp_path):
  with Checkpoints(tmp_path, best='loss', mode='min') as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(mesh, step), {'loss': 1.0})
  file = tmp_path / 'checkpoints/2/metrics/metrics'
  file.write_text(file.read_text()[:2])
  with pytest.raises(ValueError, match=r'checkpoints/2 cannot be read \(.*remove that folder'):
    Checkpoints(tmp_path, best='loss', mode='min')
  shutil.rmtree(tmp_path / 'checkpoints/2')
  with Checkpoints(tmp_path, best='loss', mode='min') as checkpoints:
    assert checkpoints.latest == 1


@pytest.mark.parametrize(
  ('other', 'says'),
  [
    (dict(width=16), r"'params/kernel' is float32\[8, 4\] there and float32\[16, 4\] here"),
    (dict(dtype=jnp.bfloat16), r"'params/kernel' is float32\[8, 4\] there and bfloat16"),
    (dict(name='bias'), r"lacks 2 of 4 arrays, first 'params/bias'"),
  ],
)
def test_a_foreign_checkpoint_is_one_sentence(mesh, tmp_path, other, says):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(mesh, 1), {})
    checkpoints.save(2, make_state(mesh, 2), {})
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(ValueError, match=rf'not of this model: .*{says}.*to go on from step 1$'),
  ):
    checkpoints.restore(like(make_state(mesh, **other)))


def test_a_truncated_checkpoint_is_one_sentence_and_the_one_before_it_is_whole(mesh, tmp_path):
  state = make_state(mesh, 2, width=4096)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(mesh, 1, width=4096), {})
    checkpoints.save(2, state, {})
  data = [p for p in (tmp_path / 'checkpoints/2').rglob('*') if p.is_file() and '/d/' in str(p)]
  for file in data:
    os.truncate(file, file.stat().st_size // 2)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r'checkpoints/2 cannot be read .*from step 1$') as error:
      checkpoints.restore(like(state))
    assert '\n' not in str(error.value)
    np.testing.assert_array_equal(checkpoints.restore(like(state), 1).params['kernel'], 1)


def test_no_such_step(mesh, tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, make_state(mesh), {})
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 4; it has 3$'):
      checkpoints.restore(like(make_state(mesh)), 4)
    with pytest.raises(ValueError, match="unknown step 'first'; choose from 'last', 'best'"):
      checkpoints.find('first')


def run(script: str, *args: object) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script), *map(str, args)],
    env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_killed_while_it_saves_it_resumes_from_the_checkpoint_before(mesh, tmp_path):
  killed = run(
    """
    import os, signal, sys
    from checkpoint_test import Checkpoints, make_state
    from vit_jax import sharding
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with Checkpoints(sys.argv[1]) as checkpoints:
      checkpoints.save(1, make_state(mesh, 1, width=2_000_000), {})
      checkpoints.wait()
      checkpoints.save(2, make_state(mesh, 2, width=2_000_000), {})
      os.kill(os.getpid(), signal.SIGKILL)
    """,
    tmp_path,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  with Checkpoints(tmp_path) as checkpoints:
    state = checkpoints.restore(like(make_state(mesh, width=2_000_000)))
    assert checkpoints.latest == int(state.step)
    np.testing.assert_array_equal(state.params['kernel'], int(state.step))
    checkpoints.save(3, make_state(mesh, 3, width=2_000_000), {})
    checkpoints.wait()
    assert checkpoints.latest == 3


@pytest.fixture
def small_disk(make_disk):
  return make_disk(megabytes=6)


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(mesh, small_disk):
  first, second = make_state(mesh, 1), make_state(mesh, 2)
  noise = jax.random.bits(jax.random.key(0), (4_000_000,))  # 16 MB that do not compress
  second = second.replace(params={'kernel': noise})
  with Checkpoints(small_disk, keep_last=3) as checkpoints:
    checkpoints.save(1, first, {})
    checkpoints.wait()
    with pytest.raises(OSError, match='[Nn]o space left.*the last good one is step 1') as error:
      checkpoints.save(2, second, {})
      checkpoints.wait()
    assert '\n' not in str(error.value)
  with Checkpoints(small_disk) as checkpoints:
    assert checkpoints.latest == 1
    np.testing.assert_array_equal(checkpoints.restore(like(first)).params['kernel'], 1)


def test_json_is_whole_or_not_there(tmp_path):
  file = tmp_path / 'a' / 'run.json'
  assert read_json(file) is None
  write_json(file, {'a': [1, 2]})
  write_json(file, {'a': 3})
  assert read_json(file) == {'a': 3}
  assert [p.name for p in file.parent.iterdir()] == ['run.json']
  file.write_text('{"a": ')
  with pytest.raises(ValueError, match=re.escape('run.json is not readable JSON')):
    read_json(file)
