"""K-means against faiss on a CPU: 100,000 points of 256 dimensions and 1,000 clusters.

pip install -e . faiss-cpu
python benchmarks/kmeans.py

Points are whitened noise about 2,000 centres, of length 1 as DeepCluster clusters them. All start
from the same points, do as many of Lloyd's iterations on all of them, and take turns; from NumPy
arrays to NumPy arrays, compiled before. Ours ends with the assignment to the last centres, for
which faiss searches once more; its time without that stands beside. Medians of 5, as SkylakeX of 9.

The wheel of faiss has an OpenBLAS of 2021, which takes slow kernels on a CPU that it does not know;
`OPENBLAS_CORETYPE=SkylakeX` before the command gives it those of AVX-512.

Measured on 2 cores of an AMD EPYC with AVX-512 and nothing else at work, jax 0.10.2, faiss-cpu
1.15.1, inertia 88402.1 of all:

seconds (CPU seconds)         as SkylakeX    as Haswell      by itself
vit_jax                       1.42 (2.74)   1.44 (2.77)    1.44 (2.76)
faiss                         1.47 (2.91)   2.60 (5.17)   5.81 (11.57)
faiss without the assignment  1.32 (2.64)   2.34 (4.67)   5.19 (10.34)

With its fastest kernels the two are level: in seven runs ours was ahead in six, by up to 4%, and
once, when the machine was slower, behind by 3%.
Of the 0.125 s of a pass of ours the product of points and centres takes 0.113. With other work on
one of the cores faiss's threads wait for each other: where it took 2.3 s alone, it then took 27.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import faiss
import numpy as np

from vit_jax import allocator


def points(count, dim):
  rng = np.random.default_rng(0)
  centers = rng.normal(size=(2000, dim))
  x = centers[rng.integers(0, len(centers), count)] + 2 * rng.normal(size=(count, dim))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def ours(x, k, iterations, mesh):
  from vit_jax.kmeans import kmeans

  return kmeans(x, k, mesh, centers=x[:k], iterations=iterations).centers


def theirs(x, k, iterations, assign):
  # As many points a centre as there are: by default it takes a sample.
  found = faiss.Kmeans(x.shape[1], k, niter=iterations, max_points_per_centroid=len(x))
  found.train(x, init_centroids=x[:k])
  if assign:
    found.index.search(x, 1)
  return found.centroids


def inertia(x, centers):
  """The sum of squared distances to the nearest centre, in float64 and in blocks."""
  norms, total = (centers.astype(np.float64) ** 2).sum(1), 0.0
  for rows in np.array_split(x.astype(np.float64), 20):
    total += ((rows**2).sum(1) + (norms - 2 * rows @ centers.T.astype(np.float64)).min(1)).sum()
  return total


def seconds(work):
  begun = time.perf_counter(), time.process_time()
  result = work()
  return time.perf_counter() - begun[0], time.process_time() - begun[1], result


def main():
  allocator.keep_freed_memory()  # As in every run from the command line, and before JAX.
  import jax

  from vit_jax import sharding, tables

  parser = argparse.ArgumentParser()
  for name, value in dict(points=100_000, dim=256, clusters=1000, iterations=10, repeats=5).items():
    parser.add_argument(f'--{name}', type=int, default=value)
  args = parser.parse_args()
  x, mesh = points(args.points, args.dim), sharding.make_mesh(dict(data=-1))
  work = {
    'vit_jax': lambda: ours(x, args.clusters, args.iterations, mesh),
    'faiss': lambda: theirs(x, args.clusters, args.iterations, assign=True),
    'faiss without the assignment': lambda: theirs(x, args.clusters, args.iterations, assign=False),
  }
  work['vit_jax']()  # Compiles.
  taken = {name: [] for name in work}
  for _ in range(args.repeats):
    for name, call in work.items():
      taken[name].append(seconds(call))
  rows = []
  for name, runs in taken.items():
    wall, cpu = (statistics.median(run[i] for run in runs) for i in range(2))
    rows.append((name, f'{wall:.2f}', f'{cpu:.2f}', f'{inertia(x, runs[-1][2]):.1f}'))
  print(f'jax {jax.__version__}, faiss {faiss.__version__}, {os.cpu_count()} CPU cores')
  print(tables.table(rows, ('', 'seconds', 'CPU seconds', 'inertia')))


if __name__ == '__main__':
  main()
