"""Curves as inline SVG with axes, a legend and final values; `report.css` has the colours.

`report.js` reads the values under the pointer back from the curves' points and the chart's ranges.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

from vit_jax.tables import number

Points = Sequence[tuple[float, float]]  # (step, value), in order of steps.
MAX_POINTS = 500
COLORS = 7  # Of the style sheet: .s0 to .s6; later series are dashed.
DASHES = ('', '6 3', '2 3')
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 52, 10, 34


def decimate(points: Points, limit: int = MAX_POINTS) -> list[tuple[float, float]]:
  """At most `limit` of the points: the first, the last, and each stretch's lowest and highest.

  Spikes stay; a mean would hide them.
  """
  if len(points) <= limit:
    return list(points)
  inner = points[1:-1]
  stretches = (limit - 2) // 2
  kept = [points[0]]
  for i in range(stretches):
    stretch = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
    low, high = min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])
    kept += sorted({low, high})
  return [*kept, points[-1]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose `low` and `high`."""
  if not high > low:
    margin = abs(low) * 0.5 or 1.0
    low, high = low - margin, high + margin
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [i * step for i in range(first, last + 1)]


def chart(
  title: str, series: Mapping[str, Points], styles: Mapping[str, int], *, from_zero: bool = False
) -> str:
  """One figure with the curves of all `series`.

  Args:
    title: what the y axis shows.
    series: label to points; those whose value is not finite are gaps.
    styles: label to colour number, the same over all charts of a page.
    from_zero: whether the y axis begins at 0.

  Returns:
    A `<figure>`.
  """
  shown = {label: decimate(points) for label, points in series.items()}
  known = [p for points in shown.values() for p in points if math.isfinite(p[1])]
  ys = [y for _, y in known] or [0.0, 1.0]
  ys = [*ys, 0.0] if from_zero else ys
  steps = [x for x, _ in known] or [0.0, 1.0]
  y_ticks = ticks(min(ys), max(ys))
  x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
  x_ticks = [t for t in ticks(x_low, x_high) if x_low <= t <= x_high and t == int(t)]
  right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

  def place(point: tuple[float, float]) -> tuple[float, float]:
    x = LEFT + (point[0] - x_low) / (x_high - x_low) * (right - LEFT)
    y = bottom - (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - TOP)
    return round(x, 2), round(y, 2)

  parts = []
  for t, text in zip(y_ticks, _labels(y_ticks), strict=True):
    y = place((x_low, t))[1]
    parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{text}</text>')
  for t, text in zip(x_ticks, _labels(x_ticks), strict=True):
    x = place((t, y_ticks[0]))[0]
    parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
    parts.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
  parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
  parts.append(f'<text x="{WIDTH - 2}" y="{bottom + 17}" text-anchor="end">step</text>')
  parts += [_curve(label, points, styles[label], place) for label, points in shown.items()]
  parts += _final_values(shown, styles, place)
  ranges = f'data-x="{x_low} {x_high}" data-y="{y_ticks[0]} {y_ticks[-1]}"'
  box = f'data-box="{LEFT} {right} {TOP} {bottom}"'
  return (
    f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{_legend(shown, styles)}'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" {ranges} {box}>'
    f'{"".join(parts)}</svg></figure>'
  )


def _labels(values: Sequence[float]) -> list[str]:
  """Tick labels with as many decimals as tell them apart; 12,000 is 12k."""
  if not values:
    return []
  top = max(abs(v) for v in values)
  gap = abs(values[1] - values[0]) if len(values) > 1 else top
  if top >= 10_000:
    scale, unit = (1e6, 'M') if top >= 1e6 else (1e3, 'k')
    return [f'{v / scale:g}{unit}' if v else '0' for v in values]
  if 0 < top < 1e-2:
    return [_short(v) for v in values]
  decimals = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap else 0
  return [f'{v:,.{decimals}f}' for v in values]


def _short(value: float) -> str:
  """A value in the width of seven characters."""
  if value == 0:
    return '0'
  if abs(value) < 1e-2:
    return f'{value:.1e}'.replace('.0e', 'e').replace('e-0', 'e-')
  return number(value) if not abs(value) >= 1e5 else f'{value:.1e}'.replace('e+0', 'e')


def _curve(label: str, points: Points, style: int, place) -> str:
  runs, run = [], []
  for point in points:
    if math.isfinite(point[1]):
      run.append(place(point))
    elif run:
      runs, run = [*runs, run], []
  runs = [r for r in (*runs, run) if r]
  dash = DASHES[style // COLORS % len(DASHES)]
  dash = f' stroke-dasharray="{dash}"' if dash else ''
  css = f's{style % COLORS}' + (' fine' if len(points) > 100 else '')
  out = []
  for run in runs:
    if len(run) == 1:
      out.append(_dot(style, *run[0]))
    path = ' '.join(f'{x},{y}' for x, y in run)
    out.append(f'<polyline class="{css}" data-label="{escape(label)}" points="{path}"{dash}/>')
  return ''.join(out)


def _dot(style: int, x: float, y: float) -> str:
  """A value by itself; hollow where its colour is used for the second time."""
  hollow = ' hollow' if style // COLORS % 2 else ''
  return f'<circle class="s{style % COLORS}{hollow}" cx="{x}" cy="{y}" r="3"/>'


def _final_values(shown: Mapping[str, Points], styles: Mapping[str, int], place) -> list[str]:
  """The last value of every curve at the right, moved apart where they would overlap."""
  ends = []
  for label, points in shown.items():
    finite = [p for p in points if math.isfinite(p[1])]
    if finite:
      ends.append([place(finite[-1])[1], label, finite[-1][1]])
  ends.sort()
  for above, below in itertools.pairwise(ends):
    below[0] = max(below[0], above[0] + 13)
  overflow = max(0.0, ends[-1][0] - (HEIGHT - BOTTOM)) if ends else 0.0
  for end, below in zip(reversed(ends), [None, *reversed(ends)], strict=False):
    # From the bottom up: back over the axis, and no further than the next label.
    end[0] = end[0] - overflow if below is None else min(end[0], below[0] - 13)
  return [
    f'<text class="end s{styles[label] % COLORS}" x="{WIDTH - RIGHT + 6}" y="{y + 4:.1f}">'
    f'{_short(value)}</text>'
    for y, label, value in ends
  ]


def _legend(shown: Mapping[str, Points], styles: Mapping[str, int]) -> str:
  items = []
  for label, points in shown.items():
    style = styles[label]
    dash = DASHES[style // COLORS % len(DASHES)]
    dash = f' stroke-dasharray="{dash}"' if dash else ''
    line = f'<line class="s{style % COLORS}" x1="0" x2="18" y1="4" y2="4"{dash}/>'
    mark = line if len(points) > 1 else _dot(style, 9, 4)
    key = f'<svg class="key" viewBox="0 0 18 8">{mark}</svg>'
    items.append(f'<li>{key}{escape(label)}</li>')
  return f'<ul class="legend">{"".join(items)}</ul>'
