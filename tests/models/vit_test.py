"""ViT against its published sizes and a slow version in NumPy."""

import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.adapters.resize import resize_positions
from vit_jax.models.interpolation import POSITION_METHODS
from vit_jax.models.positions import sincos2d
from vit_jax.models.vit import VARIANTS, ViT

SMALL = dict(patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2)
IMAGE = np.random.default_rng(0).uniform(size=(2, 8, 12, 3)).astype(np.float32)

# With a 1000-class head, at 224. g and G: the width, depth, MLP and heads of Table 2,
# arXiv:2106.04560, which gives 1011 and 1843 million without head; with it and a class token these
# are the counts of timm 1.0.31's vit_giant_patch14_224 and vit_gigantic_patch14_224. The others are
# timm's too, and to three digits those of Table 1, arXiv:2010.11929, and Table 2, arXiv:2106.04560.
PUBLISHED = {
  ('Ti/16', 'token'): 5_717_416,
  ('S/16', 'token'): 22_050_664,
  ('S/32', 'token'): 22_878_952,
  ('B/16', 'token'): 86_567_656,
  ('B/32', 'token'): 88_224_232,
  ('L/16', 'token'): 304_326_632,
  ('H/14', 'token'): 632_045_800,
  ('g/14', 'token'): 1_012_611_432,
  ('G/14', 'token'): 1_844_440_680,
  ('S/16', 'mean'): 22_049_896,
  ('B/16', 'mean'): 86_566_120,
}


def abstract_params(model, shape=(1, 224, 224, 3)):
  """Boxed shapes of the parameters."""
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  init = lambda key, image: model.init(key, image, train=False)  # noqa: E731
  variables = jax.eval_shape(init, jax.random.key(0), image)
  assert variables.keys() == {'params'}
  return variables['params']


def random_params(model, seed=0, scale=0.3):
  """Parameters none of which is zero or one, so that none can be forgotten."""
  leaves, tree = jax.tree.flatten(nn.unbox(abstract_params(model, IMAGE.shape)))
  rng = np.random.default_rng(seed)
  leaves = [rng.normal(scale=scale, size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
  return jax.tree.unflatten(tree, leaves)


def apply(model, params, image=IMAGE, *, train=False, mutable=False, key=None, **asked):
  rngs = None if key is None else {'dropout': jax.random.key(key)}

  @jax.jit
  def run(params, image):
    return model.apply({'params': params}, image, train=train, rngs=rngs, mutable=mutable, **asked)

  return run(params, image)


@pytest.mark.parametrize(('variant', 'pooling'), PUBLISHED)
def test_parameter_count(variant, pooling):
  params = nn.unbox(abstract_params(ViT(variant, pooling=pooling)))
  body = sum(leaf.size for leaf in jax.tree.leaves(params))
  width = VARIANTS[variant.partition('/')[0]].width
  assert body + width * 1000 + 1000 == PUBLISHED[variant, pooling]
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_every_variant_has_a_published_count():
  assert {variant.partition('/')[0] for variant, _ in PUBLISHED} == VARIANTS.keys()


# The same in NumPy, float64, written to be read.


def numpy_norm(x, p, eps=1e-6):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p['scale'] + p.get('bias', 0.0)


def numpy_attention(x, context, p):
  out = np.zeros_like(x)
  for b in range(len(x)):
    for h in range(p['query']['kernel'].shape[1]):
      q = x[b] @ p['query']['kernel'][:, h] + p['query']['bias'][h]
      k = context[b] @ p['key']['kernel'][:, h] + p['key']['bias'][h]
      v = context[b] @ p['value']['kernel'][:, h] + p['value']['bias'][h]
      if 'query_norm' in p:
        q, k = numpy_norm(q, p['query_norm']), numpy_norm(k, p['key_norm'])
      scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
      out[b] += scores / scores.sum(-1, keepdims=True) @ v @ p['out']['kernel'][h]
  return out + p['out']['bias']


def numpy_mlp(x, p):
  x = x @ p['fc_1']['kernel'] + p['fc_1']['bias']
  x = x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2
  return x @ p['fc_2']['kernel'] + p['fc_2']['bias']


def numpy_vit(image, p, *, patch, pooling, norm_after_pooling=False):
  """Pooled features, tokens, and what comes out of the first block."""
  one = {'scale': 1.0}
  p = jax.tree.map(np.float64, p)
  tokens = []
  for y in range(0, image.shape[1], patch[0]):
    for x in range(0, image.shape[2], patch[1]):
      window = image[:, y : y + patch[0], x : x + patch[1]]
      product = window[..., None] * p['embedding']['kernel']  # [B, p, q, C, D]
      tokens.append(product.sum((1, 2, 3)) + p['embedding']['bias'])
  x = np.stack(tokens, 1)
  n = x.shape[1]
  if pooling == 'token':
    x = np.concatenate([np.repeat(p['cls'], len(x), 0), x], 1)
  x = x + p['pos_embedding']
  if 'registers' in p:
    x = np.concatenate([x[:, :-n], np.repeat(p['registers'], len(x), 0), x[:, -n:]], 1)
  if 'pre_norm' in p:
    x = numpy_norm(x, p['pre_norm'])
  after = []
  for i in range(2):
    block = p[f'block_{i}']
    y = numpy_norm(x, block['norm_1'])
    y = numpy_attention(y, y, block['attention'])
    x = x + y * block.get('scale_1', one)['scale']
    y = numpy_mlp(numpy_norm(x, block['norm_2']), block['mlp'])
    x = x + y * block.get('scale_2', one)['scale']
    after.append(x[:, -n:])
  if not norm_after_pooling:
    x = numpy_norm(x, p['norm'])
  x = x if pooling == 'token' else x[:, -n:]
  if pooling == 'map':
    head = p['map_head']
    y = numpy_attention(np.repeat(head['probe'], len(x), 0), x, head['attention'])
    pooled = (y + numpy_mlp(numpy_norm(y, head['norm']), head['mlp']))[:, 0]
  else:
    pooled = x.mean(1) if pooling == 'mean' else x[:, 0]
  if norm_after_pooling:
    pooled = numpy_norm(pooled, p['norm'])
  if 'pre_logits' in p:
    pooled = np.tanh(pooled @ p['pre_logits']['kernel'] + p['pre_logits']['bias'])
  return pooled, x[:, -n:], after[0]


OPTIONS = dict(registers=3, layer_scale=0.1, qk_norm=True)


@pytest.mark.parametrize(
  ('pooling', 'patch', 'fields'),
  [
    ('token', (4, 4), dict(pre_logits=5)),
    ('mean', (2, 6), {}),
    ('map', (4, 4), {}),
    ('token', (4, 4), OPTIONS),
    ('mean', (4, 4), OPTIONS),
    ('map', (4, 4), dict(registers=1)),
    ('token', (4, 4), dict(registers=2, pre_norm=True)),
    ('mean', (2, 6), dict(registers=1, norm_after_pooling=True)),
    ('mean', (4, 4), dict(pre_norm=True, norm_after_pooling=True, pre_logits=5)),
  ],
)
def test_equals_numpy(pooling, patch, fields):
  model = ViT(**{**SMALL, 'patch_size': patch}, pooling=pooling, **fields)
  params = random_params(model)
  after_pooling = fields.get('norm_after_pooling', False)
  pooled, tokens, first = numpy_vit(
    IMAGE, params, patch=patch, pooling=pooling, norm_after_pooling=after_pooling
  )
  out = apply(model, params, blocks=(0, -1))
  np.testing.assert_allclose(out.blocks[0], first, atol=1e-5)
  assert out.blocks[1].shape == out.tokens.shape
  assert out.grid == (8 // patch[0], 12 // patch[1])
  np.testing.assert_allclose(out.pooled, pooled, atol=1e-5)
  np.testing.assert_allclose(out.tokens, tokens, atol=1e-5)


def test_sincos2d_are_learned_positions_at_fixed_values():
  fixed = ViT(**SMALL, pooling='mean', positions='sincos2d')
  params = random_params(fixed)
  assert 'pos_embedding' not in params
  learned = ViT(**SMALL, pooling='mean')
  same = apply(learned, {**params, 'pos_embedding': sincos2d(2, 3, 16)[None]})
  np.testing.assert_allclose(apply(fixed, params).tokens, same.tokens, atol=1e-5)
  wide = np.concatenate([IMAGE, IMAGE], axis=2)
  assert apply(fixed, params, wide).grid == (2, 6)


@pytest.mark.parametrize('pooling', ['mean', 'token'])
def test_without_positions_patches_have_no_order(pooling):
  model = ViT(**SMALL, pooling=pooling, positions='none')
  params = random_params(model)
  assert 'pos_embedding' not in params
  out = apply(model, params)
  p = model.patch[0]
  upside_down = np.concatenate(np.split(IMAGE, IMAGE.shape[1] // p, axis=1)[::-1], axis=1)
  moved = apply(model, params, upside_down)
  tokens = out.tokens.reshape(*out.tokens.shape[:1], *out.grid, -1)[:, ::-1]
  np.testing.assert_allclose(moved.tokens, tokens.reshape(out.tokens.shape), atol=1e-5)
  np.testing.assert_allclose(moved.pooled, out.pooled, atol=1e-5)
  assert apply(model, params, np.concatenate([IMAGE, IMAGE], axis=2)).grid == (2, 6)


def shapes(model, image_shape=IMAGE.shape):
  return jax.tree.map(lambda leaf: leaf.shape, nn.unbox(abstract_params(model, image_shape)))


def test_parameters_of_the_norms():
  plain = shapes(ViT(**SMALL, pooling='mean'))
  assert plain.keys() == {'embedding', 'pos_embedding', 'block_0', 'block_1', 'norm'}
  with_norm = shapes(ViT(**SMALL, pooling='mean', pre_norm=True))
  assert with_norm == {**plain, 'pre_norm': {'scale': (16,), 'bias': (16,)}}
  assert shapes(ViT(**SMALL, pooling='mean', norm_after_pooling=True)) == plain


def test_a_scan_has_the_norm_before_its_blocks():
  model = ViT(**SMALL, pre_norm=True, registers=1)
  params = random_params(model)
  blocks = [params[f'block_{i}'] for i in range(2)]
  rest = {name: value for name, value in params.items() if not name.startswith('block_')}
  stacked = {**rest, 'blocks': jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
  loop, scan = apply(model, params), apply(model.clone(scan=True), stacked)
  np.testing.assert_allclose(loop.tokens, scan.tokens, atol=1e-5)
  np.testing.assert_allclose(loop.pooled, scan.pooled, atol=1e-5)


def test_of_its_own_grid_a_stated_one_changes_nothing():
  plain, stated = (ViT(**SMALL, registers=1, grid=grid) for grid in (None, (2, 3)))
  params = random_params(plain)
  assert shapes(plain) == shapes(stated)
  programs = [
    jax.make_jaxpr(lambda p, m=m: m.apply({'params': p}, IMAGE, train=False))(params)
    for m in (plain, stated)
  ]
  assert str(programs[0].jaxpr) == str(programs[1].jaxpr)
  a, b = apply(plain, params), apply(stated, params)
  np.testing.assert_array_equal(a.tokens, b.tokens)
  np.testing.assert_array_equal(a.pooled, b.pooled)


@pytest.mark.parametrize('size', [(8, 12), (20, 8), (4, 4)])
def test_a_stated_grid_decides_how_many_positions_there_are(size):
  for pooling, count in (('token', 13), ('mean', 12)):
    model = ViT(**SMALL, pooling=pooling, registers=2, grid=(3, 4))
    assert shapes(model, (1, *size, 3))['pos_embedding'] == (1, count, 16)


@pytest.mark.parametrize('method', POSITION_METHODS)
@pytest.mark.parametrize('grid', [(4, 4), (1, 2), (3, 2)])
@pytest.mark.parametrize('pooling', ['token', 'mean'])
def test_images_of_another_grid_get_resized_positions_and_pass_their_gradients_on(
  pooling, grid, method
):
  fields = dict(SMALL, depth=1, pooling=pooling, registers=2)
  model = ViT(**fields, grid=grid, position_resize=method)
  plain = ViT(**fields)
  params = random_params(model)
  prefix = int(pooling == 'token')

  def resize(positions):
    return resize_positions(positions, grid, (2, 3), prefix=prefix, method=method)

  def run(model, params):
    def loss(params):
      out = model.apply({'params': params}, IMAGE, train=False)
      return (out.pooled**2).sum() + (out.tokens**3).sum(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(gradient['pos_embedding'][0]), out

  gradient, out = run(model, params)
  resized = {**params, 'pos_embedding': resize(params['pos_embedding'])}
  expected_gradient, expected = run(plain, resized)
  assert out.grid == (2, 3)
  np.testing.assert_allclose(out.tokens, expected.tokens, atol=1e-5)
  np.testing.assert_allclose(out.pooled, expected.pooled, atol=1e-5)
  matrix = resize(np.eye(len(gradient)))  # [prefix + 6, prefix + h * w]
  scale = np.abs(expected_gradient).max()
  np.testing.assert_allclose(gradient, matrix.T @ expected_gradient, atol=1e-4 * scale)
  assert np.abs(gradient).max() > 0.1 * scale


def test_a_grid_that_comes_from_json():
  text = json.dumps(dict(SMALL, grid=(3, 4), patch_size=(4, 4)))
  model = ViT(**json.loads(text))
  params = random_params(model)
  assert params['pos_embedding'].shape == (1, 13, 16)
  expected = apply(ViT(**SMALL, grid=(3, 4)), params)
  np.testing.assert_array_equal(apply(model, params).tokens, expected.tokens)


def test_patches_are_kept_at_their_resized_positions():
  model = ViT(**SMALL, grid=(3, 4))
  params = random_params(model)
  keep = np.array([[0, 2, 5], [1, 2, 3]])
  resized = resize_positions(params['pos_embedding'], (3, 4), (2, 3), prefix=1)
  expected = apply(ViT(**SMALL), {**params, 'pos_embedding': resized}, keep=keep)
  np.testing.assert_allclose(apply(model, params, keep=keep).tokens, expected.tokens, atol=1e-5)


def test_bfloat16_is_close_and_its_parameters_are_float32():
  half = ViT(**SMALL, pooling='map', dtype='bfloat16', pre_logits=8)
  params = random_params(half)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {'float32'}
  out = apply(half, params)
  full = apply(half.clone(dtype='float32'), params)
  assert out.pooled.dtype == out.tokens.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out.tokens), full.tokens, atol=0.05)
  np.testing.assert_allclose(np.float32(out.pooled), full.pooled, atol=0.05)


def test_noise_only_in_training_and_from_the_dropout_stream():
  model = ViT(**SMALL, dropout=0.2, drop_path=0.5)
  params = random_params(model)
  clean = apply(ViT(**SMALL), params).pooled
  np.testing.assert_array_equal(apply(model, params).pooled, clean)
  noisy = [apply(model, params, train=True, key=key).pooled for key in (0, 0, 1)]
  np.testing.assert_array_equal(noisy[0], noisy[1])
  assert (noisy[0] != noisy[2]).any()
  assert (noisy[0] != clean).any()


def test_stochastic_depth_spares_the_first_block_and_drops_the_last():
  model = ViT(**SMALL, drop_path=0.999999)
  params = random_params(model)
  dropped = apply(model, params, train=True, key=0)
  first = {name: value for name, value in params.items() if name != 'block_1'}
  shallow = apply(ViT(**{**SMALL, 'depth': 1}), first)
  np.testing.assert_allclose(dropped.tokens, shallow.tokens, atol=1e-5)


def test_layer_scale_starts_near_the_identity():
  model = ViT(**SMALL, pooling='mean', layer_scale=1e-5)
  image = jnp.asarray(IMAGE)
  params = nn.unbox(jax.jit(lambda: model.init(jax.random.key(0), image, train=False))())['params']
  for name in ('scale_1', 'scale_2'):
    np.testing.assert_array_equal(params['block_0'][name]['scale'], np.float32(1e-5))
  out = apply(model, params, blocks=(0, 1))
  np.testing.assert_allclose(out.blocks[0], out.blocks[1], atol=1e-3)


def test_kept_patches_see_one_another_alone():
  # Without the other patches: as if the image had those patches only, at their positions.
  model = ViT(**SMALL, registers=2)
  params = random_params(model)
  keep = np.array([[0, 2, 5], [1, 2, 3]])
  out = apply(model, params, keep=keep)
  assert out.tokens.shape == (2, 3, 16)
  assert out.grid is None
  for i in range(2):
    places = [divmod(n, 3) for n in keep[i]]
    patches = [IMAGE[i, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] for y, x in places]
    row = np.concatenate(patches, axis=1)[None]  # [1, 4, 12, 3]
    pos = params['pos_embedding'][:, [0, *(keep[i] + 1)]]
    alone = apply(model, {**params, 'pos_embedding': pos}, row)
    np.testing.assert_allclose(out.tokens[i], alone.tokens[0], atol=1e-5)
    np.testing.assert_allclose(out.pooled[i], alone.pooled[0], atol=1e-5)


def test_patch_dropout_is_for_training_and_drawn_by_example():
  model = ViT(**SMALL, pooling='mean', patch_dropout=0.5)
  params = random_params(model)
  assert apply(model, params).tokens.shape == (2, 6, 16)
  same = np.repeat(IMAGE[:1], 64, axis=0)
  out = apply(model, params, same, train=True, key=0)
  assert out.tokens.shape == (64, 3, 16)
  # 20 subsets of 3 of 6 patches, each of which is one of those `keep` can name.
  subsets = np.array(list(itertools.combinations(range(6), 3)))
  expected = apply(model, params, same[:20], keep=subsets).pooled
  apart = np.abs(np.asarray(out.pooled)[:, None] - np.asarray(expected)[None]).max(-1)
  assert apart.min(1).max() < 1e-5
  assert len(set(apart.argmin(1))) > 12


def test_a_block_that_there_is_not():
  model = ViT(**SMALL)
  with pytest.raises(ValueError, match='no block 2; there are 2, from 0'):
    apply(model, random_params(model), blocks=(2,))


def test_attention_weights_are_sown_by_block():
  model = ViT(**SMALL, pooling='map')
  _, state = apply(model, random_params(model), mutable='intermediates')
  sown = state['intermediates']
  assert sown.keys() == {'block_0', 'block_1', 'map_head'}
  for name, node in sown.items():
    (weights,) = node['attention']['attention_weights']
    assert weights.shape == (2, 2, 1 if name == 'map_head' else 6, 6)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_attention_implementations_agree():
  model = ViT(**SMALL, pooling='map')
  params = random_params(model)
  a, b = (apply(model.clone(attention=name), params) for name in ('einsum', 'xla'))
  np.testing.assert_allclose(a.pooled, b.pooled, atol=1e-5)
  np.testing.assert_allclose(a.tokens, b.tokens, atol=1e-5)


def test_every_parameter_names_its_axes():
  params = abstract_params(ViT(**SMALL, pooling='map', pre_logits=8), IMAGE.shape)
  others = abstract_params(ViT(**SMALL, **OPTIONS, pre_norm=True), IMAGE.shape)
  stem = abstract_params(ViT('R26+S/32'))['resnet']
  params |= {'cls': others['cls'], 'options': others, 'resnet': stem}
  boxes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for box in boxes:
    assert isinstance(box, nn.LogicallyPartitioned)
    assert len(box.names) == box.value.ndim
    assert set(box.names) <= {None, 'layers', 'embed', 'heads', 'head_dim', 'mlp'}
  assert params['block_1']['attention']['out']['kernel'].names == ('heads', 'head_dim', 'embed')
  assert params['embedding']['kernel'].names == (None, None, None, 'embed')


def test_initial_scales_are_the_published_ones():
  model = ViT('Ti/8', depth=1)
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
  params = jax.tree.map(np.asarray, nn.unbox(init(jax.random.key(0))['params']))
  assert np.abs(params['cls']).max() == 0
  assert params['pos_embedding'].std() == pytest.approx(0.02, rel=0.05)
  assert params['embedding']['kernel'].std() == pytest.approx((8 * 8 * 3) ** -0.5, rel=0.05)
  attention, mlp = params['block_0']['attention'], params['block_0']['mlp']
  for kernel, fans in (
    (attention['query']['kernel'], 192 + 192),  # Of the whole projection, not of one head.
    (attention['out']['kernel'], 192 + 192),
    (mlp['fc_1']['kernel'], 192 + 768),
  ):
    assert np.abs(kernel).max() == pytest.approx((6 / fans) ** 0.5, rel=0.01)
  assert mlp['fc_2']['bias'].std() == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(variant='X/16'), "unknown variant 'X'; choose from 'Ti', 'S', 'B', 'L', 'H', 'g', 'G'"),
    (dict(variant='B'), "no patch size in 'B': write 'B/16', or set patch_size"),
    (dict(patch_size=4, width=8), 'ViT needs depth, mlp_dim, num_heads'),
    (dict(SMALL, pooling='cls'), "unknown pooling 'cls'; choose from 'token', 'mean', 'map'"),
    (dict(SMALL, positions='rope'), "unknown positions 'rope'; choose from 'learned', 'sincos2d'"),
    (dict(SMALL, attention='flash'), "unknown attention 'flash'; choose from 'auto', 'einsum'"),
    (dict(SMALL, activation='elu'), "unknown activation 'elu'; choose from 'gelu', 'gelu_tanh'"),
    (dict(SMALL, dtype='half'), "unknown dtype 'half'; choose from 'float32', 'bfloat16'"),
    (dict(SMALL, attention='cudnn'), "'cudnn' needs dtype 'bfloat16' or 'float16'"),
    (dict(SMALL, num_heads=3), 'width 16 is not divisible by num_heads 3'),
    (dict(SMALL, remat='all'), "unknown remat 'all'; choose from 'none', 'full', 'dots', "),
    (dict(SMALL, registers=-1), 'registers must be 0 or more, got -1'),
    (dict(SMALL, patch_dropout=1.0), 'patch_dropout is a probability below 1, not 1.0'),
    (dict(variant='R18+B/16'), "unknown ResNet 'R18'; choose from 'R', 'R26', 'R50'"),
    (dict(variant='R26+S/16'), 'patch_size 16 is not a multiple of 32'),
    (dict(SMALL, drop_path=1.0), 'drop_path is a probability below 1, not 1.0'),
    (
      dict(SMALL, positions='sincos2d', grid=(2, 2)),
      "for 'learned' positions; 'sincos2d' take any",
    ),
    (dict(SMALL, grid=(2, 0)), r'\(height, width\) in patches, at least 1, not \(2, 0\)'),
    (dict(SMALL, grid=[2, 3, 1]), r'in patches, at least 1, not \[2, 3, 1\]'),
    (dict(SMALL, grid=14), 'in patches, at least 1, not 14'),
    (dict(SMALL, position_resize='nearest'), "unknown position_resize 'nearest'; choose from 'bic"),
    (dict(SMALL, norm_after_pooling=True), "norm_after_pooling is for pooling 'mean', not 'token'"),
    (dict(SMALL, norm_after_pooling=True, pooling='map'), "for pooling 'mean', not 'map'"),
  ],
)
def test_wrong_fields_fail_when_built(fields, message):
  with pytest.raises(ValueError, match=message):
    ViT(**fields)


def test_wrong_images_are_refused():
  model = ViT(**SMALL)
  params = random_params(model)
  with pytest.raises(ValueError, match='image 8x10 is not divisible by patch 4x4'):
    apply(model, params, IMAGE[:, :, :10])
  with pytest.raises(ValueError, match='float images, not uint8'):
    apply(model, params, IMAGE.astype(np.uint8))
  with pytest.raises(ValueError, match='another number of tokens than 2x2 patches; set grid to'):
    apply(model, params, IMAGE[:, :, :8])
  with pytest.raises(ValueError, match='another number of tokens than 3x3 patches; set grid to'):
    apply(model.clone(grid=(3, 3)), params)


def test_a_variant_is_overridden_field_by_field():
  model = ViT('S/16', depth=3, patch_size=(8, 4), num_heads=12)
  assert model.size == (384, 3, 1536, 12)
  assert model.patch == (8, 4)
