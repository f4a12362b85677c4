"""A training step of CLIP on CPUs: ours beside open_clip.

pip install -e '.[test]'
python benchmarks/clip_step.py [--batches 16 ...] [--repeats 7]

ViT-B/32 with the text tower of CLIP, 151,277,313 parameters, in float32: images of 224 pixels and
texts of 77 tokens, the softmax over all pairs, AdamW with a decay of 0.2. Ours is
`configs/clip_laion.py`; the peer open_clip's model and loss with PyTorch's AdamW, eager. The
contenders are processes with `THREADS` threads that take turns. A cell is the median of the steps
after the first two, in milliseconds.

Measured on 2 CPU cores alone, jax 0.10.2, torch 2.13, open_clip 3.3.0:

pairs  ours  open_clip  times faster
16     2218       4369          1.97
"""

import argparse
import statistics
import sys

import contenders

from vit_jax import tables

THREADS = 2
SIDE, CONTEXT, VOCABULARY = 224, 77, 49_408
WARM_UP = 2
CONFIG = 'configs/clip_laion.py'


def pairs(batch):
  """Random images `[B, H, W, 3]` uint8, and texts of 3 to 40 tokens, `[B, L]`."""
  import numpy as np

  rng = np.random.default_rng(0)
  text = np.zeros((batch, CONTEXT), np.int32)
  for row in text:
    length = rng.integers(3, 41)
    row[0], row[length + 1] = VOCABULARY - 2, VOCABULARY - 1  # the begin and the end
    row[1 : length + 1] = rng.integers(0, VOCABULARY - 2, length)
  return rng.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8), text


def ours(batch):
  """Our step on one batch, as a function without arguments that ends when it has been computed."""
  from vit_jax import allocator

  allocator.keep_freed_memory()
  from pathlib import Path

  from steps import config_step

  from vit_jax import config

  made = config.load(str(Path(__file__).parents[1] / CONFIG))
  made.objective.image.dtype = made.objective.text.dtype = 'float32'
  image, text = pairs(batch)
  return config_step(made, {'image': image, 'text': text})


def open_clip(batch):
  """The same by open_clip."""
  import torch

  try:
    import torchvision  # noqa: F401
  except (
    RuntimeError
  ):  # Built for a GPU, beside PyTorch for CPUs: what it declares is not used here.
    for name in ('nms', 'qnms'):
      schema = '(Tensor boxes, Tensor scores, float threshold) -> Tensor'
      torch.library.define(f'torchvision::{name}', schema)
  import logging

  import open_clip as peer

  logging.disable(logging.WARNING)  # It says that it has no weights.
  torch.set_num_threads(THREADS)
  model = peer.create_model('ViT-B-32').train()
  criterion = peer.ClipLoss()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
  )
  image, text = pairs(batch)
  image, text = torch.from_numpy(image), torch.from_numpy(text).long()
  mean, std = (
    torch.tensor(values).view(1, 3, 1, 1)
    for values in (model.visual.image_mean, model.visual.image_std)
  )

  def one():
    seen = (image.permute(0, 3, 1, 2).float() / 255 - mean) / std
    optimizer.zero_grad(set_to_none=True)
    criterion(*model(seen, text)[:3]).backward()
    optimizer.step()

  return one


CONTENDERS = {'ours': ours, 'open_clip': open_clip}


def child(name, batch):
  contenders.serve(CONTENDERS[name](int(batch)))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--batches', nargs='+', type=int, default=[16], help='pairs')
  parser.add_argument('--repeats', type=int, default=7)
  options = parser.parse_args()
  rows = []
  for batch in options.batches:
    times = contenders.race(
      __file__,
      {name: [name, str(batch)] for name in CONTENDERS},
      threads=THREADS,
      repeats=options.repeats,
      warm_up=WARM_UP,
    )
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    ratio = medians['open_clip'] / medians['ours']
    rows.append((batch, *(f'{m:.0f}' for m in medians.values()), f'{ratio:.2f}'))
    print(' '.join(map(str, rows[-1])), flush=True)
  print(tables.table(rows, ('pairs', *CONTENDERS, 'times faster')))


if __name__ == '__main__':
  child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main()
