"""One sentence for every field that takes one of a few names."""

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
