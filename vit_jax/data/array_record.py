"""ArrayRecord files that `vit_jax prepare` has written from any source, with fast random access."""

import os
import pathlib
from typing import Any, NamedTuple

from vit_jax.choices import listed
from vit_jax.data import files, records

# Reading ahead is for whoever reads in order. The buffer, by default a mebibyte, is filled at each
# new position.
_OPTIONS, _BUFFER = 'readahead_buffer_size:0,max_parallelism:0', 1 << 15


class Shard(NamedTuple):
  """A file, its entry in the index, and that index (`data/records.py`)."""

  file: str
  entry: dict[str, Any]
  index: dict[str, Any]


class ArrayRecord:
  """`source[i]` is the example that was written: `image`, `label`, `id` and so on, as they were.

  An example keeps the `id` that its source gave it. Picklable: a worker opens the files itself.
  """

  def __init__(self, path: str, split: str | None = None):
    """Reads the indices; no ArrayRecord file is opened.

    Args:
      path: a folder that `vit_jax prepare` has written, or a pattern of its files, such as
        'out/train-0000[0-3]*'.
      split: 'train', 'train[:99%]', 'train+test' (`data/splits.py`); None is the only split there
        is, else 'train'.

    Raises:
      FileNotFoundError: nothing is prepared at `path`, or a file of it is missing.
      ValueError: an unknown split, a file that is cut short, or splits that do not go together.
    """
    shards = _find(path)
    self._files = [shard.file for shard in shards]
    names = [shard.index['split'] for shard in shards]
    self._rows = files.Rows(path, names, [shard.entry['examples'] for shard in shards], split)
    self.selection = self._rows.selection
    chosen = {part.name for part in self.selection.parts}
    for shard in shards:
      if shard.index['split'] in chosen:
        _check_file(shard)
    first = _check_alike([shard.index for shard in shards if shard.index['split'] in chosen])
    self.classes, self.features = tuple(first['classes']), first['features']
    self.num_classes = len(self.classes)
    self._readers: dict[int, Any] = {}

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    row = self._rows[i]
    try:
      return records.decode(self._reader(row.file).read([row.index])[0])
    except (RuntimeError, ValueError, IndexError) as e:  # IndexError: it holds fewer records
      file = self._files[row.file]
      raise ValueError(
        f'cannot read {self.name(i)}: {file} is damaged ({e}); to check all files: '
        f'vit_jax prepare --verify {os.path.dirname(file)}'
      ) from None

  def name(self, i: int) -> str:
    """A name for messages: 'train-00000-of-00004.array_record[17]'."""
    row = self._rows[i]
    return f'{os.path.basename(self._files[row.file])}[{row.index}]'

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {'_readers': {}}

  def _reader(self, k: int) -> Any:
    if k not in self._readers:
      from array_record.python import array_record_module as module

      reader = module.ArrayRecordReader(self._files[k], _OPTIONS, file_reader_buffer_size=_BUFFER)
      self._readers[k] = reader
    return self._readers[k]


def _find(path: str) -> list[Shard]:
  """Every file that `path` means, by split and number."""
  full = os.path.abspath(os.path.expanduser(path))
  if os.path.isdir(full):
    folders, wanted = [full], None
  else:
    found = files.find_files(path, (records.EXTENSION,))
    wanted = {file for file in found if file.endswith(records.EXTENSION)}
    folders = sorted({os.path.dirname(file) for file in found})
  shards = []
  for folder in folders:
    indices = records.read_indices(pathlib.Path(folder))
    named = [Shard(os.path.join(folder, s['file']), s, i) for i in indices for s in i['shards']]
    shards += [s for s in named if wanted is None or s.file in wanted]
  if not shards:
    there = listed(sorted(os.listdir(folders[0])))
    raise FileNotFoundError(
      f'{path} has no index, which `vit_jax prepare` writes last; {folders[0]} has {there}: '
      'prepare a source there, or give the command that was stopped again'
    )
  return shards


def _check_file(shard: Shard) -> None:
  again = 'give the `vit_jax prepare` that made it again'
  if not os.path.isfile(shard.file):
    raise FileNotFoundError(f'{shard.file} is missing; {again}')
  size = os.path.getsize(shard.file)
  if size != shard.entry['bytes']:
    raise ValueError(
      f'{shard.file} is damaged: it has {size} bytes instead of {shard.entry["bytes"]}; {again}'
    )


def _check_alike(indices: list[dict[str, Any]]) -> dict[str, Any]:
  """The first index, if the examples of all can stand in one source."""
  first, *others = {id(index): index for index in indices}.values()  # each once, in order
  seen = [first]
  for index in others:
    names = f'{first["split"]!r} and {index["split"]!r}'
    for key in ('features', 'classes'):
      if first[key] != index[key]:
        raise ValueError(f'the splits {names} differ in their {key}; read one at a time')
    for other in seen:
      if index['ids'][0] <= other['ids'][1] and other['ids'][0] <= index['ids'][1]:
        raise ValueError(
          f'the splits {other["split"]!r} and {index["split"]!r} number their examples alike; '
          'read one at a time, or both in a data.mixture.Mixture, which numbers them anew'
        )
    seen.append(index)
  return first
