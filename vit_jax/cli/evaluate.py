"""`vit_jax evaluate WORKDIR [--step best]`: the evaluators of a run, on a checkpoint of it."""

import argparse

OVERRIDES = True  # Of the config that made the run: its mesh, say, on another machine.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('workdir', help="the run's folder")
  parser.add_argument('--step', default='last', help="a step, 'last' (the default) or 'best'")


def run(args: argparse.Namespace) -> int:
  """Restores a checkpoint, runs every evaluator once and prints the table."""
  from vit_jax import experiment, metrics

  results = experiment.evaluate(args.workdir, args.step, args.overrides)
  print(metrics.final_table(results))
  return 0
