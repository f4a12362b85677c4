"""Is a linear probe on a run's features better than on a random encoder's, and than on pixels?

python benchmarks/probe_intervals.py WORKDIR [WORKDIR ...] [--split test]

A WORKDIR is a finished run of `configs/simclr_emoji.py`, several those of its draws of the splits,
`:1`, `:2` and so on, whose answers are then pooled. Its evaluator `probe` is asked again, example
by example. A cell is the accuracy on one style, and what the trained features add with the paired
95 % interval, by the bootstrap over base emoji (variants of one emoji are not independent, nor are
the answers of two draws about it). Below, the recall@1 of every run's test retrieval beside that of
pixels.
"""

import argparse

import numpy as np
from ablations import bases, interval

from vit_jax import experiment, tables, workdirs
from vit_jax.build import build

RETRIEVAL = 'test_retrieval/{}/recall@1'


def judged(workdir, split):
  """`{encoder: {style: (right [N], ids [N])}}` of the encoders 'trained', 'random' and 'pixels'."""
  import jax

  config = workdirs.saved_config(workdir).unlock()
  spec = config.evals.probe.to_dict()
  for source in spec['sources'].values():
    source['split'] = split
  config.evals = {}
  made = experiment.setup(config)
  with jax.set_mesh(made.mesh), experiment.open_checkpoints(workdir, config) as checkpoints:
    _, like = experiment.prepare_state(made)
    state = checkpoints.restore(like, checkpoints.find('last'))
    probe = build(spec, objective=made.objective, mesh=made.mesh)
    encoders = probe.encoders(state)
    return {name: probe.judge(encode)[0] for name, encode in encoders.items()}


def rows(runs):
  """One of each style, from what `judged` says of each run."""
  of_row = bases()
  for style in runs[0]['trained']:
    right = {
      name: np.concatenate([run[name][style][0] for run in runs]).astype(float) for name in runs[0]
    }
    ids = {name: np.concatenate([run[name][style][1] for run in runs]) for name in runs[0]}
    cells = [f'{right["trained"].mean():.3f}']
    for name in ('random', 'pixels'):
      assert (ids[name] == ids['trained']).all()
      difference = right['trained'] - right[name]
      low, high = interval(difference, of_row[ids[name] % len(of_row)])
      cells.append(f'{right[name].mean():.3f}')
      cells.append(f'{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]')
    yield style, *cells


def recalls(workdirs_):
  """Rows of the recall@1 of each run, trained and by pixels, and of their means."""
  for style in ('openmoji', 'noto-mono'):
    name = RETRIEVAL.format(style)
    found = [workdirs.results(workdir) for workdir in workdirs_]
    trained, pixels = ([row[name + end] for row in found] for end in ('', '_pixels'))
    each = '  '.join(f'{a:.3f} ({b:.3f})' for a, b in zip(trained, pixels, strict=True))
    yield f'{style} -> google', each, f'{np.mean(trained):.3f}', f'{np.mean(pixels):.3f}'


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  parser.add_argument('--split', default='test', choices=('validation', 'test'))
  options = parser.parse_args()
  runs = [judged(workdir, options.split) for workdir in options.workdirs]
  header = ('probe', 'trained', 'random', 'trained - random', 'pixels', 'trained - pixels')
  print(tables.table(rows(runs), header), end='\n\n')
  header = ('recall@1, test', 'each run (pixels)', 'mean', 'mean of pixels')
  print(tables.table(recalls(options.workdirs), header))


if __name__ == '__main__':
  main()
