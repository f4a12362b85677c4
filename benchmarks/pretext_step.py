"""A training step of each pretext task on CPUs, beside the supervised step of the same encoder.

python benchmarks/pretext_step.py [--encoders vit resnet] [--tasks rotation ...] [--repeats 11]

ViT-S/16 and ResNet-50 on images of 128 pixels, AdamW, nothing augmented but what makes the task;
heads as the configs for ImageNet have them, but for what depends on the size of the image, and a
decoder of inpainting half as wide, as S/16 is of B/16. The contenders are processes with `THREADS`
threads that take turns. A cell is the median of the steps after the first two, in milliseconds an
image that the encoder sees: rotation's four of an image count as four, a jigsaw's nine tiles as
one. `times` is that over the supervised step's, the median over the rounds.

Measured on 2 cores (ViT inpainting and colorization 11 rounds, all else 5):

        supervised  rotation  jigsaw  positions  inpainting  mae   colorization  deepcluster
vit     1 (40 ms)   1.01      0.73    0.56       1.09        0.55  1.08          1.00
resnet  1 (60 ms)   0.99      0.79               1.07              1.06          0.99
"""

import argparse
import statistics
import sys

import contenders

from vit_jax import tables

THREADS = 2
SIDE = 128
BATCH = 16
WARM_UP = 2
ENCODERS = {
  'vit': dict(type='models.vit.ViT', variant='S/16', pooling='mean', positions='sincos2d'),
  'resnet': dict(type='models.resnet.ResNet', variant='50'),
}
TASKS = {
  'supervised': dict(type='objectives.supervised.Supervised', num_classes=1000),
  'rotation': dict(type='objectives.rotation.Rotation'),
  'jigsaw': dict(type='objectives.jigsaw.Jigsaw', tile=32, augment=''),
  'positions': dict(type='objectives.jigsaw_positions.JigsawPositions', keep=0.5),
  'inpainting': dict(type='objectives.inpainting.Inpainting'),
  'mae': dict(
    type='objectives.masked_autoencoder.MaskedAutoencoder', decoder_width=256, decoder_depth=4,
    decoder_num_heads=8,
  ),
  'colorization': dict(type='objectives.colorization.Colorization'),
  'deepcluster': dict(
    type='objectives.deepcluster.DeepCluster', num_clusters=1000, num_examples=10_000
  ),
}  # fmt: skip
FIELDS = {'positions': dict(positions='none')}  # of the encoder
SEEN = {'rotation': 4}  # images that the encoder sees of each
VIT_ALONE = ('mae', 'positions')


def step(encoder, task):
  """The step on one batch, as a function without arguments that ends when it has been computed."""
  from vit_jax import allocator

  allocator.keep_freed_memory()
  import ml_collections
  import numpy as np
  from steps import ADAMW, config_step

  images = BATCH // SEEN.get(task, 1)
  config = ml_collections.ConfigDict(
    dict(
      objective=dict(**TASKS[task], encoder={**ENCODERS[encoder], **FIELDS.get(task, {})}),
      optimizer=ADAMW,
    )
  )
  rng = np.random.default_rng(0)
  return config_step(
    config,
    {
      'image': rng.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8),
      'label': rng.integers(0, 1000, images, dtype=np.int32),
      'id': np.arange(images, dtype=np.int32),
    },
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--encoders', nargs='+', choices=ENCODERS, default=list(ENCODERS))
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
  parser.add_argument('--repeats', type=int, default=11)
  parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.child:
    contenders.serve(step(*options.child))
    return
  rows = []
  for encoder in options.encoders:
    tasks = {'supervised': None} | dict.fromkeys(options.tasks)
    tasks = [task for task in tasks if encoder == 'vit' or task not in VIT_ALONE]
    times = contenders.race(
      sys.argv[0],
      {task: [encoder, task] for task in tasks},
      threads=THREADS,
      repeats=options.repeats,
      warm_up=WARM_UP,
    )
    for task in tasks:
      ratios = [ours / base for ours, base in zip(times[task], times['supervised'], strict=True)]
      image = 1000 * statistics.median(times[task]) / BATCH
      rows.append((encoder, task, f'{image:.1f}', f'{statistics.median(ratios):.2f}'))
  print(tables.table(rows, ('encoder', 'task', 'ms an image', 'times')))


if __name__ == '__main__':
  main()
