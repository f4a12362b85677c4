"""Files of weights as lazy mappings from a name to an array; reading one runs no code from it."""

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vit_jax.choices import listed
from vit_jax.reasons import reason

Shape = tuple[tuple[int, ...], np.dtype]

# What safetensors calls the types that its NumPy side can read.
_SAFETENSORS = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
  'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8,
  'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8,
  'BOOL': np.bool_, 'C64': np.complex64,
}  # fmt: skip
_CONTAINERS = ('state_dict', 'model')  # keys under which PyTorch code keeps a model's weights


class Tensors(Mapping[str, np.ndarray]):
  """The arrays of a file by name: each is read when it is asked for, and none is kept.

  Attributes:
    path: the file.
    shapes: `(shape, dtype)` by name; known without the data.
  """

  def __init__(self, path: str, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray]):
    """Takes what a file has.

    Args:
      path: the file, for messages.
      shapes: of all arrays, in the file's order.
      read: from a name to its array.
    """
    self.path = path
    self.shapes: Mapping[str, Shape] = dict(shapes)
    self._read = read
    # Gives the whole file, where these are its weights alone.
    self._around: Callable[[], Tensors] | None = None

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads an array.

    Raises:
      KeyError: there is none of this name.
      ValueError: it is damaged.
    """
    if name not in self.shapes:
      raise KeyError(f'{self.path} has no array {name!r}; it has {listed(self.shapes)}')
    try:
      return self._read(name)
    except Exception as e:
      raise ValueError(f'{name!r} in {self.path} cannot be read ({reason(e)})') from e

  def __contains__(self, name: object) -> bool:
    return name in self.shapes

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)

  def select(self, prefix: str) -> 'Tensors':
    """The arrays under a prefix such as 'params/img', which their names then lack.

    Raises:
      ValueError: there are none; the error lists the prefixes of that depth that exist.
    """
    prefix = prefix.strip('/.')
    everywhere = [self, *([self._around()] if self._around else [])]
    for tensors in everywhere:
      selected = tensors._under(prefix)
      if selected:
        return selected
    depth = len(re.split('[/.]', prefix)) - 1
    pattern = re.compile(rf'(?:[^/.]+[/.]){{{depth}}}[^/.]+(?=[/.])')
    found = {m[0] for tensors in everywhere for name in tensors if (m := pattern.match(name))}
    raise ValueError(f'{self.path} has nothing under {prefix!r}; there is {listed(sorted(found))}')

  def _under(self, prefix: str) -> 'Tensors':
    starts = f'{prefix}/', f'{prefix}.'
    names = {name[len(prefix) + 1 :]: name for name in self if name.startswith(starts)}
    shapes = {short: self.shapes[name] for short, name in names.items()}
    return Tensors(f'{self.path}:{prefix}', shapes, lambda short: self._read(names[short]))


def split_prefix(location: str) -> tuple[str, str | None]:
  """Takes 'file.npz:params/img' apart; the prefix is None where there is none.

  Args:
    location: a path or an address of a file of weights, with or without a prefix.
  """
  suffixes = '|'.join(map(re.escape, _READERS))
  # After the name, a revision (`@main`) or a query (`?download=1`) may follow.
  match = re.fullmatch(rf'(.+?(?:{suffixes})(?:[@?][^:]*)?):(.+)', location, re.IGNORECASE)
  return (match[1], match[2]) if match else (location, None)


def open_tensors(path: str | Path) -> Tensors:
  """Opens a file of weights.

  Of a `.safetensors` or `.npz` file, only the array that is asked for is read. `.bin`, `.pt` and
  `.pth` files that PyTorch 1.6 or later wrote are mapped into memory (an older one is read whole,
  at once). In an `.npz`, bfloat16 arrays, which NumPy saves as two bytes of nothing (`V2`), are
  bfloat16 again. `.safetensors.index.json` stands for all the shards that it names, beside it.

  A PyTorch file is a dict of tensors. Where its weights lie deeper, under 'state_dict' or 'model',
  those alone are given; nested dicts are joined by dots ('teacher.head.weight'), and what is no
  tensor is left out. A file with classes of its own in it is refused.

  Args:
    path: the file. `file.npz:params/img` gives the arrays under a prefix, which their names lack;
      of a PyTorch file, it may also be one beside the weights, such as `file.pth:state_dict_ema`.

  Raises:
    FileNotFoundError: no such file, or a shard is missing.
    ValueError: an unknown format, a damaged or foreign file, one that would run code, a prefix
      that no name has, or PyTorch is missing.
  """
  path, prefix = os.path.expanduser(path), None
  if not os.path.exists(path):
    path, prefix = split_prefix(path)
  if not os.path.exists(path):
    raise FileNotFoundError(f'no file {path}')
  suffix = next((s for s in _READERS if path.lower().endswith(s)), None)
  if suffix is None or os.path.isdir(path):
    what = 'is a folder' if os.path.isdir(path) else 'is of no known format'
    raise ValueError(f'{path} {what}; choose a file that ends in {", ".join(_READERS)}')
  try:
    tensors = _READERS[suffix](path)
  except FileNotFoundError:
    raise
  except Exception as e:  # PyTorch's unpickler raises almost anything.
    raise ValueError(f'{path} cannot be read ({reason(e)})') from e
  return tensors if prefix is None else tensors.select(prefix)


def _safetensors(path: str) -> Tensors:
  shapes = {}
  with safetensors.safe_open(path, framework='numpy') as file:
    for name in file.keys():  # noqa: SIM118 (it is no mapping)
      tensor = file.get_slice(name)
      dtype = _SAFETENSORS.get(tensor.get_dtype())
      if dtype is None:
        raise ValueError(f'{name!r} is of type {tensor.get_dtype()}, which NumPy has not')
      shapes[name] = tuple(tensor.get_shape()), np.dtype(dtype)

  def read(name: str) -> np.ndarray:
    # Opened anew: the pages of a file that stays mapped count as memory once they were read.
    with safetensors.safe_open(path, framework='numpy') as file:
      return file.get_tensor(name)

  return Tensors(path, shapes, read)


def _index(path: str) -> Tensors:
  with open(path, encoding='utf-8') as f:
    content = json.load(f)
  files = content.get('weight_map') if isinstance(content, dict) else None
  if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
    raise ValueError("it has no 'weight_map' from names to files")
  shards = {}
  for file in sorted(set(files.values())):
    if os.path.basename(file) != file:
      raise ValueError(f'its shard {file!r} is not beside it')
    shard = os.path.join(os.path.dirname(path), file)
    if not os.path.isfile(shard):
      raise FileNotFoundError(f'{path} names a shard {file}, which is not beside it')
    try:
      shards[file] = _safetensors(shard)
    except Exception as e:
      raise ValueError(f'its shard {file}: {reason(e)}') from e
  for name, file in files.items():
    if name not in shards[file]:
      raise ValueError(f'its shard {file} has no {name!r}')
  shapes = {name: shards[file].shapes[name] for name, file in files.items()}
  return Tensors(path, shapes, lambda name: shards[files[name]]._read(name))


def _npz(path: str) -> Tensors:
  archive = zipfile.ZipFile(path)
  shapes = {}
  for info in archive.infolist():
    name = info.filename.removesuffix('.npy')
    if name == info.filename:
      raise ValueError(f'{name!r} in it is no array')
    shapes[name] = _npy_shape(archive, info, name)

  def read(name: str) -> np.ndarray:
    with archive.open(f'{name}.npy') as f:
      return np.lib.format.read_array(f, allow_pickle=False).view(shapes[name][1])

  return Tensors(path, shapes, read)


def _npy_shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Shape:
  try:
    with archive.open(info) as f:
      version = np.lib.format.read_magic(f)
      if version != (1, 0):  # The later ones are for structured types.
        raise ValueError(f'version {version} of the format')
      shape, _, dtype = np.lib.format.read_array_header_1_0(f)
      size = f.tell() + math.prod(shape) * dtype.itemsize
  except Exception as e:
    raise ValueError(f'{name!r} is no array: {reason(e)}') from e
  if dtype.hasobject:
    raise ValueError(f'{name!r} holds Python objects, and reading those can run code')
  if dtype.kind == 'V':
    if dtype != np.dtype('V2'):
      raise ValueError(f'{name!r} is of type {dtype}, which means nothing without its program')
    dtype = np.dtype(ml_dtypes.bfloat16)
  # Before memory is taken for what the header claims.
  if size != info.file_size:
    raise ValueError(f'{name!r} has {info.file_size} bytes where {size} are due')
  return shape, dtype


def _torch(path: str) -> Tensors:
  try:
    import torch
  except ImportError:
    raise ValueError('torch, which reads it, is not installed: pip install torch') from None
  with open(path, 'rb') as f:
    mapped = f.read(4) == b'PK\x03\x04'  # Before 1.6, files were no zip archives.
  try:
    with warnings.catch_warnings():  # Of a program, which is an error here.
      warnings.filterwarnings('ignore', '.*TorchScript', UserWarning)
      whole = torch.load(path, weights_only=True, mmap=mapped, map_location='cpu')
  except Exception as e:
    called = re.search(r'GLOBAL (\S+)', str(e))
    if called:
      raise ValueError(f'it calls for {called[1]}, and reading must run no code') from None
    if 'TorchScript' in str(e):
      raise ValueError(
        'it is a program (TorchScript), and reading must run no code; where you trust it, write '
        "its weights alone: torch.save(torch.jit.load(path, 'cpu').state_dict(), 'weights.pt')"
      ) from None
    raise
  if not isinstance(whole, Mapping):
    raise ValueError(f'it holds a {type(whole).__name__} and no dict of tensors')
  weights = whole
  for key in _CONTAINERS:
    if isinstance(weights.get(key), Mapping):
      weights = weights[key]
  tensors = _torch_tensors(path, weights)
  if not tensors:
    raise ValueError('it holds no tensors')
  if weights is not whole:
    tensors._around = lambda: _torch_tensors(path, whole)
  return tensors


def _torch_tensors(path: str, tree: Mapping[Any, Any]) -> Tensors:
  import torch

  leaves = {n: x for n, x in _flatten(tree) if isinstance(x, torch.Tensor)}
  shapes = {}
  for name, x in leaves.items():
    kind = str(x.dtype if x.layout == torch.strided else x.layout).removeprefix('torch.')
    try:
      shapes[name] = tuple(x.shape), np.dtype(getattr(ml_dtypes, kind, kind))
    except TypeError:
      raise ValueError(f'{name!r} is of type {kind}, which NumPy has not') from None

  def read(name: str) -> np.ndarray:
    x, dtype = leaves[name].detach().resolve_conj().resolve_neg(), shapes[name][1]
    if hasattr(ml_dtypes, dtype.name):  # PyTorch gives NumPy no array of these.
      x = x.view({1: torch.uint8, 2: torch.int16}[dtype.itemsize])
    # A copy: a view would change with the file.
    return x.numpy().view(dtype).copy()

  return Tensors(path, shapes, read)


def _flatten(tree: Mapping[Any, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


_READERS = {
  '.safetensors': _safetensors,
  '.safetensors.index.json': _index,
  '.npz': _npz,
  '.bin': _torch,
  '.pt': _torch,
  '.pth': _torch,
}
SUFFIXES = tuple(_READERS)
