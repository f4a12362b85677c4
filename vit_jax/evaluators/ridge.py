"""L2-regularised least squares from features to classes, on the host."""

from __future__ import annotations

import numpy as np

BIAS = 100.0  # the constant feature; so large that its weight is hardly regularised
EPSILON = 1e-5  # added to the standard deviations
BLOCK = 8192  # examples classified at a time


class Ridge:
  """W = (X^T X + l2 I)^-1 X^T Y for every l2 at once, by one eigendecomposition.

  A row of X is an example's features, each centred and divided by its standard deviation plus 1e-5,
  and the constant `BIAS`; of Y, 1 for its class and -1 for all others. All in float64.

  Attributes:
    mean: [D], of the features.
    std: [D], likewise, plus 1e-5.
  """

  def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int):
    """Decomposes.

    Args:
      features: [N, D] float.
      labels: [N] int, below `num_classes`.
      num_classes: K.
    """
    features = features.astype(np.float64)
    self.mean, self.std = features.mean(0), features.std(0) + EPSILON
    x = self._inputs(features)  # [N, D + 1]
    y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)  # [N, K]
    # The smaller of two equal forms: (X^T X + l2 I)^-1 X^T Y = X^T (X X^T + l2 I)^-1 Y.
    if len(x) > x.shape[1]:
      self._values, q = np.linalg.eigh(x.T @ x)
      self._left, self._right = q, q.T @ (x.T @ y)
    else:
      self._values, q = np.linalg.eigh(x @ x.T)
      self._left, self._right = x.T @ q, q.T @ y

  def weights(self, l2: float) -> np.ndarray:
    """[D + 1, K], of the standardised features and the constant."""
    return (self._left / (self._values + l2)) @ self._right

  def predict(self, features: np.ndarray, l2: float) -> np.ndarray:
    """Classes [N] of features [N, D]; of equal outputs the lowest."""
    weights = self.weights(l2)
    blocks = [features[i : i + BLOCK] for i in range(0, len(features), BLOCK)]
    return np.concatenate([(self._inputs(x) @ weights).argmax(1) for x in blocks])

  def accuracy(self, features: np.ndarray, labels: np.ndarray, l2: float) -> float:
    """The share of right answers, from features [N, D] and labels [N]."""
    return float(np.mean(self.predict(features, l2) == labels))

  def _inputs(self, features: np.ndarray) -> np.ndarray:
    x = (features.astype(np.float64) - self.mean) / self.std
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
