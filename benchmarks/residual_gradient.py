"""What `models.transformer.compute_gradient_once` gives: a ViT's gradient with it and without.

python benchmarks/residual_gradient.py

Medians of alternated repeats, in milliseconds, on the default device.
"""

import statistics
import time
from unittest import mock

import flax.linen as nn
import jax

from vit_jax import tables
from vit_jax.models import transformer
from vit_jax.models.vit import ViT

REPEATS = 15
CASES = {  # batch, side in pixels, fields of the ViT
  'emoji': (128, 32, dict(patch_size=8, width=128, depth=6, num_heads=4, mlp_dim=256)),
  'Fashion-MNIST': (64, 28, dict(patch_size=4, width=96, depth=4, num_heads=3, mlp_dim=192)),
  'Ti/16': (8, 224, dict(variant='Ti/16')),
}


def compile_gradient(batch, side, fields):
  """A function without arguments that computes the gradient of a sum of squares and waits."""
  model = ViT(**fields, pooling='mean', positions='sincos2d')
  image = jax.random.normal(jax.random.key(0), (batch, side, side, 3))
  variables = nn.unbox(model.init(jax.random.key(1), image, train=False))
  gradient = jax.jit(jax.grad(lambda v: (model.apply(v, image, train=False).pooled ** 2).sum()))
  compiled = gradient.lower(variables).compile()
  return lambda: jax.block_until_ready(compiled(variables))


def main():
  rows = []
  for name, case in CASES.items():
    run = {'with': compile_gradient(*case)}
    with mock.patch.object(transformer, 'compute_gradient_once', lambda x: x):
      run['without'] = compile_gradient(*case)
    seconds = {key: [] for key in run}
    for _ in range(REPEATS):
      for key, call in run.items():
        begun = time.perf_counter()
        call()
        seconds[key].append(time.perf_counter() - begun)
    a, b = (1000 * statistics.median(seconds[key]) for key in ('without', 'with'))
    rows.append((name, f'{a:.1f}', f'{b:.1f}', f'{a / b:.2f}'))
  print(tables.table(rows, ('', 'without', 'with', 'ratio')))


if __name__ == '__main__':
  main()
