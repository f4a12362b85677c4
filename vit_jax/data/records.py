"""How examples are stored in ArrayRecord files, and the index that describes the files of a split.

A record is one example as MessagePack (`flax.serialization`): it is in Flax already, it keeps
dtypes and shapes, and reading it runs no code, as unpickling would. The index of a split is
`train.json`, beside `train-00000-of-00004.array_record` and so on:

  {"format": "vit_jax examples 1", "split": "train", "source": {"type": "data.folder.Folder", ...},
   "positions": 20, "examples": 19, "ids": [0, 19], "classes": ["cat", "dog"],
   "features": {"id": "int64", "image": "bytes", "label": "int32"},
   "shards": [{"file": "train-00000-of-00004.array_record", "examples": 4, "ids": [0, 4],
               "left_out": [{"name": "cat/3.jpg", "reason": "..."}],
               "bytes": 65536, "sha256": "..."}, ...]}

`ids` are the least and the greatest; `positions` counts the source's examples, broken ones too.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

EXTENSION = '.array_record'
FORMAT = 'vit_jax examples 1'


def encode(example: dict[str, Any]) -> bytes:
  """One example as a record.

  Raises:
    ValueError: a field is neither bytes, a text, a list of texts nor numbers.
  """
  from flax import serialization

  plain = {key: _plain(key, value) for key, value in example.items()}
  return serialization.msgpack_serialize(plain)


def decode(record: bytes) -> dict[str, Any]:
  """The example of a record; its arrays are read-only.

  Raises:
    ValueError: it is no record of ours.
  """
  from flax import serialization

  try:
    example = serialization.msgpack_restore(record)
  except Exception as e:  # msgpack has no base class of its errors
    raise ValueError(f'no record of an example ({type(e).__name__}: {e})') from None
  if not isinstance(example, dict):
    raise ValueError(f'no record of an example, but {type(example).__name__}')
  return example


def features(example: dict[str, Any]) -> dict[str, str]:
  """What each field is: 'bytes', 'str', 'list of str', or a dtype such as 'uint8'."""
  return {key: _kind(value) for key, value in sorted(example.items())}


def _kind(value: Any) -> str:
  if _is_texts(value):
    return 'list of str'
  return type(value).__name__ if isinstance(value, bytes | str) else np.asarray(value).dtype.name


def _is_texts(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _plain(key: str, value: Any) -> Any:
  if isinstance(value, bytes | str):
    return value
  if _is_texts(value):
    return list(value)
  array = np.asarray(value)
  if array.dtype.kind not in 'biuf':
    raise ValueError(
      f'field {key!r} is {type(value).__name__} ({array.dtype}); choose bytes, str, '
      'a list of str or numbers'
    )
  # MessagePack keeps the dtype's name, without its byte order.
  return array.astype(array.dtype.newbyteorder('='), copy=False)[()]


def read_index(file: pathlib.Path) -> dict[str, Any] | None:
  """The index in `file`; None if there is no such file, or it is something else.

  Raises:
    ValueError: it is no readable JSON, or an index of another format.
  """
  if not file.is_file():
    return None
  try:
    index = json.loads(file.read_text(encoding='utf-8'))
  except ValueError:
    raise ValueError(f'{file} is no readable JSON; delete it and prepare the split again') from None
  if not isinstance(index, dict) or 'format' not in index:
    return None
  if index['format'] != FORMAT:
    raise ValueError(f'{file} has the format {index["format"]!r}, and this reads {FORMAT!r}')
  return index


def read_indices(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The index of every split in `folder`, by name."""
  found = [read_index(file) for file in sorted(folder.glob('*.json'))]
  return [index for index in found if index is not None]


def write_json(file: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all, even if the power fails."""
  partial = file.with_name(f'{file.name}.{os.getpid()}.partial')
  with open(partial, 'w', encoding='utf-8') as stream:
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write('\n')
    stream.flush()
    os.fsync(stream.fileno())
  partial.replace(file)
