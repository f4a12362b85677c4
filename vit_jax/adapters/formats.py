"""From a name, a path or an address to an open checkpoint and what it is."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.adapters import flax_vit, hf, open_clip, ours, timm
from vit_jax.adapters.fetch import fetch, local_path
from vit_jax.adapters.layout import Facts, Layout, one_tower
from vit_jax.adapters.progress import Bar
from vit_jax.adapters.published import packaged, published
from vit_jax.adapters.run import is_run, open_run
from vit_jax.adapters.tensors import SUFFIXES, Tensors, open_tensors, split_prefix
from vit_jax.adapters.two_towers import PIECES, needs_pieces
from vit_jax.choices import check_choice, listed

# By name, in the order in which they are tried: what each recognises is no other's.
FORMATS = {
  'vit_jax': ours,
  'vision_transformer': flax_vit,
  'big_vision': flax_vit,
  'transformers': hf,
  'timm': timm,
  'open_clip': open_clip,
}
# Beside the weights: what they were made with, and what their images went through.
COMPANIONS = ('config.json', 'preprocessor_config.json', 'open_clip_config.json')
# In a folder or a repository, the first of these that there is.
WEIGHTS = (
  'model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin',
  'open_clip_model.safetensors', 'open_clip_pytorch_model.bin',
)  # fmt: skip


def open_checkpoint(
  location: str | Path,
  facts: Mapping[str, Any] | None = None,
  *,
  format: str | None = None,
  step: str | int = 'last',
  average: bool = False,
  sha256: str | None = None,
  progress: bool = False,
) -> tuple[Tensors, Layout]:
  """Opens a checkpoint; of its arrays, nothing is read yet.

  Args:
    location: a name, such as 'augreg/B/16-i21k' or the packaged 'emoji-clip'; a path of a file, of
      a folder with weights in it, or of a run's folder; an address that `fetch` takes. A file may
      be followed by a prefix, `file.npz:params/img`.
    facts: what the file does not say, by the names of `Facts.NAMES`.
    format: a key of `FORMATS`; None finds out.
    step: of a run: a number, 'last' or 'best'.
    average: of a run: the averaged parameters.
    sha256: what the file's bytes must give.
    progress: whether to show the bar of a download.

  Returns:
    Its arrays, and what they are.

  Raises:
    FileNotFoundError: no such file.
    ValueError: an unknown format or fact, several models in one file, or what the format has and
      the file has not.
  """
  location = os.fspath(location)
  given = Facts(facts or {})
  if format is not None:
    check_choice('format', format, FORMATS)
  if is_run(location):
    tensors, layout = open_run(location, step, given, average=average)
    layout = one_tower(layout, given)
    given.check(location)
    return tensors, layout
  if step != 'last' or average:
    what = 'averaged parameters' if average else f'step {step!r}'
    raise ValueError(f'{what}: of the folder of a run alone, which {location} is not')
  file, prefix = split_prefix(location)
  if _is_name(file):
    if location.startswith(('/', './', '../', '~')):
      raise FileNotFoundError(f'no file or folder {location}')
    if path := packaged(location):
      file = str(path)
    else:
      entry = published(location)
      (file, prefix), format = split_prefix(entry.location), format or entry.format
  path, files = _fetch(file, sha256, progress)
  tensors = open_tensors(path)
  if prefix:
    tensors = tensors.select(prefix)
  if format is None:
    module = next((m for m in FORMATS.values() if m.matches(tensors)), None)
    if module is None:
      raise ValueError(
        f'{location} is of no known format ({listed(dict.fromkeys(FORMATS))}): its arrays are '
        f'{listed(tensors)}'
      )
  else:
    module = FORMATS[format]
    if not module.matches(tensors):
      raise ValueError(f'{location} is not of format {format!r}: its arrays are {listed(tensors)}')
  layout = one_tower(module.describe(tensors, given, files), given)
  given.check(location)
  return tensors, layout


def _fetch(location: str, sha256: str | None, progress: bool) -> tuple[Path, dict[str, Any]]:
  """The file of weights, here, and by name what lies beside it: JSON, and the path of pieces."""
  folder, name = _split(location)
  for candidate in (name,) if name else WEIGHTS:
    try:
      path = _fetch_file(_join(folder, candidate), sha256, progress)
      break
    except FileNotFoundError:
      if name:
        raise
  else:
    raise FileNotFoundError(f'{folder} has none of {listed(WEIGHTS)}, and no run with checkpoints')
  if path.name.endswith('.index.json'):
    for shard in sorted(set(_json(path).get('weight_map', {}).values())):
      _fetch_file(_join(folder, shard), None, progress)
  if path.suffix == '.npz':  # No format of these has any.
    return path, {}
  remote = local_path(location) is None
  files = {}
  for name in COMPANIONS:
    if found := _beside(folder, name, path, remote=remote):
      files[name] = _json(found)
  for name in PIECES if needs_pieces(files) else ():
    if found := _beside(folder, name, path, remote=remote):
      files[name] = str(found)
  return path, files


def _beside(folder: str, name: str, path: Path, *, remote: bool) -> Path | None:
  """A file beside the weights at `path`, here; None where there is none."""
  # A note that it is not there, so that what was downloaded opens without network.
  missing = path.with_name(f'.{name}.missing') if remote else None
  if missing and missing.exists():
    return None
  try:
    return fetch(_join(folder, name))
  except (FileNotFoundError, PermissionError):  # Buckets say so of what is not there.
    if missing:
      missing.touch()
  return None


def _fetch_file(location: str, sha256: str | None, progress: bool) -> Path:
  with Bar(location) as bar:
    return fetch(location, sha256=sha256, progress=bar if progress else None)


def _is_name(location: str) -> bool:
  """Whether it can only be that of a published checkpoint."""
  is_file = '://' in location or location.lower().endswith(SUFFIXES)
  return not is_file and not os.path.exists(os.path.expanduser(location))


def _split(location: str) -> tuple[str, str]:
  """The folder of a location, and the file's name; '' for a folder or a repository."""
  if location.startswith('hf://'):
    repository, at, revision = location.removeprefix('hf://').partition('@')
    org, _, rest = repository.partition('/')
    name, _, file = rest.partition('/')
    inner, _, file = file.rpartition('/')
    folder = f'hf://{org}/{name}/{inner}'.rstrip('/')
    return f'{folder}{at}{revision}', file
  if '://' not in location and os.path.isdir(os.path.expanduser(location)):
    return location.rstrip('/'), ''
  folder, _, name = location.rpartition('/')
  return folder or ('/' if location.startswith('/') else '.'), name


def _join(folder: str, name: str) -> str:
  if folder.startswith('hf://'):
    repository, at, revision = folder.partition('@')
    return f'{repository}/{name}{at}{revision}'
  return f'{folder.rstrip("/")}/{name}'


def _json(path: Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path} is not readable JSON ({e})') from None
