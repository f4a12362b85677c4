"""What a compiled program's text says: collectives, cycles, loops. Nothing else here reads it."""

import collections
import functools
import math
import re
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)

_HEADER = re.compile(r'(ENTRY )?%?([\w.-]+) ')
_COLLECTIVE = re.compile(rf' = (.*?) ({"|".join(KINDS)})(-start)?\(')
_SHAPE = re.compile(r'\b([a-z]+[0-9][0-9a-z]*|pred)\[([0-9,<=]*)\]')
_CALLS = re.compile(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)')
_TRIPS = re.compile(r'known_trip_count\D*(\d+)')
_CONSTANT = re.compile(r'= [su](?:32|64)\[\]\S* constant\((\d+)\)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_CUSTOM_CALL = re.compile(r' custom-call\(.*custom_call_target="([^"]*)"')
# The pieces of one collective that TPUs carry out beside computation share a channel and a chain.
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')


class Collective(NamedTuple):
  """An instruction by which devices exchange arrays.

  Attributes:
    kind: one of `KINDS`.
    count: how often a step runs it, where it stands in a loop as often as that turns.
    bytes: of the whole array, each time: what is reduced, gathered, scattered or sent.
    group: devices that exchange with each other.
  """

  kind: str
  count: int
  bytes: int
  group: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends in a step, by the algorithms that send the fewest (rings)."""
    share = {'all-reduce': 2 * (self.group - 1) / self.group, 'collective-permute': 1.0}
    return self.count * self.bytes * share.get(self.kind, (self.group - 1) / self.group)


def collectives(text: str) -> list[Collective]:
  """Every collective of a compiled program; see `Program.collectives`."""
  return Program(text).collectives()


class Program:
  """A compiled program, as `compiled.as_text()` writes it for one device.

  Attributes:
    endless: loops whose number of turns the text does not say; their bodies count once.
  """

  def __init__(self, text: str):
    """Reads which computation calls which."""
    self._lines: dict[str, list[str]] = {}
    self._entry = inside = ''
    for line in text.splitlines():
      if line.endswith('{') and not line.startswith((' ', 'HloModule')):
        entry, inside = _HEADER.match(line).groups()
        self._entry = inside if entry else self._entry
      self._lines.setdefault(inside, []).append(line)
    partitions = re.search(r'num_partitions=(\d+)', text)
    self._devices = int(partitions[1]) if partitions else 1
    self.endless = 0
    # Of each computation, those that call it, and how often one run of them does.
    self._callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, lines in self._lines.items():
      for line in lines:
        self._add_calls(name, line)
    self._times = functools.cache(self._count_times)

  def _add_calls(self, name: str, line: str) -> None:
    if loop := _WHILE.search(line):
      trips = self._trips(line, loop[1])
      self._callers[loop[1]].append((name, trips))
      self._callers[loop[2]].append((name, trips))
      return
    if ' async-done(' in line or ' async-update(' in line:
      return  # They name again what `async-start` calls.
    for callee in _CALLS.findall(line):
      self._callers[callee].append((name, 1))
    if branches := _BRANCHES.search(line):
      for callee in branches[1].split(','):
        self._callers[callee.strip().lstrip('%')].append((name, 1))

  def _trips(self, line: str, condition: str) -> int:
    if known := _TRIPS.search(line):
      return int(known[1])
    # A scan compares its counter, which starts at 0, with the one constant of the condition.
    limits = _CONSTANT.findall('\n'.join(self._lines.get(condition, ())))
    if len(limits) == 1:
      return int(limits[0])
    self.endless += 1
    return 1

  def _count_times(self, name: str) -> int:
    """How often a step runs a computation; every branch of a condition counts."""
    if name == self._entry:
      return 1
    return sum(times * self._times(caller) for caller, times in self._callers[name])

  def collectives(self) -> list[Collective]:
    """Every collective of more than one device, in the order of the text."""
    found, chains = [], set()
    for name, lines in self._lines.items():
      for line in lines:
        match = _COLLECTIVE.search(line)
        if not match or not self._times(name):
          continue
        if chain := _CHAIN.search(line):
          if chain.groups() in chains:
            continue
          chains.add(chain.groups())
        group = self._group(line)
        if group > 1:
          size = _size(*match.groups(), group)
          found.append(Collective(_kind(match[2], name), self._times(name), size, group))
    return found

  def _group(self, line: str) -> int:
    """Devices of one group; a pattern for each of the ways to write them."""
    if pairs := re.search(r'source_target_pairs=\{\{(.*?)\}\}', line):
      return _cycle(dict(tuple(p.split(',')) for p in pairs[1].split('},{')))
    if by_axes := re.search(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}', line):
      sizes = dict(re.findall(r"('[^']*')=(\d+)", by_axes[1]))
      axes = re.findall(r"('[^']*')(?::\(\d+\)(\d+))?", by_axes[2])
      return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if by_count := re.search(r'replica_groups=\[([\d,]+)\]', line):
      return int(by_count[1].split(',')[-1])
    if by_number := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
      return by_number[1].count(',') + 1
    return self._devices

  def cycles(self) -> int:
    """The sum of XLA's estimates, which only TPUs' programs have: of compute, not of collectives.

    A loop's body counts as often as it turns; kernels (custom calls) have none.
    """
    return sum(
      self._times(name) * sum(map(int, _CYCLES.findall(line)))
      for name, lines in self._lines.items()
      for line in lines
    )

  def custom_calls(self) -> dict[str, int]:
    """How often a step runs each custom call, by its target."""
    counts: dict[str, int] = collections.Counter()
    for name, lines in self._lines.items():
      for line in lines:
        call = _CUSTOM_CALL.search(line)
        if call and not call[1].startswith('AsyncCollective'):  # They belong to a collective.
          counts[call[1]] += self._times(name)
    return {target: count for target, count in counts.items() if count}


def _kind(written: str, computation: str) -> str:
  """What TPUs do in one, a reduction of which each device keeps its share, is written as two."""
  return 'reduce-scatter' if computation.startswith('all-reduce-scatter') else written


def _size(result: str, kind: str, start: str | None, group: int) -> int:
  """Bytes of the whole array that a collective is about, from the type of its result."""
  shapes = _SHAPE.findall(result)
  total = sum(map(_bytes, shapes))
  if start and kind in ('all-gather', 'reduce-scatter'):
    # Operands stand beside the results, and one of the two is a device's share of the other.
    return total * group // (group + 1)
  if start and kind != 'all-reduce':
    # Both, of one size; scalars are semaphores.
    return sum(_bytes(shape) for shape in shapes if shape[1]) // 2
  # Of a sum that is scattered, the result is one device's share.
  return total * group if kind == 'reduce-scatter' else total


def _bytes(shape: tuple[str, str]) -> int:
  """Bytes of an array of a type such as ('bf16', '128,196')."""
  kind, sizes = shape
  bits = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
  return bits * math.prod(int(n.lstrip('<=')) for n in sizes.split(',') if n) // 8


def _cycle(pairs: dict[str, str]) -> int:
  """Devices that an array passes before it comes back, or to its end."""
  heads = [source for source in pairs if source not in pairs.values()]
  start = at = (heads or list(pairs))[0]
  passed = 0
  while at is not None and (at != start or not passed):
    at, passed = pairs.get(at), passed + 1
  return passed
