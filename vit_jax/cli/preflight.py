"""`vit_jax preflight --config C --topology v5e:16x16`: will it fit, and how fast may it be?"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

OVERRIDES = True  # What argparse does not know are fields of the config.
DOES_NOT_FIT = 3  # the exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  from vit_jax.preflight import topologies

  parser.add_argument('--config', required=True, help='a file of configs/, or file.py:argument')
  parser.add_argument('--topology', required=True, help=f'devices: {topologies.describe()}')
  parser.add_argument('--json', metavar='FILE', help="write all of it to FILE; '-' prints it")
  parser.add_argument('--workdir', help='folder of a run, whose report.html is to show it')
  parser.add_argument(
    '--largest-batch', action='store_true', help='look for the largest batch that fits'
  )
  parser.add_argument(
    '--compare', action='store_true', help='compile with other remat, sharding and accumulation'
  )
  parser.add_argument(
    '--no-advice', action='store_true', help='compile once, also where it does not fit'
  )
  parser.add_argument(
    '--memory', metavar='GIB', type=float, help='judge by this memory of a device, not by its own'
  )
  parser.add_argument(
    '--image',
    metavar='HxWxC',
    help='size of the images, where the data cannot be opened and they are not photographs',
  )
  parser.epilog = (
    'nothing runs, and no TPU or GPU is needed; any field of the config can be set: '
    f'--config.batch_size=1024; the exit code is {DOES_NOT_FIT} where it does not fit'
  )


def run(args: argparse.Namespace) -> int:
  """Compiles the step and prints what it needs; returns 3 where it does not fit, else 0."""
  from vit_jax.preflight import topologies

  image, limit = _image(args.image), _bytes(args.memory)
  topologies.set_environment(args.topology)  # Before JAX starts.
  from vit_jax import config
  from vit_jax.preflight import summary, verdict

  found = verdict.verdict(
    config.load(args.config, args.overrides),
    args.topology,
    limit=limit,
    image=image,
    largest_batch=args.largest_batch,
    compare=args.compare,
    advise=not args.no_advice,
    progress=lambda text: print(text, file=sys.stderr, flush=True),
  )
  found = {'config': args.config, 'overrides': args.overrides, **found}
  written = json.dumps(found, indent=2)
  print(written if args.json == '-' else summary.text(found))
  if args.json and args.json != '-':
    Path(args.json).write_text(written + '\n', encoding='utf-8')
  if args.workdir:
    _report(args.workdir, found)
  return DOES_NOT_FIT if found['fits'] is False else 0


def _report(workdir: str, found: dict[str, Any]) -> None:
  from vit_jax import report
  from vit_jax.checkpoint import write_json

  write_json(Path(workdir) / report.PREFLIGHT, found)
  print(f'Report: {report.write_report(workdir)}', file=sys.stderr)


def _image(size: str | None) -> tuple[int, int, int] | None:
  if size is None:
    return None
  if not re.fullmatch(r'[1-9]\d*x[1-9]\d*x[134]', size):
    raise ValueError(f'--image is HEIGHTxWIDTHxCHANNELS, such as 32x32x3, not {size!r}')
  height, width, channels = map(int, size.split('x'))
  return height, width, channels


def _bytes(gib: float | None) -> int | None:
  if gib is not None and not gib > 0:
    raise ValueError(f'--memory is a number of GiB above 0, not {gib:g}')
  return None if gib is None else round(gib * (1 << 30))
