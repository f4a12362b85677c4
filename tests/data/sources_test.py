"""The pipeline reads every kind of table and record: the same batches with workers as without."""

import io

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from vit_jax.build import build
from vit_jax.data.pipeline import TrainPipeline, eval_batches
from vit_jax.data.prepare import prepare
from vit_jax.data.shards import Job

N = 12


def pixels(i):
  return np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)


@pytest.fixture(scope='module')
def specs(tmp_path_factory):
  """The same images and labels as a CSV, as Parquet and as ArrayRecord."""
  pa = pytest.importorskip('pyarrow')
  pq = pytest.importorskip('pyarrow.parquet')
  folder = tmp_path_factory.mktemp('sources')
  files = []
  for i in range(N):
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, 'PNG')
    files.append(file.getvalue())
    (folder / f'{i}.png').write_bytes(files[-1])
  labels = [('cat', 'dog')[i % 2] for i in range(N)]
  rows = ''.join(f'{i}.png,{label}\n' for i, label in enumerate(labels))
  (folder / 'train.csv').write_text('path,label\n' + rows)
  table = pa.table({'image': pa.array(files), 'label': labels})
  pq.write_table(table, folder / 'train.parquet', row_group_size=5)
  csv = {'type': 'data.csv.Csv', 'path': str(folder / 'train.csv')}
  prepare(Job(build(csv), csv, folder / 'records', 'train', 3))
  return {
    'csv': csv,
    'parquet': {'type': 'data.parquet.Parquet', 'path': str(folder / 'train.parquet')},
    'array_record': {'type': 'data.array_record.ArrayRecord', 'path': str(folder / 'records')},
  }


def sharding():
  return NamedSharding(Mesh(np.array(jax.devices()[:2]), ('data',)), PartitionSpec('data'))


@pytest.mark.parametrize('name', ['csv', 'parquet', 'array_record'])
def test_every_example_of_an_epoch(specs, name):
  with TrainPipeline(
    build(specs[name]), host='decode', batch_size=4, seed=0, sharding=sharding()
  ) as batches:
    steps = [jax.tree.map(np.asarray, next(batches)) for _ in range(N // 4)]
  ids = np.concatenate([step['id'] for step in steps])
  assert sorted(ids) == list(range(N))
  for step in steps:
    np.testing.assert_array_equal(step['image'], [pixels(i) for i in step['id']])
    np.testing.assert_array_equal(step['label'], step['id'] % 2)
    assert step['label'].dtype == np.int32


def test_a_mixture_of_all_in_worker_processes(specs):
  mixture = build(
    {'type': 'data.mixture.Mixture', 'sources': specs, 'weights': dict.fromkeys(specs, 1)}
  )
  mixture[0], mixture[N], mixture[2 * N]  # open before they travel
  read = []
  for workers in (0, 2):
    with eval_batches(
      mixture, host='decode', batch_size=18, sharding=sharding(), num_workers=workers
    ) as batches:
      read.append([jax.tree.map(np.asarray, batch) for batch in batches])
  for with_none, with_two in zip(*read, strict=True):
    for key, value in with_none.items():
      np.testing.assert_array_equal(with_two[key], value)
  ids = np.concatenate([batch['id'] for batch in read[0]])
  images = np.concatenate([batch['image'] for batch in read[0]])
  np.testing.assert_array_equal(images, [pixels(i // 3) for i in ids])
  np.testing.assert_array_equal(np.sort(ids), np.arange(3 * N))
