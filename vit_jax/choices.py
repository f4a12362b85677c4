"""Names in messages: one sentence for every field that takes one of a few, and lists of them."""

from collections.abc import Iterable
from typing import TypeVar

Choice = TypeVar('Choice')


def check_choice(kind: str, value: Choice, choices: Iterable[object]) -> Choice:
  """Returns `value`; raises `ValueError` with the choices where it is none of them.

  Args:
    kind: what the value is, for the message: `unknown pooling 'cls'; choose from 'token', ...`.
    value: what the user wrote.
    choices: the allowed names, in the order in which they are listed.
  """
  choices = tuple(choices)
  if value not in choices:
    raise ValueError(f'unknown {kind} {value!r}; choose from {", ".join(map(repr, choices))}')
  return value


def listed(names: Iterable[str], limit: int = 8) -> str:
  """The first names for a message, in quotes, and how many more there are."""
  names = list(names)
  shown = ', '.join(map(repr, names[:limit]))
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return (shown or 'nothing') + more
