"""Is a linear probe on a run's features better than on a random encoder's, and than on pixels?

python benchmarks/probe_intervals.py WORKDIR [--split test]

WORKDIR is a finished run of `configs/simclr_emoji.py`. Its evaluator `probe` is asked again,
example by example. A cell is the accuracy on one style, and what the trained features add with the
paired 95 % interval, by the bootstrap over base emoji (variants of one emoji are not independent).
"""

import argparse

from ablations import bases, interval

from vit_jax import experiment, tables, workdirs
from vit_jax.build import build


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


def rows(results):
  """One of each style."""
  of_row = bases()
  for style, (right, ids) in results['trained'].items():
    cells = [f'{right.mean():.3f}']
    for name in ('random', 'pixels'):
      other, same = results[name][style]
      assert (ids == same).all()
      difference = right.astype(float) - other
      low, high = interval(difference, of_row[ids % len(of_row)])
      cells.append(f'{other.mean():.3f}')
      cells.append(f'{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]')
    yield style, *cells


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('workdir')
  parser.add_argument('--split', default='test', choices=('validation', 'test'))
  options = parser.parse_args()
  header = ('probe', 'trained', 'random', 'trained - random', 'pixels', 'trained - pixels')
  print(tables.table(rows(judged(options.workdir, options.split)), header))


if __name__ == '__main__':
  main()
