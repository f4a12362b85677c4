"""The command line: `vit_jax COMMAND ...`, one file a command."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from vit_jax import allocator

COMMANDS = {
  'train': 'train what a config describes; go on where the workdir stopped',
  'preflight': 'say whether a config fits devices that need not be there, and how fast it may be',
  'evaluate': 'run the evaluators of a finished or unfinished run',
  'predict': 'say what is in images',
  'zeroshot': 'say which of your own words fit images best',
  'search': 'find the images that a text fits best, and draw them',
  'robustness': 'measure a model on ImageNet and on its other test sets',
  'convert': 'write a run or a checkpoint as a file of ours, of timm, of transformers, ...',
  'report': "write a run's report.html anew",
  'augment': 'draw training images before and after augmentation',
  'prepare': 'write a source as ArrayRecord files, which are fast to read at random',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the arguments; those of the process by default.

  Returns:
    The exit code. A mistake of the user's is one sentence on stderr and 1.
  """
  allocator.keep_freed_memory()  # Before a command imports JAX.
  argv = list(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(
    prog='vit_jax', description='Representation learning on images in JAX.', allow_abbrev=False
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, text in COMMANDS.items():
    sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    sub.add_argument('--debug', action='store_true', help='show where an error comes from')
    # Only the command that runs is imported: `report` needs no devices.
    if argv[:1] == [name]:
      importlib.import_module(f'vit_jax.cli.{name}').add_arguments(sub)
  args, rest = parser.parse_known_args(argv)
  module = importlib.import_module(f'vit_jax.cli.{args.command}')
  if rest and not hasattr(module, 'OVERRIDES'):
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  args.overrides = rest
  if not args.debug:
    sys.excepthook = _without_echoes
  try:
    return module.run(args)
  except KeyboardInterrupt:
    return _end('interrupted', 130)
  except (ValueError, OSError, ArithmeticError, ImportError) as e:
    if args.debug:
      raise
    return _end(f'error: {e}', getattr(e, 'exit_code', 1))


def _end(text: str, code: int) -> int:
  """Says on stderr how a command ended, and gives its exit code."""
  distributed = sys.modules.get('vit_jax.distributed')
  if distributed is not None and distributed.number is not None:
    print(f'vit_jax: process {distributed.number}: {text}', file=sys.stderr)
    distributed.leave(code)
  print(f'vit_jax: {text}', file=sys.stderr)
  return code


def _without_echoes(kind: type[BaseException], error: BaseException, trace: object) -> None:
  """Leaves out what TensorStore prints after a failed save, whose one sentence says it all."""
  if str(error) != 'Event loop is closed':
    sys.__excepthook__(kind, error, trace)
