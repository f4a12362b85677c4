"""`vit_jax robustness MODEL [--data-dir DIR] [--folder NAME=PATH]`: ImageNet and its shifts."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.choices import check_choice, listed
from vit_jax.cli import loading

if TYPE_CHECKING:
  from vit_jax.model import Model

_WNIDS = "folders 'n01440764', ..."


class Known(NamedTuple):
  """A test set of the suite.

  Attributes:
    resnet101: accuracy in percent of a ResNet-101 of ImageNet: Fig. 13, arXiv:2103.00020.
    tfds: its name in TFDS; None where it has none.
    folders: what a folder of it holds.
  """

  resnet101: float
  tfds: str | None
  folders: str


SUITE = {
  'imagenet': Known(76.2, 'imagenet2012', f'the validation set, {_WNIDS}'),
  'imagenet_v2': Known(64.3, 'imagenet_v2/matched-frequency', "folders '0' to '999'"),
  'imagenet_r': Known(37.7, 'imagenet_r', _WNIDS.replace('01440764', '01443537')),
  'imagenet_a': Known(2.7, 'imagenet_a', _WNIDS.replace('01440764', '01498041')),
  'imagenet_sketch': Known(25.2, 'imagenet_sketch', _WNIDS),
  'objectnet': Known(32.6, None, "its folder `images`, folders 'alarm_clock', ..."),
}


class State(NamedTuple):
  """What evaluators read of a model."""

  params: Any
  model_state: Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments to `parser`."""
  parser.add_argument(
    'model',
    metavar='MODEL',
    help=f"of ImageNet's 1000 logits, or with a text tower: {loading.WHAT}",
  )
  parser.add_argument('--data-dir', metavar='DIR', help='where TFDS keeps its data')
  parser.add_argument(
    '--folder',
    metavar='NAME=PATH',
    action='append',
    default=[],
    help='a test set as a folder of the folders of its classes, in the place of that of TFDS; may '
    f'be given several times. NAME is one of {", ".join(SUITE)}',
  )
  parser.add_argument(
    '--reference',
    metavar='FILE',
    help='what to compare with: JSON as --json writes it, accuracies in percent by name (by '
    'default the ResNet-101 in the paper of CLIP)',
  )
  parser.add_argument('--json', metavar='FILE', help='write the accuracies to a file too')
  parser.add_argument(
    '--prompts',
    default='imagenet',
    metavar='NAME',
    help="of a model with a text tower: the classes' names and templates: imagenet (the default, "
    '80 templates), imagenet_7, or a file',
  )
  parser.add_argument(
    '--batch-size', type=int, default=256, metavar='N', help='images at once (256)'
  )
  parser.add_argument('--workers', type=int, default=0, metavar='N', help='that decode (0)')
  loading.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Prints the table, and which test sets were left out; returns 0.

  Raises:
    ValueError: no test set at all, a wrong argument, or a model of other classes.
    OSError: a folder that is named is not there, or a file cannot be read or written.
  """
  if args.batch_size < 1:
    raise ValueError(f'--batch-size must be at least 1, got {args.batch_size}')
  if args.workers < 0:
    raise ValueError(f'--workers must be 0 or more, got {args.workers}')
  title, reference = 'ResNet-101', {name: known.resnet101 for name, known in SUITE.items()}
  if args.reference:
    title, reference = Path(args.reference).stem, read_reference(args.reference)
  sources, left_out = find(read_folders(args.folder), args.data_dir)
  if not sources:
    raise ValueError('there is no test set: ' + '; '.join(f'{k}: {v}' for k, v in left_out.items()))
  model = loading.load(args.model, args)
  if model.report.missing:
    print(model.report, file=sys.stderr)  # Random numbers answer too.
  found = accuracies(
    model, sources, args.prompts, batch_size=args.batch_size, num_workers=args.workers
  )
  counts = {name: len(source) for name, source in sources.items()}
  print(table(found, counts, reference, title))
  for name, reason in left_out.items():
    print(f'left out: {name}: {reason}')
  if args.json:
    percent = {name: 100 * share for name, share in found.items()}
    Path(args.json).write_text(json.dumps(percent, indent=2) + '\n', encoding='utf-8')
  return 0


def read_folders(texts: Sequence[str]) -> dict[str, str]:
  """From 'imagenet_a=/data/imagenet-a' to the paths by the names of test sets.

  Raises:
    ValueError: a text without '=', an unknown name, or one that is given twice.
  """
  folders: dict[str, str] = {}
  for text in texts:
    name, equals, path = text.partition('=')
    if not equals or not path:
      raise ValueError(f'--folder takes NAME=PATH, such as imagenet_a=imagenet-a, not {text!r}')
    if check_choice('test set', name, SUITE) in folders:
      raise ValueError(f'--folder has {name} twice: {folders[name]} and {path}')
    folders[name] = path
  return folders


def read_reference(path: str) -> dict[str, float]:
  """Accuracies in percent by the names of test sets, of a JSON file; some may be missing.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is no such object.
  """
  try:
    values = json.loads(Path(path).read_text(encoding='utf-8'))
  except ValueError as e:  # no JSON, or no UTF-8
    raise ValueError(f'{path} is damaged or no JSON: {e}') from None
  if not isinstance(values, dict) or not values:
    raise ValueError(f'{path} holds no object of accuracies by test set: {listed(SUITE)}')
  for name, value in values.items():
    check_choice(f'test set in {path}:', name, SUITE)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 100:
      raise ValueError(f'{path} has {value!r} for {name}; it takes percent, from 0 to 100')
  return values


def find(
  folders: Mapping[str, str], data_dir: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
  """The test sets that there are, and what the others need.

  Args:
    folders: paths by name; see `data.test_sets.test_folder`.
    data_dir: where TFDS keeps the others; see `data.tfds.Tfds`.

  Returns:
    The sources by name, in the order of `SUITE`, and for each other name a sentence.

  Raises:
    FileNotFoundError: a folder of `folders` is not there.
    ValueError: one holds something else, or what TFDS has prepared cannot be read.
  """
  from vit_jax.data import test_sets

  sources, left_out = {}, {}
  for name, known in SUITE.items():
    needed = f'--folder {name}=PATH, {known.folders}'
    if name in folders:
      sources[name] = test_sets.test_folder(name, folders[name])
    elif known.tfds is None:
      left_out[name] = f'TFDS does not have it; give {needed}'
    else:
      try:
        sources[name] = test_sets.test_set(known.tfds, data_dir)
      except FileNotFoundError:
        where, option = "TFDS's folder", ''
        if data_dir:
          where, option = data_dir, f'--data_dir={data_dir} '
        left_out[name] = (
          f'not prepared in {where}; prepare it with `tfds build {known.tfds} {option}'
          f'--file_format=array_record`, or give {needed}'
        )
  return sources, left_out


def accuracies(
  model: 'Model',
  sources: Mapping[str, Any],
  prompts: str = 'imagenet',
  *,
  batch_size: int = 256,
  num_workers: int = 0,
) -> dict[str, float]:
  """How often a model is right, in [0, 1], by source.

  A classifier answers by its logits; a model with a text tower by the nearest class, a class being
  the mean of its name in all templates. Answers are among the classes of each source.

  Args:
    model: what `vit_jax.load` gives.
    sources: with ImageNet's 1000 labels; see `data.test_sets`.
    prompts: names of the 1000 classes and templates, for a model with a text tower; see
      `data.prompts.load`.
    batch_size: images at once; the result does not depend on it.
    num_workers: processes that decode; 0 decodes in this one.

  Raises:
    ValueError: a model without logits and texts, or with another number of classes.
  """
  import jax

  from vit_jax import sharding
  from vit_jax.evaluators.classification import Classification
  from vit_jax.evaluators.zero_shot import ZeroShot

  _check(model)
  mesh = sharding.make_mesh(dict(data=-1))
  options = dict(
    sources=sources,
    # As `Model.preprocess` does.
    host=f'{model.preprocessing.host} | resize{model.preprocessing.size}',
    batch_size=batch_size,
    num_workers=num_workers,
    top=(1,),
  )
  if model.has_text:
    evaluator = ZeroShot(
      model.objective, mesh, tokenizer=model.tokenizer, prompts=prompts, **options
    )
  else:
    evaluator = Classification(model.objective, mesh, per_class=False, **options)
  variables = dict(jax.device_put(model.variables, sharding.replicated(mesh)))
  results = evaluator.run(State(variables.pop('params'), variables))
  return {name: results[f'{name}/accuracy'] for name in sources}


def _check(model: 'Model') -> None:
  import numpy as np

  from vit_jax.data.test_sets import NUM_CLASSES

  if not model.has_head and not model.has_text:
    raise ValueError(f'{model.report.origin} has no head and no text tower, so it knows no classes')
  size, channels = model.preprocessing.size, model.preprocessing.channels
  # Before data is read: it raises where nobody knows mean and std.
  answer = model(np.zeros((*size, channels), np.uint8), preprocessed=True)
  if model.has_head and answer.shape[-1] != NUM_CLASSES:
    raise ValueError(
      f"{model.report.origin} gives {answer.shape[-1]} logits; these test sets have ImageNet's "
      f'{NUM_CLASSES} classes'
    )


def table(
  found: Mapping[str, float],
  counts: Mapping[str, int],
  reference: Mapping[str, float],
  title: str,
) -> str:
  """The table of Fig. 13, arXiv:2103.00020: accuracies in percent beside a reference's.

  Args:
    found: the model's accuracies, in [0, 1].
    counts: images by name.
    reference: accuracies in percent, of all or some.
    title: whose they are.
  """
  from vit_jax import tables

  rows = []
  for name, share in found.items():
    beside = '', ''
    if name in reference:
      beside = f'{reference[name]:.1f}', f'{100 * share - reference[name]:+.1f}'
    rows.append((name, counts[name], f'{100 * share:.1f}', *beside))
  return tables.table(rows, ('data set', 'images', 'ours', title, 'difference'))
