"""What raw pixels give on Fashion-MNIST: nearest neighbours and logistic regression.

apt-get install dataset-fashion-mnist    # or give the folder of the four IDX files
python benchmarks/pixel_baselines.py [FOLDER]

k and C are chosen on the last 5,000 training images, then the test set is looked at once, by the
models fitted on the first 55,000, as `configs/vit_fashion_mnist.py` trains on. The largest C does
not converge in 300 iterations, which scikit-learn says; 5 minutes on 2 cores.
"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

from vit_jax import tables
from vit_jax.data.idx import Idx
from vit_jax.evaluators.nearest_pixel import majority, nearest

NEIGHBOURS = (1, 3, 4, 5, 7, 9)
PENALTIES = (0.003, 0.01, 0.03, 0.1)  # C, the inverse of the L2 penalty


def read(split, directory):
  """Pixels `[N, 784]` uint8 and labels `[N]`."""
  source = Idx('fashion_mnist', split, directory)
  examples = [source[i] for i in range(len(source))]
  images = np.stack([e['image'].ravel() for e in examples])
  return images, np.array([e['label'] for e in examples])


def main(directory=None):
  train, train_label = read('train[:55000]', directory)
  parts = {'validation': read('train[55000:]', directory), 'test': read('test', directory)}

  votes = {name: train_label[nearest(x, train, max(NEIGHBOURS))] for name, (x, _) in parts.items()}

  def neighbours(k, part):
    return np.mean(majority(votes[part][:, :k]) == parts[part][1])

  fitted = {
    c: LogisticRegression(C=c, max_iter=300).fit(train / 255.0, train_label) for c in PENALTIES
  }

  def regression(c, part):
    return fitted[c].score(parts[part][0] / 255.0, parts[part][1])

  rows = []
  for name, score, choices in (
    ('k nearest neighbours, k', neighbours, NEIGHBOURS),
    ('logistic regression, C', regression, PENALTIES),
  ):
    rows += [(f'{name} = {choice}', score(choice, 'validation'), None) for choice in choices]
    best = max(choices, key=lambda choice: score(choice, 'validation'))
    rows.append((f'{name} = {best}, chosen', score(best, 'validation'), score(best, 'test')))
  print(tables.table(rows, ('', 'validation', 'test')))


if __name__ == '__main__':
  main(*sys.argv[1:])
