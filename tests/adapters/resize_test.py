"""Resized positions and patch kernels, against PyTorch, timm, transformers, SciPy and NumPy."""

import math

import ml_dtypes
import numpy as np
import pytest

from vit_jax.adapters.resize import resize_patches, resize_positions
from vit_jax.models.interpolation import PATCH_METHODS, POSITION_METHODS

ndimage = pytest.importorskip('scipy.ndimage')
torch = pytest.importorskip('torch')

# Published resolutions, larger and smaller; then sides that differ, one of which shrinks; then one.
GRIDS = [
  ((14, 14), (24, 24)),
  ((37, 37), (16, 16)),
  ((24, 24), (14, 14)),
  ((14, 14), (14, 28)),
  ((12, 20), (9, 31)),
  ((1, 5), (4, 1)),
]
PATCHES = [((16, 16), (32, 32)), ((16, 16), (14, 14)), ((32, 32), (16, 16)), ((14, 14), (16, 16)),
           ((16, 8), (14, 12)), ((8, 8), (8, 16))]  # fmt: skip


def draw(*shape, dtype=np.float32):
  return np.random.default_rng(0).normal(size=shape).astype(dtype)


def interpolate(x, size, **options):
  """PyTorch's, of `[h, w, D]`."""
  x = torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None]
  return torch.nn.functional.interpolate(x, size=size, **options)[0].permute(1, 2, 0).numpy()


@pytest.fixture(scope='module')
def timm():
  try:
    import timm.layers
  except (ImportError, RuntimeError) as error:  # a torchvision for another PyTorch
    pytest.skip(f'no timm: {error}')
  return timm.layers


# In float32 PyTorch rounds the places it reads; in float64 nothing is left to tell the two apart.
@pytest.mark.parametrize(('dtype', 'atol'), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(('grid', 'new_grid'), GRIDS)
@pytest.mark.parametrize(('method', 'antialias'), [('bicubic', True), ('bicubic_plain', False)])
def test_bicubic_equals_pytorch(method, antialias, grid, new_grid, dtype, atol):
  x = draw(*grid, 8, dtype=dtype)
  expected = interpolate(x, new_grid, mode='bicubic', antialias=antialias, align_corners=False)
  actual = resize_positions(x.reshape(-1, 8), grid, new_grid, method=method)
  assert actual.dtype == dtype
  np.testing.assert_allclose(actual, expected.reshape(-1, 8), rtol=0, atol=atol)


@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_bicubic_equals_timm(timm, prefix):
  x = draw(1, prefix + 7 * 9, 8)
  expected = timm.resample_abs_pos_embed(torch.from_numpy(x), [10, 6], [7, 9], prefix).numpy()
  actual = resize_positions(x, (7, 9), (10, 6), prefix=prefix)
  assert actual.shape == (1, prefix + 60, 8)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('module', 'name', 'method'),
  [
    ('vit', 'ViT', 'bicubic_plain'),
    ('dinov2', 'Dinov2', 'bicubic_plain'),
    ('dinov2_with_registers', 'Dinov2WithRegisters', 'bicubic'),
  ],
)
def test_each_model_of_transformers_has_its_method(module, name, method):
  pytest.importorskip('transformers')
  package = pytest.importorskip(f'transformers.models.{module}.modeling_{module}')
  config = getattr(package, f'{name}Config')(hidden_size=8, image_size=28, patch_size=4)
  layer = getattr(package, f'{name}Embeddings')(config).eval()
  x = draw(1, 1 + 7 * 7, 8)
  with torch.no_grad():
    layer.position_embeddings.copy_(torch.from_numpy(x))
    expected = layer.interpolate_pos_encoding(torch.zeros(1, 1 + 5 * 11, 8), 20, 44).numpy()
  actual = resize_positions(x, (7, 7), (5, 11), prefix=1, method=method)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bilinear_zoom_equals_a_loop_over_places():
  (h, w), (new_h, new_w) = (3, 5), (7, 4)
  x = draw(h, w, 2, dtype=np.float64)
  expected = np.zeros((new_h, new_w, 2))
  for i in range(new_h):
    for j in range(new_w):
      y, z = i * (h - 1) / (new_h - 1), j * (w - 1) / (new_w - 1)
      for k in range(h):
        for m in range(w):
          expected[i, j] += max(0, 1 - abs(y - k)) * max(0, 1 - abs(z - m)) * x[k, m]
  actual = resize_positions(x.reshape(-1, 2), (h, w), (new_h, new_w), method='bilinear_zoom')
  np.testing.assert_allclose(actual, expected.reshape(-1, 2), atol=1e-14)


# SciPy adds up four products where we multiply by two matrices. Both do it in double precision, but
# halfway between two float32 numbers the last bit of a double decides.
@pytest.mark.parametrize(('grid', 'new_grid'), [*GRIDS, ((7, 7), (14, 14)), ((16, 16), (37, 37))])
def test_bilinear_zoom_equals_scipy_but_for_the_last_bit_of_few(grid, new_grid):
  x = draw(*grid, 64)
  zoom = (new_grid[0] / grid[0], new_grid[1] / grid[1], 1)
  expected = ndimage.zoom(x, zoom, order=1).reshape(-1, 64)
  actual = resize_positions(x.reshape(-1, 64), grid, new_grid, method='bilinear_zoom')
  np.testing.assert_array_max_ulp(actual, expected, maxulp=1)
  assert (actual != expected).mean() < 2e-3


def test_bilinear_zoom_has_no_zeros_where_scipy_rounds_past_the_edge():
  assert 41 * (23 / 41) > 23  # 384 to 672 pixels in patches of 16
  x = draw(24, 24, 8)
  zoom = (42 / 24, 42 / 24, 1)
  assert (ndimage.zoom(x, zoom, order=1)[-1] == 0).all()
  actual = resize_positions(x.reshape(-1, 8), (24, 24), (42, 42), method='bilinear_zoom')
  np.testing.assert_array_equal(actual[-1], x[-1, -1])
  expected = ndimage.zoom(x, zoom, order=1, mode='nearest').reshape(-1, 8)
  np.testing.assert_array_max_ulp(actual, expected, maxulp=1)


@pytest.mark.parametrize('method', POSITION_METHODS)
def test_the_same_grid_gives_the_same_numbers(method):
  x = draw(1, 2 + 3 * 4, 8)
  np.testing.assert_array_equal(resize_positions(x, (3, 4), [3, 4], prefix=2, method=method), x)
  # And not because nothing is computed: where one side stays, so do the places along it.
  matrix = POSITION_METHODS[method](5, 5)
  np.testing.assert_allclose(matrix, np.eye(5), atol=1e-15)


@pytest.mark.parametrize('method', POSITION_METHODS)
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_class_and_register_tokens_and_the_type_are_kept(method, dtype):
  x = draw(5 + 4 * 6, 8).astype(dtype)
  actual = resize_positions(x, (4, 6), (6, 5), prefix=5, method=method)
  assert actual.shape == (5 + 6 * 5, 8)
  assert actual.dtype == dtype
  np.testing.assert_array_equal(actual[:5], x[:5])
  exact = resize_positions(x.astype(np.float64), (4, 6), (6, 5), prefix=5, method=method)
  np.testing.assert_array_equal(actual, exact.astype(dtype))  # one rounding


@pytest.mark.parametrize('method', POSITION_METHODS)
@pytest.mark.parametrize(('grid', 'new_grid'), GRIDS)
def test_where_all_positions_are_equal_the_new_ones_are_too(method, grid, new_grid):
  row = draw(1, 8)
  actual = resize_positions(np.repeat(row, math.prod(grid), 0), grid, new_grid, method=method)
  np.testing.assert_allclose(actual, np.repeat(row, math.prod(new_grid), 0), rtol=1e-6)


@pytest.mark.parametrize(
  ('shape', 'arguments', 'message'),
  [
    (
      (1, 197, 8),
      dict(),
      r'\[1, 197, 8\] have 197 tokens, but grid 14x14 with prefix 0 has 196; '
      'of square grids, 14x14 with prefix 1 would fit$',
    ),
    ((201, 8), dict(prefix=1), 'prefix 1 has 197; of square grids, 14x14 with prefix 5 would fit'),
    ((10, 8), dict(), '3x3 with prefix 1 or 2x2 with prefix 6 would fit'),
    ((190, 8), dict(), 'none fits with a prefix of 8 or less'),
    ((2, 196, 8), dict(), r'\[N, D\] or \[1, N, D\], not \[2, 196, 8\]'),
    ((196, 8), dict(new_grid=(0, 7)), r'at least 1 .*got \(14, 14\), \(0, 7\) and 0'),
    ((195, 8), dict(prefix=-1), '0 or more tokens, got .* and -1'),
    (
      (196, 8),
      dict(method='nearest'),
      "unknown method 'nearest'; choose from 'bicubic', 'bicubic_plain', 'bilinear_zoom'",
    ),
  ],
)
def test_positions_that_do_not_fit_are_refused(shape, arguments, message):
  with pytest.raises(ValueError, match=message):
    resize_positions(np.zeros(shape), **{'grid': (14, 14), 'new_grid': (7, 7), **arguments})


OPTIONS = {
  'bilinear': dict(mode='bilinear', antialias=False, align_corners=False),
  'bicubic': dict(mode='bicubic', antialias=True, align_corners=False),
}


@pytest.mark.parametrize('method', PATCH_METHODS)
@pytest.mark.parametrize(('size', 'new_size'), PATCHES)
def test_kernels_equal_timm(timm, size, new_size, method):
  kernel = draw(*size, 3, 5)
  resample = timm.patch_embed.resample_patch_embed
  oihw = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
  options = dict(interpolation=method, antialias=OPTIONS[method]['antialias'])
  expected = resample(oihw, list(new_size), **options).numpy().transpose(2, 3, 1, 0)
  actual = resize_patches(kernel, new_size, method=method)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, expected, atol=1e-4)


# Of the whole patch at once, [P * Q, P' * Q'], in PyTorch: no use is made of rows and columns.
def resize_matrix(size, new_size, method):
  pixels = np.eye(math.prod(size)).reshape(*size, -1)
  return interpolate(pixels, new_size, **OPTIONS[method]).reshape(math.prod(new_size), -1)


@pytest.mark.parametrize('method', PATCH_METHODS)
@pytest.mark.parametrize(
  ('size', 'new_size'), [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (5, 3))]
)
def test_kernels_are_the_pseudo_inverse_applied_channel_by_channel(size, new_size, method):
  kernel = draw(*size, 3, 5, dtype=np.float64)
  inverse = np.linalg.pinv(resize_matrix(size, new_size, method).T)
  expected = np.zeros((*new_size, 3, 5))
  for c in range(3):
    for d in range(5):
      expected[:, :, c, d] = (inverse @ kernel[:, :, c, d].ravel()).reshape(new_size)
  actual = resize_patches(kernel, new_size, method=method)
  np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize('method', PATCH_METHODS)
@pytest.mark.parametrize(('size', 'new_size'), [((16, 16), (32, 32)), ((14, 14), (16, 16)),
                                                ((8, 12), (11, 12))])  # fmt: skip
def test_enlarged_patches_are_embedded_as_before(size, new_size, method):
  kernel = draw(*size, 3, 5)
  patch = np.random.default_rng(1).uniform(size=(*size, 3)).astype(np.float32)
  before = np.einsum('pqc,pqcd->d', patch, kernel)
  larger = interpolate(patch, new_size, **OPTIONS[method])
  after = np.einsum('pqc,pqcd->d', larger, resize_patches(kernel, new_size, method=method))
  np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('method', PATCH_METHODS)
def test_for_smaller_patches_no_kernel_is_closer_on_white_noise(method):
  kernel = draw(7, 6, 1, 5, dtype=np.float64)
  matrix = resize_matrix((7, 6), (4, 5), method)
  smaller = resize_patches(kernel, (4, 5), method=method).reshape(20, 5)
  # The expected squared error is |kernel - matrix.T @ smaller|^2; at its minimum the gradient is 0.
  error = kernel.reshape(42, 5) - matrix.T @ smaller
  np.testing.assert_allclose(matrix @ error, 0, atol=1e-12)
  assert np.abs(error).max() > 0.1


def test_kernels_of_the_same_size_and_their_type_are_kept():
  kernel = draw(4, 4, 3, 5).astype(np.float16)
  np.testing.assert_array_equal(resize_patches(kernel, 4), kernel)
  assert resize_patches(kernel, 6).dtype == np.float16
  np.testing.assert_array_equal(resize_patches(kernel, 6), resize_patches(kernel, (6, 6)))


@pytest.mark.parametrize(
  ('shape', 'size', 'method', 'message'),
  [
    ((4, 4, 3), 8, 'bilinear', r'a patch kernel is \[P, Q, C, D\], not \[4, 4, 3\]'),
    ((4, 4, 3, 5), (8, 0), 'bilinear', r'patch_size must be at least 1, got \(8, 0\)'),
    ((4, 4, 3, 5), 8, 'area', "unknown method 'area'; choose from 'bilinear', 'bicubic'"),
  ],
)
def test_kernels_that_cannot_be_resized_are_refused(shape, size, method, message):
  with pytest.raises(ValueError, match=message):
    resize_patches(np.zeros(shape), size, method=method)
