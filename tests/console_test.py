import io

import numpy as np
import pytest

from vit_jax import console
from vit_jax.console import Console, clock


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def now(monkeypatch):
  """A clock that the test moves."""
  time = [100.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: time[0])
  return time


def test_a_log_file_gets_a_line_every_ten_seconds_with_all_the_facts(now):
  stream = io.StringIO()
  shown = Console(stream, total=900, start=0, batch_size=128)
  for step in range(1, 901):  # Eight steps a second.
    shown.progress(step, {'grad_norm': 5.0, 'accuracy': 0.612, 'loss': 1.234})
    now[0] += 0.125
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'step 1/900  loss 1.234  accuracy 0.612'  # No rate before the second step.
  assert lines[1] == 'step 81/900  loss 1.234  accuracy 0.612  1,024 images/s  1:42 left'
  assert [int(line.split()[1].split('/')[0]) for line in lines] == [*range(1, 900, 80), 900]
  assert lines[-1] == 'step 900/900  loss 1.234  accuracy 0.612  1,024 images/s  1:52 taken'


def test_the_rate_is_recent_and_the_time_left_is_of_the_whole_run(now):
  stream = io.StringIO()
  shown = Console(stream, total=1000, start=0, batch_size=10)
  shown.progress(100, {})
  now[0] += 300  # An evaluation and 100 slow steps: 3 s a step.
  shown.progress(200, {})
  for step in range(201, 301):
    now[0] += 1
    shown.progress(step, {})
  assert stream.getvalue().splitlines()[-1] == 'step 300/1,000  10 images/s  23:20 left'


def test_a_resumed_run_counts_from_where_it_resumed(now):
  stream = io.StringIO()
  shown = Console(stream, total=1000, start=600, batch_size=1)
  shown.progress(601, {})
  now[0] += 20
  shown.progress(701, {'images_per_second': 77.0})
  assert stream.getvalue().splitlines()[-1] == 'step 701/1,000  77 images/s  1:00 left'


def test_a_late_report_of_an_earlier_step_does_not_turn_back(now):
  stream = io.StringIO()
  shown = Console(stream, total=100, start=0, batch_size=1)
  for step in (10, 8):
    shown.progress(step, {})
    now[0] += 11
  assert stream.getvalue().splitlines() == ['step 10/100  ', 'step 10/100  ']


def test_values_on_the_device_are_fetched_only_when_drawn(now):
  class Array:
    fetched = 0

    def __array__(self, dtype=None, copy=None):
      Array.fetched += 1
      return np.asarray(0.5)

  shown = Console(io.StringIO(), total=100, start=0, batch_size=1)
  for step in range(1, 51):
    now[0] += 0.125
    shown.progress(step, {'loss': Array()})
  assert Array.fetched == 1


def test_a_terminal_gets_one_bar_with_messages_above_it(now):
  stream = Terminal()
  shown = Console(stream, total=900, start=300, batch_size=128)
  shown.message('before')
  for step in range(301, 901):
    shown.progress(step, {'loss': 1.5, 'accuracy': 0.25})
    now[0] += 0.125
    if step == 600:
      shown.message('evaluated')
  shown.progress(899, {'loss': 2.5})  # Late: nothing is drawn.
  shown.message('after')
  shown.close()
  shown.close()
  text = stream.getvalue()
  assert text.startswith('before\n')
  assert text.endswith(' taken\nafter\n')
  assert text.count('\n') == 4  # Those three, and the end of the bar.
  drawn = text.replace('\n', '\r').split('\r')
  assert any(d.startswith('step 600/900  67% |') for d in drawn)
  assert not any(d.startswith(('step 0/', 'step 300/')) for d in drawn)
  last = [d for d in drawn if d.startswith('step')][-1]
  assert last.startswith('step 900/900 100% |')
  assert last.rstrip().endswith('loss 1.500  accuracy 0.250  1,024 images/s  1:15 taken')


def test_durations():
  assert [clock(s) for s in (0, 9.6, 125, 3599.7, 7325)] == [
    '0:00',
    '0:10',
    '2:05',
    '1:00:00',
    '2:02:05',
  ]
