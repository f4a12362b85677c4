import functools
import math
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.losses import contrastive

B, D, T = 12, 16, 0.1
MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2)]
LABELS = np.arange(B) % 5
DENSE = dict(dense_rows=10**9)
RING = dict(dense_rows=0, block=5)


def embeddings(views=2, batch=B, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(batch, views, D)).astype(np.float32)


def loop(z, temperature, labels) -> np.ndarray:
  """L_out of Eq. 2, arXiv:2004.11362, one pair at a time; the mean over an example's views."""
  batch, views, _ = z.shape
  z = z.astype(float) / np.sqrt((z.astype(float) ** 2).sum(-1, keepdims=True))
  places = [(i, v) for i in range(batch) for v in range(views)]
  losses = np.zeros((batch, views))
  for anchor in places:
    others = [p for p in places if p != anchor]
    total = sum(math.exp(z[anchor] @ z[p] / temperature) for p in others)
    same = [p for p in others if labels[p[0]] == labels[anchor[0]]]
    logs = [math.log(math.exp(z[anchor] @ z[p] / temperature) / total) for p in same]
    losses[anchor] = -sum(logs) / len(same) if same else 0.0
  return losses.mean(1)


@functools.partial(jax.jit, static_argnames=('dense_rows', 'block'))
def value_and_grad(z, temperature=T, labels=None, **how):
  def mean(z, temperature):
    loss, right = contrastive.nt_xent(z, temperature, labels=labels, **how)
    return loss.mean(), (loss, right)

  return jax.value_and_grad(mean, (0, 1), has_aux=True)(z, temperature)


def assert_same(a, b, tolerance=1e-5) -> None:
  """Values, and gradients relative to the largest."""
  (loss, (each, right)), (grad, of_temperature) = a
  (loss_b, (each_b, right_b)), (grad_b, of_temperature_b) = b
  np.testing.assert_allclose(loss, loss_b, rtol=tolerance)
  np.testing.assert_allclose(each, each_b, rtol=tolerance, atol=tolerance)
  np.testing.assert_array_equal(right, right_b)
  np.testing.assert_allclose(grad, grad_b, atol=tolerance * np.abs(grad_b).max())
  np.testing.assert_allclose(of_temperature, of_temperature_b, rtol=tolerance)


@pytest.mark.smoke
@pytest.mark.parametrize('how', [DENSE, RING], ids=['dense', 'ring'])
@pytest.mark.parametrize('views', [2, 3])
@pytest.mark.parametrize('labels', [None, LABELS], ids=['views', 'labels'])
def test_equals_the_loop(how, views, labels):
  z = embeddings(views)
  loss, _ = contrastive.nt_xent(z, T, labels=labels, **how)
  expected = loop(z, T, np.arange(B) if labels is None else labels)
  assert loss.shape == (B,)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('how', [DENSE, RING], ids=['dense', 'ring'])
@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_equals_lightly(how, temperature):
  torch = pytest.importorskip('torch')
  lightly = pytest.importorskip('lightly.loss')
  z = embeddings()
  x = torch.tensor(z, requires_grad=True)
  expected = lightly.NTXentLoss(temperature)(x[:, 0], x[:, 1])
  expected.backward()
  (loss, _), (grad, _) = value_and_grad(z, temperature, **how)
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
  scale = np.abs(x.grad.numpy()).max()
  np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-5 * scale)


@pytest.mark.parametrize('labels', [None, LABELS], ids=['views', 'labels'])
@pytest.mark.parametrize('block', [1, 7, 24, 512])
def test_ring_equals_dense_whatever_the_block(labels, block):
  z = embeddings()
  dense = value_and_grad(z, labels=labels, **DENSE)
  assert_same(value_and_grad(z, labels=labels, dense_rows=0, block=block), dense)


@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: '-'.join(mesh))
@pytest.mark.parametrize('how', [DENSE, dict(dense_rows=0, block=3)], ids=['dense', 'ring'])
@pytest.mark.parametrize('labels', [None, np.arange(16) % 5], ids=['views', 'labels'])
def test_one_device_and_eight_are_the_same(mesh, how, labels):
  z = embeddings(batch=16)
  one = value_and_grad(z, labels=labels, **DENSE)
  mesh = sharding.make_mesh(mesh)
  with jax.set_mesh(mesh):
    split = jax.device_put(z, sharding.batch_sharding(mesh))
    assert_same(value_and_grad(split, labels=labels, **how), one)


def compiled(batch: int, **how):
  mesh = sharding.make_mesh(dict(data=8))
  with jax.set_mesh(mesh):
    spec = jax.ShapeDtypeStruct(
      (batch, 2, 128), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    return value_and_grad.lower(spec, **how).compile()


def test_ring_takes_an_eighth_of_the_memory():
  dense, ring = (
    compiled(8192, **how).memory_analysis().temp_size_in_bytes
    for how in (DENSE, dict(dense_rows=0))
  )
  assert ring <= dense / 8, (ring, dense)


def test_ring_never_gathers_the_batch():
  text = compiled(512, dense_rows=0).as_text()
  assert 'collective-permute' in text
  assert 'all-gather' not in text
  assert 'all-gather' in compiled(512, **DENSE).as_text()  # So that the check can fail.


@pytest.mark.smoke
@pytest.mark.parametrize('how', [DENSE, RING], ids=['dense', 'ring'])
@pytest.mark.parametrize(
  'z',
  [
    embeddings(batch=1),
    embeddings(views=1),
    embeddings(views=1, batch=1),
    np.zeros((4, 2, D), np.float32),
    np.ones((4, 2, D), np.float32),
    embeddings() * 1e-30,
    embeddings() * 1e15,
  ],
  ids=['batch of one', 'one view', 'one of one', 'zeros', 'constant', 'tiny', 'huge'],
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_finite(how, z, dtype):
  (loss, (each, _)), (grad, of_temperature) = value_and_grad(jnp.asarray(z, dtype), 0.05, **how)
  assert each.dtype == jnp.float32
  assert grad.dtype == dtype
  for value in (loss, grad, of_temperature):
    assert np.isfinite(np.asarray(value, np.float32)).all()


@pytest.mark.parametrize('how', [DENSE, RING], ids=['dense', 'ring'])
def test_known_values(how):
  # An example alone has nothing to be told from.
  assert float(contrastive.nt_xent(embeddings(batch=1), T, **how)[0][0]) == pytest.approx(0)
  # All alike: one among 2 B - 1.
  loss, right = contrastive.nt_xent(jnp.ones((B, 2, D)), T, **how)
  np.testing.assert_allclose(loss, math.log(2 * B - 1), rtol=1e-6)
  assert not right.any()
  # One view each, and no label twice: nothing belongs together.
  loss, right = contrastive.nt_xent(embeddings(views=1), T, **how)
  assert not loss.any()
  assert not right.any()
  # Views that are the same, of examples at right angles.
  same = jnp.repeat(jnp.eye(D)[:B, None], 2, axis=1)
  loss, right = contrastive.nt_xent(same, T, **how)
  np.testing.assert_allclose(loss, math.log1p((2 * B - 2) * math.exp(-1 / T)), rtol=1e-3)
  assert right.all()


PROCESS = """
  import sys
  import jax, numpy as np
  address, index, out = sys.argv[1:]
  jax.distributed.initialize(address, num_processes=2, process_id=int(index))
  sys.path.insert(0, {tests!r})
  from contrastive_test import DENSE, RING, embeddings, value_and_grad
  from vit_jax import sharding
  from vit_jax.evaluators import apply
  assert (jax.process_count(), jax.device_count()) == (2, 8)
  mesh = sharding.make_mesh(dict(data=4, fsdp=2))
  z, place = embeddings(batch=16), sharding.batch_sharding(mesh)
  z = jax.make_array_from_callback(z.shape, place, lambda index: z[index])
  with jax.set_mesh(mesh):
    for name, how in (('dense', DENSE), ('ring', RING)):
      (loss, _), (grad, _) = value_and_grad(z, **how)
      loss, grad = apply.fetch((loss, grad), mesh)
      np.savez(f'{{out}}/{{name}}_{{index}}.npz', loss=loss, grad=grad)
"""


def test_two_processes_as_one(tmp_path, run_processes):
  script = textwrap.dedent(PROCESS).format(tests=str(Path(__file__).parent))
  run_processes([sys.executable, '-c', script, 'ADDRESS', 'NUMBER', str(tmp_path)])
  (loss, _), (grad, _) = value_and_grad(embeddings(batch=16), **DENSE)
  for name in ('dense', 'ring'):
    for index in (0, 1):
      with np.load(tmp_path / f'{name}_{index}.npz') as found:
        np.testing.assert_allclose(found['loss'], loss, rtol=1e-5)
        np.testing.assert_allclose(found['grad'], grad, atol=1e-5 * np.abs(grad).max())
