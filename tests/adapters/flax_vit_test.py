"""The `.npz` files of vision_transformer and big_vision, as timm reads them too."""

import numpy as np
import pytest

from vit_jax.adapters import flax_vit, formats, write
from vit_jax.adapters.tensors import open_tensors
from vit_jax.checkpoint import named
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

WIDTH, HEADS, MLP_DIM, DEPTH, CLASSES = 32, 2, 64, 2, 5
OLD = dict(mha='MultiHeadDotProductAttention_1', norm_2='LayerNorm_2', mlp='MlpBlock_3')
NEW = dict(mha='MultiHeadDotProductAttention_0', norm_2='LayerNorm_1', mlp='MlpBlock_0')


class File(dict):
  """Arrays of a published file, by the names that its publisher's code gives."""

  def __init__(self, seed=0):
    super().__init__()
    self.rng = np.random.default_rng(seed)

  def add(self, name, *shape, mean=0.0, std=0.1):
    self[name] = (mean + std * self.rng.normal(size=shape)).astype(np.float32)

  def dense(self, name, *shape, bias=None):
    self.add(f'{name}/kernel', *shape)
    self.add(f'{name}/bias', *(shape[-1:] if bias is None else bias))

  def norm(self, name, *shape):
    self.add(f'{name}/scale', *shape, mean=1.0)
    self.add(f'{name}/bias', *shape)

  def attention(self, name):
    for part in ('query', 'key', 'value'):
      self.dense(f'{name}/{part}', WIDTH, HEADS, WIDTH // HEADS, bias=(HEADS, WIDTH // HEADS))
    self.dense(f'{name}/out', HEADS, WIDTH // HEADS, WIDTH)

  def mlp(self, name):
    self.dense(f'{name}/Dense_0', WIDTH, MLP_DIM)
    self.dense(f'{name}/Dense_1', MLP_DIM, WIDTH)

  def tower(self, names, *, patch=16, channels=3):
    self.dense('embedding', patch, patch, channels, WIDTH)
    for i in range(DEPTH):
      block = f'Transformer/encoderblock_{i}'
      self.norm(f'{block}/LayerNorm_0', WIDTH)
      self.attention(f'{block}/{names["mha"]}')
      self.norm(f'{block}/{names["norm_2"]}', WIDTH)
      self.mlp(f'{block}/{names["mlp"]}')
    self.norm('Transformer/encoder_norm', WIDTH)

  def save(self, path, prefix=''):
    np.savez(path, **{prefix + name: x for name, x in self.items()})
    return path


def published(*, side=4, patch=16, cls=True, head=True, pre_logits=False):
  """As vision_transformer publishes it."""
  file = File()
  file.tower(OLD, patch=patch)
  file.add('Transformer/posembed_input/pos_embedding', 1, side**2 + cls, WIDTH, std=0.5)
  if cls:
    file.add('cls', 1, 1, WIDTH)
  if pre_logits:
    file.dense('pre_logits', WIDTH, 24)
  if head:
    file.dense('head', 24 if pre_logits else WIDTH, CLASSES)
  return file


def big_vision(*, side=4, pooling='map', names=None):
  file = File()
  file.tower(NEW)
  file.add('pos_embedding', 1, side**2, WIDTH, std=0.5)
  if pooling == 'tok':
    file.add('cls', 1, 1, WIDTH)
  if pooling == 'map':
    file.add('MAPHead_0/probe', 1, 1, WIDTH)
    file.attention('MAPHead_0/MultiHeadDotProductAttention_0')
    file.norm('MAPHead_0/LayerNorm_0', WIDTH)
    file.mlp('MAPHead_0/MlpBlock_0')
  file.dense('head', WIDTH, CLASSES)
  return file


def scanned(file):
  """The same with its blocks stacked."""
  stacked = {name: x for name, x in file.items() if 'encoderblock_' not in name}
  for name in [n for n in file if 'encoderblock_0/' in n]:
    rows = [file[name.replace('_0/', f'_{i}/', 1)] for i in range(DEPTH)]
    stacked[name.replace('encoderblock_0', 'encoderblock')] = np.stack(rows)
  new = File()
  new.update(stacked)
  return new


def peer(path, *, side=4, patch=16, **fields):
  model = timm.models.vision_transformer.VisionTransformer(
    img_size=side * patch, patch_size=patch, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
    mlp_ratio=MLP_DIM / WIDTH, num_classes=CLASSES, act_layer='gelu_tanh', **fields,
  )  # fmt: skip
  model.load_pretrained(str(path))
  return model.eval()


def images(size, count=2):
  return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def close(ours, theirs):
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_like(model, theirs, image):
  """Logits and every block's tokens."""
  x = torch.tensor(image.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
  outputs = []
  hooks = [
    b.register_forward_hook(lambda _, __, out: outputs.append(out.numpy())) for b in theirs.blocks
  ]
  with torch.no_grad():
    logits = theirs(x).numpy()
  for hook in hooks:
    hook.remove()
  close(model(image), logits)
  encoder, params = model.objective.encoder, model.params['encoder']
  pixels = image.astype(np.float32) / 127.5 - 1
  features = encoder.apply({'params': params}, pixels, train=False, blocks=range(DEPTH))
  for mine, other in zip(features.blocks, outputs, strict=True):
    close(np.asarray(mine), other[:, -mine.shape[1] :])


# -- The same numbers as timm.


@pytest.mark.parametrize('patch', [8, 14, 16, 32])
def test_published_files_give_timms_numbers(tmp_path, patch):
  file = published(patch=patch).save(tmp_path / 'a.npz')
  model = load(file)
  assert model.spec['encoder']['activation'] == 'gelu_tanh'
  assert not (model.report.missing or model.report.unused or model.report.resized)
  check_like(model, peer(file, patch=patch), images(4 * patch))


def test_a_file_without_class_token_is_pooled_by_the_mean(tmp_path):
  file = published(cls=False).save(tmp_path / 'a.npz')
  theirs = peer(file, class_token=False, global_pool='avg', fc_norm=False)
  check_like(load(file), theirs, images(64))


def test_a_map_head_of_big_vision(tmp_path):
  file = big_vision().save(tmp_path / 'a.npz', 'params/')
  theirs = peer(file, class_token=False, global_pool='map')
  model = load(file)
  assert model.spec['encoder']['pooling'] == 'map'
  check_like(model, theirs, images(64))


@pytest.mark.parametrize('pooling', ['map', 'gap', 'tok'])
@pytest.mark.parametrize('scan', [False, True])
def test_stacked_blocks_are_the_same_as_blocks_one_by_one(tmp_path, pooling, scan):
  looped = big_vision(pooling=pooling)
  a = load(looped.save(tmp_path / 'a.npz'))
  b = load(scanned(looped).save(tmp_path / 'b.npz'), encoder=dict(scan=scan))
  assert ('blocks' in b.params['encoder']) == scan
  assert len(b.report.loaded) == (len(a.report.loaded) - 16 if scan else len(a.report.loaded))
  image = images(64)
  np.testing.assert_allclose(a(image), b(image), rtol=1e-5, atol=1e-6)


def test_a_class_token_that_has_its_position_added_has_none_to_add(tmp_path):
  old, new = published(), big_vision(pooling='tok')
  positions = old['Transformer/posembed_input/pos_embedding']
  for name, there in (('cls', 'cls'), ('embedding/kernel', 'embedding/kernel')):
    new[there] = old[name]
  new['pos_embedding'] = positions[:, 1:]
  new['cls'] = old['cls'] + positions[:, :1]
  for name in old:
    renamed = name
    for key, value in OLD.items():
      renamed = renamed.replace(f'/{value}/', f'/{NEW[key]}/')
    if renamed in new and name not in ('cls',):
      new[renamed] = old[name]
  a, b = load(old.save(tmp_path / 'a.npz')), load(new.save(tmp_path / 'b.npz', 'params/'))
  image = images(64)
  np.testing.assert_allclose(a(image), b(image), rtol=1e-4, atol=1e-5)


def test_a_hybrid_gives_timms_numbers(tmp_path):
  # The real ResNet of R50+B/16 below a narrow transformer, on images of 32 pixels.
  file = published(side=2, patch=1)
  file.dense('embedding', 1, 1, 1024, WIDTH)
  file.add('conv_root/kernel', 7, 7, 3, 64)
  file.norm('gn_root', 1, 1, 1, 64)
  features = 64
  for i, count in enumerate((3, 4, 9), 1):
    width = 64 * 2 ** (i - 1)
    for j in range(1, count + 1):
      unit = f'block{i}/unit{j}'
      for number, shape in ((1, (1, 1, features, width)), (2, (3, 3, width, width)),
                            (3, (1, 1, width, 4 * width))):  # fmt: skip
        file.add(f'{unit}/conv{number}/kernel', *shape)
        file.norm(f'{unit}/gn{number}', 1, 1, 1, shape[-1])
      if j == 1:
        file.add(f'{unit}/conv_proj/kernel', 1, 1, features, 4 * width)
        file.norm(f'{unit}/gn_proj', 1, 1, 1, 4 * width)
      features = 4 * width
  path = file.save(tmp_path / 'a.npz')
  model = load(path)
  assert model.spec['encoder']['patch_size'] == 16
  theirs = timm.create_model(
    'vit_base_r50_s16_224', img_size=32, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
    mlp_ratio=MLP_DIM / WIDTH, num_classes=CLASSES, act_layer='gelu_tanh',
  )  # fmt: skip
  theirs.load_pretrained(str(path))
  # The publisher adds other constants than timm where it divides: 6e-4 here, at the last block.
  check_like(load(path, encoder=dict(stem_constants='timm')), theirs.eval(), images(32))
  assert model.objective.encoder.stem_constants == 'flax'


# -- Other sizes.


def test_positions_are_zoomed_as_the_publisher_does(tmp_path):
  scipy_ndimage = pytest.importorskip('scipy.ndimage')
  file = published()
  model = load(file.save(tmp_path / 'a.npz'), image_size=96)
  positions = file['Transformer/posembed_input/pos_embedding'][0]
  grid = scipy_ndimage.zoom(positions[1:].reshape(4, 4, WIDTH), (1.5, 1.5, 1), order=1)
  expected = np.concatenate([positions[:1], grid.reshape(36, WIDTH)])
  np.testing.assert_array_equal(model.params['encoder']['pos_embedding'][0], expected)
  assert model.report.resized == {
    'params/encoder/pos_embedding': 'from a grid of 4x4 to 6x6 (bilinear_zoom)'
  }
  assert model(images(200)).shape == (2, CLASSES)


# -- What is in the file, and what is not.


def test_pre_logits_and_a_missing_head(tmp_path):
  whole = load(published(pre_logits=True).save(tmp_path / 'a.npz'))
  assert whole.spec['encoder']['pre_logits'] == 24
  assert whole(images(64)).shape == (2, CLASSES)
  bare = load(published(head=False).save(tmp_path / 'b.npz'))
  assert not bare.has_head
  assert bare(images(64)).shape == (2, WIDTH)


def test_one_tower_of_several_is_chosen_by_its_prefix(tmp_path):
  img, txt = big_vision(), big_vision(pooling='gap')
  both = File()
  both.update({f'params/img/{name}': x for name, x in img.items()})
  both.update({f'params/txt/{name}': x for name, x in txt.items()})
  both.add('params/t', 1)
  path = both.save(tmp_path / 'a.npz')
  with pytest.raises(ValueError, match="several models; choose one of 'params/img', 'params/txt'"):
    load(path)
  image = images(64)
  alone = load(img.save(tmp_path / 'b.npz'))
  np.testing.assert_array_equal(load(f'{path}:params/img')(image), alone(image))


def test_what_the_optimizer_kept_is_reported_and_not_read(tmp_path):
  file = big_vision(pooling='gap')
  both = File()
  for prefix in ('params/', 'opt/0/mu/'):
    both.update({prefix + name: x for name, x in file.items()})
  model = load(both.save(tmp_path / 'a.npz'))
  assert len(model.report.unused) == len(file)
  assert f'unused: opt/0/... ({len(file)})' in str(model.report)


def test_a_missing_array_is_a_sentence_that_names_it(tmp_path):
  file = published()
  del file['Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias']
  path = file.save(tmp_path / 'a.npz')
  with pytest.raises(ValueError, match=r"a.npz has no 'Transformer/encoderblock_1/MlpBlock_3/Den"):
    load(path)


def test_an_array_of_another_shape_is_a_sentence_that_names_it(tmp_path):
  file = published()
  file.add('Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias', WIDTH + 1)
  path = file.save(tmp_path / 'a.npz')
  with pytest.raises(ValueError, match=r"Dense_1/bias' in .*a.npz: its shape is \[33\] and should"):
    load(path)


# -- Out again.


@pytest.mark.parametrize('fields', [dict(), dict(cls=False), dict(pre_logits=True)])
def test_export_gives_the_file_back(tmp_path, fields):
  file = published(**fields)
  path = file.save(tmp_path / 'a.npz')
  model = load(path)
  rules = flax_vit.export_rules(model.objective.encoder, CLASSES)
  arrays = dict(write.their_arrays(rules, write.one_by_one(named(model.variables))))
  assert set(arrays) == set(file)
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, file[name])


def test_what_the_format_has_no_place_for_is_refused(tmp_path):
  model = load(big_vision().save(tmp_path / 'a.npz'))
  with pytest.raises(ValueError, match="no place for pooling='map'; it takes 'token' or 'mean'"):
    flax_vit.export_rules(model.objective.encoder, CLASSES)


def test_opening_reads_no_array(tmp_path):
  path = published().save(tmp_path / 'a.npz')
  _, layout = formats.open_checkpoint(path)
  assert layout.format == 'vision_transformer'
  assert len({name for rule in layout.rules for name in rule.theirs}) == len(open_tensors(path))
