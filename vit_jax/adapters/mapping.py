"""Rules between the arrays of a published checkpoint and our parameters, read in both directions.

A format is a list of rules. Each names some parameters of ours and some arrays of theirs, and says
how to make the ones from the others; what a rule reads it can write, so that a format that comes in
goes out by the same lines.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Where a model's encoder and its head are among the variables.
ENCODER = 'params/encoder'
HEAD = 'params/head'

Arrays = Sequence[np.ndarray]
Shapes = Sequence[tuple[int, ...]]


class Rule(NamedTuple):
  """Some arrays of ours and some of theirs that hold the same numbers.

  Attributes:
    ours: names of variables, such as 'params/encoder/block_0/mlp/fc_1/kernel'.
    theirs: names in their file; empty for what they do not have.
    read: from theirs, and the shapes of ours, to ours; a view where it can be.
    write: from ours to theirs.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  read: Callable[[Arrays, Shapes], list[np.ndarray]]
  write: Callable[[Arrays], list[np.ndarray]]


def same(ours: str, theirs: str) -> Rule:
  """The same array, but for axes of size 1."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,), (shape,) = arrays, shapes
    if [n for n in x.shape if n > 1] != [n for n in shape if n > 1]:
      raise _mismatch(x.shape, shape)
    return [x.reshape(shape)]

  return Rule((ours,), (theirs,), read, list)


def linear(ours: str, theirs: str, *, inputs: int = 1) -> Rule:
  """A kernel `[*inputs, *outputs]`, theirs a matrix `[outputs, inputs]`, as PyTorch's.

  Args:
    ours: its name here.
    theirs: its name there.
    inputs: how many axes of ours, the first ones, are inputs.
  """

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,), (shape,) = arrays, shapes
    expected = math.prod(shape[inputs:]), math.prod(shape[:inputs])
    # Seen as a 1x1 convolution, some have axes of size 1.
    if (*x.shape[:2], math.prod(x.shape[2:])) != (*expected, 1):
      raise _mismatch(x.shape, expected)
    return [x.reshape(expected).T.reshape(shape)]

  def write(arrays: Arrays) -> list[np.ndarray]:
    (x,) = arrays
    return [x.reshape(math.prod(x.shape[:inputs]), -1).T]

  return Rule((ours,), (theirs,), read, write)


def flat(ours: str, theirs: str) -> Rule:
  """The same numbers, theirs in a single axis."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,), (shape,) = arrays, shapes
    if x.shape != (math.prod(shape),):
      raise _mismatch(x.shape, (math.prod(shape),))
    return [x.reshape(shape)]

  return Rule((ours,), (theirs,), read, lambda arrays: [arrays[0].reshape(-1)])


def conv(ours: str, theirs: str) -> Rule:
  """The kernel of a convolution, `[H, W, C, D]`, theirs `[D, C, H, W]`, as PyTorch's."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,), (shape,) = arrays, shapes
    expected = tuple(shape[i] for i in (3, 2, 0, 1))
    if x.shape != expected:
      raise _mismatch(x.shape, expected)
    return [x.transpose(2, 3, 1, 0)]

  return Rule((ours,), (theirs,), read, lambda arrays: [arrays[0].transpose(3, 2, 0, 1)])


def mlp(ours: str, theirs: str) -> Iterator[Rule]:
  """An MLP whose layers PyTorch's modules call `fc1` and `fc2`."""
  yield from dense(f'{ours}/fc_1', f'{theirs}.fc1')
  yield from dense(f'{ours}/fc_2', f'{theirs}.fc2')


def zeros(ours: str) -> Rule:
  """Zeros, of which they have no array; they can only be left out again where they still are 0."""

  def write(arrays: Arrays) -> list[np.ndarray]:
    if np.any(arrays[0]):
      raise ValueError(f'{ours!r} is not 0, and the format has no place for it')
    return []

  return Rule((ours,), (), lambda _, shapes: [np.zeros(shapes[0], np.float32)], write)


def norm(ours: str, theirs: str) -> Iterator[Rule]:
  """Scale and bias of a norm, theirs called as PyTorch's are."""
  yield same(f'{ours}/scale', f'{theirs}.weight')
  yield same(f'{ours}/bias', f'{theirs}.bias')


def dense(ours: str, theirs: str, *, inputs: int = 1, bias: bool = True) -> Iterator[Rule]:
  """Kernel and bias of a dense layer, theirs called as PyTorch's are.

  Args:
    ours: the layer's name here.
    theirs: its name there.
    inputs: how many axes of our kernel, the first ones, are inputs.
    bias: whether they have one.
  """
  yield linear(f'{ours}/kernel', f'{theirs}.weight', inputs=inputs)
  yield flat(f'{ours}/bias', f'{theirs}.bias') if bias else zeros(f'{ours}/bias')


def fused(theirs: str, *parts: Rule) -> Rule:
  """Several arrays that lie in one of theirs, one after another along its first axis."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,) = arrays
    if not x.ndim or x.shape[0] % len(parts):
      raise ValueError(f'its shape is {list(x.shape)}, not {len(parts)} arrays one after another')
    split = np.split(x, len(parts))
    return [
      rule.read([piece], [shape])[0]
      for rule, piece, shape in zip(parts, split, shapes, strict=True)
    ]

  def write(arrays: Arrays) -> list[np.ndarray]:
    pieces = [rule.write([x])[0] for rule, x in zip(parts, arrays, strict=True)]
    return [np.concatenate(pieces)]

  return Rule(tuple(name for rule in parts for name in rule.ours), (theirs,), read, write)


def layers(theirs: str, *rows: Rule) -> Rule:
  """Arrays of several layers, theirs stacked along a first axis, as a scan has them."""

  def read(arrays: Arrays, shapes: Shapes) -> list[np.ndarray]:
    (x,) = arrays
    if not x.ndim or x.shape[0] != len(rows):
      raise ValueError(f'its shape is {list(x.shape)}, of {len(rows)} layers')
    return [rule.read([row], [shape])[0] for rule, row, shape in zip(rows, x, shapes, strict=True)]

  def write(arrays: Arrays) -> list[np.ndarray]:
    return [np.stack([rule.write([x])[0] for rule, x in zip(rows, arrays, strict=True)])]

  return Rule(tuple(name for rule in rows for name in rule.ours), (theirs,), read, write)


def stack_blocks(rules: Sequence[Rule], prefix: str, stacked: str) -> Iterator[Rule]:
  """Rules of blocks one by one as those of one stacked block.

  Args:
    rules: of arrays of theirs of which some are called `{prefix}{number}/...`; each of one array.
    prefix: before the number.
    stacked: what stands there in the place of prefix and number.
  """
  groups: dict[str, list[Rule]] = {}
  for rule in rules:
    (name,) = rule.theirs
    number, slash, rest = name.removeprefix(prefix).partition('/')
    if name.startswith(prefix) and slash and number.isdigit():
      groups.setdefault(f'{stacked}/{rest}', []).append(rule)
    else:
      yield rule
  for name, rows in groups.items():
    yield layers(name, *rows)


def under(prefix: str, rule: Rule, separator: str = '/') -> Rule:
  """The same rule where all of their names begin with a prefix; as it is where that is empty."""
  if not prefix:
    return rule
  return rule._replace(theirs=tuple(f'{prefix}{separator}{name}' for name in rule.theirs))


def _mismatch(found: tuple[int, ...], expected: tuple[int, ...]) -> ValueError:
  return ValueError(f'its shape is {list(found)} and should be {list(expected)}')
