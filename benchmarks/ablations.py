"""What each part of a recipe adds, and which encoder learns most from how much data.

apt-get install dataset-fashion-mnist
python benchmarks/ablations.py train OUT [--only emoji fashion] [--jobs 2]
python benchmarks/ablations.py table OUT [--split validation]

`train` runs each variant below on each of its splits in a process of one thread, on a core of its
own, and keeps which examples of the validation and the test split each was right about; what OUT
has is not run again. `table` prints accuracies and paired differences with a 95 % interval: the
bootstrap draws the base emoji (Fashion-MNIST: the images) of all splits anew, 2,000 times, with all
drawings of an emoji together. `average` is the moving average of the base run's parameters.

Measured on the test splits (seed 0; nothing was chosen by them; validation says the same). Emoji,
55 epochs, five draws of the base emoji:

             google                   openmoji                 all four styles
base         0.569                    0.410                    0.471
randaugment  -0.095 [-0.123, -0.068]  -0.033 [-0.059, -0.008]  -0.059 [-0.077, -0.043]
mixup        -0.027 [-0.046, -0.009]  +0.000 [-0.021, +0.020]  -0.016 [-0.026, -0.006]
background   -0.032 [-0.055, -0.009]  -0.024 [-0.048, -0.002]  -0.021 [-0.034, -0.006]
longer       +0.054 [+0.035, +0.075]  +0.017 [-0.004, +0.037]  +0.040 [+0.029, +0.053]
simclr       -0.111 [-0.136, -0.085]  +0.008 [-0.017, +0.034]  -0.050 [-0.066, -0.034]
average      +0.002 [-0.003, +0.007]  +0.002 [-0.003, +0.007]  +0.001 [-0.002, +0.004]

10,000 of Fashion-MNIST, 10 epochs: base 0.819; randaugment -0.083 [-0.091, -0.075], mixup -0.013
[-0.019, -0.008], longer +0.044 [+0.038, +0.050], average -0.001 [-0.002, +0.001]. So short
trainings do not bear strong augmentation, and what they lack is length.

Equal time, 100 seconds of a core each, on a share of the 10,000 (1-NN is the nearest training image
in pixels):

                   1%     10%    100%
1-NN               0.667  0.751  0.804
vit                0.500  0.598  0.571
vit, conv stem     0.686  0.797  0.791
resnet             0.617  0.748  0.757

A plain ViT is behind the ResNet at every share, and not most where data are few: in this time it
lacks steps (320, against 1,140 with the stem and 535). The stem makes up for it, also at 1 %.

Patches of 8, 4 and 2 pixels without a stem cost 69, 255 and 1,842 ms a step on a core (16, 64 and
256 tokens). After 4 epochs of the 10,000: 0.744, 0.684, 0.658 on test; in so few epochs more tokens
do not pay.
"""

import argparse
import pathlib

import numpy as np
from jobs import run_all

ROOT = pathlib.Path(__file__).parents[1]
SPLITS = (1, 2, 3, 4, 5)  # draws of the emoji's bases
IMAGES = 10_000  # of Fashion-MNIST
PARTS = ('validation', 'test')
DRAWS = 2000


def emoji(split):
  """The recipe of 55 epochs on one draw of the bases."""
  from vit_jax import config as config_lib

  config = config_lib.load(str(ROOT / 'configs/vit_emoji.py')).unlock()
  config.data.source.splits_seed = split
  config.ema = dict(decay=0.998, warmup=True)
  evals = {}
  for part in PARTS:
    for style in ('google', 'twitter', 'openmoji', 'noto-mono'):
      source = config.evals.test.sources[style].to_dict()
      evals[f'{part}/{style}'] = source | dict(split=part, splits_seed=split)
  return config, evals


def fashion(images=IMAGES, epochs=10):
  """The recipe of Fashion-MNIST on its first images."""
  from vit_jax import config as config_lib

  config = config_lib.load(str(ROOT / 'configs/vit_fashion_mnist.py')).unlock()
  config.data.source.split = f'train[:{images}]'
  config.total = dict(epochs=epochs)
  config.ema = dict(decay=0.998, warmup=True)
  source = config.data.source.to_dict()
  evals = {'validation': source | dict(split='train[55000:]'), 'test': source | dict(split='test')}
  return config, evals


def randaugment(config):
  config.data.host += ' | randaugment(2, 10)'


def mixup(config):
  config.objective.mix = 'mixup(0.2)'


def background(config):
  config.objective.augment = config.objective.augment.replace(
    'background(p=0)', 'background(p=0.5)'
  )


def longer(config):
  config.total.epochs *= 2


def simclr(config):
  """What SimCLR trains with."""
  from vit_jax import config as config_lib

  made = config_lib.load(str(ROOT / 'configs/simclr_emoji.py'))
  config.objective.augment = made.objective.augment


def plain(config):
  """No change."""


def limited(encoder, share, steps):
  """An encoder on a share of the images for some steps."""

  def make():
    config, evals = fashion(round(IMAGES * share))
    config.total, config.optimizer.warmup = dict(steps=steps), dict(steps=75)
    config.objective.encoder = encoder
    return config, evals

  return make


def patch(side):
  def change(config):
    config.objective.encoder.update(conv_stem=(), patch_size=side)

  return change


EMOJI = dict(
  base=plain, randaugment=randaugment, mixup=mixup, background=background, longer=longer,
  simclr=simclr,
)  # fmt: skip
FASHION = dict(base=plain, randaugment=randaugment, mixup=mixup, longer=longer)
PATCHES = {f'patch {side}': patch(side) for side in (8, 4, 2)}


def vit(**fields):
  return dict(
    type='models.vit.ViT', width=128, depth=6, num_heads=4, mlp_dim=256, pooling='mean',
    positions='learned', activation='gelu_tanh', **fields,
  )  # fmt: skip


# An encoder, and the steps of 64 images that a core takes in 100 seconds.
ENCODERS = {
  'vit': (vit(patch_size=4), 320),
  'vit, conv stem': (vit(patch_size=8, conv_stem=(32, 64)), 1140),
  'resnet': (dict(type='models.resnet.ResNet', blocks=(2, 2, 2), width=16, small_stem=True), 535),
}
SHARES = (0.01, 0.1, 1.0)


def runs():
  """Every run by name, `<group>/<variant>/<split>`: what makes its config, and what changes it."""
  made = {}
  for split in SPLITS:
    for name, change in EMOJI.items():
      made[f'emoji/{name}/{split}'] = (lambda split=split: emoji(split)), change
  for name, change in FASHION.items():
    made[f'fashion/{name}/0'] = fashion, change
  for name, change in PATCHES.items():
    made[f'patches/{name}/0'] = (lambda: fashion(epochs=4)), change
  for name, (encoder, steps) in ENCODERS.items():
    for share in SHARES:
      made[f'limited/{name}, {share:.0%}/0'] = limited(encoder, share, steps), plain
  return made


def child(name, out):
  """Trains one run and writes what it was right about."""
  import jax

  from vit_jax import sharding, train
  from vit_jax.build import build
  from vit_jax.evaluators import apply

  make, change = runs()[name]
  config, sources = make()
  change(config)
  host = config.evals.test.host
  config.evals, config.checkpoint, config.log.every = {}, dict(keep_last=1), dict(epochs=1)
  state = train.train_and_evaluate(config.lock(), out / 'run' / name)
  mesh = sharding.make_mesh({})
  objective = build(config.objective)

  def right(params, model_state, batch):
    logits = objective.apply({'params': params, **model_state}, batch, method='logits')
    return logits.argmax(-1) == batch['label'], batch['id']

  right = apply.jit(right, mesh)
  answers = {}
  for key, spec in sources.items():
    for kind, params in (('raw', state.params), ('average', state.ema)):
      rows = [
        [x[batch['_mask']] for x in right(params, state.model_state, batch)]
        for batch in map(
          jax.device_get, apply.batches(build(spec), mesh, host=host, batch_size=256)
        )
      ]
      correct, ids = map(np.concatenate, zip(*rows, strict=True))
      answers[f'{kind}/{key}/right'], answers[f'{kind}/{key}/id'] = correct, ids
  file = out / f'{name}.npz'
  file.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(file.with_suffix('.partial.npz'), **answers)
  file.with_suffix('.partial.npz').replace(file)


def train_all(out, only, jobs):
  """Runs what is missing, `jobs` at a time, each on a core of its own."""
  names = [name for name in runs() if not only or name.startswith(tuple(only))]
  names = [name for name in names if not (out / f'{name}.npz').exists()]
  run_all(__file__, out, names, jobs)


def read(out, name):
  """`{'<kind>/<source>': (right [N], id [N])}` of a run; None where it has not been run."""
  file = out / f'{name}.npz'
  if not file.exists():
    return None
  with np.load(file) as arrays:
    keys = [key.removesuffix('/right') for key in arrays if key.endswith('/right')]
    return {key: (arrays[f'{key}/right'], arrays[f'{key}/id']) for key in keys}


def bases():
  """The base emoji of every row of the table, as numbers."""
  from vit_jax.data.emoji import read_table

  return np.unique([row['base'] for row in read_table()], return_inverse=True)[1]


def scores(out, group, kind, variant, keys):
  """Whether a variant was right in each run, and the unit that each example belongs to."""
  rights, units = [], []
  of_row = bases() if group == 'emoji' else None
  for split in SPLITS if group == 'emoji' else (0,):
    found = read(out, f'{group}/{variant}/{split}')
    if found is None:
      return None
    for right, ids in (found[f'{kind}/{key}'] for key in keys):
      rights.append(right.astype(float))
      units.append(of_row[ids % len(of_row)] if of_row is not None else ids)
  return np.concatenate(rights), np.concatenate(units)


def interval(difference, units):
  """The 95 % interval of a mean by the bootstrap over units."""
  _, units = np.unique(units, return_inverse=True)
  sums, counts = np.bincount(units, difference), np.bincount(units)
  drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
  return np.percentile(drawn @ sums / (drawn @ counts), (2.5, 97.5))


def effects(out, group, variants, columns):
  """Rows of the base's accuracies, and of what each variant adds to them."""
  rows = []
  for variant in variants:
    # The average is one of the base's own run.
    kind, run = ('average', 'base') if variant == 'average' else ('raw', variant)
    cells = []
    for keys in columns:
      base, ours = scores(out, group, 'raw', 'base', keys), scores(out, group, kind, run, keys)
      if base is None or ours is None:
        cells.append('')
      elif variant == 'base':
        cells.append(f'{base[0].mean():.3f}')
      else:
        difference = ours[0] - base[0]
        low, high = interval(difference, base[1])
        cells.append(f'{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]')
    rows.append((variant, *cells))
  return rows


def accuracies(out, group):
  """Rows of name and accuracies."""
  rows = []
  for name in (name for name in runs() if name.startswith(group + '/')):
    found = read(out, name)
    if found:
      rows.append((name.split('/')[1], *(f'{found[f"raw/{p}"][0].mean():.3f}' for p in PARTS)))
  return rows


def show(out, part):
  """Prints the tables of what has been run."""
  from vit_jax import tables

  styles = ('google', 'twitter', 'openmoji', 'noto-mono')
  keys = [f'{part}/{style}' for style in styles]
  columns = [[key] for key in keys] + [keys]
  rows = effects(out, 'emoji', (*EMOJI, 'average'), columns)
  print(tables.table(rows, ('emoji', *styles, 'all four')))
  rows = effects(out, 'fashion', (*FASHION, 'average'), [[part]])
  print(tables.table(rows, ('Fashion-MNIST, 10,000', part)))
  for group in ('patches', 'limited'):
    print(tables.table(accuracies(out, group), (group, *PARTS)))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('command', choices=('train', 'child', 'table'))
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('name', nargs='?')
  parser.add_argument('--only', nargs='*', help='runs whose names begin so')
  parser.add_argument('--jobs', type=int, default=2)
  parser.add_argument('--split', default='validation', choices=PARTS)
  options = parser.parse_args()
  if options.command == 'child':
    child(options.name, options.out)
  elif options.command == 'train':
    train_all(options.out, options.only, options.jobs)
  else:
    show(options.out, options.split)


if __name__ == '__main__':
  main()
