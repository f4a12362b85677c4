import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from vit_jax import optim, units

TOTAL = 40
STEPS = functools.partial(units.steps, batch_size=10, num_examples=100)  # An epoch is 10 steps.


def make_params():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  def block():
    return {'mlp': {'kernel': draw(3, 4), 'bias': draw(4)}, 'norm': {'scale': draw(3)}}

  encoder = {'cls': draw(1, 1, 3), 'block_0': block(), 'block_1': block()}
  return {'encoder': encoder, 'head': {'kernel': draw(3, 2), 'bias': draw(2)}}


def make_grads(num):
  rng = np.random.default_rng(1)

  def draw(p):
    return jnp.asarray(rng.normal(size=p.shape), jnp.float32)

  return [jax.tree.map(draw, make_params()) for _ in range(num)]


def named(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf, np.float64)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def build(params=None, total_steps=TOTAL, batch_size=None, **config):
  config = {'name': 'adamw', 'learning_rate': 0.1, **config}
  params = make_params() if params is None else params
  return optim.build_optimizer(
    config, params, total_steps=total_steps, steps=STEPS, batch_size=batch_size
  )


def train(optimizer, grads, params=None, state=None):
  params = make_params() if params is None else params
  state = optimizer.tx.init(params) if state is None else state

  @jax.jit
  def step(params, state, grad):
    updates, state = optimizer.tx.update(grad, state, params)
    return optax.apply_updates(params, updates), state

  for grad in grads:
    params, state = step(params, state, grad)
  return params, state


def clipped(grad, clip, frozen=()):
  """Every gradient that is trained, scaled so that their global norm is at most `clip`."""
  total = 0.0
  for name, g in grad.items():
    if name not in frozen:
      for value in g.ravel():
        total += value**2
  scale = min(1.0, clip / math.sqrt(total))
  return {name: scale * g for name, g in grad.items() if name not in frozen}


def is_kernel(name):
  return name.endswith('/kernel')


def expect_close(got, expected):
  got = named(got)
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


# -- The updates, against plain loops.


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_has_momentum_and_coupled_decay(nesterov):
  options = {'momentum': 0.8, 'nesterov': nesterov}
  optimizer = build(name='sgd', weight_decay=0.3, clip=1.5, options=options, schedule='linear')
  grads = make_grads(5)
  p = named(make_params())
  velocity = dict.fromkeys(p, 0.0)
  for s, grad in enumerate(map(named, grads)):
    lr = 0.1 * (1 - s / TOTAL)
    for name, g in clipped(grad, 1.5).items():
      g = g + (0.3 * p[name] if is_kernel(name) else 0)
      velocity[name] = 0.8 * velocity[name] + g
      p[name] = p[name] - lr * (g + 0.8 * velocity[name] if nesterov else velocity[name])
  expect_close(train(optimizer, grads)[0], p)


def test_sgd_without_momentum_has_no_buffer():
  optimizer = build(name='sgd', options={'momentum': 0}, schedule='constant')
  grads = make_grads(1)
  g = named(grads[0])
  params, state = train(optimizer, grads)
  expect_close(params, {name: p - 0.1 * g[name] for name, p in named(make_params()).items()})
  assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]  # The step alone.


def adamw_loop(grads, *, lr, wd, clip=math.inf, b1=0.9, b2=0.999, eps=1e-8, frozen=()):
  """`lr(step, name)` and `wd(name)` are the learning rate and the coefficient of each parameter."""
  p = named(make_params())
  mu, nu = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
  for s, grad in enumerate(map(named, grads)):
    for name, g in clipped(grad, clip, frozen).items():
      mu[name] = b1 * mu[name] + (1 - b1) * g
      nu[name] = b2 * nu[name] + (1 - b2) * g**2
      mu_hat, nu_hat = mu[name] / (1 - b1 ** (s + 1)), nu[name] / (1 - b2 ** (s + 1))
      update = mu_hat / (np.sqrt(nu_hat) + eps) + wd(name) * p[name]
      p[name] = p[name] - lr(s, name) * update
  return p


def test_adamw_with_clipping_and_decoupled_decay():
  optimizer = build(
    weight_decay=0.5, clip=0.7, warmup={'epochs': 0.2}, options={'b2': 0.95, 'eps': 1e-2}
  )
  grads = make_grads(5)

  def lr(s, _):
    return 0.1 * (s / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / (TOTAL - 2))))

  def wd(name):
    return 0.5 * is_kernel(name)

  expected = adamw_loop(grads, lr=lr, wd=wd, clip=0.7, b2=0.95, eps=1e-2)
  expect_close(train(optimizer, grads)[0], expected)


def test_a_norm_below_the_limit_is_left_alone():
  grads = make_grads(2)
  some, none = build(clip=1e3), build()
  jax.tree.map(np.testing.assert_array_equal, train(some, grads)[0], train(none, grads)[0])


def test_rules_of_decay_multiplier_and_freeze_together():
  optimizer = build(
    schedule='constant',
    weight_decay=0.2,
    clip=1.0,
    decay=(('head/kernel', 5.0), ('.*/kernel', 1.0), ('.*/scale', 0.5)),
    multiplier=(('head/.*', 10.0), ('encoder/block_1/.*', 0.25)),
    freeze=('encoder/block_0/.*', 'encoder/cls'),
  )
  grads = make_grads(5)

  def lr(_, name):
    return 0.1 * (10 if 'head' in name else 0.25 if 'block_1' in name else 1)

  def wd(name):
    return {'head/kernel': 1.0}.get(name, 0.2 if is_kernel(name) else 0.1 * ('scale' in name))

  frozen = {name for name in named(make_params()) if 'block_0' in name or 'cls' in name}
  expected = adamw_loop(grads, lr=lr, wd=wd, clip=1.0, frozen=frozen)
  expect_close(train(optimizer, grads)[0], expected)


def test_the_multiplier_scales_the_decay_of_sgd_too():
  one, ten = (build(name='sgd', weight_decay=0.1, multiplier=(('.*', m),)) for m in (1.0, 10.0))
  grads = make_grads(1)
  p = named(make_params())
  moved = named(train(one, grads)[0]), named(train(ten, grads)[0])
  for name, start in p.items():
    np.testing.assert_allclose(moved[1][name] - start, 10 * (moved[0][name] - start), rtol=1e-4)


@pytest.mark.parametrize('weight_decay', [1e-6, 0.3])
def test_lars_is_the_rule_of_simclrs_code(weight_decay):
  """The optimizer published with arXiv:2002.05709, with its defaults: eta 0.001, momentum 0.9.

  What is called batch normalisation or bias there has neither decay nor a trust ratio.
  """
  draws = np.random.default_rng(2)

  def draw():
    shapes = {'conv': {'kernel': (3, 3, 2, 4)}, 'bn': {'scale': (4,), 'bias': (4,)}}
    shapes['head'] = {'kernel': (4, 5), 'bias': (5,)}
    return {
      layer: {name: draws.normal(size=shape).astype(np.float32) for name, shape in of.items()}
      for layer, of in shapes.items()
    }

  params, grads = draw(), [draw() for _ in range(6)]
  optimizer = build(
    params,
    name='lars',
    learning_rate=0.3,
    scaling='linear',
    batch_size=4096,
    weight_decay=weight_decay,
    warmup={'steps': 3},
  )
  decayed = {row.name: row.decay for row in optimizer.table if row.decay}
  assert decayed == {'conv/kernel': weight_decay, 'head/kernel': weight_decay}
  p = named(params)
  velocity = dict.fromkeys(p, 0.0)
  for s, grad in enumerate(map(named, grads)):
    rate = 4.8 * (s / 3 if s < 3 else 0.5 * (1 + math.cos(math.pi * (s - 3) / (TOTAL - 3))))
    for name, g in grad.items():
      trust_ratio = 1.0
      if is_kernel(name):
        g = g + weight_decay * p[name]
        trust_ratio = 0.001 * math.sqrt((p[name] ** 2).sum()) / math.sqrt((g**2).sum())
      velocity[name] = 0.9 * velocity[name] + rate * trust_ratio * g
      p[name] = p[name] - velocity[name]
  expect_close(train(optimizer, grads, params)[0], p)


# -- Frozen parameters.


def test_frozen_parameters_stay_bit_for_bit_and_have_no_state():
  params = make_params()
  optimizer = build(weight_decay=0.5, freeze=('encoder/.*',))
  after, state = train(optimizer, make_grads(3), params)
  jax.tree.map(np.testing.assert_array_equal, params['encoder'], after['encoder'])
  assert not np.array_equal(params['head']['kernel'], after['head']['kernel'])
  shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.shape]
  assert sorted(shapes) == sorted(2 * [(3, 2), (2,)])  # The two moments of the head.


def test_frozen_gradients_may_be_anything():
  grads = make_grads(2)
  wild = [{**g, 'encoder': jax.tree.map(lambda x: x * jnp.nan, g['encoder'])} for g in grads]
  optimizer = build(clip=0.1, freeze=('encoder/.*',))
  params = train(optimizer, grads)[0]
  jax.tree.map(np.testing.assert_array_equal, params, train(optimizer, wild)[0])
  assert np.isfinite(params['head']['kernel']).all()


def test_nothing_left_to_train():
  with pytest.raises(ValueError, match='leaves nothing to train'):
    build(freeze=('.*',))


# -- The state.


@pytest.mark.parametrize('freeze', [(), ('encoder/block_0/.*',)])
@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_builds_from_abstract_parameters_and_jits(name, freeze):
  fields = {'name': name, 'weight_decay': 0.1, 'clip': 1.0, 'freeze': freeze}
  params = make_params()
  real = build(params, **fields)
  abstract_params = jax.eval_shape(lambda: params)
  abstract = build(abstract_params, **fields)
  assert abstract.table == real.table
  expected = jax.eval_shape(abstract.tx.init, abstract_params)
  state = jax.jit(real.tx.init)(params)
  assert jax.tree.structure(state) == jax.tree.structure(expected)

  def describe(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

  assert describe(state) == describe(expected)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  _, after = jax.eval_shape(abstract.tx.update, abstract_params, expected, abstract_params)
  assert jax.tree.structure(after) == jax.tree.structure(expected)
  assert describe(after) == describe(expected)


def test_resuming_is_exact():
  fields = {'warmup': {'steps': 3}, 'weight_decay': 0.1, 'freeze': ('encoder/cls',)}
  grads = make_grads(6)
  straight, _ = train(build(**fields), grads)
  params, state = train(build(**fields), grads[:3])
  params, state = jax.tree.map(np.asarray, (params, state))  # As a checkpoint would.
  resumed, _ = train(build(**fields), grads[3:], params, state)
  jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_keeps_the_dtype_of_parameters_and_moments():
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params())
  optimizer = build(params, weight_decay=0.1, multiplier=(('head/.*', 3.0),))
  state = optimizer.tx.init(params)
  updates, _ = optimizer.tx.update(params, state, params)
  assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype('bfloat16')}
  state = build(options={'mu_dtype': 'bfloat16'}).tx.init(make_params())
  dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.shape]
  assert sorted(set(dtypes)) == ['bfloat16', 'float32']


# -- Schedules.

CLOSED_FORMS = {
  'cosine': lambda s, w, end: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (s - w) / (100 - w))),
  'linear': lambda s, w, end: end + (1 - end) * (1 - (s - w) / (100 - w)),
  'rsqrt': lambda s, w, end: 1 / math.sqrt(1 + (s - w) / 30),
  'constant': lambda s, w, end: 1.0,
}


def test_every_schedule_is_tested():
  assert set(CLOSED_FORMS) == set(optim.SCHEDULES)


@pytest.mark.parametrize('end', [0.0, 0.1])
@pytest.mark.parametrize('cooldown', [0, 25])
@pytest.mark.parametrize('warmup', [0, 10])
@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedule_is_its_closed_form(name, warmup, cooldown, end):
  schedule = optim.build_schedule(
    2.0,
    schedule=name,
    total_steps=100,
    warmup=warmup,
    cooldown=cooldown,
    end_value=end,
    timescale=30,
  )

  def expected(s):
    if s < warmup:
      return 2.0 * s / warmup
    share = CLOSED_FORMS[name](s, warmup, end)
    if s > 100 - cooldown:
      share = end + (share - end) * (100 - s) / cooldown
    return 2.0 * share

  values = schedule(np.arange(101))
  np.testing.assert_allclose(values, [expected(s) for s in range(101)], rtol=1e-5, atol=1e-6)
  assert values[warmup] == 2.0  # The peak, exactly.
  if name in ('cosine', 'linear') or cooldown:
    np.testing.assert_allclose(values[100], 2.0 * end, atol=1e-6)
  np.testing.assert_allclose(schedule(1000), values[100], rtol=1e-6)  # It stays.
  # No jumps at the seams, since the steepest part takes 10 steps.
  assert np.abs(np.diff(values)).max() <= 2.0 / 10 + 1e-6


def test_schedule_under_jit_is_a_float32_scalar():
  schedule = optim.build_schedule(0.3, schedule='constant', total_steps=10)
  value = jax.jit(schedule)(jnp.int32(4))
  assert (value.shape, value.dtype) == ((), jnp.float32)
  assert schedule(np.arange(3)).shape == (3,)


def test_the_optimizer_follows_its_schedule():
  fields = {'name': 'sgd', 'options': {'momentum': 0}, 'warmup': {'epochs': 0.5}}
  optimizer = build(**fields, cooldown={'examples': 95}, schedule='rsqrt', timescale={'steps': 9})
  params = make_params()
  state = optimizer.tx.init(params)
  ones = jax.tree.map(jnp.ones_like, params)
  update = jax.jit(optimizer.tx.update)
  for s in range(TOTAL):
    updates, state = update(ones, state, params)
    expected = 0.1 * min(s / 5, 1) / math.sqrt(1 + max(s - 5, 0) / 9) * min((TOTAL - s) / 10, 1)
    np.testing.assert_allclose(-updates['head']['bias'], expected, rtol=1e-5)
    np.testing.assert_allclose(optimizer.schedule(s), expected, rtol=1e-5)


def test_the_default_timescale_is_10000_steps():
  schedule = build(schedule='rsqrt', total_steps=20_000).schedule
  np.testing.assert_allclose(schedule(10_000), 0.1 / math.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_a_run_that_is_all_warmup_or_one_step(name):
  schedule = optim.build_schedule(1.0, schedule=name, total_steps=10, warmup=10)
  np.testing.assert_allclose(schedule(np.arange(11)), np.arange(11) / 10, rtol=1e-6)
  assert optim.build_schedule(1.0, schedule=name, total_steps=1)(0) == 1.0


def test_the_parts_of_a_schedule_must_fit_into_the_run():
  optim.build_schedule(1.0, schedule='cosine', total_steps=10, warmup=6, cooldown=4)
  with pytest.raises(ValueError, match=r'must fit into the run: 20 \+ 21 steps of 40'):
    optim.build_schedule(1.0, schedule='cosine', total_steps=40, warmup=20, cooldown=21)
  with pytest.raises(ValueError, match='at least 1 step, got total_steps=0'):
    build(total_steps=0)
  with pytest.raises(ValueError, match='timescale of at least 1 step, got 0'):
    build(schedule='rsqrt', timescale={'steps': 0})


@pytest.mark.parametrize(
  ('total_steps', 'warmup', 'cooldown', 'expected'),
  [
    (40, 20, 20, (20, 20)),  # They fit: nothing is cut.
    (40, 20, 21, (19, 20)),
    (8, 30, 10, (6, 2)),
    (5, 20, 0, (5, 0)),
    (5, 0, 20, (0, 5)),
    (1, 20, 20, (0, 0)),
  ],
)
def test_a_run_shorter_than_its_ramps_has_them_cut_in_proportion(
  total_steps, warmup, cooldown, expected
):
  optimizer = build(
    total_steps=total_steps,
    schedule='constant',
    warmup={'steps': warmup},
    cooldown={'steps': cooldown},
  )
  up, down = expected
  reference = optim.build_schedule(
    0.1, schedule='constant', total_steps=total_steps, warmup=up, cooldown=down
  )
  steps = np.arange(total_steps + 1)
  np.testing.assert_array_equal(optimizer.schedule(steps), reference(steps))
  assert optimizer.schedule(up) == pytest.approx(0.1)  # It comes to its peak all the same.
  assert not up or optimizer.schedule(0) == 0
  assert not down or optimizer.schedule(total_steps) == 0


@pytest.mark.parametrize(
  ('scaling', 'batch_size', 'learning_rate', 'peak'),
  [
    # App. B.1, arXiv:2002.05709: the two meet at the batch of the paper's main results.
    ('linear', 4096, 0.3, 4.8),
    ('sqrt', 4096, 0.075, 4.8),
    ('linear', 256, 0.3, 0.3),
    ('sqrt', 256, 0.075, 1.2),
    ('linear', 8192, 0.1, 3.2),  # Sec. 2.1, arXiv:1706.02677.
    ('none', 4096, 0.3, 0.3),
    ('none', None, 0.3, 0.3),
    (None, 4096, 0.3, 0.3),
  ],
)
def test_the_peak_is_scaled_by_the_batch_size(scaling, batch_size, learning_rate, peak):
  optimizer = build(
    name='sgd',
    learning_rate=learning_rate,
    scaling=scaling,
    batch_size=batch_size,
    options={'momentum': 0},
    schedule='linear',
    warmup={'steps': 10},
  )
  expected = [peak * min(s / 10, (TOTAL - s) / (TOTAL - 10)) for s in range(TOTAL + 1)]
  np.testing.assert_allclose(optimizer.schedule(np.arange(TOTAL + 1)), expected, rtol=1e-6)
  params = make_params()
  ones = jax.tree.map(jnp.ones_like, params)
  state = optimizer.tx.init(params)
  for _ in range(11):
    updates, state = jax.jit(optimizer.tx.update)(ones, state, params)
  np.testing.assert_allclose(-updates['head']['bias'], peak, rtol=1e-6)


def test_what_is_not_scaled_is_unchanged_to_the_last_bit():
  plain, none = build(), build(scaling='none', batch_size=4096)
  np.testing.assert_array_equal(plain.schedule(np.arange(41)), none.schedule(np.arange(41)))


def test_scaling_needs_a_batch_size():
  with pytest.raises(ValueError, match=r"optimizer\.scaling 'linear' needs a batch_size"):
    build(scaling='linear')


# -- The table.


def test_by_default_only_kernels_decay():
  table = build(weight_decay=0.05).table
  assert {row.name for row in table if row.decay} == {
    'encoder/block_0/mlp/kernel',
    'encoder/block_1/mlp/kernel',
    'head/kernel',
  }
  assert {row.decay for row in table} == {0.0, 0.05}
  assert {(row.multiplier, row.frozen) for row in table} == {(1.0, False)}
  assert sum(row.size for row in table) == sum(p.size for p in jax.tree.leaves(make_params()))
  assert {row.name: row.shape for row in table} == {
    name: p.shape for name, p in named(make_params()).items()
  }


def test_table_states_what_each_got():
  optimizer = build(
    weight_decay=0.5,
    decay=(('head/.*', 2.0), ('.*/kernel', 1.0)),
    multiplier=(('head/.*', 10.0),),
    freeze=('encoder/block_0/.*',),
  )
  rows = {row.name: row for row in optimizer.table}
  assert rows['head/bias'] == ('head/bias', (2,), 2, 10.0, 1.0, False)
  assert rows['encoder/block_1/mlp/kernel'][2:] == (12, 1.0, 0.5, False)
  assert rows['encoder/block_1/mlp/bias'][2:] == (4, 1.0, 0.0, False)
  assert rows['encoder/block_0/mlp/kernel'][2:] == (12, 0.0, 0.0, True)
  assert optimizer.frozen == {name for name in rows if name.startswith('encoder/block_0/')}
  assert build().frozen == frozenset()
  text = optim.describe(optimizer.table)
  assert text.endswith('trainable: 30 in 6 arrays\nfrozen: 19 in 3 arrays')


# -- The config.


def test_config_dict_with_placeholders_has_the_defaults():
  config = ml_collections.ConfigDict({'name': 'adamw', 'learning_rate': 1, 'options': {}})
  config.clip = ml_collections.config_dict.placeholder(float)
  config.warmup = ml_collections.config_dict.placeholder(ml_collections.ConfigDict)
  config.weight_decay = ml_collections.config_dict.placeholder(float)
  config.options.b2 = ml_collections.config_dict.placeholder(float)
  config.cooldown = {'epochs': 1}
  config.decay = (('.*/kernel', 1.0), ('.*', 0.0))
  optimizer = optim.build_optimizer(config, make_params(), total_steps=TOTAL, steps=STEPS)
  assert optimizer.schedule(0) == 1.0
  assert len(optimizer.table) == 9


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'adam'}, "unknown optimizer 'adam'; choose from 'sgd', 'adamw'"),
    ({'name': None}, "unknown optimizer None; choose from 'sgd', 'adamw'"),
    ({'schedule': 'cos'}, "unknown schedule 'cos'; choose from 'cosine', 'linear', 'rsqrt', 'con"),
    ({'scaling': 'square'}, "unknown scaling 'square'; choose from 'none', 'linear', 'sqrt'"),
    ({'b2': 0.9}, r"unknown optimizer field .*options=.* 'b2'; choose from 'name', 'learning_rate"),
    ({'warm_up': None}, "'warm_up'; choose from 'name', 'learning_rate'"),
    ({'options': {'momentum': 1}}, "unknown option of 'adamw' 'momentum'; choose from 'b1', 'b2'"),
    ({'learning_rate': None}, r'optimizer\.learning_rate must be a number > 0, got None'),
    ({'learning_rate': 0}, r'optimizer\.learning_rate must be a number > 0, got 0'),
    ({'learning_rate': '1e-3'}, r"optimizer\.learning_rate must be a number > 0, got '1e-3'"),
    ({'weight_decay': -1}, r'optimizer\.weight_decay must be a number >= 0, got -1'),
    ({'end_value': -1}, r'optimizer\.end_value must be a number >= 0, got -1'),
    ({'clip': 0}, r'optimizer\.clip must be a number > 0, got 0'),
    ({'warmup': 5}, r'optimizer\.warmup must be one of dict\(steps=...\).*, got 5'),
    ({'cooldown': {'epoch': 5}}, r"optimizer\.cooldown must be .*unknown unit 'epoch'"),
    ({'decay': (('kernels', 1.0),)}, r"optimizer\.decay: 'kernels' matches none of 9 parameters"),
    ({'multiplier': (('haed/.*', 2.0),)}, r"optimizer\.multiplier: 'haed.* closest are 'head/"),
    ({'multiplier': (('.*', 0.0),)}, r"optimizer\.multiplier of '\.\*' must be a number > 0"),
    ({'freeze': ('encoder',)}, r"optimizer\.freeze: 'encoder' matches none"),
    ({'freeze': 'encoder/.*'}, r'optimizer\.freeze must be patterns'),
    ({'freeze': ('(',)}, r"optimizer\.freeze: '\(' is no regular expression"),
  ],
)
def test_mistakes_are_named_with_the_choices(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    build(**fields)
  assert '\n' not in str(error.value)


def test_a_new_optimizer_is_an_entry_of_the_table(monkeypatch):
  def adabelief(parts, *, b1=0.9):
    return optax.chain(optax.scale_by_belief(b1), parts.decay, parts.rate)

  monkeypatch.setitem(optim.OPTIMIZERS, 'adabelief', adabelief)
  fields = {'schedule': 'constant', 'weight_decay': 0.1}
  grads = make_grads(3)
  ours, _ = train(build(name='adabelief', options={'b1': 0.8}, **fields), grads)
  reference = optax.chain(
    optax.scale_by_belief(b1=0.8),
    optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim == 2, p)),
    optax.scale(-0.1),
  )
  expected, _ = train(optim.Optimizer(reference, None, []), grads)
  expect_close(ours, named(expected))
