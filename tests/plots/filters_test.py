"""The filters of the patch embedding, and their principal components as scikit-learn finds them."""

import numpy as np
from sklearn.decomposition import PCA

from vit_jax.plots import filters, images


def test_principal_components_equal_scikit_learn():
  kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 300)).astype(np.float32)
  kernel[:, :, 0] *= 3  # directions that stand out
  found = filters.principal(kernel, 5).reshape(5, -1)
  want = PCA(5, svd_solver='full').fit(kernel.reshape(-1, 300).T.astype(np.float64)).components_
  np.testing.assert_allclose(np.abs((found * want).sum(1)), 1, atol=1e-5)
  largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
  assert (largest > 0).all()


def test_small_patches_show_the_filters_themselves():
  kernel = np.zeros((4, 4, 3, 6), np.float32)
  kernel[1, 2, 0, 4] = -2.0  # the filter of largest norm: minus red at one pixel
  kernel[:, :, :, 2] = 0.01
  picture = filters.filters(kernel, count=2)
  assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
  y, x = images.GAP + images.TITLE, images.GAP
  first = picture[y : y + 64, x : x + 64].astype(int)
  np.testing.assert_array_equal(first[16 + 8, 32 + 8], [0, 128, 128])
  np.testing.assert_array_equal(first[0, 0], [128, 128, 128])
  second = picture[y : y + 64, x + 64 + images.GAP : x + 128 + images.GAP]
  assert (second == 255).all()


def test_channels_and_sizes():
  rng = np.random.default_rng(0)
  gray = filters.filters(rng.normal(size=(4, 4, 1, 16)))
  y, x = images.GAP + images.TITLE, images.GAP
  cell = gray[y : y + 64, x : x + 64]
  assert (cell == cell[..., :1]).all()
  kernel = rng.normal(size=(16, 16, 4, 32))
  large = filters.filters(kernel)
  assert large.shape[2] == 3
  assert (filters.filters(kernel[::-1]) != large).any()
