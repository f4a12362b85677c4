"""A training step on CPUs: ours beside timm's PyTorch model, eager and compiled.

pip install -e '.[test]' timm
python benchmarks/train_step.py [--models S/16 ...] [--dtypes float32 ...] [--repeats 7]

Each contender is a process of its own with `THREADS` threads, which does one step when it is asked;
they are asked in turn, so that what else the machine does falls on all of them. The same shapes
(224 pixels, 1000 classes), random images, cross-entropy, AdamW and clipping at 1. A cell is the
median of the steps after the first two, in milliseconds.

Measured on 2 cores (AVX-512) with jax 0.10.2, torch 2.13 and timm 1.0.31:

          dtype  batch  ours  timm  timm compiled  times faster
S/16    float32     16  1417  2370           2387          1.67
S/16   bfloat16     16   932  1154           1095          1.17
Ti/16   float32     16   480   747                         1.55
Ti/16  bfloat16     16   324   422                         1.30
B/16    float32      4  1217  2247                         1.85
B/16   bfloat16      4   766   963                         1.26
"""

import argparse
import statistics
import sys

import contenders

from vit_jax import tables

THREADS = 2
CLASSES, SIDE = 1000, 224
# Our variant: images in a batch, timm's name.
MODELS = {
  'Ti/16': (16, 'vit_tiny_patch16_224'),
  'S/16': (16, 'vit_small_patch16_224'),
  'B/16': (4, 'vit_base_patch16_224'),
}
ADAMW = dict(
  name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0, schedule='constant',
  warmup=dict(steps=0),
)  # fmt: skip
DTYPES = ('float32', 'bfloat16')
WARM_UP = 2


def ours(model, dtype):
  """Our step on one batch, as a function without arguments that ends when it has been computed."""
  from vit_jax import allocator

  allocator.keep_freed_memory()
  import jax
  import numpy as np
  import steps

  from vit_jax import sharding

  mesh = sharding.make_mesh({})
  encoder = dict(variant=model, dtype=dtype, activation='gelu_tanh')
  with jax.set_mesh(mesh):
    step, make, _, batch = steps.supervised_step(encoder, MODELS[model][0], mesh, ADAMW)
    held = [make()]
  rng = np.random.default_rng(0)
  images = {
    name: rng.integers(0, 256 if name == 'image' else CLASSES, x.shape).astype(x.dtype)
    for name, x in batch.items()
  }

  def one():
    with jax.set_mesh(mesh):
      held[0], metrics = step(held[0], images)
      metrics['loss'].block_until_ready()

  return one


def timm(model, dtype, compiled=False):
  """The step of timm, in the same form."""
  import timm as peer
  import torch

  torch.set_num_threads(THREADS)
  batch, name = MODELS[model]
  net = peer.create_model(name)
  net.train()
  for block in net.blocks:
    block.mlp.act = torch.nn.GELU(approximate='tanh')
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
  images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
  labels = torch.randint(0, CLASSES, (batch,))

  def forward(images, labels):
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
      logits = net(images.float() / 127.5 - 1)
    return torch.nn.functional.cross_entropy(logits.float(), labels)

  if compiled:
    forward = torch.compile(forward)

  def one():
    optimizer.zero_grad(set_to_none=True)
    forward(images, labels).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()

  return one


CONTENDERS = {
  'ours': ours,
  'timm': timm,
  'timm compiled': lambda model, dtype: timm(model, dtype, compiled=True),
}


def child(name, model, dtype):
  contenders.serve(CONTENDERS[name](model, dtype))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
  parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=list(DTYPES))
  parser.add_argument('--contenders', nargs='+', choices=CONTENDERS, default=list(CONTENDERS))
  parser.add_argument('--repeats', type=int, default=7)
  options = parser.parse_args()
  rows = []
  for model in options.models:
    for dtype in options.dtypes:
      times = contenders.race(
        __file__,
        {name: [name, model, dtype] for name in options.contenders},
        threads=THREADS,
        repeats=options.repeats,
        warm_up=WARM_UP,
      )
      medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
      peers = [value for name, value in medians.items() if name != 'ours']
      ratio = f'{min(peers) / medians["ours"]:.2f}' if peers and 'ours' in medians else None
      rows.append((model, dtype, MODELS[model][0], *(f'{m:.0f}' for m in medians.values()), ratio))
      print(' '.join(map(str, rows[-1])), flush=True)
  header = ('', 'dtype', 'batch', *options.contenders, 'times faster')
  print(tables.table(rows, header))


if __name__ == '__main__':
  child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main()
