"""`vit_jax convert SRC DST [--format timm]`: a model as a file of some format."""

import argparse

from vit_jax.cli import loading


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  from vit_jax.convert import EXPORTS

  parser.add_argument('source', metavar='SRC', help=loading.WHAT)
  parser.add_argument('destination', metavar='DST', help='the file or folder to write')
  parser.add_argument(
    '--format',
    help=f'one of {", ".join(EXPORTS)}; by default vit_jax for DST that ends in .npz or '
    '.safetensors, and jax for .jaxexport',
  )
  parser.add_argument('--force', action='store_true', help='write over what is there')
  loading.add_arguments(parser)
  parser.epilog = (
    'timm, transformers and open_clip take a folder, in which these libraries find weights and '
    'what these are, or a .safetensors file with that beside it; open_clip takes models with a '
    'text tower alone. jax is a program with its weights inside, which JAX runs alone. The '
    'optimizer is never written.'
  )


def run(args: argparse.Namespace) -> int:
  """Converts; prints what was read and what was written.

  Raises:
    ValueError: what the format has no place for; see `vit_jax.load` for the others.
    FileExistsError: DST is there, and --force was not given.
  """
  from vit_jax import convert

  # Before a long download.
  convert.destination(args.destination, args.format, overwrite=args.force)
  model = loading.load(args.source, args)
  print(model.report)
  print(model.save(args.destination, args.format, overwrite=args.force))
  return 0
