"""Augmentations on the host against those on the device, at 224 x 224 pixels.

pip install -e . libtpu==0.0.42
python benchmarks/augment.py

The host's run on uint8 in Pillow and NumPy, one image after the other on one core. The device's run
inside the step on a batch of 128 in float32: on this machine's CPU, and as XLA's estimate of cycles
on a TPU v5e that is not there. A step of ViT-S/16 on as many images is 83 million cycles
(`tpu_step.py`). Medians of 7 timings that take turns.

Measured on 2 CPU cores with other work beside it, jax 0.10.2, libtpu 0.0.42:

                       host, ms an image  CPU device, ms an image  TPU, M cycles for 128
rotation                            0.55                     0.85                   11.9
a box cut out                       0.28                     0.74                    0.5
colour jitter                       1.16                     2.84                    3.1
inversion                           0.23                     0.45                    0.4
RandAugment, at least                                       24.40                   35.0

So on a TPU colours, erasing and mixing belong on the device, where they take 1 to 4 % of a step and
no host core; RandAugment belongs on the host, since on the device it would take 40 %.
"""

import os
import statistics
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from randaugment import picture

from vit_jax import augment, sharding, tables
from vit_jax.data.randaugment import OPERATIONS
from vit_jax.preflight import hlo

SIDE, BATCH, REPEATS = 224, 128, 7
# What does about the same on the host, by names of RandAugment's operations, and on the device.
PAIRS = {
  'rotation': (('rotate',), 'affine(rotate=30)'),
  'a box cut out': (('cutout',), 'erase(p=1.0, area=(0.1, 0.1))'),
  'colour jitter': (('brightness', 'contrast', 'color'), 'color_distort(0.5, p=1.0, gray=0)'),
  'inversion': (('invert',), 'invert(p=1.0)'),
}
# RandAugment by `vmap` would run every operation on every image and keep one: of its sixteen, the
# five that move pixels, twice, are the least of it.
RANDAUGMENT = ' | '.join(['affine(rotate=30)'] * 10)


def on_host(names, image):
  rng = np.random.default_rng(0)
  for name in names:
    image = OPERATIONS[name](image, 0.9, rng)


def cycles(function, device):
  """XLA's estimate for a batch."""
  mesh = sharding.make_mesh(dict(data=1), [device])
  placed = sharding.batch_sharding(mesh)
  images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32, sharding=placed)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding.replicated(mesh))
  return hlo.Program(jax.jit(function).lower(key, images).compile().as_text()).cycles()


def seconds(work):
  begun = time.perf_counter()
  work()
  return time.perf_counter() - begun


def main():
  tpu = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]
  image = picture(SIDE, SIDE)
  batch = jnp.broadcast_to(image / np.float32(255), (BATCH, *image.shape))
  key = jax.random.key(0)
  rows = []
  for name, (host, device) in [*PAIRS.items(), ('RandAugment, at least', ((), RANDAUGMENT))]:
    function = augment.compose(device)
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(key, batch))
    times = {'host': [], 'device': []}
    for _ in range(REPEATS):
      times['host'].append(seconds(lambda host=host: on_host(host, image)))
      times['device'].append(
        seconds(lambda run=compiled: jax.block_until_ready(run(key, batch))) / BATCH
      )
    host_ms, device_ms = (1000 * statistics.median(values) for values in times.values())
    estimate = cycles(function, tpu) / 1e6
    rows.append((name, f'{host_ms:.2f}' if host else '', f'{device_ms:.2f}', f'{estimate:.1f}'))
    print(*rows[-1], flush=True)
  header = ('', 'host, ms an image', 'CPU device, ms an image', f'TPU, M cycles for {BATCH}')
  print(tables.table(rows, header))


if __name__ == '__main__':
  main()
