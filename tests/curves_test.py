import itertools
import math
import xml.etree.ElementTree as ET

import pytest

from vit_jax.curves import MAX_POINTS, chart, decimate, ticks


def test_decimation_keeps_the_ends_the_order_and_every_spike():
  points = [(step, math.sin(step / 50)) for step in range(10_000)]
  points[4321] = (4321, 99.0)
  points[7777] = (7777, -99.0)
  kept = decimate(points)
  assert len(kept) <= MAX_POINTS
  assert kept == sorted(kept) and set(kept) <= set(points)
  assert {points[0], points[-1], points[4321], points[7777]} <= set(kept)
  assert decimate(points[:500]) == points[:500]


@pytest.mark.parametrize(
  'low,high,expected',
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (0.31, 2.5, [0, 0.5, 1, 1.5, 2, 2.5]),
    (0, 9000, [0, 2000, 4000, 6000, 8000, 10000]),
    (-3, 3, [-4, -2, 0, 2, 4]),
  ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, expected):
  assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_constant_enclose_it():
  for value in (0.0, 5.0, -1e-5):
    found = ticks(value, value)
    assert len(found) > 1 and found[0] < value < found[-1]


def parse(html):
  return ET.fromstring(html)


def test_a_curve_can_be_read_back_from_the_chart():
  points = [(0, 4.0), (50, 1.0), (100, 2.0)]
  svg = parse(chart('Loss', {'train': points}, {'train': 0})).find('svg')
  x0, x1 = map(float, svg.get('data-x').split())
  y0, y1 = map(float, svg.get('data-y').split())
  left, right, top, bottom = map(float, svg.get('data-box').split())
  (line,) = svg.iter('polyline')
  read = []
  for pair in line.get('points').split():
    x, y = map(float, pair.split(','))
    step = x0 + (x - left) / (right - left) * (x1 - x0)
    read.append((step, y0 + (bottom - y) / (bottom - top) * (y1 - y0)))
  assert read == [pytest.approx(p, abs=0.02) for p in points]
  assert [t.text for t in svg.iter('text') if t.get('class')] == ['2.000']


def test_values_that_are_not_finite_are_gaps():
  points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, 2.0), (6, math.inf)]
  figure = parse(chart('Loss', {'train': points}, {'train': 0}))
  assert [len(line.get('points').split()) for line in figure.iter('polyline')] == [2, 2]
  assert 'nan' not in ET.tostring(figure, 'unicode') and 'inf' not in ET.tostring(figure, 'unicode')
  empty = parse(chart('Loss', {'train': [(1, math.nan)]}, {'train': 0}))
  assert not list(empty.iter('polyline'))


def test_many_final_values_stay_apart_and_inside():
  series = {f'source {i}': [(0, 0.5), (9, 0.001 * i)] for i in range(12)}
  figure = parse(chart('Accuracy', series, {name: i for i, name in enumerate(series)}))
  ends = [t for t in figure.iter('text') if (t.get('class') or '').startswith('end')]
  heights = sorted(float(t.get('y')) for t in ends)
  assert len(heights) == 12
  assert min(b - a for a, b in itertools.pairwise(heights)) >= 12.9
  assert heights[0] > 0 and heights[-1] < 250
  styles = {(p.get('class'), p.get('stroke-dasharray')) for p in figure.iter('polyline')}
  assert len(styles) == 12


def test_labels_are_escaped_and_a_single_value_is_a_dot():
  figure = parse(chart('A & <B>', {'<i>': [(3, 0.5)]}, {'<i>': 8}))
  assert figure.find('figcaption').text == 'A & <B>'
  (item,) = figure.find('ul')
  assert ''.join(item.itertext()) == '<i>'
  assert len(list(figure.iter('circle'))) == 2  # In the chart and in the legend.


def test_small_and_large_numbers_are_short():
  points = [(0, 1e-3), (10, 6.64e-4)]
  figure = parse(chart('Learning rate', {'train': points}, {'train': 0}, from_zero=True))
  texts = [t.text for t in figure.iter('text')]
  assert texts[:6] == ['0', '2e-4', '4e-4', '6e-4', '8e-4', '1e-3']
  assert texts[-1] == '6.6e-4'
  figure = parse(chart('Throughput', {'train': [(0, 0.0), (40_000, 123456.0)]}, {'train': 0}))
  texts = [t.text for t in figure.iter('text')]
  assert texts[:4] == ['0', '50k', '100k', '150k'] and texts[-1] == '1.2e5'
  assert '10k' in texts and '40k' in texts
