"""Convolutions for CPUs against sums over the kernel in NumPy, in double precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.models.convolution import POSITIONS, Convolution, convolve

# Images, height, width, features in and out, size, stride.
SHAPES = {
  'tiles fill the width': (2, 5, 8, 3, 4, 3, 1),
  'tiles do not': (2, 4, 6, 3, 4, 3, 1),
  'narrower than the kernel': (3, 2, 1, 5, 2, 3, 1),
  'groups of images': (6, 32, 32, 2, 3, 3, 1),
  'an image is a group': (2, 65, 64, 1, 2, 3, 1),
  'deep': (2, 4, 4, 512, 16, 3, 1),
  'stride': (2, 8, 6, 3, 4, 3, 2),
  'stride, odd sides': (2, 7, 5, 3, 4, 3, 2),
  'groups with a stride': (6, 64, 64, 2, 3, 3, 2),
  'stem': (2, 16, 15, 3, 4, 7, 2),
  'pointwise': (2, 5, 6, 3, 4, 1, 1),
  'pointwise with a stride': (2, 5, 6, 3, 4, 1, 2),
}


def draw(shape):
  """The input, the kernel and a gradient by the output, float32."""
  b, h, w, inputs, outputs, size, stride = shape
  rng = np.random.default_rng(0)
  shapes = (
    (b, h, w, inputs),
    (size, size, inputs, outputs),
    (b, -(-h // stride), -(-w // stride), outputs),
  )
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def expected(x, kernel, g, stride):
  """The convolution and its gradients, in float64."""
  x, kernel, g = (np.asarray(array, np.float64) for array in (x, kernel, g))
  pad = len(kernel) // 2
  padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  out, d_padded, d_kernel = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
  for i, j in np.ndindex(*kernel.shape[:2]):
    seen = (
      slice(None),
      slice(i, i + stride * g.shape[1], stride),
      slice(j, j + stride * g.shape[2], stride),
    )
    out += padded[seen] @ kernel[i, j]
    d_padded[seen] += g @ kernel[i, j].T
    d_kernel[i, j] = np.tensordot(padded[seen], g, ((0, 1, 2), (0, 1, 2)))
  return out, d_padded[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], d_kernel


def computed(x, kernel, g, stride, implementation='auto'):
  @jax.jit
  def run(x, kernel, g):
    out, gradient = jax.vjp(lambda *args: convolve(*args, stride, implementation), x, kernel)
    return out, *gradient(g)

  return run(x, kernel, g)


def error(ours, theirs):
  """The largest, by the largest."""
  ours = np.asarray(ours, np.float64)
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('implementation', ['auto', 'xla'])
def test_values_and_gradients_equal_sums_in_double_precision(shape, implementation):
  arrays, stride = draw(shape), shape[-1]
  ours = computed(*arrays, stride, implementation)
  for one, other in zip(ours, expected(*arrays, stride), strict=True):
    assert error(one, other) < 1e-5


def test_the_shapes_above_are_of_one_group_and_of_several():
  b, h, w = SHAPES['groups of images'][:3]
  assert h * w < POSITIONS < b * h * w
  b, h, w = SHAPES['an image is a group'][:3]
  assert h * w > POSITIONS


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('name', ['groups of images', 'stride'])
def test_sixteen_bits_are_rounded_once(name, dtype):
  shape = SHAPES[name]
  arrays = [jnp.asarray(x, dtype) for x in draw(shape)]
  ours = computed(*arrays, shape[-1])
  for one, other in zip(ours, expected(*arrays, shape[-1]), strict=True):
    assert one.dtype == dtype
    np.testing.assert_allclose(
      np.asarray(one, np.float64),
      other,
      rtol=float(jnp.finfo(dtype).eps),
      atol=1e-5 * np.abs(other).max(),
    )


def test_it_can_be_mapped_and_differentiated_twice():
  x, kernel, _ = draw((3, 4, 4, 2, 2, 3, 1))
  mapped = jax.vmap(lambda x: convolve(x[None], kernel)[0])(x)
  np.testing.assert_allclose(mapped, convolve(x, kernel), rtol=1e-5, atol=1e-5)

  def penalty(kernel, implementation):
    loss = lambda x: (convolve(x, kernel, 1, implementation) ** 3).sum()  # noqa: E731
    return (jax.grad(loss)(x) ** 2).sum()

  ours, theirs = (jax.jit(jax.grad(penalty), static_argnums=1)(kernel, i) for i in ('auto', 'xla'))
  assert error(ours, np.asarray(theirs)) < 1e-5


@pytest.mark.parametrize('size', [1, 3])
def test_parameters_are_those_of_linen(size):
  class Pair(nn.Module):
    conv: type

    @nn.compact
    def __call__(self, x):
      if self.conv is Convolution:
        return Convolution(4, size, name='layer')(x)
      return nn.Conv(4, (size, size), padding=size // 2, use_bias=False, name='layer')(x)

  x = draw((2, 4, 6, 3, 4, size, 1))[0]
  ours, theirs = (
    nn.unbox(Pair(conv).init_with_output(jax.random.key(0), x)) for conv in (Convolution, nn.Conv)
  )
  jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize(
  ('platform', 'implementation', 'of_xla'),
  [('cpu', 'auto', False), ('cpu', 'xla', True), ('cuda', 'auto', True), ('tpu', 'auto', True)],
)
def test_only_cpus_have_another_than_that_of_xla(size, platform, implementation, of_xla):
  x, kernel, g = draw((2, 4, 4, 3, 4, size, 1))

  @jax.jit
  def run(x, kernel, g):
    return jax.vjp(lambda *args: convolve(*args, 1, implementation), x, kernel)[1](g)

  text = run.trace(x, kernel, g).lower(lowering_platforms=(platform,)).as_text()
  assert ('stablehlo.convolution' in text) == of_xla
  assert ('stablehlo.dot_general' in text) != of_xla


@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=2, fsdp=4)])
@pytest.mark.parametrize('stride', [1, 2])
def test_devices_compute_on_their_own_images(mesh, stride):
  shape = (16, 32, 32, 2, 8, 3, stride)  # of several groups
  arrays = draw(shape)
  alone = computed(*arrays, stride)
  mesh = sharding.make_mesh(mesh)
  with jax.set_mesh(mesh):
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    x, kernel, g = map(jax.device_put, arrays, (split, whole, split))

    @jax.jit
    def run(x, kernel, g):
      out, gradient = jax.vjp(lambda *args: convolve(*args, stride), x, kernel)
      return out, *gradient(g)

    text = run.lower(x, kernel, g).compile().as_text()
    together = run(x, kernel, g)
  assert not any(word in text for word in ('all-gather', 'all-to-all', 'collective-permute'))
  assert 'all-reduce' in text  # of the kernel's gradient
  assert together[0].sharding.is_equivalent_to(split, 4)
  for one, other in zip(together, alone, strict=True):
    assert error(one, np.asarray(other, np.float64)) < 1e-5


def test_what_cannot_be_is_refused():
  x, kernel, _ = draw((1, 4, 4, 1, 1, 3, 1))
  with pytest.raises(ValueError, match="unknown convolution 'fft'; choose from 'auto', 'xla'"):
    convolve(x, kernel, 1, 'fft')
  with pytest.raises(ValueError, match='a kernel of odd size, not 2'):
    convolve(x, kernel[:2, :2])
