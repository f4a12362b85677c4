"""`vit_jax report WORKDIR`: writes a run's `report.html` and prints its path."""

import argparse
import webbrowser


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments to `parser`."""
  parser.add_argument('workdir', metavar='WORKDIR', help='the folder of a run, finished or not')
  parser.add_argument('--open', action='store_true', help='open the report in the browser')


def run(args: argparse.Namespace) -> int:
  """Writes the report; returns 0.

  Raises:
    ValueError: the folder is no run's.
  """
  from vit_jax.report import write_report

  path = write_report(args.workdir).resolve()
  print(path)
  if args.open:
    webbrowser.open(path.as_uri())
  return 0
