"""CLIP's residual networks against open_clip's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.models.clip_resnet import VARIANTS, AttentionPool, Block, ClipResNet, halve
from vit_jax.models.positions import resample

# Of the image towers; those of open_clip's RN50, RN101 and RN50x4.
PUBLISHED = {'RN50': 38_316_896, 'RN101': 56_259_936, 'RN50x4': 87_137_080}
# With blocks that change no shape, features alone, and positions too. `xla` compiles faster.
SMALL = dict(blocks=(2, 1, 1, 1), width=4, projection=6, image_size=64, convolution='xla')
IMAGE = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32)


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
    elif name in ('bias', 'mean', 'pos_embedding'):
      x = rng.normal(scale=0.2, size=leaf.shape)
    else:
      fan_in = leaf.shape[0] if path[-2].key in ('query', 'key', 'value') else leaf.shape[:-1]
      x = rng.normal(scale=np.prod(fan_in) ** -0.5, size=leaf.shape)
    return x.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract(model)))


def apply(model, variables, image=IMAGE, *, train=False):
  """`Features`; in training also the new statistics."""

  @jax.jit
  def run(variables, image):
    mutable = ['batch_stats'] if train else False
    return model.apply(variables, image, train=train, mutable=mutable)

  return run(variables, image)


def assert_close(ours, theirs, relative=1e-5):
  """Within a share of the largest."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


# -- open_clip.


def make_peer(model):
  """The same network in open_clip."""
  pytest.importorskip('torch')
  open_clip = pytest.importorskip('open_clip')
  size = model.size
  return open_clip.modified_resnet.ModifiedResNet(
    list(size.blocks), size.projection, size.width // 2, size.image_size, size.width
  )


def layers(model):
  """Path of a block, number of a layer, and the names of open_clip's convolution and BatchNorm."""
  for i in (1, 2, 3):
    yield (), f'root_{i}', f'conv{i}', f'bn{i}'
  for i, blocks in enumerate(model.size.blocks):
    for j in range(blocks):
      path, prefix = (f'stage_{i}_block_{j}',), f'layer{i + 1}.{j}.'
      for n in (1, 2, 3):
        yield path, n, f'{prefix}conv{n}', f'{prefix}bn{n}'
      if j == 0:
        yield path, 'proj', f'{prefix}downsample.0', f'{prefix}downsample.1'


def get(tree, path, name):
  for part in (*path, name):
    tree = tree[part]
  return tree


def pool_to_torch(p):
  """Ours to open_clip's names of the attention that pools."""
  width = p['pos_embedding'].shape[-1]
  made = {'positional_embedding': p['pos_embedding'][0]}
  for ours, theirs in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj')):
    made[f'{theirs}.weight'] = p['attention'][ours]['kernel'].reshape(width, -1).T
    made[f'{theirs}.bias'] = p['attention'][ours]['bias'].ravel()
  out = p['attention']['out']
  made |= {'c_proj.weight': out['kernel'].reshape(width, -1).T, 'c_proj.bias': out['bias']}
  return {f'attnpool.{name}': array for name, array in made.items()}


def copy_to(peer, model, variables):
  """Gives open_clip's network our variables; every one of both is used."""
  import torch

  params, stats = variables['params'], variables['batch_stats']
  made = pool_to_torch(params['attention_pool'])
  for path, n, conv, norm in layers(model):
    ours, kept = get(params, path, f'norm_{n}'), get(stats, path, f'norm_{n}')
    made |= {
      f'{conv}.weight': get(params, path, f'conv_{n}')['kernel'].transpose(3, 2, 0, 1),
      f'{norm}.weight': ours['scale'],
      f'{norm}.bias': ours['bias'],
      f'{norm}.running_mean': kept['mean'],
      f'{norm}.running_var': kept['var'],
    }
  assert sum(array.size for array in made.values()) == count(variables)
  # A counter that is not read.
  counters = {k: v for k, v in peer.state_dict().items() if k.endswith('num_batches_tracked')}
  made = {name: torch.from_numpy(np.array(array)) for name, array in made.items()}
  peer.load_state_dict({**counters, **made}, strict=True)


def assert_equals_peer(ours, peer, image):
  import torch

  with torch.no_grad():
    out = peer.forward_intermediates(torch.from_numpy(image.transpose(0, 3, 1, 2)))
  stages = [x.permute(0, 2, 3, 1).numpy() for x in out['image_intermediates'][1:]]
  assert len(ours.stages) == len(stages) == 4
  for one, other in zip(ours.stages, stages, strict=True):
    assert_close(one, other)
  assert_close(ours.tokens, stages[-1].reshape(len(image), -1, stages[-1].shape[-1]))
  assert_close(ours.pooled, out['image_features'].numpy())
  assert ours.grid == stages[-1].shape[1:3]


@pytest.mark.parametrize(('width', 'convolution'), [(4, 'auto'), (6, 'xla')])
def test_activations_equal_open_clip(width, convolution):
  model = ClipResNet(**{**SMALL, 'width': width, 'convolution': convolution})
  variables = random_variables(model)
  peer = make_peer(model).eval()
  copy_to(peer, model, variables)
  assert_equals_peer(apply(model, variables), peer, IMAGE)


def test_training_equals_open_clip_but_for_the_kept_variance():
  """Of n values PyTorch keeps the variance times n / (n - 1), and normalises without; ours never.

  Every layer's n is known, so that nothing has to be loosened.
  """
  model = ClipResNet(**SMALL)
  variables = random_variables(model)
  peer = make_peer(model).train()
  copy_to(peer, model, variables)
  modules, values = dict(peer.named_modules()), {}
  for *_, norm in layers(model):
    modules[norm].register_forward_hook(
      lambda module, args, _: values.update({module: args[0].numel() // args[0].shape[1]})
    )
  ours, updated = apply(model, variables, train=True)
  assert_equals_peer(ours, peer, IMAGE)
  for path, i, _, norm in layers(model):
    before = get(variables['batch_stats'], path, f'norm_{i}')
    after = get(updated['batch_stats'], path, f'norm_{i}')
    theirs = modules[norm]
    n = values[theirs]
    assert_close(after['mean'], theirs.running_mean.numpy())
    kept = 0.9 * before['var']
    assert_close(after['var'], kept + (theirs.running_var.numpy() - kept) * (n - 1) / n)
  assert n == 8 * 2 * 2  # of the last stage, where the factor is 1.03


def test_gradients_equal_open_clip():
  torch = pytest.importorskip('torch')
  model = ClipResNet(**SMALL)
  variables = random_variables(model)
  peer = make_peer(model).eval()
  copy_to(peer, model, variables)
  factor = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)

  @jax.jit
  def gradient(params, stats):
    def loss(params):
      out = model.apply({'params': params, 'batch_stats': stats}, IMAGE, train=False)
      return (factor * out.pooled).sum()

    return jax.grad(loss)(params)

  ours = gradient(variables['params'], variables['batch_stats'])
  out = peer(torch.from_numpy(IMAGE.transpose(0, 3, 1, 2)))
  (torch.from_numpy(factor) * out).sum().backward()
  theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}
  made = pool_to_torch(jax.tree.map(np.asarray, ours['attention_pool']))
  for path, n, conv, norm in layers(model):
    kernel, scale = get(ours, path, f'conv_{n}')['kernel'], get(ours, path, f'norm_{n}')
    made[f'{conv}.weight'] = np.transpose(kernel, (3, 2, 0, 1))
    made |= {f'{norm}.weight': scale['scale'], f'{norm}.bias': scale['bias']}
  assert made.keys() == theirs.keys()
  # The softmax does not change with the keys' bias.
  largest = np.abs(theirs['attnpool.q_proj.bias']).max()
  for gradients in (made, theirs):
    assert np.abs(gradients.pop('attnpool.k_proj.bias')).max() < 1e-5 * largest
  for name, array in made.items():
    assert_close(array, theirs[name], 1e-4)


@pytest.mark.parametrize('variant', PUBLISHED)
def test_parameter_count(variant):
  torch = pytest.importorskip('torch')
  open_clip = pytest.importorskip('open_clip')
  model = ClipResNet(variant)
  config = open_clip.get_model_config(variant)
  vision = config['vision_cfg']
  assert model.size == (
    tuple(vision['layers']),
    vision['width'],
    config['embed_dim'],
    vision['image_size'],
  )
  with torch.device('meta'):
    peer = make_peer(model)
  variables = nn.unbox(abstract(model, vision['image_size']))
  assert count(variables['params']) == sum(p.numel() for p in peer.parameters())
  assert count(variables['params']) == PUBLISHED[variant]
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_every_variant_has_a_published_count():
  assert PUBLISHED.keys() == VARIANTS.keys()


@pytest.mark.parametrize(
  ('variant', 'shapes'),
  [
    ('RN50', [(56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]),
    ('RN50x4', [(72, 72, 320), (36, 36, 640), (18, 18, 1280), (9, 9, 2560)]),
  ],
)
def test_shapes_of_the_stages(variant, shapes):
  model = ClipResNet(variant)
  side = model.size.image_size
  image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  run = lambda variables, image: model.apply(variables, image, train=False)  # noqa: E731
  out = jax.eval_shape(run, nn.unbox(abstract(model, side)), image)
  assert [stage.shape for stage in out.stages] == [(2, *shape) for shape in shapes]
  h, w, features = shapes[-1]
  assert out.grid == (h, w)
  assert out.tokens.shape == (2, h * w, features)
  assert out.pooled.shape == (2, model.size.projection)


# -- Positions.


def test_images_of_another_size_get_interpolated_positions():
  model = ClipResNet(**SMALL)
  variables = random_variables(model)
  wide = np.random.default_rng(1).normal(size=(2, 32, 96, 3)).astype(np.float32)
  out = apply(model, variables, wide)
  assert out.grid == (1, 3)
  positions = variables['params']['attention_pool']['pos_embedding']
  resized = np.asarray(resample(positions, (2, 2), (1, 3)))
  own = model.clone(image_size=(32, 96))
  pool = {**variables['params']['attention_pool'], 'pos_embedding': resized}
  params = {**variables['params'], 'attention_pool': pool}
  assert own.grid == (1, 3)
  expected = apply(own, {**variables, 'params': params}, wide)
  assert_close(out.pooled, expected.pooled)
  assert_close(out.tokens, expected.tokens)


def test_halve_is_the_mean_of_two_by_two():
  x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
  expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2, 4)] for i in (0, 2)]
  np.testing.assert_allclose(halve(x), np.transpose(expected, (2, 0, 1, 3)))


# -- Inside the rest.


def test_evaluation_keeps_the_statistics_and_the_examples_apart():
  model = ClipResNet(**SMALL)
  variables = random_variables(model)
  run = jax.jit(lambda v, x: model.apply(v, x, train=False, mutable=['batch_stats']))
  out, state = run(variables, IMAGE)
  jax.tree.map(np.testing.assert_array_equal, state['batch_stats'], variables['batch_stats'])
  others = np.concatenate([IMAGE[:1], 9 + IMAGE[1:]])
  assert_close(run(variables, others)[0].pooled[0], out.pooled[0])


def test_bfloat16_computes_in_it_and_keeps_float32():
  model = ClipResNet(**SMALL, dtype='bfloat16')
  variables = random_variables(model)
  out, updated = apply(model, variables, train=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(abstract(model))} == {jnp.dtype(jnp.float32)}
  assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
  full, _ = apply(ClipResNet(**SMALL), variables, train=True)
  assert_close(np.float32(out.pooled), full.pooled, 0.05)


def test_every_parameter_has_logical_axes_of_the_table():
  boxes = jax.tree.leaves(
    abstract(ClipResNet(**SMALL))['params'], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
  )
  assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
  assert all(len(box.names) == box.value.ndim for box in boxes)
  used = {name for box in boxes for name in box.names if name}
  assert used == {'embed', 'heads', 'head_dim'} <= sharding.LOGICAL_AXES.keys()


def test_a_mesh_changes_nothing():
  model = ClipResNet(**SMALL)
  variables = random_variables(model)
  expected = apply(model, variables, train=True)
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  with jax.set_mesh(mesh):
    placed = jax.device_put(variables, sharding.parameter_shardings(abstract(model), mesh))
    image = jax.device_put(IMAGE, sharding.batch_sharding(mesh))
    split = apply(model, placed, image, train=True)
  jax.tree.map(assert_close, split, expected)


def test_initial_values():
  x = np.zeros((1, 2, 3, 256), np.float32)
  key = jax.random.key(0)
  pool = nn.unbox(jax.jit(AttentionPool((2, 3), 4, 6).init)(key, x)['params'])
  attention = pool['attention']
  for array in (
    pool['pos_embedding'],
    *(attention[n]['kernel'] for n in ('query', 'key', 'value')),
  ):
    assert np.std(array) == pytest.approx(256**-0.5, rel=0.1)
  block = Block(16, halved=True, convolution='xla')
  params = nn.unbox(jax.jit(block.init, static_argnums=2)(key, x[:, :, :2], False)['params'])
  for name in ('norm_1', 'norm_2', 'norm_3', 'norm_proj'):
    assert (params[name]['scale'] == (name != 'norm_3')).all()
  assert np.std(params['conv_2']['kernel']) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)


def test_an_objective_takes_it_as_any_encoder():
  encoder = dict(type='models.clip_resnet.ClipResNet', variant='RN50', image_size=64)
  objective = build(dict(type='objectives.supervised.Supervised', num_classes=3, encoder=encoder))
  image = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.uint8)
  batch = {name: jax.ShapeDtypeStruct((4,), jnp.int32) for name in ('label', 'id')}
  batch['image'] = image
  init = lambda key, batch: nn.unbox(objective.init(key, batch, train=False))  # noqa: E731
  variables = jax.eval_shape(init, jax.random.key(0), batch)
  train = lambda v, batch: objective.apply(v, batch, train=True, mutable=['batch_stats'])  # noqa: E731
  (loss, _), new = jax.eval_shape(train, variables, batch)
  assert loss.shape == ()
  assert new['batch_stats'] == variables['batch_stats']
  assert variables['params']['head']['kernel'].shape == (1024, 3)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(variant='RN18'), "unknown variant 'RN18'; choose from 'RN50', 'RN101', 'RN50x4'"),
    (
      dict(width=8),
      r"without a variant \('RN50', .*\) ClipResNet needs blocks, projection, image_",
    ),
    (dict(variant='RN50', blocks=(1, 1, 1)), r'each of four stages, got \(1, 1, 1\)'),
    (dict(variant='RN50', blocks=(1, 1, 0, 1)), r'at least 1 in each of four stages, got \(1, 1,'),
    (dict(variant='RN50', width=7), 'width must be even and at least 2, got 7'),
    (dict(variant='RN50', projection=0), 'projection must be at least 1, got 0'),
    (
      dict(variant='RN50', image_size=225),
      'image_size is a multiple of 32, or two of them, not 22',
    ),
    (dict(variant='RN50', image_size=(32, 0)), r'a multiple of 32, or two of them, not \(32, 0\)'),
    (dict(variant='RN50', image_size=(32, 32, 3)), r'or two of them, not \(32, 32, 3\)'),
    (
      dict(variant='RN50', convolution='fft'),
      "unknown convolution 'fft'; choose from 'auto', 'xla'",
    ),
    (
      dict(variant='RN50', attention='flash'),
      "unknown attention 'flash'; choose from 'auto', 'ein",
    ),
    (dict(variant='RN50', attention='cudnn'), "'cudnn' needs dtype 'bfloat16' or 'float16'"),
    (dict(variant='RN50', dtype='int8'), "unknown dtype 'int8'; choose from 'float32'"),
  ],
)
def test_an_impossible_network_is_refused_when_built(fields, message):
  with pytest.raises(ValueError, match=message):
    ClipResNet(**fields)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (np.zeros((2, 64, 64, 3), np.uint8), 'float images, not uint8'),
    (np.zeros((64, 64, 3), np.float32), 'takes images'),
    (np.zeros((2, 64, 48, 3), np.float32), 'image 64x48 is not divisible by 32'),
  ],
)
def test_wrong_images_are_refused(image, message):
  with pytest.raises(ValueError, match=message):
    ClipResNet(**SMALL).init(jax.random.key(0), image, train=False)
