import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from vit_jax import metrics
from vit_jax.metrics import Writer


def write(workdir, steps, **kwargs):
  options = dict(total_steps=20, batch_size=8, console=False) | kwargs
  with Writer(workdir, **options) as writer:
    for step in steps:
      writer.scalars(step, {'train/loss': 1 / step, 'train/accuracy': np.float32(step / 20)})
      if step % 5 == 0:
        writer.scalars(step, {'test/google/accuracy': jnp.float32(step / 40)})


def events(workdir):
  """All events of a folder, in the order in which TensorBoard reads its files."""
  found = []
  for path in sorted(workdir.glob('events.out.tfevents.*')):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      header_crc, body, body_crc = data[8:12], data[12 : 12 + size], data[12 + size : 16 + size]
      assert struct.unpack('<I', header_crc)[0] == masked_crc32c(data[:8])
      assert struct.unpack('<I', body_crc)[0] == masked_crc32c(body)
      found.append(event_pb2.Event.FromString(body))
      data = data[16 + size :]
  return found


def test_what_is_written_is_read_back_with_the_lines_of_a_step_together(tmp_path):
  write(tmp_path, range(1, 6))
  rows = metrics.read(tmp_path)
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  assert rows[2] == {'step': 3, 'train/loss': 1 / 3, 'train/accuracy': float(np.float32(0.15))}
  assert rows[4]['test/google/accuracy'] == 0.125
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == 6
  assert json.loads(lines[0]) == {'step': 1, 'train/loss': 1.0} | {
    'train/accuracy': float(np.float32(0.05))
  }


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
  writer = Writer(tmp_path, total_steps=5, batch_size=1, console=False)
  writer.scalars(1, {'train/loss': 2.5})
  assert metrics.read(tmp_path) == [{'step': 1, 'train/loss': 2.5}]
  assert events(tmp_path)[-1].summary.value[0].simple_value == 2.5
  writer.close()
  writer.close()


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
  values = {'a': math.nan, 'b': -math.inf, 'c': jnp.float32(jnp.inf)}
  with Writer(tmp_path, total_steps=1, batch_size=1, console=False) as writer:
    writer.scalars(1, values)

  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  line = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
  assert line == {'step': 1, 'a': 'NaN', 'b': '-Infinity', 'c': 'Infinity'}
  (row,) = metrics.read(tmp_path)
  assert math.isnan(row['a']) and row['b'] == -math.inf and row['c'] == math.inf


def test_a_torn_last_line_is_dropped_and_a_damaged_one_before_it_is_named(tmp_path):
  write(tmp_path, [1, 2])
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_text()
  for cut in range(1, len(whole.splitlines()[-1])):
    path.write_text(whole[: -cut - 1])
    assert [row['step'] for row in metrics.read(tmp_path)] == [1]
  path.write_text('{"step": 1, "tr\n' + whole)
  with pytest.raises(ValueError, match='line 1: no JSON object with a step'):
    metrics.read(tmp_path)


def test_where_a_step_occurs_twice_the_later_line_wins(tmp_path):
  lines = [{'step': 1, 'a': 1}, {'step': 2, 'a': 2, 'b': 5}, {'step': 1, 'a': 3}]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  assert metrics.read(tmp_path) == [{'step': 1, 'a': 3}, {'step': 2, 'a': 2, 'b': 5}]


@pytest.mark.parametrize('killed_at,resumed_at', [(7, 5), (12, 10), (3, 0)])
def test_a_killed_and_resumed_run_writes_the_file_of_one_that_never_was(
  tmp_path, killed_at, resumed_at
):
  write(tmp_path / 'whole', range(1, 21))
  write(tmp_path / 'killed', range(1, killed_at + 1))
  with open(tmp_path / 'killed' / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 8, "train/lo')
  write(tmp_path / 'killed', range(resumed_at + 1, 21), start_step=resumed_at)
  whole, killed = ((tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('whole', 'killed'))
  assert killed == whole


def test_only_process_0_writes(tmp_path, capsys):
  with Writer(tmp_path / 'run', total_steps=2, batch_size=1, primary=False) as writer:
    writer.scalars(1, {'train/loss': 1.0})
    writer.picture(1, 'a', np.zeros((2, 2, 3), np.uint8))
    writer.progress(2, {'loss': 1.0})
    writer.message('hello')
  assert not (tmp_path / 'run').exists()
  assert capsys.readouterr().out == ''


def test_without_a_workdir_there_are_no_files_but_a_console(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Writer(None, total_steps=2, batch_size=1) as writer:
    writer.scalars(1, {'train/loss': 1.0})
    writer.picture(1, 'a', np.zeros((2, 2, 3), np.uint8))
    writer.message('hello')
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().out == 'hello\n'


def test_events_carry_the_metrics_names_and_the_pictures(tmp_path):
  name = 'test/google/class/Food & Drink'
  image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  with Writer(tmp_path, total_steps=9, batch_size=1, console=False) as writer:
    writer.scalars(3, {'train/loss': 0.5, name: 0.25})
    writer.picture(4, 'test/google_confusion', image)
  first, scalars, picture = events(tmp_path)
  assert first.file_version == 'brain.Event:2'
  assert scalars.step == 3
  assert {v.tag: v.simple_value for v in scalars.summary.value} == {'train/loss': 0.5, name: 0.25}
  (value,) = picture.summary.value
  assert (picture.step, value.tag) == (4, 'test/google_confusion')
  assert (value.image.height, value.image.width) == (4, 5)
  png = (tmp_path / 'pictures/test/google_confusion.png').read_bytes()
  assert value.image.encoded_image_string == png


def test_a_resumed_run_tells_tensorboard_from_which_step_to_forget(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, range(6, 9), start_step=5)
  marks = [e for e in events(tmp_path) if e.HasField('session_log')]
  assert [(e.step, e.session_log.status) for e in marks] == [(6, event_pb2.SessionLog.START)]
  assert [e.step for e in events(tmp_path)][-3:] == [6, 7, 8]


def test_tensorboard_can_be_left_out(tmp_path):
  write(tmp_path, [1], tensorboard=False)
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_picture_replaces_the_earlier_one_whole_or_not_at_all(tmp_path, monkeypatch):
  image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
  path = tmp_path / 'pictures/attention/rollout/last.png'
  with Writer(tmp_path, total_steps=9, batch_size=1, console=False) as writer:
    writer.picture(1, 'attention/rollout/last', np.zeros_like(image))
    writer.picture(2, 'attention/rollout/last', image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert [p.name for p in path.parent.iterdir()] == ['last.png']

    def killed(*_):
      raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      writer.picture(3, 'attention/rollout/last', np.zeros_like(image))
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image)


@pytest.mark.parametrize(
  'name,image,message',
  [
    ('a', np.zeros((2, 2, 3), np.float32), 'uint8 \\[H, W, 3\\], not float32'),
    ('a', np.zeros((2, 2), np.uint8), 'uint8 \\[H, W, 3\\]'),
    ('../a', np.zeros((2, 2, 3), np.uint8), 'no picture name'),
    ('/a', np.zeros((2, 2, 3), np.uint8), 'no picture name'),
    ('a//b', np.zeros((2, 2, 3), np.uint8), 'no picture name'),
  ],
)
def test_a_wrong_picture_or_name_is_refused(tmp_path, name, image, message):
  with (
    Writer(tmp_path, total_steps=9, batch_size=1, console=False) as writer,
    pytest.raises(ValueError, match=message),
  ):
    writer.picture(1, name, image)
  assert not (tmp_path / 'pictures').exists()


def test_what_cannot_be_a_workdir_or_a_metric_is_refused(tmp_path):
  with pytest.raises(ValueError, match="local or mounted folder as workdir, not 'gs://bucket/run'"):
    Writer('gs://bucket/run', total_steps=1, batch_size=1)
  with (
    Writer(tmp_path / 'run', total_steps=1, batch_size=1, console=False) as writer,
    pytest.raises(ValueError, match="no metric can be called 'step'"),
  ):
    writer.scalars(1, {'step': 3})
  with pytest.raises(FileNotFoundError, match=r'has no metrics\.jsonl'):
    metrics.read(tmp_path)
