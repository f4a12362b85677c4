"""What `predict` and `convert` have in common: which model, and how it is read."""

import argparse
import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.choices import check_choice

if TYPE_CHECKING:
  from vit_jax.model import Model

WHAT = "a run's folder, a file, an address, or a name that vit_jax.list_checkpoints() prints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that decide how a model is loaded."""
  parser.add_argument('--step', default='last', help="of a run: a step, 'last' or 'best'")
  parser.add_argument('--ema', action='store_true', help='of a run: the averaged parameters')
  parser.add_argument(
    '--image-size', metavar='N', help='side in pixels, or HEIGHTxWIDTH, that the model is to take'
  )
  parser.add_argument(
    '--fact',
    metavar='NAME=VALUE',
    action='append',
    default=[],
    help='what the checkpoint does not say, such as num_heads=6; may be given several times',
  )


def load(location: str, args: argparse.Namespace) -> 'Model':
  """Loads a model as the options say.

  Raises:
    ValueError: a fact or a size that cannot be read; see `vit_jax.load` for the others.
  """
  from vit_jax import compilation_cache, pretrained

  size, facts = _size(args.image_size), read_facts(args.fact)
  compilation_cache.enable()
  return pretrained.load(location, step=args.step, average=args.ema, image_size=size, **facts)


def read_facts(texts: Sequence[str]) -> dict[str, Any]:
  """From 'mean=0.5, 0.5, 0.5' to the names and values that `vit_jax.load` takes.

  Raises:
    ValueError: a text without '=', or an unknown name.
  """
  from vit_jax.adapters.layout import Facts

  facts = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals:
      raise ValueError(f'--fact takes NAME=VALUE, such as num_heads=6, not {text!r}')
    check_choice('fact', name, Facts.NAMES)
    try:
      facts[name] = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      facts[name] = value
  return facts


def _size(text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  sides = [int(side) for side in text.split('x')] if re.fullmatch(r'\d+(x\d+)?', text) else [0]
  if 0 in sides:
    raise ValueError(f'--image-size is a number of pixels or HEIGHTxWIDTH, not {text!r}')
  return sides[0], sides[-1]
