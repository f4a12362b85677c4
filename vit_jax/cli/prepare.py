"""`vit_jax prepare SPEC OUT`: writes a source as ArrayRecord files, or verifies those there."""

import argparse
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  from vit_jax.data import source_name

  parser.usage = (
    'vit_jax prepare SPEC OUT [--split SPLIT] [--name NAME] [--shards N] [--workers N]\n'
    '                       [--max-bad-share SHARE] [--debug]\n'
    '       vit_jax prepare --verify OUT'
  )
  parser.add_argument('spec', metavar='SPEC', nargs='?', help='a source: folder:/my/images')
  parser.add_argument('out', metavar='OUT', nargs='?', help='a folder; the same again goes on')
  parser.add_argument('--split', help="the split to read: train, test, 'train[:90%%]'")
  parser.add_argument('--name', help='what to call it in OUT; the name of the split by default')
  parser.add_argument('--shards', type=int, help='number of files; by default one per 5,000')
  parser.add_argument('--workers', type=int, help='processes; by default one a core')
  parser.add_argument(
    '--max-bad-share',
    type=float,
    default=0.01,
    help='up to this share of the examples, and of tars, broken ones are left out (default: 0.01)',
  )
  parser.add_argument('--verify', metavar='OUT', help='compare the files with their checksums')
  parser.epilog = f"{source_name.HELP}. Then read it as dict(type='data.array_record.ArrayRecord')."


def run(args: argparse.Namespace) -> int:
  """Prepares or verifies; returns 0.

  Raises:
    ValueError: a mistake in the arguments; see `data.prepare` for the others.
  """
  if args.verify is not None:
    if args.spec is not None:
      raise ValueError(f'--verify takes a folder and nothing else; leave out {args.spec!r}')
    return _verify(args.verify)
  if args.out is None:
    raise ValueError('prepare takes SPEC and OUT: vit_jax prepare folder:/my/images /data/mine')
  return _prepare(args)


def _prepare(args: argparse.Namespace) -> int:
  from vit_jax.data import prepare, source_name
  from vit_jax.data.shards import Job

  if args.shards is not None and not 1 <= args.shards <= 99999:
    raise ValueError(f'--shards must be 1 to 99999, got {args.shards}')
  if args.workers is not None and args.workers < 0:
    raise ValueError(f'--workers must be 0 or more, got {args.workers}')
  if not 0 <= args.max_bad_share <= 1:
    raise ValueError(f'--max-bad-share must be 0 to 1, got {args.max_bad_share:g}')
  spec = source_name.parse(args.spec)
  if args.split is not None:
    spec['split'] = args.split
  source = _build(spec, args.max_bad_share)
  shards = args.shards or prepare.default_shards(len(source))
  folder = pathlib.Path(args.out).expanduser()
  job = Job(source, spec, folder, _name(args.name, spec, source), shards)
  bar = _Bar()
  try:
    index = prepare.prepare(
      job,
      num_workers=os.cpu_count() or 1 if args.workers is None else args.workers,
      max_bad_share=args.max_bad_share,
      report=lambda done, left_out: bar.report(done, len(source), left_out),
    )
  finally:
    bar.close()
  print(f'{folder}: {job.split!r} has {index["examples"]:,} examples in {shards} files')
  left_out = [left for shard in index['shards'] for left in shard['left_out']]
  _print_left_out(prepare.left_out_counts(left_out), getattr(source, 'damaged', ()))
  return 0


def _build(spec: dict[str, Any], max_bad_share: float) -> Any:
  """The source; the share is its own too, where it has one, and no part of what it is."""
  from vit_jax import build

  if 'max_bad_share' in inspect.signature(build.resolve(spec['type'])).parameters:
    spec = {'max_bad_share': max_bad_share, **spec}
  return build.build(spec)


def _print_left_out(counts: Mapping[str, int], damaged: Sequence[str]) -> None:
  """The table of what was left out; nobody knows how many samples a damaged tar has lost."""
  from vit_jax import tables

  rows = [*counts.items(), *((sentence, 'unknown') for sentence in damaged)]
  if rows:
    print(tables.table(rows, ('left out', 'examples')))


def _verify(folder: str) -> int:
  from vit_jax.data import prepare

  bar = _Bar()
  try:
    files, examples = prepare.verify(pathlib.Path(folder).expanduser(), bar.report)
  finally:
    bar.close()
  print(f'{folder}: {examples:,} examples in {files} files are as they were written')
  return 0


def _name(name: str | None, spec: dict[str, Any], source: Any) -> str:
  """What to call the split in the folder."""
  if name is None:
    name = spec.get('split')
  if name is None and hasattr(source, 'selection'):
    name = '+'.join(part.name for part in source.selection.parts)
  name = name or 'train'
  if not re.fullmatch(r'[\w-]+', name) or name == 'all':
    raise ValueError(f'{name!r} is several splits or part of one; say what to call it: --name')
  return name


class _Bar:
  """The progress over the examples; names the first that are left out."""

  def __init__(self):
    self._console, self._named = None, 0

  def report(self, done: int, total: int, left_out: Sequence[dict[str, str]] = ()) -> None:
    from vit_jax.console import Console

    if self._console is None:  # A run that goes on starts where it stopped.
      self._console = Console(sys.stderr, total, done, batch_size=1)
    for left in left_out[self._named : 5]:
      self._console.message(f'left out {left["name"]}: {left["reason"]}')
    self._named = len(left_out)
    self._console.progress(done, {'left_out': len(left_out)} if left_out else {})

  def close(self) -> None:
    if self._console is not None:
      self._console.close()
