"""`vit_jax evaluate WORKDIR [--step best] [--interpolate 0 0.5 1]`: a run's evaluators, again."""

import argparse
from collections.abc import Mapping

from vit_jax.cli import processes

OVERRIDES = True  # Of the config that made the run: its mesh, say, on another machine.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('workdir', help="the run's folder")
  parser.add_argument('--step', default='last', help="a step, 'last' (the default) or 'best'")
  parser.add_argument(
    '--interpolate',
    metavar='ALPHA',
    nargs='+',
    type=float,
    help='evaluate (1 - ALPHA) x the weights that the run began with + ALPHA x the checkpoint, for '
    'each ALPHA in 0 to 1 (WiSE-FT, arXiv:2109.01903)',
  )
  processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Restores a checkpoint, runs every evaluator once and prints the table."""
  processes.start(args)
  from vit_jax import compilation_cache, distributed, experiment, interpolate, metrics

  compilation_cache.enable()
  with distributed.guarded():
    if args.interpolate:
      results = interpolate.evaluate(args.workdir, args.interpolate, args.step, args.overrides)
      text = _table(results)
    else:
      text = metrics.final_table(experiment.evaluate(args.workdir, args.step, args.overrides))
  if distributed.number in (None, 0):
    print(text)
  return 0


def _table(results: Mapping[float, Mapping[str, float]]) -> str:
  """A row a metric and a column an alpha; accuracies of single classes are left out."""
  from vit_jax import tables

  names = dict.fromkeys(name for values in results.values() for name in values)
  shown = [name for name in names if not tables.split(name).label]
  rows = [(name, *(values.get(name) for values in results.values())) for name in shown]
  return tables.table(rows, ('alpha', *(f'{alpha:g}' for alpha in results)))
