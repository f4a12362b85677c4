"""`vit_jax zeroshot MODEL --labels ... images...`: which of your own words fit images best."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_jax.choices import listed
from vit_jax.cli import loading, predict

if TYPE_CHECKING:
  import numpy as np

  from vit_jax.image_text import ImageTextModel

CARDS = 24  # images that are drawn at most
CHUNK = 32  # labels that are encoded at once, between two moves of the progress bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument('model', metavar='MODEL', help=f'with a text tower: {loading.WHAT}')
  images = parser.add_argument(
    'images',
    nargs='+',
    metavar='IMAGE',
    help='images, and folders that are searched for images at any depth. Where none stands before '
    'the options or after `--`, the last values of --labels or --templates that are files or '
    'folders are the images',
  )
  # They may be among the labels. An argument of '*' would be empty wherever options come first.
  images.required = False
  parser.add_argument(
    '--labels',
    nargs='+',
    default=[],
    metavar='TEXT',
    help='what an image may be; @labels.txt stands for the lines of a file',
  )
  parser.add_argument(
    '--templates',
    nargs='+',
    default=[],
    metavar='TEXT',
    help="what labels are put into, such as 'a photo of a {}.'; of several, the mean counts "
    "('{}', or those of --prompts)",
  )
  parser.add_argument(
    '--prompts',
    metavar='NAME',
    help='labels and templates as published for a data set, such as cifar10, or a file of them',
  )
  parser.add_argument('--top', type=int, default=5, metavar='K', help='labels an image (5)')
  parser.add_argument('--batch-size', type=int, default=32, metavar='N', help='images at once (32)')
  parser.add_argument('--csv', metavar='FILE', help='write the answers to a file, not as a table')
  parser.add_argument(
    '--cards', metavar='FILE', help=f'draw the answers, of the first {CARDS} images, as a picture'
  )
  loading.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Prints a table, or writes a file; 1 where an image could not be read.

  Raises:
    ValueError: a model without a text tower, no labels, a wrong template or number.
    OSError: there is no image, or a file cannot be read or written.
  """
  for name, value in (('--top', args.top), ('--batch-size', args.batch_size)):
    if value < 1:
      raise ValueError(f'{name} must be at least 1, got {value}')
  labels, templates, images = read_arguments(args)
  files = predict.find_images(images)
  model = load(args)
  if model.report.missing:
    print(model.report, file=sys.stderr)  # Random numbers answer too.
  classifier = Classifier(model, labels, templates)
  rows = list(predict.answers(classifier, files, args.top, args.batch_size))
  if args.csv:
    predict.write_csv(args.csv, rows)
    print(f'{args.csv}: {len(rows)} images')
  elif rows:
    print(predict.table(rows))
  if args.cards and rows:
    print(draw_cards(classifier, [file for file, _ in rows[:CARDS]], args.top, args.cards))
  return int(len(rows) < len(files))


def load(args: argparse.Namespace) -> 'ImageTextModel':
  """Loads the model that `args` names.

  Raises:
    ValueError: it has no text tower.
  """
  model = loading.load(args.model, args)
  if not model.has_text:
    raise ValueError(f'{args.model} has no text tower, so it cannot compare images with texts')
  return model


def read_arguments(args: argparse.Namespace) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
  """The labels, the templates and the paths of images, wherever they stand.

  Raises:
    ValueError: there are no labels, or a template has no place for one.
    FileNotFoundError: there is no image, or no such file of labels.
  """
  from vit_jax.data import prompts
  from vit_jax.data.texts import check_templates

  labels, templates, images = _tell_apart(args.labels, args.templates, args.images or [])
  labels = [label for value in labels for label in _lines(value)]
  if args.prompts:
    known = prompts.load(args.prompts)
    labels, templates = labels or known.classes, templates or known.templates
  templates = templates or ('{}',)
  if not labels:
    raise ValueError("there are no labels; give --labels 'a photo of a cat' ..., or --prompts NAME")
  check_templates(templates)
  return prompts.check_texts('--labels', list(labels)), templates, images


def _tell_apart(
  labels: Sequence[str], templates: Sequence[str], images: Sequence[str]
) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
  """Moves what stands at the end of the first two to the images, where there are none yet."""
  last = [*labels, *templates][-1:]
  if not images:
    templates, images = _without_images(templates)
  if not images:
    labels, images = _without_images(labels)
  if not images:
    why = f'; {last[0]!r} is no file or folder' if last else ''
    raise FileNotFoundError(f'there is no image{why}')
  for label in labels:
    if label.lower().endswith(predict.EXTENSIONS) and os.path.isfile(label):
      raise ValueError(
        f'{label!r} is an image among the labels; all images stand before the options, or after '
        '`--`, or at the end of --labels'
      )
  return labels, templates, images


def _without_images(values: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
  """Values of an option, and those at their end that are files or folders.

  Raises:
    ValueError: all are.
  """
  count = len(values)
  while count and os.path.exists(values[count - 1]):  # Path's takes no long texts.
    count -= 1
  if values and not count:
    raise ValueError(
      f'each of {listed(values)} is a file or folder; images that stand after `--` are not taken '
      'from the other values'
    )
  return values[:count], values[count:]


def _lines(value: str) -> list[str]:
  """A label, or those of a file that it names.

  Raises:
    ValueError: the file is no text.
    FileNotFoundError: there is none.
  """
  if not value.startswith('@'):
    return [value]
  try:
    lines = Path(value[1:]).expanduser().read_text(encoding='utf-8').splitlines()
  except UnicodeDecodeError as e:
    raise ValueError(f'{value[1:]} is no text in UTF-8: {e}') from None
  return [line.strip() for line in lines if line.strip()]


class Classifier:
  """A model whose classes are labels: what `predict` asks of a model.

  Attributes:
    classes: the labels.
  """

  def __init__(self, model: 'ImageTextModel', labels: Sequence[str], templates: Sequence[str]):
    """Encodes the labels.

    Args:
      model: with a text tower.
      labels: K texts.
      templates: texts with one `{}` each, where a label belongs.
    """
    import numpy as np
    from tqdm import tqdm

    self.model, self.classes = model, tuple(labels)
    starts = range(0, len(labels), CHUNK)
    self.texts = np.concatenate([  # [K, D]
      model.classifier(labels[start : start + CHUNK], templates)
      for start in tqdm(starts, 'labels', leave=False, delay=1, disable=None)
    ])  # fmt: skip

  def preprocess(self, images: Any) -> 'np.ndarray':
    """As of the model."""
    return self.model.preprocess(images)

  def probabilities(
    self, images: Any, *, batch_size: int = 32, preprocessed: bool = False
  ) -> 'np.ndarray':
    """How likely each label is, `[N, K]`: of all, or, by a sigmoid loss, of each alone."""
    import jax
    import numpy as np

    embeddings = self.model.embeddings(images, batch_size=batch_size, preprocessed=preprocessed)
    logits = self.model.similarity(embeddings, self.texts)
    sigmoid = self.model.objective.loss == 'sigmoid'
    return np.asarray(jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits))


def draw_cards(classifier: Classifier, files: Sequence[Path], top: int, out: str) -> Path:
  """Writes a picture of images beside their best labels.

  Returns:
    Where it is.

  Raises:
    OSError: it cannot be written.
  """
  from PIL import Image

  from vit_jax.data.decode import decode_image
  from vit_jax.plots import answers

  images = [file.read_bytes() for file in files]
  picture = answers.answers(
    [decode_image(image, orient=True) for image in images],
    classifier.classes,
    classifier.probabilities(images),
    top=top,
  )
  path = Path(out).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(path)
  return path
