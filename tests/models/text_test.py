"""Encoders of text against open_clip's, and NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import sharding
from vit_jax.build import build
from vit_jax.models.pooling import MapHead
from vit_jax.models.text import CBOW, POOLINGS, VARIANTS, TextTransformer

VOCAB, END = 50, 49
FIELDS = dict(vocab_size=VOCAB, width=16, depth=2, num_heads=2, context=9)
SMALL = dict(FIELDS, end_id=END, projection=6)
# A text that fills the context, two with padding, and one that is nothing else.
TEXT = np.array(
  [
    [48, 7, 3, 9, 21, 5, 8, 2, END],
    [48, 0, 3, END, 0, 0, 0, 0, 0],
    [48, 11, 12, 13, 14, END, 0, 0, 0],
    [0] * 9,
  ],
  np.int32,
)
SIGLIP = dict(causal=False, pooling='last', projection_bias=True)


def abstract(model, length=9):
  """Boxed shapes of the parameters."""
  text = jax.ShapeDtypeStruct((1, length), jnp.int32)
  variables = jax.eval_shape(
    lambda key, text: model.init(key, text, train=False), jax.random.key(0), text
  )
  assert variables.keys() == {'params'}
  return variables['params']


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_params(model, seed=0):
  """Parameters none of which is zero or one, so that none can be forgotten."""
  leaves, tree = jax.tree.flatten(nn.unbox(abstract(model)))
  rng = np.random.default_rng(seed)
  leaves = [rng.normal(scale=0.4, size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
  return jax.tree.unflatten(tree, leaves)


def apply(model, params, text=TEXT, *, train=False, key=None):
  rngs = None if key is None else {'dropout': jax.random.key(key)}
  run = jax.jit(lambda params, text: model.apply({'params': params}, text, train=train, rngs=rngs))
  return run(params, text)


def gradient(model, params, text=TEXT):
  """Features, and the gradient of a number that depends on all of them."""

  def loss(params, text):
    out = model.apply({'params': params}, text, train=False)
    return (out.pooled.astype(jnp.float32) ** 2).sum() + (out.tokens**3).sum() / 100, out

  grads, out = jax.jit(jax.grad(loss, has_aux=True))(params, text)
  return out, grads


def assert_close(ours, theirs, relative=1e-5):
  """Within a share of the largest."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())


def assert_same_gradients(ours, theirs):
  """As `assert_close`; those of the keys' biases are 0 but for rounding, beside the largest."""
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))

  def check(one, other):
    atol = 1e-5 * np.abs(other).max() + 1e-7 * largest
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)

  jax.tree.map(check, ours, theirs)


# -- open_clip.


def make_peer(model, pool_type, **fields):
  """The same tower in open_clip."""
  torch = pytest.importorskip('torch')
  open_clip = pytest.importorskip('open_clip')
  quick = model.activation == 'quick_gelu'
  return open_clip.transformer.TextTransformer(
    context_length=model.context,
    vocab_size=model.vocab_size,
    width=model.size.width,
    heads=model.size.num_heads,
    layers=model.size.depth,
    mlp_ratio=model.size.mlp_dim / model.size.width,
    output_dim=model.projection,
    no_causal_mask=not model.causal,
    pool_type=pool_type,
    proj_bias=model.projection_bias,
    act_layer=open_clip.transformer.QuickGELU if quick else torch.nn.GELU,
    output_tokens=True,
    **fields,
  )


def block_to_torch(p, number):
  """Ours to the names of one of open_clip's blocks."""
  attention, width = p['attention'], len(p['norm_1']['scale'])
  parts = [attention[name] for name in ('query', 'key', 'value')]
  made = {
    'attn.in_proj_weight': np.concatenate([q['kernel'].reshape(width, -1).T for q in parts]),
    'attn.in_proj_bias': np.concatenate([q['bias'].ravel() for q in parts]),
    'attn.out_proj.weight': attention['out']['kernel'].reshape(-1, width).T,
    'attn.out_proj.bias': attention['out']['bias'],
    'ln_1.weight': p['norm_1']['scale'],
    'ln_1.bias': p['norm_1']['bias'],
    'ln_2.weight': p['norm_2']['scale'],
    'ln_2.bias': p['norm_2']['bias'],
    'mlp.c_fc.weight': p['mlp']['fc_1']['kernel'].T,
    'mlp.c_fc.bias': p['mlp']['fc_1']['bias'],
    'mlp.c_proj.weight': p['mlp']['fc_2']['kernel'].T,
    'mlp.c_proj.bias': p['mlp']['fc_2']['bias'],
  }
  return {f'transformer.resblocks.{number}.{name}': array for name, array in made.items()}


def copy_to(peer, params):
  """Gives open_clip's tower our parameters; every one of both is used."""
  import torch

  made = {
    'token_embedding.weight': params['token_embedding']['embedding'],
    'positional_embedding': params['pos_embedding'][0],
    'ln_final.weight': params['norm']['scale'],
    'ln_final.bias': params['norm']['bias'],
  }
  for i in range(2):
    made |= block_to_torch(params[f'block_{i}'], i)
  projection = params['projection']
  if 'bias' in projection:
    made['text_projection.weight'] = projection['kernel'].T
    made['text_projection.bias'] = projection['bias']
  else:
    made['text_projection'] = projection['kernel']
  assert sum(array.size for array in made.values()) == count(params)
  peer.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in made.items()}, strict=True)


@pytest.mark.parametrize(
  ('fields', 'pool_type', 'peer_fields'),
  [
    (dict(), 'argmax', {}),
    (dict(activation='quick_gelu'), 'argmax', {}),
    (dict(activation='quick_gelu', attention='xla', mlp_dim=24), 'argmax', {}),
    (dict(pooling='first'), 'first', {}),
    (SIGLIP, 'last', {}),
    (dict(causal=False), 'eos', dict(eos_id=END)),
    (
      dict(causal=False, mask_padding=True, end_id=None, pad_id=0, pooling='first'),
      'first',
      dict(use_pad_mask=True),
    ),
  ],
)
def test_equals_open_clip(fields, pool_type, peer_fields):
  torch = pytest.importorskip('torch')
  model = TextTransformer(**{**SMALL, **fields})
  params = random_params(model)
  peer = make_peer(model, pool_type, **peer_fields).eval()
  copy_to(peer, params)
  text = TEXT[:3]
  if model.mask_padding:
    text = np.where(text == 0, 4, text)  # 0 is padding wherever it stands.
    text[1, 4:] = text[2, 6:] = 0
  with torch.no_grad():
    pooled, tokens = (x.numpy() for x in peer(torch.from_numpy(text).long()))
  out = apply(model, params, text)
  assert_close(out.pooled, pooled)
  assert_close(out.tokens, tokens)


@pytest.mark.parametrize(
  ('variant', 'name', 'published'),
  [('B', 'ViT-B-32', 63_428_096), ('L', 'ViT-L-14', 123_650_304)],
)
def test_parameter_count(variant, name, published):
  torch = pytest.importorskip('torch')
  open_clip = pytest.importorskip('open_clip')
  config = open_clip.get_model_config(name)
  model = TextTransformer(49408, variant, end_id=49407, projection=config['embed_dim'])
  text = config['text_cfg']
  assert model.size == (text['width'], text['layers'], 4 * text['width'], text['heads'])
  assert model.context == text['context_length']
  with torch.device('meta'):
    peer = open_clip.transformer.TextTransformer(
      width=text['width'],
      heads=text['heads'],
      layers=text['layers'],
      output_dim=config['embed_dim'],
    )
  params = nn.unbox(abstract(model, 77))
  assert count(params) == sum(p.numel() for p in peer.parameters()) == published
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_every_variant_has_a_count():
  assert VARIANTS.keys() == {'B', 'L'}


# -- Pooling and padding.


def test_poolings_are_what_they_say():
  mask = np.array([[1] * 9, [1] * 4 + [0] * 5, [1] * 6 + [0] * 3, [1] * 9], bool)
  plain = {**SMALL, 'projection': None, 'depth': 1}
  params = random_params(TextTransformer(**plain, pooling='map'))
  pooled = {}
  for pooling in POOLINGS:
    used = {k: v for k, v in params.items() if pooling == 'map' or k != 'map_head'}
    out = apply(TextTransformer(**plain, pooling=pooling), used)
    np.testing.assert_array_equal(out.mask, mask)
    pooled[pooling] = np.asarray(out.pooled)
  x = np.asarray(out.tokens)
  head = jax.jit(MapHead(64, 2, ln_eps=1e-5).apply)({'params': params['map_head']}, x)
  expected = {
    'end': [x[0, 8], x[1, 3], x[2, 5], x[3, 8]],
    'last': x[:, 8],
    'first': x[:, 0],
    'mean': [row[seen].mean(0) for row, seen in zip(x, mask, strict=True)],
    'map': head,
  }
  for pooling in POOLINGS:
    assert_close(pooled[pooling], expected[pooling])


def test_the_end_is_its_first_occurrence_and_no_end_is_the_last_word():
  model = TextTransformer(**SMALL, pad_id=0)
  params = random_params(model)
  twice = np.array([[48, 7, END, 5, END, 0, 0, 0, 0], [48, 7, END, 0, 0, 0, 0, 0, 0]], np.int32)
  out = apply(model, params, twice)
  assert out.mask.sum(1).tolist() == [3, 3]
  assert_close(out.pooled[0], out.pooled[1])
  without = np.array([[48, 7, 3, 0, 0, 0, 0, 0, 0]], np.int32)
  last = apply(model.clone(pooling='last'), params, without[:, :3]).pooled
  assert_close(apply(model, params, without).pooled, last)


def test_what_follows_the_end_does_not_change_a_causal_text():
  model = TextTransformer(**SMALL)
  params = random_params(model)
  other = TEXT.copy()
  other[1, 4:], other[2, 6:] = [END, 7, 8, 48, END], 17
  one, two = (apply(model, params, text) for text in (TEXT, other))
  np.testing.assert_array_equal(one.pooled[:3], two.pooled[:3])
  assert np.abs(one.tokens - two.tokens)[1, 4:].min(-1).max() > 1e-3
  short = apply(model, params, TEXT[1:3, :6])
  assert_close(short.pooled, one.pooled[1:3])


@pytest.mark.parametrize(('causal', 'pooling'), [(False, 'mean'), (True, 'mean'), (False, 'end')])
def test_masked_padding_changes_nothing(causal, pooling):
  fields = dict(SMALL, causal=causal, pooling=pooling, mask_padding=True)
  model = TextTransformer(**fields)
  params = random_params(model)
  other = TEXT.copy()
  other[1, 4:], other[2, 6:] = [3, 7, 8, 48, END], 17
  one, two = (apply(model, params, text).pooled for text in (TEXT, other))
  np.testing.assert_array_equal(one[:3], two[:3])
  assert_close(apply(model, params, TEXT[1:3, :6]).pooled, one[1:3])
  if not causal:  # Padding that is looked at does.
    seen = model.clone(mask_padding=False)
    one, two = (apply(seen, params, text).pooled for text in (TEXT, other))
    assert np.abs(one - two)[1:3].max(-1).min() > 1e-3
    np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize(
  ('causal', 'pooling', 'dtype'),
  [(True, 'end', 'float32'), (False, 'mean', 'float32'), (False, 'mean', 'bfloat16')],
)
def test_a_text_of_padding_alone_has_finite_features_and_gradients(causal, pooling, dtype):
  fields = dict(SMALL, causal=causal, pooling=pooling, mask_padding=True, pad_id=0, dtype=dtype)
  model = TextTransformer(**fields)
  out, grads = gradient(model, random_params(model), np.zeros((2, 9), np.int32))
  assert not out.mask.any()
  assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves((out, grads)))
  assert np.abs(grads['block_0']['mlp']['fc_1']['kernel']).max() > 0


# -- Computed in other ways.


@pytest.mark.parametrize(
  ('scan', 'remat'), [(True, 'none'), (False, 'full'), (True, 'dots_no_batch')]
)
def test_a_scan_and_what_is_computed_again_give_the_plain_loop(scan, remat):
  model = TextTransformer(**SMALL, mask_padding=True, pad_id=7)
  params = random_params(model)
  blocks = [params[f'block_{i}'] for i in range(2)]
  rest = {name: value for name, value in params.items() if not name.startswith('block_')}
  stack = lambda *leaves: np.stack(leaves)  # noqa: E731
  stacked = {**rest, 'blocks': jax.tree.map(stack, *blocks)} if scan else params
  out, grads = gradient(model, params)
  other, other_grads = gradient(model.clone(scan=scan, remat=remat), stacked)
  if scan:
    grads['blocks'] = jax.tree.map(stack, *(grads.pop(f'block_{i}') for i in range(2)))
  jax.tree.map(assert_close, other, out)
  assert_same_gradients(other_grads, grads)


def test_bfloat16_is_close_and_its_parameters_are_float32():
  half = TextTransformer(**SMALL, mask_padding=True, dtype='bfloat16', activation='quick_gelu')
  params = random_params(half)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(abstract(half))} == {'float32'}
  out, full = apply(half, params), apply(half.clone(dtype='float32'), params)
  assert out.pooled.dtype == out.tokens.dtype == jnp.bfloat16
  assert_close(np.float32(out.tokens), full.tokens, 0.03)
  assert_close(np.float32(out.pooled), full.pooled, 0.03)


def test_noise_only_in_training_and_from_the_dropout_stream():
  model = TextTransformer(**SMALL, dropout=0.2, drop_path=0.5)
  params = random_params(model)
  clean = apply(TextTransformer(**SMALL), params).pooled
  np.testing.assert_array_equal(apply(model, params).pooled, clean)
  noisy = [apply(model, params, train=True, key=key).pooled for key in (0, 0, 1)]
  np.testing.assert_array_equal(noisy[0], noisy[1])
  assert (noisy[0] != noisy[2]).any()
  assert (noisy[0] != clean).any()


@pytest.mark.parametrize('shape', [dict(data=8), dict(data=2, fsdp=2, tensor=2)])
@pytest.mark.parametrize('kind', ['transformer', 'cbow'])
def test_a_mesh_changes_nothing(kind, shape):
  if kind == 'transformer':
    model = TextTransformer(**SMALL, mask_padding=True)
  else:
    model = CBOW(VOCAB, 16, mlp_dim=8, projection=6, end_id=END)
  params = random_params(model)
  text = np.concatenate([TEXT, TEXT[::-1] // 2])
  out, grads = gradient(model, params, text)
  mesh = sharding.make_mesh(shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.parameter_shardings(abstract(model), mesh))
    text = jax.device_put(text, sharding.batch_sharding(mesh))
    split_out, split_grads = gradient(model, placed, text)
  jax.tree.map(assert_close, split_out, out)
  assert_same_gradients(split_grads, grads)


# -- Parameters.


def test_every_parameter_has_logical_axes_of_the_table():
  models = (
    TextTransformer(**{**SMALL, **SIGLIP}),
    TextTransformer(**SMALL, scan=True),
    TextTransformer(**{**SMALL, 'pooling': 'map'}),
    CBOW(VOCAB, mlp_dim=8, projection=4, projection_bias=True),
  )
  boxes = jax.tree.leaves(
    [abstract(model) for model in models], is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
  )
  assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
  assert all(len(box.names) == box.value.ndim for box in boxes)
  used = {name for box in boxes for name in box.names if name}
  assert used == {'embed', 'mlp', 'heads', 'head_dim', 'layers'} <= sharding.LOGICAL_AXES.keys()


def test_initial_scales_are_the_published_ones():
  model = TextTransformer(1000, width=64, depth=1, num_heads=1, end_id=1, projection=128)
  init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 77), jnp.int32), train=False))
  params = jax.tree.map(np.asarray, nn.unbox(init(jax.random.key(0))['params']))
  assert params.keys() == {'token_embedding', 'pos_embedding', 'block_0', 'norm', 'projection'}
  assert params['token_embedding']['embedding'].std() == pytest.approx(0.02, rel=0.05)
  assert params['pos_embedding'].std() == pytest.approx(0.01, rel=0.05)
  assert params['projection'].keys() == {'kernel'}
  assert params['projection']['kernel'].std() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(variant='H'), "unknown variant 'H'; choose from 'B', 'L'"),
    (dict(width=8), r"without a variant \('B', 'L'\) TextTransformer needs depth, num_heads"),
    (dict(variant='B', depth=0), 'sizes of at least 1'),
    (dict(variant='B', num_heads=7), 'width 512 is not divisible by num_heads 7'),
    (dict(variant='B', pooling='cls'), "unknown pooling 'cls'; choose from 'end', 'last', 'first'"),
    (dict(variant='B', activation='elu'), "unknown activation 'elu'; choose from 'gelu', 'gelu_ta"),
    (dict(variant='B', attention='flash'), "unknown attention 'flash'; choose from 'auto'"),
    (dict(variant='B', attention='cudnn'), "'cudnn' needs dtype 'bfloat16' or 'float16'"),
    (dict(variant='B', remat='all'), "unknown remat 'all'; choose from 'none', 'full'"),
    (dict(variant='B', dtype='half'), "unknown dtype 'half'; choose from 'float32'"),
    (dict(variant='B', dropout=1.0), 'dropout is a probability below 1, not 1.0'),
    (dict(variant='B', context=0), 'vocab_size and context must be at least 1, got 50 and 0'),
    (dict(variant='B', end_id=None), "pooling 'end' needs end_id"),
    (dict(variant='B', end_id=50), 'end_id is a token below vocab_size 50, not 50'),
    (dict(variant='B', pad_id=-1), 'pad_id is a token below vocab_size 50, not -1'),
    (dict(variant='B', pad_id=END), 'end_id and pad_id are both 49; leave pad_id out'),
    (dict(variant='B', pooling='last', end_id=None, mask_padding=True), 'mask_padding needs end_'),
    (dict(variant='B', pooling='map', mask_padding=True), "mask_padding is not for pooling 'map'"),
    (dict(variant='B', projection_bias=True), 'projection_bias needs a projection'),
    (dict(variant='B', projection=0), 'projection must be at least 1, got 0'),
  ],
)
def test_wrong_fields_fail_when_built(fields, message):
  with pytest.raises(ValueError, match=message):
    TextTransformer(**{'vocab_size': VOCAB, 'end_id': END, **fields})


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (TEXT.astype(np.float32), r'texts are integers \[B, L\], not float32 \[4, 9\]'),
    (TEXT[0], r'texts are integers \[B, L\], not int32 \[9\]'),
    (np.zeros((1, 10), np.int32), 'a text of 10 tokens is longer than the context of 9'),
  ],
)
def test_what_is_no_text_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    TextTransformer(**SMALL).init(jax.random.key(0), text, train=False)


def test_a_token_outside_the_vocabulary_is_not_read_as_another():
  model = TextTransformer(**SMALL)
  text = TEXT[:2].copy()
  text[1, 1] = VOCAB
  pooled = apply(model, random_params(model), text).pooled
  assert np.isfinite(pooled[0]).all() and np.isnan(pooled[1]).all()


def test_a_variant_is_overridden_field_by_field():
  model = TextTransformer(VOCAB, 'B', width=640, num_heads=10, end_id=END)
  assert model.size == (640, 12, 2048, 10)
  assert TextTransformer(VOCAB, width=64, depth=1, num_heads=1, end_id=END).size.mlp_dim == 256
  spec = dict(type='models.text.TextTransformer', vocab_size=VOCAB, variant='L', end_id=END)
  assert build(spec).size == VARIANTS['L']


# -- A bag of words.


def test_cbow_is_the_mean_of_the_embeddings_and_a_linear_layer():
  model = CBOW(VOCAB, 16, projection=5, projection_bias=True, end_id=END)
  params = random_params(model)
  assert params.keys() == {'token_embedding', 'projection'}
  table, projection = params['token_embedding']['embedding'], params['projection']
  lengths = (9, 4, 6, 9)
  expected = [table[row[:n]].mean(0) for row, n in zip(TEXT, lengths, strict=True)]
  out = apply(model, params)
  assert_close(out.pooled, np.stack(expected) @ projection['kernel'] + projection['bias'])
  assert_close(out.tokens, table[TEXT])
  assert out.mask.sum(1).tolist() == list(lengths)
  bare = apply(CBOW(VOCAB, 16, end_id=END), {'token_embedding': params['token_embedding']})
  assert_close(bare.pooled, expected)


def test_cbow_with_an_mlp():
  model = CBOW(VOCAB, 16, mlp_dim=8, pad_id=0, activation='quick_gelu')
  params = random_params(model)
  mean = np.stack(
    [params['token_embedding']['embedding'][row[row > 0]].mean(0) for row in TEXT[:3]]
  )
  fc_1, fc_2 = params['mlp']['fc_1'], params['mlp']['fc_2']
  hidden = mean @ fc_1['kernel'] + fc_1['bias']
  hidden = hidden / (1 + np.exp(-1.702 * hidden))
  assert_close(apply(model, params, TEXT[:3]).pooled, hidden @ fc_2['kernel'] + fc_2['bias'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_cbow_of_padding_alone_is_finite(dtype):
  model = CBOW(VOCAB, 16, mlp_dim=8, projection=5, pad_id=0, dtype=dtype)
  out, grads = gradient(model, random_params(model), np.zeros((2, 9), np.int32))
  assert out.pooled.dtype == dtype
  assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves((out, grads)))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(width=0), 'vocab_size and width must be at least 1, got 50 and 0'),
    (dict(mlp_dim=0), 'mlp_dim must be at least 1, got 0'),
    (dict(projection=0), 'projection must be at least 1, got 0'),
    (dict(projection_bias=True), 'projection_bias needs a projection'),
    (dict(activation='elu'), "unknown activation 'elu'; choose from 'gelu', 'gelu_tanh'"),
    (dict(dtype='half'), "unknown dtype 'half'; choose from 'float32'"),
    (dict(end_id=3, pad_id=3), 'end_id and pad_id are both 3'),
    (dict(dropout=1.0), 'dropout is a probability below 1, not 1.0'),
  ],
)
def test_wrong_fields_of_cbow_fail_when_built(fields, message):
  with pytest.raises(ValueError, match=message):
    CBOW(VOCAB, **fields)
