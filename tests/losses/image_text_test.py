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
from vit_jax.losses import image_text

B, D = 12, 16
SCALE, BIAS = 14.3, -10.0
LOSSES = ['cross_entropy', 'sigmoid']
MESHES = [dict(data=8), dict(data=2, fsdp=2, tensor=2)]
DENSE = dict(dense_rows=10**9)
RING = dict(dense_rows=0, block=5)
HOW = pytest.mark.parametrize('how', [DENSE, RING], ids=['dense', 'ring'])
NAME = pytest.mark.parametrize('name', LOSSES)


def embeddings(batch=B, seed=0, noise=1.0) -> tuple[np.ndarray, np.ndarray]:
  """Images and texts, alike up to the noise."""
  draw = np.random.default_rng(seed).normal(size=(3, batch, D)).astype(np.float32)
  return draw[0] + noise * draw[1], draw[0] + noise * draw[2]


def similarities(image, text) -> np.ndarray:
  image, text = image.astype(float), text.astype(float)
  pairs = [[x @ y / math.sqrt((x @ x) * (y @ y)) for y in text] for x in image]
  return np.array(pairs)


def cross_entropy_loop(image, text, scale, bias) -> np.ndarray:
  """Figure 3, arXiv:2103.00020, one pair at a time; the bias is of the other loss."""
  del bias
  logits = scale * similarities(image, text)
  losses = []
  for i in range(len(logits)):
    of_texts = sum(math.exp(logits[i, j]) for j in range(len(logits)))
    of_images = sum(math.exp(logits[j, i]) for j in range(len(logits)))
    losses.append((math.log(of_texts) + math.log(of_images)) / 2 - logits[i, i])
  return np.array(losses)


def sigmoid_loop(image, text, scale, bias) -> np.ndarray:
  """Eq. 1, arXiv:2303.15343, one pair at a time; a pair's is shared by its image and its text."""
  logits = scale * similarities(image, text) + bias
  losses = np.zeros(len(logits))
  for i in range(len(logits)):
    for j in range(len(logits)):
      sign = 1 if i == j else -1
      loss = math.log1p(math.exp(-sign * logits[i, j]))
      losses[i] += loss / 2
      losses[j] += loss / 2
  return losses


LOOPS = dict(cross_entropy=cross_entropy_loop, sigmoid=sigmoid_loop)


@functools.partial(jax.jit, static_argnames=('name', 'dense_rows', 'block'))
def value_and_grad(name, image, text, scale=SCALE, bias=BIAS, **how):
  """The mean loss and what it is made of; gradients by image, text, scale and bias."""

  def mean(image, text, scale, bias):
    extra = (bias,) if name == 'sigmoid' else ()
    loss, *right = getattr(image_text, name)(image, text, scale, *extra, **how)
    return loss.mean(), (loss, *right)

  return jax.value_and_grad(mean, (0, 1, 2, 3), has_aux=True)(image, text, scale, bias)


def assert_close(a, b, tolerance=1e-5) -> None:
  """Relative to the largest."""
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-30))


def assert_same(a, b) -> None:
  (loss, (each, *right)), gradients = a
  (loss_b, (each_b, *right_b)), gradients_b = b
  np.testing.assert_allclose(loss, loss_b, rtol=1e-5)
  np.testing.assert_allclose(each, each_b, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(right, right_b)
  for gradient, gradient_b in zip(gradients, gradients_b, strict=True):
    assert_close(gradient, gradient_b)


@pytest.mark.smoke
@HOW
@NAME
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_equals_the_loop(name, how, dtype):
  image, text = (jnp.asarray(x, dtype) for x in embeddings())
  (_, (loss, *right)), _ = value_and_grad(name, image, text, **how)
  image, text = np.asarray(image, float), np.asarray(text, float)
  assert loss.shape == (B,)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, LOOPS[name](image, text, SCALE, BIAS), rtol=1e-5)
  found = similarities(image, text)
  assert 0 < np.mean(right) < 1  # So that the check can fail.
  np.testing.assert_array_equal(right[0], found.argmax(1) == np.arange(B))
  np.testing.assert_array_equal(right[1], found.argmax(0) == np.arange(B))


@HOW
@NAME
def test_gradient_is_the_loops_slope(name, how):
  image, text = (x.astype(float) for x in embeddings())
  to_image, to_text = (x.astype(float) for x in embeddings(seed=1))
  to_scale, to_bias = 3.0, 2.0
  _, gradients = value_and_grad(name, image, text, **how)
  along = zip(gradients, (to_image, to_text, to_scale, to_bias), strict=True)
  slope = sum(np.sum(np.asarray(gradient, float) * way) for gradient, way in along)

  def at(step):
    moved = image + step * to_image, text + step * to_text
    return LOOPS[name](*moved, SCALE + step * to_scale, BIAS + step * to_bias).mean()

  expected = (at(1e-5) - at(-1e-5)) / 2e-5
  assert slope == pytest.approx(expected, rel=1e-5)


def of_open_clip(name, image, text, scale, bias):
  """Loss and gradients of open_clip's, in one process and float64: its float32 is less exact."""
  torch = pytest.importorskip('torch')
  peer = pytest.importorskip('open_clip').loss
  arrays = (image, text, scale, bias)
  tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays]
  image, text = (torch.nn.functional.normalize(x, dim=-1) for x in tensors[:2])
  if name == 'sigmoid':
    loss = peer.SigLipLoss()(image, text, *tensors[2:])
  else:
    loss = peer.ClipLoss()(image, text, tensors[2])
  loss.backward()
  return loss.item(), [0.0 if x.grad is None else x.grad.numpy() for x in tensors]


@HOW
@NAME
# The last is a cross-entropy of 0.0006.
@pytest.mark.parametrize(('noise', 'scale'), [(1, 1.0), (1, 14.3), (1, 100.0), (0.1, 14.3)])
def test_equals_open_clip(name, how, noise, scale):
  arrays = (*embeddings(noise=noise), scale, BIAS)
  expected, gradients_expected = of_open_clip(name, *arrays)
  (loss, _), gradients = value_and_grad(name, *arrays, **how)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for gradient, gradient_expected in zip(gradients, gradients_expected, strict=True):
    assert_close(gradient, gradient_expected)


@NAME
@pytest.mark.parametrize(('batch', 'block'), [(2, 512), (15, 1), (15, 4), (15, 15), (15, 512)])
def test_ring_equals_dense_whatever_the_block(name, batch, block):
  arrays = embeddings(batch)
  dense = value_and_grad(name, *arrays, **DENSE)
  assert_same(value_and_grad(name, *arrays, dense_rows=0, block=block), dense)


@NAME
def test_examples_may_be_weighed(name):
  """The loss is not reduced, and its gradient is exact for any cotangent."""
  weights = np.random.default_rng(2).normal(size=B).astype(np.float32)
  extra = (BIAS,) if name == 'sigmoid' else ()

  def weighted(how, *arrays):
    return weights @ getattr(image_text, name)(*arrays, **how)[0]

  arrays = (*embeddings(), SCALE, *extra)
  by = tuple(range(len(arrays)))
  dense, ring = (
    jax.jit(jax.grad(functools.partial(weighted, how), by))(*arrays) for how in (DENSE, RING)
  )
  step = 1e-5
  above, below = (LOOPS[name](*arrays[:2], SCALE + d, BIAS) for d in (step, -step))
  assert float(ring[2]) == pytest.approx(weights @ (above - below) / (2 * step), rel=1e-5)
  for gradient, gradient_dense in zip(ring, dense, strict=True):
    assert_close(gradient, gradient_dense)


@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: '-'.join(mesh))
@pytest.mark.parametrize('how', [DENSE, dict(dense_rows=0, block=3)], ids=['dense', 'ring'])
@NAME
def test_one_device_and_eight_are_the_same(name, mesh, how):
  arrays = embeddings(batch=40)
  one = value_and_grad(name, *arrays, **DENSE)
  mesh = sharding.make_mesh(mesh)
  with jax.set_mesh(mesh):
    split = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in arrays]
    assert_same(value_and_grad(name, *split, **how), one)


def compiled(name: str, batch: int, width: int = 128, **how):
  mesh = sharding.make_mesh(dict(data=8))
  with jax.set_mesh(mesh):
    spec = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=sharding.batch_sharding(mesh))
    return value_and_grad.lower(name, spec, spec, **how).compile()


@NAME
def test_ring_takes_memory_for_the_batch_not_its_square(name):
  def memory(batch, **how):
    return compiled(name, batch, **how).memory_analysis().temp_size_in_bytes

  dense, ring, twice = (
    memory(8192, **DENSE), memory(8192, dense_rows=0), memory(16384, dense_rows=0)
  )  # fmt: skip
  assert ring <= dense / 8, (ring, dense)
  assert twice <= 2.1 * ring, (twice, ring)


@NAME
def test_ring_never_gathers_the_batch(name):
  text = compiled(name, 512, dense_rows=0).as_text()
  assert 'collective-permute' in text
  assert 'all-gather' not in text
  assert 'all-gather' in compiled(name, 512, **DENSE).as_text()  # So that the check can fail.


@NAME
def test_dense_splits_the_logits_by_rows(name):
  text = compiled(name, 512, **DENSE).as_text()
  assert 'f32[64,512]' in text
  assert 'f32[512,512]' not in text


@pytest.mark.smoke
@HOW
@NAME
@pytest.mark.parametrize(
  'arrays',
  [
    embeddings(batch=1),
    [np.zeros((4, D), np.float32)] * 2,
    [np.zeros((4, D), np.float32), embeddings(batch=4)[1]],
    [np.ones((4, D), np.float32)] * 2,
    [x * 1e-30 for x in embeddings(batch=4)],
    [x * 1e15 for x in embeddings(batch=4)],
  ],
  ids=['batch of one', 'zeros', 'zero images', 'constant', 'tiny', 'huge'],
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_finite(name, how, arrays, dtype):
  arrays = [jnp.asarray(x, dtype) for x in arrays]
  (loss, (each, *right)), gradients = value_and_grad(name, *arrays, 100.0, **how)
  assert each.dtype == right[0].dtype == right[1].dtype == jnp.float32
  assert gradients[0].dtype == gradients[1].dtype == dtype
  for value in (loss, each, *right, *gradients):
    assert np.isfinite(np.asarray(value, np.float32)).all()


@HOW
def test_known_values(how):
  cross_entropy = functools.partial(image_text.cross_entropy, scale=SCALE, **how)
  sigmoid = functools.partial(image_text.sigmoid, scale=SCALE, bias=BIAS, **how)
  # An example alone has nothing to be told from.
  loss, *right = cross_entropy(*embeddings(batch=1))
  assert float(loss[0]) == 0
  assert np.all(right)
  # All alike: one among B; and none is nearest.
  ones = jnp.ones((B, D))
  loss, *right = cross_entropy(ones, ones)
  np.testing.assert_allclose(loss, math.log(B), rtol=1e-6)
  assert not np.any(right)
  loss, *right = sigmoid(ones, ones)
  softplus = math.log1p(math.exp(SCALE + BIAS))
  np.testing.assert_allclose(loss, B * softplus - (SCALE + BIAS), rtol=1e-5)
  assert not np.any(right)
  # Pairs that are the same, at right angles to the others.
  rows = jnp.eye(D)[:B]
  loss, *right = cross_entropy(rows, rows)
  np.testing.assert_allclose(loss, math.log1p((B - 1) * math.exp(-SCALE)), rtol=1e-5)
  assert np.all(right)
  loss, *right = sigmoid(rows, rows)
  expected = math.log1p(math.exp(-SCALE - BIAS)) + (B - 1) * math.log1p(math.exp(BIAS))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert np.all(right)


@HOW
def test_directions_are_told_apart(how):
  """Two texts that are alike: the images tell neither, and each text tells its image."""
  image = np.eye(3, D, dtype=np.float32)
  text = image.copy()
  text[1] = text[0] = [1, 0.5, *[0] * (D - 2)]
  for name in LOSSES:
    (_, (_, of_image, of_text)), _ = value_and_grad(name, image, text, **how)
    np.testing.assert_array_equal(of_image, [0, 0, 1])
    np.testing.assert_array_equal(of_text, [1, 0, 1])


@NAME
def test_images_and_texts_of_different_shapes_are_refused(name):
  extra = (BIAS,) if name == 'sigmoid' else ()
  with pytest.raises(ValueError, match=r'images \(12, 16\) and texts \(11, 16\)'):
    getattr(image_text, name)(jnp.ones((B, D)), jnp.ones((B - 1, D)), SCALE, *extra)


PROCESS = """
  import sys
  import jax, numpy as np
  address, index, out = sys.argv[1:]
  jax.distributed.initialize(address, num_processes=2, process_id=int(index))
  sys.path.insert(0, {tests!r})
  from image_text_test import DENSE, LOSSES, embeddings, value_and_grad
  from vit_jax import sharding
  from vit_jax.evaluators import apply
  assert (jax.process_count(), jax.device_count()) == (2, 8)
  mesh = sharding.make_mesh(dict(data=4, fsdp=2))
  place = sharding.batch_sharding(mesh)
  arrays = [
    jax.make_array_from_callback(x.shape, place, lambda index, x=x: x[index])
    for x in embeddings(batch=16)
  ]
  with jax.set_mesh(mesh):
    for name in LOSSES:
      for how, options in (('dense', DENSE), ('ring', dict(dense_rows=0, block=1))):
        (loss, _), gradients = value_and_grad(name, *arrays, **options)
        found = apply.fetch((loss, *gradients), mesh)
        np.savez(f'{{out}}/{{name}}_{{how}}_{{index}}.npz', *found)
"""


def test_two_processes_equal_open_clip_in_one(tmp_path, run_processes):
  pytest.importorskip('open_clip')
  script = textwrap.dedent(PROCESS).format(tests=str(Path(__file__).parent))
  run_processes([sys.executable, '-c', script, 'ADDRESS', 'NUMBER', str(tmp_path)])
  for name in LOSSES:
    loss, gradients = of_open_clip(name, *embeddings(batch=16), SCALE, BIAS)
    for how in ('dense', 'ring'):
      for index in (0, 1):
        with np.load(tmp_path / f'{name}_{how}_{index}.npz') as found:
          np.testing.assert_allclose(found['arr_0'], loss, rtol=1e-5)
          for place, expected in enumerate(gradients, 1):
            assert_close(found[f'arr_{place}'], expected)
