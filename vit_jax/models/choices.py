"""One sentence for every field that takes one of a few names."""

from collections.abc import Iterable


def check_choice(kind: str, value: object, choices: Iterable[str]) -> None:
  """Raises `ValueError` with the choices where `value` is none of them.

  Args:
    kind: what the value is, for the message: `unknown pooling 'cls'; choose from 'token', ...`.
    value: what the user wrote.
    choices: the allowed names, in the order in which they are listed.
  """
  choices = tuple(choices)
  if value not in choices:
    raise ValueError(f'unknown {kind} {value!r}; choose from {", ".join(map(repr, choices))}')
