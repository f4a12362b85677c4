import numpy as np
import pytest

from vit_jax.models.patches import cut_patches, join_patches

torch = pytest.importorskip('torch')

pytestmark = pytest.mark.smoke


def test_patches_are_cut_row_by_row():
  x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
  cut = cut_patches(x, (3, 2))
  assert cut.shape == (2, 2, 4, 18)
  for i in range(2):
    for j in range(4):
      patch = x[:, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
      np.testing.assert_array_equal(cut[:, i, j], patch.reshape(2, -1))


def test_joined_they_are_the_image():
  x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
  np.testing.assert_array_equal(join_patches(cut_patches(x, (3, 2)), (3, 2)), x)


def test_joining_is_a_pixel_shuffle():
  """PyTorch's, which has the channels before the rows and columns of a patch."""
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 20)).astype(np.float32)
  theirs = x.reshape(2, 3, 4, 4, 5).swapaxes(3, 4).reshape(2, 3, 4, 20).transpose(0, 3, 1, 2)
  expected = torch.nn.functional.pixel_shuffle(torch.tensor(theirs), 2).numpy()
  np.testing.assert_array_equal(join_patches(x, (2, 2)), expected.transpose(0, 2, 3, 1))
