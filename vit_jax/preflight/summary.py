"""What preflight found, for people: as text, and as tables that the report of a run shows too."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.tables import number, table

GIB, MIB = 1 << 30, 1 << 20
WIDTH = 100  # of a line of text


class Section(NamedTuple):
  """A table under a title; `note` says what its numbers are, or are not."""

  title: str
  header: tuple[str, ...]
  rows: list[tuple[str, ...]]
  note: str = ''


def text(found: Mapping[str, Any]) -> str:
  """All of it, as plain text."""
  parts = [_wrapped(headline(found))]
  for title, header, rows, note in sections(found):
    lines = [table(rows, (title, *header[1:])), _wrapped(note)]
    parts.append('\n'.join(line for line in lines if line))
  return '\n\n'.join(parts)


def _wrapped(lines: str) -> str:
  return '\n'.join(textwrap.fill(line, WIDTH) for line in lines.splitlines())


def headline(found: Mapping[str, Any]) -> str:
  """What was compiled, and whether it fits."""
  mesh = ' '.join(f'{axis}={size}' for axis, size in found['mesh'].items())
  parts = f' in {found["accumulate"]} micro-batches' if found['accumulate'] > 1 else ''
  lines = [
    f'{found["objective"]}, {found["batch_size"]:,} examples a step{parts} on '
    f'{found["devices"]} x {found["device"]} ({found["topology"]}), mesh {mesh}, '
    f'sharding {found["sharding"]}'
  ]
  if found['missing_data']:
    lines.append(
      f'The data cannot be opened ({found["missing_data"]}): images, texts and labels of the '
      f'kind that the config asks for stand in, and {found["examples"]:,} examples an epoch are '
      'assumed.'
    )
  return '\n'.join([*lines, _fits(found)])


def _fits(found: Mapping[str, Any]) -> str:
  needed, limit = (v and f'{number(v / GIB)} GiB' for v in (found['needed'], found['limit']))
  if found['fits'] is None:
    return f'Needs {needed} a device; what these may take is not known.'
  if found['fits']:
    return f'FITS: {needed} of {limit} a device.'
  if needed is None:
    return f'DOES NOT FIT: more than {limit} a device.'
  return f'DOES NOT FIT: {needed} of {limit} a device.'


def sections(found: Mapping[str, Any]) -> list[Section]:
  """The tables, in the order in which they are read."""
  made = [
    _memory(found),
    _layers(found),
    _collectives(found),
    _time(found),
    _largest(found),
    _choices(found),
  ]
  return [section for section in made if section and section.rows]


def _memory(found: Mapping[str, Any]) -> Section:
  rows = [(name, number(size / MIB)) for name, size in found['bytes'].items() if size > 1024]
  held = found.get('memory')
  if held:
    rows += [
      ('XLA: arguments (state and batch)', number(held['arguments'] / MIB)),
      ('XLA: temporaries (activations, gradients)', number(held['temporaries'] / MIB)),
      ('XLA: outputs that replace no argument',
       number((held['outputs'] - held['aliased']) / MIB)),
      ('XLA: program', number(held['code'] / MIB)),
      ('XLA: all', number(found['needed'] / MIB)),
    ]  # fmt: skip
  return Section(
    'Memory of a device', ('', 'MiB'), rows, 'The first rows are sums over arrays, unpadded.'
  )


def _layers(found: Mapping[str, Any]) -> Section:
  step, batch = found['flops']['step'], found['batch_size']
  rows = [
    (path, number(forward / batch / 1e9), number(whole / 1e12), f'{whole / step:.1%}')
    for path, (forward, whole) in _grouped(found['flops']['layers']).items()
  ]
  forward = found['flops']['forward'] / batch / 1e9
  rows.append(('all', number(forward), number(step / 1e12), '100.0%'))
  note = 'Matrix products and convolutions, forward and backward; nothing counts twice for remat.'
  if found.get('xla_flops'):
    note += (
      f' XLA counts {number(found["xla_flops"] / 1e12)} TFLOP a device and step, the body of a loop'
      f' once; the model has {number(step / found["devices"] / 1e12)}.'
    )
  header = ('', 'forward, GFLOP an example', 'step, TFLOP', 'share')
  return Section('Model FLOPs', header, rows, note)


def _grouped(layers: Mapping[str, Any], depth: int = 3) -> dict[str, tuple[int, int]]:
  """By the first parts of their paths, blocks of one kind together: 'encoder/block_*/mlp'."""
  groups: dict[str, tuple[int, int]] = {}
  for path, (forward, step) in layers.items():
    name = '/'.join(re.sub(r'block_\d+', 'block_*', path).split('/')[:depth])
    before = groups.get(name, (0, 0))
    groups[name] = before[0] + forward, before[1] + step
  return groups


def _collectives(found: Mapping[str, Any]) -> Section | None:
  rows = [
    (
      row['kind'],
      str(row['group']),
      f'{row["count"]:,}',
      number(row['bytes'] / MIB),
      number(row['sent'] / MIB),
    )
    for row in found.get('collectives', ())
  ]
  header = ('', 'devices', 'a step', 'MiB', 'MiB a device sends')
  note = 'Loop bodies count as often as they turn.'
  if found.get('loops_counted_once'):
    note += (
      f' {found["loops_counted_once"]} loops end when they are done, as random draws do: their'
      ' length is not known, and their bodies count once.'
    )
  return Section('Collectives', header, rows, note)


def _time(found: Mapping[str, Any]) -> Section | None:
  least, guess = found.get('at_least'), found.get('uncalibrated')
  if not least:
    return None
  rows = [
    ('at least: model FLOPs at the peak', _milliseconds(least['flops_seconds'])),
    ('at least: state and batch read and written', _milliseconds(least['state_seconds'])),
  ]
  if guess:
    rows += [
      ('cycles of compute, by XLA', f'{number(found["cycles"] / 1e6)} million'),
      ('compute', _milliseconds(guess['compute_seconds'])),
      ('links, at their full speed', _milliseconds(guess['links_seconds'])),
      ('MFU, links hidden behind compute', f'{guess["mfu"]:.1%}'),
      ('MFU, nothing hidden', f'{guess["mfu_without_overlap"]:.1%}'),
    ]
  calls = ', '.join(f'{name} x {count}' for name, count in found['custom_calls'].items())
  note = f'XLA gives no cycles for its custom calls: {calls}.' if guess and calls else ''
  return Section('Time of a step, UNCALIBRATED ESTIMATE', ('', 'a step'), rows, note)


def _largest(found: Mapping[str, Any]) -> Section | None:
  largest = found.get('largest_batch')
  if not largest:
    return None
  rows = [('fits', f'{largest["fits"]:,}' if largest['fits'] else 'none')]
  if largest['too_large']:
    rows.append(('does not fit', f'{largest["too_large"]:,}'))
  return Section('Largest batch', ('', 'examples'), rows, 'All else as it is.')


def _choices(found: Mapping[str, Any]) -> Section | None:
  tried = found.get('choices', ())
  if not tried:
    return None
  rows = [('as it is', *_choice(found))]
  rows += [(row['choice'], *_choice(row)) for row in tried if 'impossible' not in row]
  note = '\n'.join(
    f'Not {row["choice"]}: {row["impossible"]}.' for row in tried if 'impossible' in row
  )
  header = ('', 'fits', 'GiB a device', 'ms of compute', 'MFU')
  if not any(row[3] for row in rows):  # XLA estimates no cycles: on GPUs.
    header, rows = header[:3], [row[:3] for row in rows]
  return Section('Other ways to run it', header, rows, note)


def _choice(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
  guess = row.get('uncalibrated', {})
  return (
    {True: 'yes', False: 'no', None: '?'}[row['fits']],
    number(row['needed'] / GIB) if row['needed'] else '',
    number(1e3 * guess['compute_seconds']) if guess else '',
    f'{guess["mfu"]:.1%}' if guess else '',
  )


def _milliseconds(seconds: float) -> str:
  return f'{number(1e3 * seconds)} ms'
