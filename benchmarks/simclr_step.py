"""A training step of SimCLR on CPUs, augmentation included: ours beside PyTorch.

pip install -e '.[test]'
python benchmarks/simclr_step.py [--batches 128 ...] [--repeats 7]

A ResNet-18 with the stem for small images, a projection of two layers to 128, NT-Xent at 0.5, LARS;
images of 32 pixels, two views of each by a random crop, a flip and colour distortion of strength
0.5. Ours is `configs/simclr_cifar10.py` in float32; the peer timm's network in channels-last order
with the head, the loss and the optimizer of lightly, and torchvision's transforms of each view. The
contenders are processes with `THREADS` threads that take turns. A cell is the median of the steps
after the first two, in milliseconds; `augmentation` is what the views take alone.

Measured on 2 CPU cores alone, jax 0.10.2, torch 2.13, timm 1.0.31, lightly 1.6:

              images  ours  pytorch  times faster
step             128  2321     2827          1.22
augmentation     128     9      126         13.48

An earlier run had 2390 and 3449 for the step.
"""

import argparse
import statistics
import sys

import contenders

from vit_jax import tables

THREADS = 2
SIDE = 32
WARM_UP = 2
CONFIG = 'configs/simclr_cifar10.py'


def images(batch):
  """As many random images, `[B, H, W, 3]` uint8."""
  import numpy as np

  return np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)


def ours(batch, augmentation):
  """Our step on one batch, as a function without arguments that ends when it has been computed."""
  from vit_jax import allocator

  allocator.keep_freed_memory()
  from pathlib import Path

  import jax
  from steps import config_step

  from vit_jax import build, config
  from vit_jax.objectives import inputs

  made = config.load(str(Path(__file__).parents[1] / CONFIG))
  made.objective.encoder.dtype = 'float32'
  objective = build.build(made.objective)
  data = {'image': images(batch)}
  views = jax.jit(lambda rng, data: inputs.views(data, objective.augment, rng, 2))
  if augmentation:
    return lambda: views(jax.random.key(0), data).block_until_ready()
  return config_step(made, data)


def pytorch(batch, augmentation):
  """The same by timm, lightly and torchvision."""
  import torch

  try:
    import torchvision  # noqa: F401
  except (
    RuntimeError
  ):  # Built for a GPU, beside PyTorch for CPUs: what it declares is not used here.
    for name in ('nms', 'qnms'):
      schema = '(Tensor boxes, Tensor scores, float threshold) -> Tensor'
      torch.library.define(f'torchvision::{name}', schema)
  import timm
  from lightly.loss import NTXentLoss
  from lightly.models.modules import SimCLRProjectionHead
  from lightly.utils.lars import LARS
  from torchvision.transforms import v2

  torch.set_num_threads(THREADS)
  transform = v2.Compose(
    [
      v2.RandomResizedCrop(SIDE, antialias=True),
      v2.RandomHorizontalFlip(),
      v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
      v2.RandomGrayscale(0.2),
      v2.ToDtype(torch.float32, scale=True),
      v2.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ]
  )
  data = torch.from_numpy(images(batch)).permute(0, 3, 1, 2).contiguous()

  def views():
    both = [torch.stack([transform(image) for image in data]) for _ in range(2)]
    return torch.cat(both).contiguous(memory_format=torch.channels_last)

  if augmentation:
    return views
  encoder = timm.create_model('resnet18', num_classes=0)
  encoder.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
  encoder.maxpool = torch.nn.Identity()
  net = torch.nn.Sequential(encoder, SimCLRProjectionHead(512, 512, 128))
  net.train().to(memory_format=torch.channels_last)
  optimizer = LARS(net.parameters(), lr=1.0, weight_decay=1e-6, momentum=0.9)
  criterion = NTXentLoss(0.5)

  def one():
    optimizer.zero_grad(set_to_none=True)
    criterion(*net(views()).chunk(2)).backward()
    optimizer.step()

  return one


CONTENDERS = {'ours': ours, 'pytorch': pytorch}
PARTS = ('step', 'augmentation')


def child(name, batch, part):
  contenders.serve(CONTENDERS[name](int(batch), part == 'augmentation'))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument(
    '--batches', nargs='+', type=int, default=[128], help='images, two views each'
  )
  parser.add_argument('--repeats', type=int, default=7)
  options = parser.parse_args()
  rows = []
  for batch in options.batches:
    for part in PARTS:
      times = contenders.race(
        __file__,
        {name: [name, str(batch), part] for name in CONTENDERS},
        threads=THREADS,
        repeats=options.repeats,
        warm_up=WARM_UP,
      )
      medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
      ratio = medians['pytorch'] / medians['ours']
      rows.append((part, batch, *(f'{m:.0f}' for m in medians.values()), f'{ratio:.2f}'))
      print(' '.join(map(str, rows[-1])), flush=True)
  print(tables.table(rows, ('', 'images', *CONTENDERS, 'times faster')))


if __name__ == '__main__':
  child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main()
