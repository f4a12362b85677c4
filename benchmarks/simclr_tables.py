"""What SimCLR needs, on emoji: which augmentations, which head, how large a batch for how long.

python benchmarks/simclr_tables.py train OUT [--only augment head batch] [--jobs 2]
python benchmarks/simclr_tables.py table OUT

The three questions of Figure 5, Figure 8 and Figure 9 of arXiv:2002.05709, asked of a smaller
encoder than that of `configs/simclr_emoji.py`, in 20 epochs, and read on the validation split: the
accuracy of a linear probe (l2 0.01, trained on the two styles of the training split), the mean of
the four styles. Each run takes one core; `train` does what OUT has not. Where a table has several
seeds, a cell is their mean, and the largest standard deviation of a cell stands below.

Measured with seed 0 alone, so that a point or two between cells means nothing:

augmentation of one branch   crop  colour  cutout  noise   blur
---------------------------------------------------------------
crop                        0.377   0.367   0.385  0.391  0.401
colour                      0.367   0.313   0.333  0.345  0.321
cutout                      0.385   0.333   0.309  0.321  0.327
noise                       0.391   0.345   0.321  0.325  0.335
blur                        0.401   0.321   0.327  0.335  0.341

head        encoder  layer 1  layer 2  layer 3
----------------------------------------------
none          0.423
linear        0.361    0.345
MLP           0.351    0.393    0.388
deeper MLP    0.338    0.393    0.401    0.385

batch  10 epochs  20 epochs  40 epochs
--------------------------------------
32         0.364      0.386      0.381
64         0.335      0.348      0.396
128        0.365      0.351      0.386
256        0.341      0.362      0.367

As in the paper, cropping is the strongest single operation, and every pair with it is ahead of
every pair without. Crop and colour are not the strongest pair here: crop and blur are. In trainings
this short a head does not help: without one the encoder is ahead by 7 points, and with one the
layers of the head are ahead of what they read. A small batch is as good as a large one, at all
three lengths: it makes more steps.
"""

import argparse
import itertools
import json
import pathlib

import numpy as np
from jobs import run_all

ROOT = pathlib.Path(__file__).parents[1]
SEEDS = (0, 1)
EPOCHS = 20
STYLES = ('google', 'twitter', 'openmoji', 'noto-mono')
# Of both branches, where the question is not which.
AUGMENT = (
  'affine(scale=(0.6, 1.2), aspect=1.2, rotate=12, shear=0.08, shift=0.1, flip=0.5)'
  '| color_distort(0.5, p=0.8, gray=0.2) | outline(0.5) | sketch(0.3) | stencil(0.15)'
  '| background(p=0)'
)
# Single operations, each always applied.
OPERATIONS = {
  'crop': 'random_resized_crop(min_area=0.2)',
  'colour': "color_distort(1.0, p=1, gray=0.2, order='random')",
  'cutout': 'cutout(0.5, p=1)',
  'noise': 'noise(0.1)',
  'blur': 'blur(p=1, sigma=(0.3, 1.5))',
}
HEADS = {'none': 0, 'linear': 1, 'MLP': 2, 'deeper MLP': 3}
BATCHES, LENGTHS = (32, 64, 128, 256), (10, 20, 40)


def base(seed):
  """The recipe with a smaller encoder, the paper's head, more outlines, and a shorter time."""
  from vit_jax import config as config_lib

  config = config_lib.load(str(ROOT / 'configs/simclr_emoji.py')).unlock()
  config.seed = seed
  config.objective.augment = AUGMENT
  config.objective.encoder.update(width=96, depth=4, num_heads=3, mlp_dim=192)
  config.objective.projection.update(layers=2, dim=64)
  config.total = dict(epochs=EPOCHS)
  config.optimizer.warmup = dict(epochs=3)
  return config


def augment(one, two, seed):
  """Applied to one branch only; the other one sees the drawing as it is."""
  config = base(seed)
  names = (one,) if one == two else (one, two)
  chain = ' | '.join(OPERATIONS[name] for name in names)
  with config.ignore_type():  # One for each branch in the place of one for both.
    config.objective.augment = ('background(p=0)', f'{chain} | background(p=0)')
  return config


def head(name, seed):
  config = base(seed)
  config.objective.projection.layers = HEADS[name]
  return config


def batch(size, epochs, seed):
  """AdamW's rate grows with the root of the batch."""
  config = base(seed)
  config.batch_size, config.total = size, dict(epochs=epochs)
  config.optimizer.learning_rate *= (size / 128) ** 0.5
  return config


def runs():
  """Every run by name: its config."""
  made = {}
  for seed in SEEDS:
    for one, two in itertools.combinations_with_replacement(OPERATIONS, 2):
      made[f'augment/{one}/{two}/{seed}'] = lambda a=one, b=two, s=seed: augment(a, b, s)
    for name in HEADS:
      made[f'head/{name}/{seed}'] = lambda n=name, s=seed: head(n, s)
    for size, epochs in itertools.product(BATCHES, LENGTHS):
      made[f'batch/{size}/{epochs}/{seed}'] = lambda b=size, e=epochs, s=seed: batch(b, e, s)
  return made


def child(name, out):
  """Trains one run, and writes the mean accuracy of the probe at every layer of the head."""
  from vit_jax import sharding, train
  from vit_jax.build import build

  config = runs()[name]()
  config.evals, config.checkpoint, config.log.every = {}, dict(keep_last=1), dict(epochs=5)
  state = train.train_and_evaluate(config.lock(), out / 'run' / name)
  emoji = dict(type='data.emoji.Emoji', label='category', alpha=True)
  layers = {}
  for layer in range(config.objective.projection.layers + 1):
    probe = build(
      dict(
        type='evaluators.linear_probe.LinearProbe', l2=0.01, host=config.data.host,
        train=dict(**emoji, split='train', styles=('google', 'twitter')),
        sources={s: dict(**emoji, split='validation', styles=(s,)) for s in STYLES},
        baselines=(),
      ),
      objective=build(config.objective).clone(features_layer=layer),
      mesh=sharding.make_mesh({}),
    )  # fmt: skip
    results = probe.run(state, final=True)
    layers[layer] = float(np.mean([results[f'{style}/accuracy'] for style in STYLES]))
  file = out / f'{name}.json'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(layers))


class Results:
  """What has been run: means over the seeds, and how far these lie apart."""

  def __init__(self, out):
    self.out, self.spread = out, 0.0

  def cell(self, name, layer='0'):
    """The mean accuracy over the seeds that have been run; empty where none has."""
    files = [self.out / f'{name}/{seed}.json' for seed in SEEDS]
    rows = [json.loads(file.read_text()) for file in files if file.exists()]
    values = [row[layer] for row in rows if layer in row]
    if len(values) > 1:
      self.spread = max(self.spread, float(np.std(values, ddof=1)))
    return f'{np.mean(values):.3f}' if values else ''


def show(out):
  """Prints the tables of what has been run."""
  from vit_jax import tables

  found = Results(out)
  names = list(OPERATIONS)
  rows = [
    (
      one,
      *(found.cell('augment/' + '/'.join(sorted((one, two), key=names.index))) for two in names),
    )
    for one in names
  ]
  print(tables.table(rows, ('augmentation of one branch', *names)))
  layers = [str(i) for i in range(max(HEADS.values()) + 1)]
  rows = [(name, *(found.cell(f'head/{name}', layer) for layer in layers)) for name in HEADS]
  print('\n' + tables.table(rows, ('head', 'encoder', *(f'layer {i}' for i in layers[1:]))))
  rows = [(size, *(found.cell(f'batch/{size}/{e}') for e in LENGTHS)) for size in BATCHES]
  rows = [(str(size), *cells) for size, *cells in rows]
  print('\n' + tables.table(rows, ('batch', *(f'{e} epochs' for e in LENGTHS))))
  print(f'\nlargest standard deviation over {len(SEEDS)} seeds: {found.spread:.3f}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('command', choices=('train', 'child', 'table'))
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('name', nargs='?')
  parser.add_argument('--only', nargs='*', help='runs whose names begin so')
  parser.add_argument('--jobs', type=int, default=2)
  options = parser.parse_args()
  if options.command == 'child':
    child(options.name, options.out)
  elif options.command == 'train':
    names = [name for name in runs() if not options.only or name.startswith(tuple(options.only))]
    missing = [name for name in names if not (options.out / f'{name}.json').exists()]
    run_all(__file__, options.out, missing, options.jobs)
  else:
    show(options.out)


if __name__ == '__main__':
  main()
