"""Names of classes and templates for them, as published with CLIP, arXiv:2103.00020.

`README.md` says where they come from, and which label each class is.
"""

import json
import pathlib
from typing import Any, NamedTuple

from vit_jax.choices import check_choice
from vit_jax.data.texts import check_templates
from vit_jax.data.tokenizers.base import read_file

FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob('*.json')))


class Prompts(NamedTuple):
  """What a classifier is made of that has seen no example.

  Attributes:
    classes: the name of each label, in their order.
    templates: texts with one `{}` each, where the name belongs.
  """

  classes: tuple[str, ...]
  templates: tuple[str, ...]


def load(name: str) -> Prompts:
  """The prompts of a data set, or of a file of one's own.

  A file is `{"templates": ["a photo of a {}."], "classes": ["cat", "dog"]}`; in the place of the
  classes it may name a data set that has the same, such as `"imagenet"`.

  Args:
    name: one of `NAMES`, or the path of a file, which ends in `.json`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: an unknown name, with the choices, or a file that is none of prompts.
  """
  own = name.endswith('.json')
  path = name if own else str(FOLDER / f'{_known(name, "path/to/file.json")}.json')
  try:
    made = json.loads(read_file(path, 'the file of prompts'))
  except ValueError as e:  # no JSON, or no UTF-8
    raise ValueError(f'{path} is damaged or no JSON: {e}') from None
  if not isinstance(made, dict) or not {'classes', 'templates'} <= made.keys():
    raise ValueError(f"{path} is no object with 'classes' and 'templates'")
  classes = made['classes']
  try:
    templates = check_texts('templates', made['templates'])
    check_templates(templates)
    if isinstance(classes, str):
      return Prompts(load(_known(classes)).classes, templates)
    return Prompts(check_texts('classes', classes), templates)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from None


def _known(name: str, *others: str) -> str:
  return check_choice('prompts', name, (*NAMES, *others))


def check_texts(kind: str, texts: Any) -> tuple[str, ...]:
  """Returns `texts` as a tuple; raises `ValueError` where they are no texts, or none, or blank.

  Args:
    kind: what they are, for the message.
    texts: a list or tuple of strings.
  """
  if not isinstance(texts, list | tuple) or not texts:
    raise ValueError(f'{kind} is no list of texts, but {texts!r:.80}')
  for i, text in enumerate(texts):
    if not isinstance(text, str) or not text.strip():
      raise ValueError(f'{kind} has {text!r} at {i}, which is no text')
  return tuple(texts)
