"""`vit_jax search MODEL 'sad animal'`: the images of a source that a text fits best."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_jax.cli import loading, predict, zeroshot

if TYPE_CHECKING:
  import numpy as np

  from vit_jax.image_text import ImageTextModel

SOURCE = "emoji:all,styles=('google',)"
SIDE = 128  # pixels of an image in the picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  from vit_jax.data import source_name

  parser.add_argument('model', metavar='MODEL', help=f'with a text tower: {loading.WHAT}')
  parser.add_argument('query', metavar='TEXT', help="what to look for: 'sad animal'")
  parser.add_argument(
    '--source',
    default=SOURCE,
    metavar='SPEC',
    help='where: a folder that is searched for images at any depth, or SPEC '
    "(the packaged emoji in Google's style)",
  )
  parser.add_argument('--top', type=int, default=5, metavar='K', help='images to show (5)')
  parser.add_argument('--batch-size', type=int, default=64, metavar='N', help='images at once (64)')
  parser.add_argument('--out', metavar='FILE', help='the picture (search-TEXT.png)')
  loading.add_arguments(parser)
  parser.epilog = source_name.HELP


def run(args: argparse.Namespace) -> int:
  """Prints the best images with their cosines and draws them; 1 where one could not be read.

  Raises:
    ValueError: a model without a text tower, a wrong source or number, or no image can be read.
    OSError: no such folder, or the picture cannot be written.
  """
  import numpy as np

  from vit_jax import tables

  for name, value in (('--top', args.top), ('--batch-size', args.batch_size)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  source = open_source(args.source)
  model = zeroshot.load(args)
  if model.report.missing:
    print(model.report, file=sys.stderr)  # Random numbers answer too.
  query = model.text_embeddings([args.query])[0]
  numbers, embeddings = embed(model, source, args.batch_size)
  cosines = embeddings @ query
  best = [(numbers[i], float(cosines[i])) for i in np.argsort(-cosines, kind='stable')[: args.top]]
  names = [name_of(source, i) for i, _ in best]
  rows = [(name, f'{cosine:.3f}') for name, (_, cosine) in zip(names, best, strict=True)]
  print(tables.table(rows, ('image', 'cosine')))
  print(draw([source[i]['image'] for i, _ in best], rows, args.query, args.out))
  return int(len(numbers) < len(source))


class Files:
  """Images wherever they lie in a folder, as a source; `name(i)` is the path of one."""

  def __init__(self, root: str):
    """Lists them.

    Raises:
      FileNotFoundError: there are none.
    """
    self.files = predict.find_images([root])

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {'image': self.files[i].read_bytes()}

  def name(self, i: int) -> str:
    """The file's path."""
    return str(self.files[i])


def open_source(text: str) -> Any:
  """The source that `--source` names: a folder of images, or what `data.source_name` reads.

  Raises:
    ValueError: an unknown source or field; see the source itself for the others.
  """
  from vit_jax.build import build
  from vit_jax.data import source_name

  path = Path(text).expanduser()
  return Files(str(path)) if path.is_dir() else build(source_name.parse(text))


def embed(model: 'ImageTextModel', source: Any, batch_size: int) -> 'tuple[list[int], np.ndarray]':
  """Where the images of a source lie; one that cannot be read is a line on stderr.

  Returns:
    The numbers of the n examples that could be read, and their embeddings `[n, D]`.

  Raises:
    ValueError: no image could be read.
  """
  import numpy as np

  numbers, found = [], []
  for chunk, images in _batches(model, source, batch_size):
    numbers += chunk
    found.append(model.embeddings(images, batch_size=batch_size, preprocessed=True))
  if not numbers:
    raise ValueError(f'none of the {len(source)} images could be read')
  return numbers, np.concatenate(found)


def _batches(
  model: 'ImageTextModel', source: Any, batch_size: int
) -> 'Iterator[tuple[list[int], np.ndarray]]':
  """Numbers of examples, and their images as the model takes them."""
  import numpy as np
  from tqdm import tqdm

  with (
    futures.ThreadPoolExecutor() as pool,
    # Appears in a terminal alone, and after a second.
    tqdm(total=len(source), unit=' images', leave=False, delay=1, disable=None) as bar,
  ):
    for start in range(0, len(source), batch_size):
      chunk = range(start, min(start + batch_size, len(source)))
      images = dict(zip(chunk, pool.map(lambda i: _read(model, source, i), chunk), strict=True))
      for i, image in images.items():
        if isinstance(image, Exception):
          bar.write(f'{name_of(source, i)}: {image}', file=sys.stderr)
      images = {i: image for i, image in images.items() if not isinstance(image, Exception)}
      if images:
        yield list(images), np.stack(list(images.values()))
      bar.update(len(chunk))


def _read(model: 'ImageTextModel', source: Any, i: int) -> Any:
  """An example's image as the model takes it, or what is wrong with it."""
  from vit_jax.data.substitute import BadExample

  try:
    example = source[i]
    if 'image' not in example:
      raise ValueError(f'examples of the source have {sorted(example)} and no image')
    return model.preprocess(example['image'])[0]
  except (OSError, BadExample) as e:
    return e


def name_of(source: Any, i: int) -> str:
  """What to call an example: name and style of a packaged emoji, else what its source says."""
  from vit_jax.data.emoji import Emoji
  from vit_jax.data.substitute import name

  if not isinstance(source, Emoji):
    return name(source, i)
  row = source.table()[i]
  return f'{row["name"]} ({row["style"]})'


def draw(
  images: Sequence[Any], rows: Sequence[tuple[str, str]], query: str, out: str | None
) -> Path:
  """Writes the picture of the best images.

  Args:
    images: arrays `[H, W, C]` or encoded files.
    rows: name and cosine of each.
    query: what was looked for, the title.
    out: the file; None for one in the current folder, named after the query.

  Returns:
    Where it is.
  """
  import numpy as np
  from PIL import Image

  from vit_jax.data.decode import decode_image
  from vit_jax.plots import answers, figures
  from vit_jax.plots import images as pictures

  shown = []
  for image in images:
    array = decode_image(image, orient=True) if isinstance(image, bytes) else np.asarray(image)
    shown.append(answers.thumbnail(array, SIDE))
  captions = []
  for name, cosine in rows:
    lines = answers.wrap(os.path.basename(name), SIDE, figures.FONT_SIZE, 3)
    captions.append('\n'.join([*lines, cosine]))
  picture = pictures.grid(shown, captions, columns=min(5, len(shown)), side=SIDE, title=query)
  name = re.sub(r'\W+', '-', query).strip('-').lower()[:60]
  path = Path(out or f'search-{name}.png').expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(path)
  return path
