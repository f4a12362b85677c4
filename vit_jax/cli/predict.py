"""`vit_jax predict PATH images...`: what a model sees in images."""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_jax.cli import loading

if TYPE_CHECKING:
  from vit_jax.model import Model

EXTENSIONS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

Answers = list[tuple[str, float]]  # classes with their probabilities, the best first


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('model', metavar='PATH', help=loading.WHAT)
  parser.add_argument(
    'images', nargs='+', help='images, and folders that are searched for images at any depth'
  )
  parser.add_argument('--top', type=int, default=5, metavar='K', help='classes an image (5)')
  parser.add_argument('--batch-size', type=int, default=32, metavar='N', help='images at once (32)')
  parser.add_argument('--csv', metavar='FILE', help='write the answers to a file, not as a table')
  loading.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Prints a table, or writes a file; 1 where an image could not be read.

  Raises:
    ValueError: a model without a head, no image, or a wrong number.
    OSError: the file cannot be written.
  """
  for name, value in (('--top', args.top), ('--batch-size', args.batch_size)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  files = find_images(args.images)
  model = loading.load(args.model, args)
  if not model.has_head:
    raise ValueError(f'{args.model} has no head, so it gives features and knows no classes')
  if model.report.missing:
    print(model.report, file=sys.stderr)  # Random numbers answer too.
  rows = list(answers(model, files, args.top, args.batch_size))
  if args.csv:
    write_csv(args.csv, rows)
    print(f'{args.csv}: {len(rows)} images')
  elif rows:
    print(table(rows))
  return int(len(rows) < len(files))


def find_images(paths: Sequence[str]) -> list[Path]:
  """The images that paths mean, each once, sorted in each folder; without hidden ones.

  Raises:
    FileNotFoundError: a path that is not there, or a folder without images.
  """
  found = []
  for path in map(Path, paths):
    files = [path]
    if path.is_dir():
      files = sorted(
        file
        for file in path.rglob('*')
        if file.suffix.lower() in EXTENSIONS
        and not any(part.startswith('.') for part in file.relative_to(path).parts)
      )
    elif not path.exists():
      raise FileNotFoundError(f'no file {path}')
    if not files:
      raise FileNotFoundError(f'no image in {path}: none of its files ends in {EXTENSIONS}')
    found += files
  return list(dict.fromkeys(found))


def answers(
  model: 'Model', files: Sequence[Path], top: int, batch_size: int
) -> Iterator[tuple[Path, Answers]]:
  """Each image's best classes; one that cannot be read is a line on stderr."""
  import numpy as np
  from tqdm import tqdm

  with (
    futures.ThreadPoolExecutor() as pool,
    # Appears in a terminal alone, and after a second.
    tqdm(total=len(files), unit=' images', leave=False, delay=1, disable=None) as bar,
  ):
    for start in range(0, len(files), batch_size):
      chunk = files[start : start + batch_size]
      images = dict(zip(chunk, pool.map(lambda file: _read(model, file), chunk), strict=True))
      for file, image in images.items():
        if isinstance(image, Exception):
          bar.write(f'{file}: {image}', file=sys.stderr)
      images = {file: x for file, x in images.items() if not isinstance(x, Exception)}
      if images:
        batch = np.stack(list(images.values()))
        rows = model.probabilities(batch, batch_size=batch_size, preprocessed=True)
        for file, row in zip(images, rows, strict=True):
          best = np.argsort(-row, kind='stable')[:top]
          yield file, [(_name(model.classes, i), float(row[i])) for i in best]
      bar.update(len(chunk))


def _read(model: 'Model', file: Path) -> Any:
  """An image as the model takes it, or what is wrong with it."""
  from vit_jax.data.substitute import BadExample

  try:
    return model.preprocess(file.read_bytes())[0]
  except (OSError, BadExample) as e:
    return e


def _name(classes: Sequence[str], number: int) -> str:
  return classes[number] if number < len(classes) else str(number)


def table(rows: Sequence[tuple[Path, Answers]]) -> str:
  """A line an image, best answers first."""
  from vit_jax import tables

  count = len(rows[0][1])
  header = ['image', 'best', *(f'{i}.' for i in range(2, count + 1))]
  cells = [
    (str(file), *(f'{name} {probability:.3f}' for name, probability in answers))
    for file, answers in rows
  ]
  return tables.table(cells, header)


def write_csv(path: str, rows: Sequence[tuple[Path, Answers]]) -> None:
  """Writes the same as CSV, with a column for each class and each probability."""
  with open(path, 'w', encoding='utf-8', newline='') as f:
    writer = csv.writer(f)
    numbers = range(1, len(rows[0][1]) + 1 if rows else 1)
    writer.writerow(
      ['image', *(f'{what}_{i}' for i in numbers for what in ('class', 'probability'))]
    )
    for file, answers in rows:
      writer.writerow([file, *(value for answer in answers for value in answer)])
