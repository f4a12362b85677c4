"""Tar shards of images and captions as WebDataset has them and img2dataset writes them.

Members of one name up to its first dot that follow each other are one sample: `000000012.jpg`,
`000000012.txt`, `000000012.json`. A tar on a local disk is read in any order, a sample at a time;
nothing is unpacked. Opening them reads all headers, a minute a million samples of three members
(63 µs each, files in memory); `vit_jax prepare webdataset:/data/cc3m /data/prepared` does it once.

A sample that cannot be used is an example that does not decode: it is named, counted and replaced
by the next, or left out by `vit_jax prepare`.
"""

import io
import json
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from vit_jax.choices import check_choice, listed
from vit_jax.data import files, folder, tar
from vit_jax.data.substitute import BadExample
from vit_jax.data.tokenizers.base import as_text

FIELDS = ('text', 'label')
_IMAGES = tuple(extension[1:] for extension in folder.EXTENSIONS)


class WebDataset:
  """`source[i]` has `image` (its bytes as they are), `text`, `label`, as far as there, and `id`.

  `text` is a list of the captions that are not blank, even where it is one: the `.txt`, or, where
  there is none, the caption in the `.json`, which may be a list of several. img2dataset writes such
  a list into the `.txt` too, as Python prints it; there the list counts. `label` is the integer in
  the `.cls`. A number is kept for where a sample starts and one for where it ends, 16 bytes.

  Keys are compared within a tar alone: many collections number the samples of each anew.

  Attributes:
    fields: which of 'text' and 'label' an example has.
    damaged: a sentence for each tar whose rest is missing; its last sample is not used.
  """

  def __init__(
    self,
    path: str,
    split: str | None = None,
    fields: Sequence[str] | None = None,
    text_key: str = 'caption',
    classes: Sequence[str] | None = None,
    max_bad_share: float = 0.01,
  ):
    """Reads the headers of all tars; the images are skipped.

    Args:
      path: a tar, a folder of `00000.tar`, or a pattern; a tar's split is its name without the
        number, and 'data' where there is nothing else.
      split: 'train', 'data[:90%]', 'train+test' (`data/splits.py`); None is the only split there
        is, else 'train'.
      fields: what a sample must have beside its image: of 'text' and 'label'. None is what any
        sample in a tar at `path` has; of the JSON in each tar, the first is looked at.
      text_key: the field of the captions in the JSON.
      classes: names of the labels, by number.
      max_bad_share: of the tars, up to this share may be cut short or damaged.

    Raises:
      FileNotFoundError: no tar at `path`; the error lists what there is.
      ValueError: an unknown split or field, a file that is no tar, or too many that are damaged.
    """
    for field in fields or ():
      check_choice('field', field, FIELDS)
    self._files = files.find_files(path, ('.tar',))
    self._text_key = text_key
    scans = [_scan(file, text_key) for file in self._files]
    # What was scanned must still be there when a sample is read.
    self._sizes = [os.path.getsize(file) for file in self._files]
    names = [files.split_name(file) for file in self._files]
    self._rows = files.Rows(path, names, [len(scan.spans) for scan in scans], split)
    self.selection = self._rows.selection
    self._spans = self._rows.choose([scan.spans for scan in scans])
    self._unfit = {(k, row): why for k, scan in enumerate(scans) for row, why in scan.unfit.items()}
    there = {field for scan in scans for field in scan.fields}
    self.fields = tuple(f for f in FIELDS if f in (there if fields is None else fields))
    self.damaged = tuple(scan.damage for scan in scans if scan.damage)
    _check_damaged(self.damaged, len(scans), max_bad_share)
    self.classes = tuple(classes or ())
    self.num_classes = len(self.classes)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Example i.

    Raises:
      BadExample: it lacks an image or a field, a caption is blank, or an earlier sample of the tar
        has the same key.
      ValueError: the tar has changed, or the label is no class.
    """
    row = self._rows[i]
    if why := self._unfit.get((row.file, row.index)):
      raise BadExample(why)
    _, members = self._read(i)
    image = next((members[suffix] for suffix in _IMAGES if suffix in members), None)
    if image is None:
      raise BadExample('no image')
    example = {'id': np.int64(row.id), 'image': image}
    if 'text' in self.fields:
      example['text'] = _captions(members, self._text_key)
    if 'label' in self.fields:
      example['label'] = _label(members, self.classes)
    return example

  def name(self, i: int) -> str:
    """The tar and the key of the sample in it: '00000.tar/000000012'."""
    key, _ = self._read(i)
    return f'{os.path.basename(self._files[self._rows[i].file])}/{key}'

  def _read(self, i: int) -> tuple[str, dict[str, bytes]]:
    """The key of sample i, and its members by what follows the key."""
    file, (start, stop) = self._rows[i].file, self._spans[i].tolist()
    with open(self._files[file], 'rb') as stream:
      same = stream.seek(0, os.SEEK_END) == self._sizes[file]
      stream.seek(start)
      data = stream.read(stop - start)
    try:
      members = list(tar.members(io.BytesIO(data), stop=len(data)))
    except (tar.NoTar, tar.CutShort):
      same = False
    if not same:
      raise ValueError(f'{self._files[file]} has changed since it was opened; start again')
    named = {_split(m.name)[1]: data[m.data : m.data + m.size] for m in members}
    return _split(members[0].name)[0], named


class _Scan(NamedTuple):
  """What the headers of a tar say.

  `spans`, [samples, 2] int64, is where each sample starts and stops; `unfit` has the reason by the
  sample's number; `fields` is what any sample has; `damage` is a sentence, or empty.
  """

  spans: np.ndarray
  unfit: dict[int, str]
  fields: set[str]
  damage: str


def _scan(file: str, text_key: str) -> _Scan:
  """Groups the members of a tar by their keys; of its `.json`, the first is read."""
  spans, unfit, damage = [], {}, ''
  key, suffixes, keys, fields = None, set(), set(), set()
  noted = False
  with open(file, 'rb') as stream:
    try:
      for member in tar.members(stream):
        next_key, suffix = _split(member.name)
        if not suffix:
          continue
        # A suffix that comes again starts a sample too: the same one was written twice.
        if next_key != key or suffix in suffixes:
          if next_key in keys:
            unfit[len(spans)] = 'duplicate key'
          key, suffixes = next_key, set()
          keys.add(key)
          spans.append([member.start, member.stop])
        suffixes.add(suffix)
        spans[-1][1] = member.stop
        if suffix in ('txt', 'cls'):
          fields.add('text' if suffix == 'txt' else 'label')
        elif suffix == 'json' and not noted:
          noted = True
          stream.seek(member.data)
          fields |= {'text'} if text_key in _parse(stream.read(member.size)) else set()
    except tar.NoTar as e:
      raise ValueError(f'{file} {e}; unpack it first if it is compressed, else remove it') from None
    except tar.CutShort as e:
      damage = f'{os.path.basename(file)} {e}'
      if spans:
        unfit[len(spans) - 1] = 'last of a damaged tar'  # It may lack members.
  return _Scan(np.array(spans, np.int64).reshape(-1, 2), unfit, fields, damage)


def _check_damaged(damaged: Sequence[str], count: int, max_share: float) -> None:
  if len(damaged) > max_share * count:
    raise ValueError(
      f'{len(damaged)} of {count} tars are damaged, too many for max_bad_share={max_share:g}: '
      f'{"; ".join(damaged[:5])}: fetch them again or remove them, or allow a larger share'
    )
  for sentence in damaged:
    logging.warning('%s; the samples before that are used', sentence)


def _split(name: str) -> tuple[str, str]:
  """The key of a member and what follows it, in lower case: 'a/b.seg.PNG' -> 'a/b', 'seg.png'.

  What is hidden, or has no dot, belongs to no sample: nothing follows its key.
  """
  directory, base = posixpath.split(name)
  stem, _, suffix = base.partition('.')
  return posixpath.join(directory, stem), suffix.lower() if stem else ''


def _captions(members: dict[str, bytes], key: str) -> list[str]:
  """The captions of a sample that are not blank, at least one."""
  written = as_text(members['txt']) if 'txt' in members else None
  found = written
  if 'json' in members and (written is None or written.startswith('[')):
    noted = _parse(members['json']).get(key)
    # img2dataset writes str() of a list into the text.
    found = noted if written in (None, str(noted)) else written
  found = found if isinstance(found, list) else [found]
  texts = [as_text(text) for text in found if isinstance(text, str)]
  if not texts:
    raise BadExample('no caption')
  if not any(text.strip() for text in texts):
    raise BadExample('blank caption')
  return [text for text in texts if text.strip()]


def _parse(data: bytes) -> dict[str, Any]:
  """The object in a JSON; an empty one where it cannot be read, or is something else."""
  try:
    value = json.loads(data)
  except ValueError:
    return {}
  return value if isinstance(value, dict) else {}


def _label(members: dict[str, bytes], classes: Sequence[str]) -> np.int32:
  if 'cls' not in members:
    raise BadExample('no label')
  text = as_text(members['cls']).strip()
  if not re.fullmatch(r'\d{1,9}', text):
    raise BadExample(f'label is no integer: {text[:40]!r}')
  if classes and int(text) >= len(classes):
    raise ValueError(f'label {text} is no class; classes has {listed(classes)}')
  return np.int32(text)
