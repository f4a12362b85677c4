"""`vit_jax.load`: what it says, where the parameters go, and what it refuses."""

import functools
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from vit_jax import sharding
from vit_jax.adapters import flax_vit, write
from vit_jax.adapters.resize import resize_positions
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.pretrained import load

ENCODER = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=3, num_heads=2, mlp_dim=32, grid=(4, 4),
  activation='gelu_tanh',
)  # fmt: skip
CLASSES = 5


def arrays_of(encoder, seed=0):
  """A published file's arrays, random, of a model of ours."""
  spec = dict(type='objectives.supervised.Supervised', num_classes=CLASSES, encoder=encoder)
  objective = build(spec)
  size = [8 * side for side in encoder['grid']]
  init = lambda: objective.init(  # noqa: E731
    jax.random.key(0), {'image': np.zeros((1, *size, 3), np.uint8)}, method='logits'
  )
  rng = np.random.default_rng(seed)
  variables = {
    name: rng.normal(0, 0.2, x.shape).astype(np.float32)
    for name, x in named(nn.unbox(jax.eval_shape(init))).items()
  }
  return dict(write.their_arrays(flax_vit.export_rules(objective.encoder, CLASSES), variables))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('published') / 'a.npz'
  np.savez(path, **arrays_of(ENCODER))
  return path


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@pytest.fixture
def serve():
  """A function that serves a folder on this machine, and gives the address."""
  servers = []

  def start(folder):
    handler = functools.partial(_Quiet, directory=str(folder))
    servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
    threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{servers[-1].server_port}'

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def images(size=32, count=3):
  return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def test_load_stands_at_the_top_of_the_package():
  assert vit_jax.load is load
  with pytest.raises(AttributeError, match="has no attribute 'lod'"):
    _ = vit_jax.lod


def test_the_report_says_what_became_of_everything(file, tmp_path):
  arrays = dict(np.load(file))
  arrays['ema/decay'] = np.zeros(3, np.float32)
  np.savez(tmp_path / 'a.npz', **arrays)
  model = load(tmp_path / 'a.npz', num_classes=7, image_size=(32, 48))
  report = model.report
  assert report.initialised == ['params/head/bias', 'params/head/kernel']
  assert report.unused == ['ema/decay']
  assert report.missing == []
  assert list(report.resized) == ['params/encoder/pos_embedding']
  params = named({'params': model.params})
  assert set(report.loaded) | set(report.initialised) == set(params)
  total = sum(x.size for name, x in params.items() if 'head' not in name)
  text = str(report)
  assert f'{total:,} parameters in {len(report.loaded)} arrays loaded' in text
  assert 'resized: params/encoder/pos_embedding from a grid of 4x4 to 4x6 (bilinear_zoom)' in text
  assert 'initialised: params/head/bias, params/head/kernel' in text
  assert 'unused: ema/decay' in text
  assert not any(np.asarray(x).any() for x in (params['params/head/kernel'],))
  assert model(images(), batch_size=2).shape == (3, 7)


def test_what_the_file_has_not_is_initialised_and_reported(file):
  model = load(file, encoder=dict(registers=2))
  assert model.report.missing == ['params/encoder/registers']
  assert np.asarray(model.params['encoder']['registers']).std() > 0
  again = load(file, encoder=dict(registers=2), seed=1)
  assert not np.array_equal(
    model.params['encoder']['registers'], again.params['encoder']['registers']
  )


def test_a_patch_kernel_is_resized_for_another_patch(file):
  model = load(file, encoder=dict(patch_size=16), image_size=64)
  assert model.params['encoder']['embedding']['kernel'].shape == (16, 16, 3, 16)
  assert model.report.resized == {'params/encoder/embedding/kernel': 'from patches of 8x8 to 16x16'}
  # Where patches grow, those of an image that was enlarged are embedded as they were; a constant
  # image is its own enlargement.
  gray = np.full((1, 64, 64, 3), 200, np.uint8)
  np.testing.assert_allclose(model(gray), load(file)(gray[:, :32, :32]), rtol=1e-4, atol=1e-4)


def test_a_grid_of_as_many_patches_is_another_grid(tmp_path):
  wide = arrays_of({**ENCODER, 'grid': (2, 8)})
  np.savez(tmp_path / 'a.npz', **wide)
  model = load(tmp_path / 'a.npz', grid=(2, 8), image_size=32)
  positions = wide['Transformer/posembed_input/pos_embedding']
  expected = resize_positions(positions, (2, 8), (4, 4), prefix=1, method='bilinear_zoom')
  np.testing.assert_array_equal(model.params['encoder']['pos_embedding'], expected)
  assert list(model.report.resized) == ['params/encoder/pos_embedding']


def test_no_more_classes_are_named_than_there_are_outputs(file):
  assert load(file, num_classes=2, classes=('a', 'b')).classes == ('a', 'b')
  assert '6 classes are named, and the head has 5 outputs' in refused(file, classes='abcdef')


def test_scan_and_another_dtype_give_the_same_model(file):
  plain, scanned = load(file), load(file, encoder=dict(scan=True, remat='full'))
  assert scanned.params['encoder']['blocks']['mlp']['fc_1']['kernel'].shape == (3, 16, 32)
  np.testing.assert_allclose(plain(images()), scanned(images()), rtol=1e-4, atol=1e-5)
  half = load(file, encoder=dict(dtype='bfloat16'))
  assert np.abs(half(images()) - plain(images())).max() < 0.05 * np.abs(plain(images())).max()


def test_each_device_receives_its_shard_alone(file):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  model, plain = load(file, mesh=mesh), load(file)
  kernel = model.params['encoder']['block_0']['mlp']['fc_1']['kernel']  # ('embed', 'mlp')
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 16)}
  for shard in kernel.addressable_shards:
    expected = plain.params['encoder']['block_0']['mlp']['fc_1']['kernel'][shard.index]
    np.testing.assert_array_equal(shard.data, expected)
  for name, x in named(model.variables).items():
    assert x.sharding.mesh == mesh
    np.testing.assert_array_equal(np.asarray(x), named(plain.variables)[name])
  with jax.set_mesh(mesh):
    np.testing.assert_allclose(model(images()), plain(images()), rtol=1e-4, atol=1e-5)


MEASURE = """
import resource, sys
import jax, numpy as np
from vit_jax.pretrained import load
jax.block_until_ready(jax.numpy.zeros(3) + 1)
def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load(sys.argv[1], progress=False, encoder=eval(sys.argv[2]), **eval(sys.argv[3]))
jax.block_until_ready(model.variables)
size = sum(x.nbytes for x in jax.tree.leaves(model.variables))
print((peak() - before) / size, size)
"""


@pytest.mark.parametrize('kind', ['npz', 'safetensors'])
@pytest.mark.parametrize('scan', [False, True])
def test_the_peak_of_memory_is_little_more_than_the_parameters(tmp_path, kind, scan):
  # 12 blocks of width 512: 150 MB, as large as differences in a process's memory are not.
  encoder = {**ENCODER, 'width': 512, 'depth': 12, 'num_heads': 8, 'mlp_dim': 2048}
  arrays = arrays_of(encoder)
  if kind == 'npz':
    path = tmp_path / 'a.npz'
    np.savez(path, **arrays)
  else:
    path = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file(arrays, path)
  del arrays
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, str(path), repr(dict(scan=scan)), '{}'],
    env={**os.environ, 'PYTHONPATH': str(Path(vit_jax.__file__).parents[1]), 'XLA_FLAGS': ''},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  ratio, size = map(float, done.stdout.split())
  assert size > 140e6
  assert ratio < 1.5


# -- From elsewhere.


def test_a_repository_of_the_hub(file, tmp_path, monkeypatch, serve, capsys):
  folder = tmp_path / 'org' / 'name' / 'resolve' / 'main'
  folder.mkdir(parents=True)
  safetensors.numpy.save_file(dict(np.load(file)), folder / 'model.safetensors')
  monkeypatch.setenv('HF_ENDPOINT', serve(tmp_path))
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  model = load('hf://org/name')
  assert 'hf://org/name/model.safetensors:' in capsys.readouterr().err
  np.testing.assert_array_equal(model(images()), load(file)(images()))
  load('hf://org/name')
  assert capsys.readouterr().err == ''  # It is in the cache.


def test_what_was_downloaded_opens_when_the_server_is_gone(file, tmp_path, monkeypatch):
  safetensors.numpy.save_file(dict(np.load(file)), tmp_path / 'model.safetensors')
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  handler = functools.partial(_Quiet, directory=str(tmp_path))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    address = f'http://127.0.0.1:{server.server_port}/model.safetensors'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    first = load(address)(images())
    server.shutdown()
  np.testing.assert_array_equal(load(address)(images()), first)


def test_a_prefix_of_a_file_in_another_file_system(file, tmp_path, monkeypatch):
  import fsspec

  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  arrays = {f'params/img/{name}': x for name, x in np.load(file).items()}
  arrays['params/t'] = np.zeros(1, np.float32)
  with fsspec.open('memory://bucket/a.npz', 'wb') as f:
    np.savez(f, **arrays)
  model = load('memory://bucket/a.npz:params/img')
  np.testing.assert_array_equal(model(images()), load(file)(images()))
  assert model.report.unused == []


# -- What is wrong is one sentence that names the file and, where it is one, the array.


def refused(location, error=ValueError, **options):
  with pytest.raises(error) as raised:
    load(location, **options)
  text = str(raised.value)
  assert '\n' not in text
  return text


def test_an_unknown_name_has_those_like_it():
  assert "did you mean 'augreg/B/16-i21k'" in refused('augreg/B/16-i21')


def test_a_path_that_is_not_there(tmp_path):
  assert refused(tmp_path / 'no.npz', FileNotFoundError) == f'no file {tmp_path / "no.npz"}'
  os.makedirs(tmp_path / 'empty')
  assert "empty has none of 'model.safetensors', " in refused(tmp_path / 'empty', FileNotFoundError)
  assert refused(tmp_path / 'nothing', FileNotFoundError).startswith('no file or folder')


def test_a_file_of_no_known_format(tmp_path):
  np.savez(tmp_path / 'a.npz', weight=np.zeros(3))
  text = refused(tmp_path / 'a.npz')
  assert "a.npz is of no known format ('vit_jax', 'vision_transformer'" in text
  assert "its arrays are 'weight'" in text


def test_a_truncated_file(file, tmp_path):
  data = file.read_bytes()
  (tmp_path / 'a.npz').write_bytes(data[: len(data) // 2])
  assert 'a.npz cannot be read' in refused(tmp_path / 'a.npz')
  safetensors.numpy.save_file(dict(np.load(file)), tmp_path / 'b.safetensors')
  data = (tmp_path / 'b.safetensors').read_bytes()
  (tmp_path / 'b.safetensors').write_bytes(data[:-100])
  assert 'b.safetensors cannot be read' in refused(tmp_path / 'b.safetensors')


def test_a_damaged_array_is_named(file, tmp_path):
  data = bytearray(file.read_bytes())
  kernel = np.load(file)['head/kernel'].tobytes()
  data[data.index(kernel)] ^= 1
  (tmp_path / 'a.npz').write_bytes(data)
  text = refused(tmp_path / 'a.npz')
  assert "a.npz cannot be read ('head/kernel' is no array: Bad CRC-32" in text


class Hostile:
  def __reduce__(self):
    return (os.system, ('touch /tmp/vit_jax_was_here',))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
  pytest.importorskip('torch')
  (tmp_path / 'a.pth').write_bytes(pickle.dumps({'state_dict': Hostile()}, 2))
  text = refused(tmp_path / 'a.pth')
  assert 'a.pth cannot be read' in text
  assert not Path('/tmp/vit_jax_was_here').exists()


def test_a_file_that_does_not_fit_the_model(file):
  text = refused(file, encoder=dict(width=32))
  assert 'a.npz makes' in text
  assert 'and the model has' in text
  assert 'has 3 blocks' in refused(file, encoder=dict(depth=4, scan=True))


def test_blocks_that_the_model_has_no_place_for_are_not_used(file):
  one, two = (load(file, encoder=dict(depth=2, scan=scan)) for scan in (False, True))
  assert set(one.report.unused) == set(two.report.unused)
  assert all('encoderblock_2/' in name for name in one.report.unused)
  np.testing.assert_allclose(one(images()), two(images()), rtol=1e-4, atol=1e-5)


def test_a_size_that_patches_do_not_divide(file):
  assert refused(file, image_size=30) == 'image_size 30x30 is not divisible by patches of 8x8'


def test_facts_and_formats_have_their_choices(file):
  assert "unknown fact 'heads'; choose from 'activation'" in refused(file, heads=2)
  assert "unknown format 'npz'; choose from 'vit_jax'" in refused(file, format='npz')
  assert "is not of format 'vit_jax'" in refused(file, format='vit_jax')
  load(file).save(file.with_name('own.npz'), overwrite=True)
  text = refused(file.with_name('own.npz'), num_heads=2)
  assert "own.npz needs no 'num_heads'; leave it out" in text
  assert load(file.with_name('own.npz'), mean=(0.1, 0.2, 0.3)).objective.mean == (0.1, 0.2, 0.3)


def test_a_companion_that_is_no_json(file, tmp_path):
  safetensors.numpy.save_file(dict(np.load(file)), tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text('{')
  assert 'config.json is not readable JSON' in refused(tmp_path)


def test_facts_are_taken(file):
  model = load(file, activation='gelu', ln_eps=1e-5, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
  assert model.objective.encoder.activation == 'gelu'
  assert model.objective.encoder.ln_eps == 1e-5
  assert model.objective.mean == (0.1, 0.2, 0.3)
  assert json.dumps(model.spec)
