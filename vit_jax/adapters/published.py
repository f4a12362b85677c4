"""The checkpoints that people start from, by name; `published.csv` has what was published."""

import csv
import difflib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax.choices import check_choice, listed

# Models of our own, each with the config that made it.
PACKAGED = Path(__file__).with_name('packaged')
_TABLE = ('name', 'variant', 'data', 'resolution', 'parameters', 'accuracy', 'source')
_NUMBERS = ('resolution', 'parameters', 'accuracy')  # Columns to the right.


class Published(NamedTuple):
  """A checkpoint that its authors, or timm, published.

  Attributes:
    name: family, variant, and what it was trained on, in short: 'augreg/B/16-i1k-384' is for images
      of 384 pixels. Without a number they are of 224, DINOv2's of 518.
    variant: a size and a patch, 'B/16', as `ViT` has them: the hybrid that was published as R+Ti/16
      sees patches of 32 pixels, and is an R+Ti/32 here. Or a ResNet with its depth, 'ResNet-50', or
      as CLIP has it, 'RN50'.
    format: of the file, as `load` has it.
    data: what it was trained on: 'ImageNet-21k, then ImageNet-1k'.
    resolution: side in pixels of the images that it was made for, and evaluated on.
    parameters: of the encoder, and of the head if it has one; of CLIP and SigLIP, of both towers.
    location: where `fetch` finds it.
    accuracy: its top-1 on ImageNet-1k in percent, as published; None for one without a head for
      these classes, or with nothing published about this very checkpoint.
    source: where the accuracy was published, or else the location.
  """

  name: str
  variant: str
  format: str
  data: str
  resolution: int
  parameters: int
  location: str
  accuracy: float | None
  source: str


def published(name: str) -> Published:
  """The checkpoint of a name.

  Raises:
    ValueError: an unknown name; the message has those like it.
  """
  rows = _read()
  if name not in rows:
    ours = (path.stem for path in PACKAGED.glob('*.npz'))
    near = ' or '.join(map(repr, difflib.get_close_matches(name, (*ours, *rows))))
    hint = f'did you mean {near}?' if near else f'choose from {listed(rows)}'
    raise ValueError(f'unknown checkpoint {name!r}; {hint}')
  return rows[name]


def packaged(name: str) -> Path | None:
  """The file of a model that comes with this package; None for another name."""
  return next((path for path in PACKAGED.glob('*.npz') if path.stem == name), None)


def list_checkpoints(variant: str = '') -> list[Published]:
  """Prints the published checkpoints as a table, and returns them.

  Args:
    variant: which ones: 'B/16', 'R50+L/32', 'ResNet-50'; '' for all.

  Returns:
    The rows of the table.

  Raises:
    ValueError: a variant that none has.
  """
  rows = list(_read().values())
  if variant:
    check_choice('variant', variant, dict.fromkeys(row.variant for row in rows))
    rows = [row for row in rows if row.variant == variant]
  print(_table(rows))
  if not variant:
    print(f'packaged: {", ".join(sorted(path.stem for path in PACKAGED.glob("*.npz")))}')
  return rows


@functools.cache
def _read() -> dict[str, Published]:
  """All by name, in the order of the file."""
  with Path(__file__).with_name('published.csv').open(encoding='utf-8', newline='') as f:
    rows = [
      Published(
        **row
        | {
          'resolution': int(row['resolution']),
          'parameters': int(row['parameters']),
          'accuracy': float(row['accuracy']) if row['accuracy'] else None,
        }
      )
      for row in csv.DictReader(f)
    ]
  return {row.name: row for row in rows}


def _table(rows: Sequence[Published]) -> str:
  """Aligned columns; sources, which are long, by number and below."""
  sources = list(dict.fromkeys(row.source for row in rows))
  cells = [_TABLE] + [
    (
      row.name,
      row.variant,
      row.data,
      str(row.resolution),
      f'{row.parameters / 1e6:.1f}M',
      '' if row.accuracy is None else f'{row.accuracy:g}%',
      f'[{sources.index(row.source) + 1}]',
    )
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(
      cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
      for column, cell, width in zip(_TABLE, line, widths, strict=True)
    ).rstrip()
    for line in cells
  ]
  return '\n'.join(
    [
      lines[0],
      '-' * len(lines[0]),
      *lines[1:],
      '',
      'accuracy: top-1 on ImageNet-1k, as published',
      *(f'[{number}] {source}' for number, source in enumerate(sources, 1)),
    ]
  )
