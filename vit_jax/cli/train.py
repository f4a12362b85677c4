"""`vit_jax train --config configs/vit_emoji.py --workdir /tmp/run [--config.field=value ...]`."""

import argparse

OVERRIDES = True  # What argparse does not know are fields of the config.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('--config', required=True, help='a file of configs/, or file.py:argument')
  parser.add_argument('--workdir', required=True, help='folder of the run; the same again resumes')
  parser.epilog = 'any field of the config can be set: --config.total.epochs=1'


def run(args: argparse.Namespace) -> int:
  """Trains; a run that SIGTERM stopped has saved and counts as success."""
  from vit_jax import config, train

  train.train_and_evaluate(config.load(args.config, args.overrides), args.workdir)
  return 0
