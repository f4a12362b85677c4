"""Transforms as one string of calls: `'decode | random_resized_crop(32, min_area=0.2) | flip'`.

The same syntax on the host (`data/transforms.py`) and on the device (`augment/`). Names are looked
up in one module, arguments are Python literals only, so a config stays pure data that can be
printed, compared and overridden.
"""

import ast
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple


class Call(NamedTuple):
  """One call of a composition: `crop(32, p=0.5)` is `Call('crop', (32,), {'p': 0.5})`."""

  name: str
  args: tuple[Any, ...]
  kwargs: dict[str, Any]


def parse(text: str) -> list[Call]:
  """Splits `text` into its calls.

  Args:
    text: calls joined by `|`; a bare name is a call without arguments; an empty string is no call.

  Raises:
    ValueError: `text` is no chain of calls with literal arguments.
  """
  if not isinstance(text, str):
    raise ValueError(f"transforms are a string such as 'decode | flip', not {text!r}")
  if not text.strip():
    return []
  try:
    node = ast.parse(text.strip(), mode='eval').body
  except SyntaxError as e:
    raise ValueError(f'cannot read the transforms {text!r}: {e.msg}') from None
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.append(node.right)
    node = node.left
  return [_call(n, text) for n in (node, *reversed(nodes))]


def choices(module: ModuleType) -> dict[str, Callable[..., Any]]:
  """The transforms that `module` offers, by name."""
  names = getattr(module, '__all__', None)
  if names is None:
    names = [
      name
      for name, value in vars(module).items()
      if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != '_'
    ]
  return {name: getattr(module, name) for name in names}


def build(text: str, module: ModuleType) -> list[Any]:
  """Makes the transforms that `text` names in `module`, in order.

  Raises:
    ValueError: an unknown name (the choices are listed), or arguments that the transform does not
      take.
  """
  known = choices(module)
  made = []
  for name, args, kwargs in parse(text):
    if name not in known:
      options = ', '.join(repr(k) for k in sorted(known))
      raise ValueError(f'unknown transform {name!r} in {text!r}; choose from {options}')
    signature = inspect.signature(known[name])
    try:
      given = signature.bind(*args, **kwargs).arguments
    except TypeError as e:
      raise ValueError(f'transform {name!r} in {text!r}: {e}; it is {name}{signature}') from None
    for key, value in given.items():
      if isinstance(value, str) and 'str' not in str(signature.parameters[key].annotation):
        raise ValueError(f'transform {name!r} in {text!r}: {key} takes no text, got {value!r}')
    try:
      made.append(known[name](*args, **kwargs))
    except (TypeError, ValueError) as e:
      raise ValueError(f'transform {name!r} in {text!r}: {e}') from None
  return made


def _call(node: ast.expr, text: str) -> Call:
  if isinstance(node, ast.Name):
    return Call(node.id, (), {})
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    try:
      args = tuple(ast.literal_eval(a) for a in node.args)
      kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    except (ValueError, TypeError):
      raise ValueError(f'arguments in {text!r} must be literals: {ast.unparse(node)!r}') from None
    if len(kwargs) == len(node.keywords):
      return Call(node.func.id, args, kwargs)
  raise ValueError(
    f'cannot read {ast.unparse(node)!r} in {text!r}; write name(argument, ...) | ...'
  )
