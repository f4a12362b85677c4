"""ResNet against its published sizes and `transformers` 5, which runs it in PyTorch."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.models.resnet import VARIANTS, Block, ResNet

# With a head of 1000 classes; the counts of torchvision and timm.
PUBLISHED = {
  '18': 11_689_512,
  '34': 21_797_672,
  '50': 25_557_032,
  '101': 44_549_160,
  '152': 60_192_808,
}
SMALL = dict(blocks=(1, 2, 1), width=8)
IMAGE = np.random.default_rng(0).normal(size=(8, 32, 24, 3)).astype(np.float32)


def abstract(model, side=64):
  """Boxed shapes of the variables."""
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  init = lambda key, image: model.init(key, image, train=False)  # noqa: E731
  return jax.eval_shape(init, jax.random.key(0), image)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(model, seed=0):
  """Parameters and statistics none of which is zero or one, so that none can be forgotten."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name in ('scale', 'var'):
      x = rng.uniform(0.5, 1.5, leaf.shape)
    elif name in ('bias', 'mean'):
      x = rng.normal(scale=0.2, size=leaf.shape)
    else:
      x = rng.normal(scale=(2 / math.prod(leaf.shape[:3])) ** 0.5, size=leaf.shape)
    return x.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract(model)))


def apply(model, variables, image=IMAGE, *, train=False):
  """`Features`; in training also the new statistics."""

  @jax.jit
  def run(variables, image):
    mutable = ['batch_stats'] if train else False
    return model.apply(variables, image, train=train, mutable=mutable)

  return run(variables, image)


def assert_close(ours, theirs):
  """Within 1e-4 of the largest."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


# -- Sizes.


@pytest.mark.parametrize('variant', PUBLISHED)
def test_parameter_count(variant):
  variables = abstract(ResNet(variant))
  features = 2048 if VARIANTS[variant].bottleneck else 512
  params = nn.unbox(variables['params'])
  assert count(params) + features * 1000 + 1000 == PUBLISHED[variant]
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_every_variant_has_a_published_count():
  assert PUBLISHED.keys() == VARIANTS.keys()


# In millions, without head: ResNet-50, (2x) and (4x) in Table 6, arXiv:2002.05709.
@pytest.mark.parametrize(
  ('width', 'exact', 'millions'),
  [(64, 23_508_032, 24), (128, 93_907_072, 94), (256, 375_378_176, 375)],
)
def test_twice_the_width_is_the_wider_encoder_of_simclr(width, exact, millions):
  params = nn.unbox(abstract(ResNet('50', width=width))['params'])
  assert count(params) == exact
  assert round(exact / 1e6) == millions


SMALL_STEM = dict(small_stem=True)


@pytest.mark.parametrize(
  ('side', 'fields', 'shapes'),
  [
    # Table 1, arXiv:1512.03385.
    (224, dict(variant='18'), [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]),
    (224, dict(variant='50'), [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]),
    # Appendix B.9, arXiv:2002.05709.
    (32, SMALL_STEM | dict(variant='18'), [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
    # Every field overrides the variant's, and as many stages as there are `blocks`.
    (64, dict(variant='50', blocks=(1, 1), bottleneck=False, width=4), [(16, 16, 4), (8, 8, 8)]),
    (32, SMALL_STEM | dict(blocks=[1, 1, 1], width=4), [(32, 32, 4), (16, 16, 8), (8, 8, 16)]),
    (32, SMALL_STEM | dict(blocks=(1,), width=4, bottleneck=True), [(32, 32, 16)]),
  ],
)
def test_shapes_of_the_stages(side, fields, shapes):
  model = ResNet(**fields)
  variables = nn.unbox(abstract(model))
  kernel = variables['params']['conv_root']['kernel']
  assert kernel.shape[:2] == ((3, 3) if model.small_stem else (7, 7))
  image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  run = lambda variables, image: model.apply(variables, image, train=False)  # noqa: E731
  out = jax.eval_shape(run, variables, image)
  assert [stage.shape for stage in out.stages] == [(2, *shape) for shape in shapes]
  h, w, features = shapes[-1]
  assert out.grid == (h, w)
  assert out.tokens.shape == (2, h * w, features)
  assert out.pooled.shape == (2, features)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(variant='20'), "unknown variant '20'; choose from '18', '34', '50', '101', '152'"),
    (dict(), "without a variant \\('18', .*'152'\\) ResNet needs blocks"),
    (dict(blocks=()), 'blocks must be at least 1'),
    (dict(blocks=(1, 0)), 'blocks must be at least 1 in each stage, got \\(1, 0\\)'),
    (dict(variant='18', width=0), 'width must be at least 1, got 0'),
    (dict(variant='18', convolution='fft'), "unknown convolution 'fft'; choose from 'auto', 'xla'"),
    (dict(variant='18', dtype='int8'), "unknown dtype 'int8'; choose from 'float32'"),
  ],
)
def test_an_impossible_network_is_refused_when_built(fields, message):
  with pytest.raises(ValueError, match=message):
    ResNet(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (np.zeros((2, 8, 8, 3), np.uint8), 'float images, not uint8'),
    (np.zeros((8, 8, 3), np.float32), 'takes images'),
  ],
)
def test_what_is_no_float_image_is_refused(image, message):
  with pytest.raises(ValueError, match=message):
    ResNet(**SMALL).init(jax.random.key(0), image, train=False)


# -- Activations and statistics.


def make_peer(model):
  """The same network in PyTorch."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  size = model.size
  features = [model.width * 2**i for i in range(len(size.blocks))]
  config = transformers.ResNetConfig(
    embedding_size=model.width,
    hidden_sizes=[4 * n for n in features] if size.bottleneck else features,
    depths=list(size.blocks),
    layer_type='bottleneck' if size.bottleneck else 'basic',
  )
  return transformers.ResNetModel(config)


def layers(peer):
  """Path of a block, number of a layer, and the peer's convolution with its BatchNorm."""
  yield (), 'root', peer.embedder.embedder
  for i, stage in enumerate(peer.encoder.stages):
    for j, block in enumerate(stage.layers):
      path = (f'stage_{i}_block_{j}',)
      for n, layer in enumerate(block.layer, 1):
        yield path, n, layer
      if hasattr(block.shortcut, 'convolution'):
        yield path, 'proj', block.shortcut


def get(tree, path, name):
  for part in (*path, name):
    tree = tree[part]
  return tree


def copy_to(peer, variables):
  import torch

  params, stats = variables['params'], variables['batch_stats']
  copied = 0
  with torch.no_grad():
    for path, n, layer in layers(peer):
      kernel = get(params, path, f'conv_{n}')['kernel'].transpose(3, 2, 0, 1)
      norm, kept = get(params, path, f'norm_{n}'), get(stats, path, f'norm_{n}')
      for to, array in (
        (layer.convolution.weight, kernel),
        (layer.normalization.weight, norm['scale']),
        (layer.normalization.bias, norm['bias']),
        (layer.normalization.running_mean, kept['mean']),
        (layer.normalization.running_var, kept['var']),
      ):
        assert to.shape == array.shape
        to.copy_(torch.from_numpy(array.copy()))
        copied += array.size
  assert copied == count(variables)


def run_peer(peer, image):
  """Stages `[B, h, w, D]` and pooled `[B, D]`."""
  import torch

  with torch.no_grad():
    out = peer(torch.from_numpy(image.transpose(0, 3, 1, 2)), output_hidden_states=True)
  stages = [stage.permute(0, 2, 3, 1).numpy() for stage in out.hidden_states[1:]]
  return stages, out.pooler_output[:, :, 0, 0].numpy()


def assert_same_features(ours, stages, pooled):
  assert len(ours.stages) == len(stages)
  for one, other in zip(ours.stages, stages, strict=True):
    assert_close(one, other)
  assert_close(ours.tokens, stages[-1].reshape(len(pooled), -1, pooled.shape[-1]))
  assert_close(ours.pooled, pooled)


# With SAME padding the even height would be padded on one side; strides do not divide the width.
@pytest.mark.parametrize('variant', ['18', '50'])
def test_activations_equal_pytorch(variant):
  model = ResNet(variant)
  variables = random_variables(model)
  image = np.random.default_rng(1).normal(size=(2, 64, 75, 3)).astype(np.float32)
  peer = make_peer(model).eval()
  copy_to(peer, variables)
  assert_same_features(apply(model, variables, image), *run_peer(peer, image))


@pytest.mark.parametrize('bottleneck', [False, True])
def test_training_equals_pytorch_but_for_the_kept_variance(bottleneck):
  """Of n values PyTorch keeps the variance times n / (n - 1), and normalises without; ours never.

  Every layer's n is known, so that nothing has to be loosened.
  """
  model = ResNet(**SMALL, bottleneck=bottleneck)
  variables = random_variables(model)
  peer = make_peer(model).train()
  copy_to(peer, variables)
  values = {}
  for _, _, layer in layers(peer):
    layer.normalization.register_forward_hook(
      lambda norm, args, _: values.update({norm: args[0].numel() // args[0].shape[1]})
    )
  ours, updated = apply(model, variables, train=True)
  assert_same_features(ours, *run_peer(peer, IMAGE))
  for path, i, layer in layers(peer):
    norm, name = layer.normalization, f'norm_{i}'
    before = get(variables['batch_stats'], path, name)
    after = get(updated['batch_stats'], path, name)
    n = values[norm]
    assert_close(after['mean'], norm.running_mean.numpy())
    kept = 0.9 * before['var']
    assert_close(after['var'], kept + (norm.running_var.numpy() - kept) * (n - 1) / n)
  assert n == 8 * 2 * 2  # of the last stage, where the factor is 1.03


def test_evaluation_keeps_the_statistics_and_the_examples_apart():
  model = ResNet(**SMALL)
  variables = random_variables(model)
  out, state = jax.jit(lambda v, x: model.apply(v, x, train=False, mutable=['batch_stats']))(
    variables, IMAGE
  )
  jax.tree.map(np.testing.assert_array_equal, state['batch_stats'], variables['batch_stats'])
  others = np.concatenate([IMAGE[:1], 9 + IMAGE[1:]])
  np.testing.assert_allclose(apply(model, variables, others).pooled[0], out.pooled[0], rtol=1e-5)
  one, other = (apply(model, variables, x, train=True)[0].pooled[0] for x in (IMAGE, others))
  assert np.abs(one - other).max() > 0.1  # as they should not be in training


@pytest.mark.parametrize('bottleneck', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_a_block_that_changes_no_shape_starts_as_a_relu(bottleneck, train):
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype(np.float32)
  block = Block(4 if bottleneck else 16, bottleneck=bottleneck)
  variables = nn.unbox(block.init(jax.random.key(0), x, False))
  assert 'conv_proj' not in variables['params']
  out, _ = block.apply(variables, x, train, mutable=['batch_stats'])
  np.testing.assert_array_equal(out, np.maximum(x, 0))


def test_initial_values():
  model = ResNet(**SMALL, bottleneck=True)
  init = jax.jit(lambda key: model.init(key, IMAGE, train=False))
  variables = nn.unbox(init(jax.random.key(0)))
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    *_, layer, name = (part.key for part in path)
    if name == 'kernel':  # Normal, of deviation sqrt(2 / fan out), within four standard errors.
      fan_out = leaf.shape[0] * leaf.shape[1] * leaf.shape[3]
      ratio = np.mean(np.square(leaf)) * fan_out / 2
      assert abs(ratio - 1) < 4 * (2 / leaf.size) ** 0.5
    else:
      last = layer == 'norm_3' and name == 'scale'
      assert np.all(leaf == (name in ('scale', 'var') and not last)), path


def test_bfloat16_computes_in_it_and_keeps_float32():
  model = ResNet(**SMALL, dtype='bfloat16')
  variables = random_variables(model)
  out, updated = apply(model, variables, train=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(abstract(model))} == {jnp.dtype(jnp.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
  full, _ = apply(ResNet(**SMALL), variables, train=True)
  np.testing.assert_allclose(out.pooled.astype(np.float32), full.pooled, atol=0.1)


@pytest.mark.parametrize('bottleneck', [False, True])
def test_both_implementations_of_the_convolution_train_alike(bottleneck):
  results = []
  for convolution in ('auto', 'xla'):
    model = ResNet(**SMALL, bottleneck=bottleneck, convolution=convolution)
    variables = random_variables(model)

    @jax.jit
    def gradient(params, stats, model=model):
      def loss(params):
        variables = {'params': params, 'batch_stats': stats}
        out, _ = model.apply(variables, IMAGE, train=True, mutable=['batch_stats'])
        return (out.pooled**2).sum()

      return jax.value_and_grad(loss)(params)

    results.append(gradient(variables['params'], variables['batch_stats']))
  jax.tree.map(assert_close, *results)


# -- Inside the rest.


def test_every_parameter_has_logical_axes_of_the_table():
  boxes = jax.tree.leaves(
    abstract(ResNet('50'))['params'], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
  )
  assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
  assert all(len(box.names) == box.value.ndim for box in boxes)
  used = {name for box in boxes for name in box.names if name}
  assert used and used <= sharding.LOGICAL_AXES.keys()


@pytest.mark.parametrize('shape', [dict(data=8), dict(data=2, fsdp=4)])
def test_the_batch_of_the_statistics_is_that_of_all_devices(shape):
  model = ResNet(**SMALL)
  variables = random_variables(model)
  expected = apply(model, variables, train=True)
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(variables, sharding.parameter_shardings(abstract(model), mesh))
    image = jax.device_put(IMAGE, sharding.batch_sharding(mesh))
    split = apply(model, placed, image, train=True)
  jax.tree.map(assert_close, split, expected)


def test_an_objective_trains_it_as_any_encoder():
  encoder = dict(type='models.resnet.ResNet', blocks=(1,), width=8, small_stem=True)
  objective = build(dict(type='objectives.supervised.Supervised', num_classes=3, encoder=encoder))
  image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
  batch = dict(image=image, label=np.arange(4, dtype=np.int32) % 3, id=np.arange(4))
  variables = nn.unbox(objective.init(jax.random.key(0), batch, train=False))
  (loss, _), new = objective.apply(variables, batch, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(loss, math.log(3), rtol=1e-6)
  old, new = variables['batch_stats']['encoder'], new['batch_stats']['encoder']
  assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True))
