"""`vit_jax train --config configs/vit_emoji.py --workdir /tmp/run [--config.field=value ...]`."""

import argparse
from pathlib import Path

from vit_jax.cli import processes

OVERRIDES = True  # What argparse does not know are fields of the config.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('--config', required=True, help='a file of configs/, or file.py:argument')
  parser.add_argument('--workdir', required=True, help='folder of the run; the same again resumes')
  processes.add_arguments(parser)
  parser.epilog = (
    'any field of the config can be set: --config.total.epochs=1; ends with 75 where a signal '
    'stopped the run, which has saved and goes on with the same command'
  )


def run(args: argparse.Namespace) -> int:
  """Trains; 0 is a finished run, and 75 one that a signal stopped and that has saved."""
  processes.start(args, heeds_notice=True)
  from vit_jax import compilation_cache, config, distributed, train
  from vit_jax.checkpoint import read_json

  workdir = Path(args.workdir)
  with distributed.guarded(workdir / 'checkpoints'):
    recipe = config.load(args.config, args.overrides)
    compilation_cache.enable()
    state = train.train_and_evaluate(recipe, args.workdir)
    total = read_json(workdir / 'run.json')['steps']
    return 0 if int(state.step) == total else distributed.UNFINISHED
