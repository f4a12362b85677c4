"""The batch at step s depends on (seed, s) alone: not on workers, hosts, devices or a restart."""

import gc
import io
import json
import multiprocessing
import sys
import textwrap
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from vit_jax.data import pipeline, prefetch
from vit_jax.data.pipeline import TrainPipeline, check_batch_size, eval_batches, host_rows
from vit_jax.data.substitute import Substituted

HOST = 'decode | random_resized_crop(8, min_area=0.3) | flip'


class Pictures:
  """PNG files in memory, some of them broken; the label tells if JAX has a device in the reader."""

  def __init__(self, n=20, broken=(), missing=(), size=12):
    self.broken, self.missing = frozenset(broken), frozenset(missing)
    self.files = []
    for i in range(n):
      pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, 'PNG')
      self.files.append(file.getvalue())
    self.reads = []

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    from jax._src import xla_bridge

    self.reads.append(i)
    if i in self.missing:
      raise FileNotFoundError(self.name(i))
    data = self.files[i][:60] if i in self.broken else self.files[i]
    return {
      'image': data,
      'label': np.int32(xla_bridge.backends_are_initialized()),
      'id': np.int64(i),
    }

  def name(self, i):
    return f'{i:04}.png'


class Examples:
  """Whatever a function makes of i."""

  def __init__(self, n, make):
    self.n, self.make = n, make

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    return self.make(i)


DATA = P('data')


def sharding(n=1, spec=DATA, **axes):
  axes = axes or {'data': n}
  devices = np.array(jax.devices()[: np.prod(list(axes.values()))]).reshape(list(axes.values()))
  return NamedSharding(Mesh(devices, tuple(axes)), spec)


def train(source, steps, start=0, *, batch_size=8, seed=0, over=None, host=HOST, **kwargs):
  """Batches start to start + steps as NumPy, with what was substituted."""
  over = over or sharding()
  with TrainPipeline(
    source, host=host, batch_size=batch_size, seed=seed, sharding=over, start_step=start, **kwargs
  ) as batches:
    return [jax.tree.map(np.asarray, next(batches)) for _ in range(steps)], batches.bad


def assert_same(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope='module')
def reference():
  return train(Pictures(), 7)[0]


@pytest.mark.parametrize('workers', [1, 4])
def test_workers_change_nothing_and_leave_nothing(workers, reference, monkeypatch):
  # These images take the way of large ones.
  monkeypatch.setattr(prefetch, 'MIN_SHARED_BYTES', 1000)
  source = Pictures(broken=[3, 4])
  expected, bad = train(source, 3, 2, max_bad_share=0.2)
  with TrainPipeline(
    source,
    host=HOST,
    batch_size=8,
    seed=0,
    sharding=sharding(),
    start_step=2,
    num_workers=workers,
    max_bad_share=0.2,
  ) as batches:
    actual = [jax.tree.map(np.asarray, next(batches)) for _ in range(3)]
    assert len(multiprocessing.active_children()) == workers
  # Nor is one left over of the 4, of which only 3 were read from.
  assert not multiprocessing.active_children()
  assert all(b.pop('label').all() for b in expected)  # this process has devices,
  assert not any(b.pop('label').any() for b in actual)  # the workers have none
  assert_same(actual, expected)
  assert bad.count == batches.bad.count > 0 and bad.names == batches.bad.names


def test_closing():
  batches = TrainPipeline(Pictures(), host=HOST, batch_size=8, seed=0, sharding=sharding())
  next(batches)
  batches.close()
  batches.close()
  with pytest.raises(ValueError, match='closed'):
    next(batches)


def test_an_error_in_a_worker_arrives_and_ends_the_others():
  with pytest.raises(FileNotFoundError, match=r'0007\.png'):
    train(Pictures(missing=[7]), 9, num_workers=2)
  assert not multiprocessing.active_children()


@pytest.mark.parametrize('step', [1, 5])
def test_resuming_goes_on_exactly(step, reference):
  assert_same(train(Pictures(), 7 - step, step)[0], reference[step:])


def test_every_epoch_visits_every_example_once_in_another_order():
  epochs = np.concatenate([b['id'] for b in train(Pictures(), 10, batch_size=6)[0]]).reshape(3, 20)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(20), (3, 1)))
  assert len({tuple(e) for e in epochs}) == 3
  other = np.concatenate([b['id'] for b in train(Pictures(), 2, batch_size=10, seed=1)[0]])
  assert sorted(other) == list(range(20)) and tuple(other) != tuple(epochs[0])


def test_augmentation_is_drawn_anew_for_every_position():
  one = Pictures(1, size=64)
  batches = train(one, 4)[0]  # one example, 32 times
  images = np.concatenate([b['image'] for b in batches])
  assert len({i.tobytes() for i in images}) == 32
  # The batch size only cuts the stream of examples into pieces.
  small = np.concatenate([b['image'] for b in train(one, 8, batch_size=4)[0]])
  np.testing.assert_array_equal(images, small)


def reverse(over):
  return NamedSharding(Mesh(over.mesh.devices[::-1], over.mesh.axis_names), over.spec)


MESHES = {
  '8 devices': lambda: sharding(8),
  'reversed': lambda: reverse(sharding(8)),
  'data and fsdp': lambda: reverse(sharding(spec=P(('data', 'fsdp')), data=2, fsdp=4)),
  'replicated over tensor': lambda: sharding(spec=P(('data', 'fsdp')), data=2, tensor=2, fsdp=2),
  'not split': lambda: sharding(spec=P(), data=2),
}


@pytest.mark.parametrize('mesh', MESHES)
def test_any_mesh_holds_the_same_global_batch(mesh, reference):
  over = MESHES[mesh]()
  with TrainPipeline(Pictures(), host=HOST, batch_size=8, seed=0, sharding=over) as batches:
    for expected in reference[:2]:
      batch = next(batches)
      assert_same([jax.tree.map(np.asarray, batch)], [expected])
      assert batch['image'].dtype == np.uint8 and batch['id'].dtype == np.int32
      for array in batch.values():
        assert array.sharding.is_equivalent_to(over, array.ndim)
        for shard in array.addressable_shards:
          assert shard.index[0] == over.devices_indices_map((8,))[shard.device][0]


@pytest.mark.parametrize('mesh', MESHES)
def test_hosts_read_their_rows_and_no_others(mesh, monkeypatch):
  """Two hosts own devices 0, 3, 5 and the rest: rows are not contiguous, some are shared."""
  over = MESHES[mesh]()
  mine = [d for d in over.mesh.devices.flat if d.id in (0, 3, 5)]
  hosts = [mine, [d for d in over.mesh.devices.flat if d not in mine]]
  seen = {}
  for devices in hosts:
    rows = host_rows(over, 16, devices)
    indices = over.devices_indices_map((16,))
    np.testing.assert_array_equal(
      rows, sorted({i for d in devices for i in range(16)[indices[d][0]]})
    )
    source = Pictures(32)
    monkeypatch.setattr(pipeline, 'host_rows', lambda *_, rows=rows: rows)
    monkeypatch.setattr(prefetch, '_to_device', lambda key, rows, *_: rows)
    (batch, _), bad = train(source, 2, batch_size=16, over=over, prefetch=1)
    assert len(source.reads) in (
      2 * len(rows),
      3 * len(rows),
    )  # `prefetch` may have begun the third
    assert bad.epoch == 2 * len(rows)
    seen[tuple(rows)] = batch
  monkeypatch.undo()
  (whole,), _ = train(Pictures(32), 1, batch_size=16)
  assert set().union(*seen) == set(range(16))
  for rows, batch in seen.items():
    assert_same([batch], [{k: v[list(rows)] for k, v in whole.items()}])


TWO_PROCESSES = """
  import json, sys
  import jax, numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  from vit_jax.data.pipeline import TrainPipeline, eval_batches

  class Numbers:
    def __len__(self): return 13
    def __getitem__(self, i): return {'image': np.full((2, 2, 1), i, np.uint8), 'id': i}

  jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
  devices = np.array(jax.devices())[[2, 0, 3, 1]].reshape(2, 2)  # processes 1 0 / 1 0
  shards = []
  for axes in (('data', 'fsdp'), ('data', 'tensor'), ('tensor', 'data')):
    sharding = NamedSharding(Mesh(devices, axes), P(tuple(a for a in axes if a != 'tensor')))
    kwargs = dict(host='flip', batch_size=8, sharding=sharding)
    with TrainPipeline(Numbers(), seed=0, start_step=1, stop_step=3, **kwargs) as train:
      with eval_batches(Numbers(), **kwargs) as evaluation:
        for batch in (*train, *evaluation):
          shards.append([(s.index[0].indices(8)[:2], s.data.tolist(), batch['image'].shape)
                         for s in batch['id'].addressable_shards])
  print(json.dumps(shards))
"""


def test_two_processes_hold_what_one_does(run_processes):
  code = textwrap.dedent(TWO_PROCESSES)
  done = run_processes([sys.executable, '-c', code, 'ADDRESS', 'NUMBER'], devices=4)
  results = [json.loads(process.stdout.splitlines()[-1]) for process in done]
  numbers = Examples(13, lambda i: {'image': np.full((2, 2, 1), i, np.uint8), 'id': i})
  expected = [b['id'] for b in train(numbers, 2, 1, host='flip')[0]]
  with eval_batches(numbers, host='flip', batch_size=8, sharding=sharding()) as batches:
    expected += [np.asarray(b['id']) for b in batches]
  for result in results:
    assert len(result) == 3 * len(expected)
    for shards, ids in zip(result, 3 * expected, strict=True):
      assert len(shards) == 2
      for (start, stop), data, shape in shards:
        assert data == ids[start:stop].tolist()
        assert shape == [8, 2, 2, 1]
  # In the first mesh the processes share no row, and those of each are not contiguous.
  assert [sorted(s[0] for s in r[0]) for r in results] == [[[2, 4], [6, 8]], [[0, 2], [4, 6]]]


@pytest.mark.parametrize(('batch_size', 'devices'), [(1, 1), (7, 1), (20, 4), (64, 8)])
def test_evaluation_covers_every_example_once(batch_size, devices):
  with eval_batches(
    Pictures(), host='decode | central_crop(10)', batch_size=batch_size, sharding=sharding(devices)
  ) as batches:
    batches = [jax.tree.map(np.asarray, b) for b in batches]
  assert len(batches) == -(-20 // batch_size)
  assert all(
    b['image'].shape == (batch_size, 10, 10, 3) and b['_mask'].dtype == bool for b in batches
  )
  mask = np.concatenate([b['_mask'] for b in batches])
  ids = np.concatenate([b['id'] for b in batches])
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < 20)
  np.testing.assert_array_equal(ids[mask], np.arange(20))
  assert (ids[~mask] == 19).all()


@pytest.mark.parametrize('broken', [(5,), (4, 5, 19)])
def test_a_broken_image_moves_no_position(broken, reference, caplog):
  actual, bad = train(Pictures(broken=broken), 5, max_bad_share=0.2)
  for a, b in zip(actual, reference, strict=False):
    whole = ~np.isin(b['id'], broken)
    np.testing.assert_array_equal(a['id'][whole], b['id'][whole])
    np.testing.assert_array_equal(a['image'][whole], b['image'][whole])
    following = {i: next(k for k in range(i + 1, 99) if k % 20 not in broken) % 20 for i in broken}
    np.testing.assert_array_equal(a['id'][~whole], [following[i] for i in b['id'][~whole]])
  assert bad.drawn == 40 and bad.count == 2 * len(broken)  # two epochs
  assert sorted(bad.names) == [f'{i:04}.png' for i in sorted(broken)]
  warned = [r.getMessage() for r in caplog.records if 'does not decode' in r.getMessage()]
  assert len(warned) == len(broken)  # once for each name


def test_too_many_broken_images_are_an_error():
  message = (
    r"\d of the \d+ examples read do not decode.*max_bad_share=0\.1 of 20; the first are '00"
  )
  for start in (0, 1):
    with pytest.raises(ValueError, match=message):
      train(Pictures(broken=[1, 5, 9]), 5, start, max_bad_share=0.1)
  for start in range(5):  # A share of exactly the limit is none, wherever an epoch is entered.
    _, bad = train(Pictures(broken=[1, 5]), 10, start, max_bad_share=0.1)
    assert bad.count in (7, 8, 9)
  with pytest.raises(ValueError, match=r"'00\d\d\.png' and the 19 examples after it do not decode"):
    train(Pictures(broken=range(20)), 1, max_bad_share=1)


def test_the_limit_grants_chance_where_hosts_share_an_epoch():
  source = Pictures(20)
  alone = Substituted(source, epoch=20, max_share=0.05)
  alone.add(np.array([3] + 9 * [-1]))
  with pytest.raises(ValueError, match='2 of the 20'):
    alone.add(np.array([4] + 9 * [-1]))
  shared = Substituted(source, epoch=10, max_share=0.05)  # expects 0.5 of its own, and allows 2.6
  shared.add(np.array([3, 4] + 8 * [-1]))
  with pytest.raises(ValueError, match='12 of the 20'):
    shared.add(np.arange(10))


def test_evaluation_masks_broken_images_out():
  with eval_batches(
    Pictures(broken=[0, 19]), host='decode', batch_size=8, sharding=sharding(), max_bad_share=0.1
  ) as batches:
    mask = np.concatenate([b['_mask'] for b in batches])
  assert mask.shape == (24,)
  np.testing.assert_array_equal(np.flatnonzero(~mask), [0, 19, 20, 21, 22, 23])
  assert batches.bad.count == 2 and batches.bad.names == ['0000.png', '0019.png']
  assert batches.bad.drawn == 20
  over = sharding()
  with pytest.raises(ValueError, match='3 of the 20'):  # padding is no second epoch
    list(
      eval_batches(
        Pictures(broken=[0, 1, 2]), host='decode', batch_size=24, sharding=over, max_bad_share=0.1
      )
    )


def test_a_batch_that_the_devices_do_not_divide():
  four = sharding(spec=P(('data', 'fsdp')), data=2, fsdp=2, tensor=2)
  check_batch_size(8, four)
  check_batch_size(3, sharding(spec=P(), data=2))
  with pytest.raises(
    ValueError, match=r'batch_size 10 .* 4 parts .*\(data=2, fsdp=2\).*; choose 8 or 12$'
  ):
    check_batch_size(10, four)
  with pytest.raises(ValueError, match=r'; choose 4$'):
    check_batch_size(3, four)
  with pytest.raises(ValueError, match=r'; choose 4$'):
    check_batch_size(0, four)
  with pytest.raises(ValueError, match='axis 0 only'):
    check_batch_size(8, sharding(spec=P('data', 'fsdp'), data=2, fsdp=2))
  for make in (TrainPipeline, eval_batches):
    with pytest.raises(ValueError, match='choose 4 or 8'):
      make(
        Pictures(),
        host=HOST,
        batch_size=6,
        sharding=four,
        **({'seed': 0} if make is TrainPipeline else {}),
      )


@pytest.mark.parametrize(
  ('make', 'host', 'message'),
  [
    (lambda i: {'image': b'123'}, '', "'image' is bytes.*start `host` with 'decode'"),
    (lambda i: {'image': b'123'}, 'flip', "put 'decode' first"),
    (
      lambda i: {'image': np.zeros((4, 4 + i, 3), np.uint8)},
      'flip',
      'shapes in one batch.*crop or resize',
    ),
    (lambda i: {'image': np.zeros((4, 4, 3))}, 'flip', 'float64.*take uint8'),
    (lambda i: {'text': 'a'}, '', "'text' is str.*leave it out"),
    (lambda i: {'id': 2**31 + i}, '', "'id' holds 2147483.*too large for int32"),
    (lambda i: {'id': i}, 'spin', "unknown transform 'spin'.*choose from 'caption', "),
  ],
)
def test_mistakes_are_one_sentence(make, host, message):
  with pytest.raises(ValueError, match=message):
    train(Examples(8, make), 1, host=host)
  assert not [t for t in threading.enumerate() if t.name == 'vit_jax-data']


def test_an_empty_source_and_an_impossible_step():
  with pytest.raises(ValueError, match='no examples'):
    train(Examples(0, None), 1)
  with pytest.raises(ValueError, match='start_step=4 is not in 0 to stop_step=3'):
    train(Pictures(), 1, 4, stop_step=3)
  with pytest.raises(ValueError, match='prefetch=0'):
    train(Pictures(), 1, prefetch=0)


def test_it_stops_at_stop_step_and_reads_only_what_it_prefetches(reference):
  batches = TrainPipeline(
    Pictures(), host=HOST, batch_size=8, seed=0, sharding=sharding(), start_step=4, stop_step=7
  )
  assert_same([jax.tree.map(np.asarray, b) for b in batches], reference[4:])
  with pytest.raises(StopIteration):
    next(batches)
  assert batches.wait_seconds > 0
  batches.close()

  source = Pictures()
  train(source, 2, prefetch=3)
  assert 2 * 8 <= len(source.reads) <= (2 + 3) * 8


def test_a_dropped_pipeline_ends_its_thread():
  batches = TrainPipeline(Pictures(), host=HOST, batch_size=8, seed=0, sharding=sharding())
  next(batches)
  assert [t for t in threading.enumerate() if t.name == 'vit_jax-data']
  del batches
  gc.collect()
  assert not [t for t in threading.enumerate() if t.name == 'vit_jax-data']
