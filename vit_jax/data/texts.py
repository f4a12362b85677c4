"""Host transforms of an example's texts: `'caption | template("a photo of {}") | tokenize'`.

A source gives `text`, a string or several; UTF-8 bytes are as good. `transforms.py` offers what is
public here beside the transforms of images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.build import build
from vit_jax.data.substitute import BadExample, Example, Transform
from vit_jax.data.tokenizers.base import Tokenizer, as_text


def caption(first: float | None = None, join: int = 1) -> Transform:
  """Puts one of an example's texts in the place of all; blank ones do not count.

  An example without any is one that does not decode: it is named, counted and replaced by the next.

  Args:
    first: the probability of the first text, such as a name before its keywords; the others share
      the rest. None: all are alike.
    join: where another than the first is drawn, it is 1 to `join` different ones, with commas.

  Raises:
    ValueError: a probability outside [0, 1], or fewer than one text to join.
  """
  if first is not None and not 0 <= first <= 1:
    raise ValueError(f'first is a probability, not {first}')
  if join < 1:
    raise ValueError(f'join must be at least 1, got {join}')
  return functools.partial(_caption, first=first, join=join)


def template(*templates: str) -> Transform:
  """Puts the example's text into one of the templates, drawn at random: `'a photo of {}'`.

  Raises:
    ValueError: no template, or one without a single `{}`.
  """
  check_templates(templates)
  return functools.partial(_template, templates=templates)


def tokenize(tokenizer: str = 'data.tokenizers.clip.ClipBpe', **fields: Any) -> Transform:
  """Makes `text` the ids of its tokens, [context] int32.

  Args:
    tokenizer: the type of a tokenizer, as `build` resolves it.
    **fields: its arguments, such as `context=77`.

  Raises:
    ValueError: as of `build` and of the tokenizer.
  """
  return functools.partial(_tokenize, tokenizer=build({'type': tokenizer, **fields}))


def check_templates(templates: Sequence[str]) -> None:
  """Raises ValueError where a text cannot be put into each of the templates."""
  if not templates:
    raise ValueError("there is no template; give one such as 'a photo of {}'")
  for one in templates:
    if not isinstance(one, str) or one.count('{}') != 1 or '{' in one.replace('{}', ''):
      raise ValueError(f'template {one!r} does not have {{}} once, where the text belongs')


def captions_of(example: Example) -> list[str]:
  """The texts of an example that are not blank.

  Raises:
    ValueError: it has no `text`.
  """
  if 'text' not in example:
    raise ValueError(f'the source gives no text, but {sorted(example)}; its `text_key` may ask it')
  text = example['text']
  texts = [text] if isinstance(text, str | bytes) else list(text)
  return [one for one in map(as_text, texts) if one.strip()]


def _caption(
  example: Example, rng: np.random.Generator, *, first: float | None, join: int
) -> Example:
  texts = captions_of(example)
  if not texts:
    raise BadExample('all its texts are blank')
  others = texts[1:]
  if not others or rng.random() < (1 / len(texts) if first is None else first):
    chosen = texts[0]
  else:
    count = int(rng.integers(1, min(join, len(others)) + 1))
    chosen = ', '.join(others[i] for i in rng.permutation(len(others))[:count])
  return {**example, 'text': chosen}


def _template(example: Example, rng: np.random.Generator, *, templates: tuple[str, ...]) -> Example:
  chosen = templates[rng.integers(len(templates))]
  return {**example, 'text': chosen.replace('{}', _text_of(example, 'template'))}


def _tokenize(example: Example, rng: np.random.Generator, *, tokenizer: Tokenizer) -> Example:
  del rng
  return {**example, 'text': tokenizer(_text_of(example, 'tokenize'))}


def _text_of(example: Example, transform: str) -> str:
  """The one text of an example."""
  text = example.get('text')
  if not isinstance(text, str | bytes):
    captions_of(example)  # Raises where there is none.
    raise ValueError(f"{transform} takes one text, not {len(text)}; put 'caption' before it")
  return as_text(text)
