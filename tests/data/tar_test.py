"""The same members as `tarfile`, in every format; and what that takes for the end of a file."""

import io
import tarfile

import pytest

from vit_jax.data.tar import CutShort, NoTar, members

FORMATS = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}
LONG = 'folder/' * 20 + 'name.jpg'


def write(format, names=('a.jpg', 'folder/größe.txt', LONG, 'empty.txt'), sizes=(600, 512, 3, 0)):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=format) as archive:
    for kind, name in ((tarfile.DIRTYPE, 'folder'), (tarfile.LNKTYPE, 'link.jpg')):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, 'a.jpg' if kind == tarfile.LNKTYPE else ''
      info.size = 700 if kind == tarfile.LNKTYPE else 0  # of the other file: no data follow
      archive.addfile(info)
    for k, (name, size) in enumerate(zip(names, sizes, strict=True)):
      info = tarfile.TarInfo(name)
      info.size, info.mtime = size, 1e9 + k / 8  # In pax, a fraction makes an extended header.
      archive.addfile(info, io.BytesIO(bytes([k + 1]) * size))
  return file.getvalue()


@pytest.mark.parametrize('format', FORMATS.values(), ids=FORMATS)
def test_the_members_of_every_format(format):
  data = write(format)
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    expected = [(m.name, m.offset, m.offset_data, m.size) for m in archive if m.isreg()]
  found = list(members(io.BytesIO(data)))
  assert len(expected) == 4
  assert [(m.name, m.start, m.data, m.size) for m in found] == expected
  # From one member to another it is a tar of its own, without an end mark.
  part = data[found[1].start : found[2].stop]
  again = list(members(io.BytesIO(part), stop=len(part)))
  assert [(m.name, m.size) for m in again] == [(m.name, m.size) for m in found[1:3]]


def test_the_times_that_gnu_writes_are_no_folder():
  header = bytearray(tarfile.TarInfo('a.jpg').tobuf(tarfile.GNU_FORMAT))
  header[345:357] = b'14700000000\0'
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  assert [m.name for m in members(io.BytesIO(header + bytes(1024)))] == ['a.jpg']


def test_every_place_to_cut_it_short_is_found():
  data = write(tarfile.PAX_FORMAT)
  whole = list(members(io.BytesIO(data)))
  end = whole[-1].stop + 512  # with the first block of the end mark
  assert list(members(io.BytesIO(data[:end]))) == whole
  for size in (0, *range(512, end, 256)):
    found = []
    with pytest.raises(CutShort, match=f'is cut short at byte {size:,}$'):
      found.extend(members(io.BytesIO(data[:size])))  # It keeps those before the error.
    assert found == [m for m in whole if m.stop <= size]


@pytest.mark.parametrize('at', [0, 150])
def test_a_damaged_header_is_found(at):
  data = bytearray(write(tarfile.USTAR_FORMAT))
  start = list(members(io.BytesIO(data)))[1].start
  data[start + at] ^= 1
  found = []
  with pytest.raises(CutShort, match=f'is damaged at byte {start:,}$'):
    found.extend(members(io.BytesIO(data)))
  assert [m.name for m in found] == ['a.jpg']
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # Here it just ends.
    assert [m.name for m in archive if m.isreg()] == ['a.jpg']


def test_a_damaged_extended_header_is_found():
  data = write(tarfile.PAX_FORMAT)
  at = data.index(b' mtime=')
  for length in (b'00', b'xx', b'-1'):
    with pytest.raises(CutShort, match='is damaged at byte'):
      list(members(io.BytesIO(data[: at - 2] + length + data[at:])))


def test_what_follows_the_end_mark_is_found():
  data = write(tarfile.USTAR_FORMAT)
  with pytest.raises(CutShort, match='has an end mark at byte .* and goes on'):
    list(members(io.BytesIO(data + data)))


@pytest.mark.parametrize('data', [b'\x1f\x8b\x08 gzip', b'<html>' * 200, b'\xff' * 2048])
def test_no_tar(data):
  with pytest.raises(NoTar):
    list(members(io.BytesIO(data)))
