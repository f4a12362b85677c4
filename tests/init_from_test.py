"""Other weights: values change, names and shapes never, and all differences are said."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, metrics, pretrained, sharding, train
from vit_jax.adapters import flax_vit, write
from vit_jax.adapters.resize import resize_patches
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.init_from import init_from
from vit_jax.objectives.distillation import TEACHER

ROOT = Path(__file__).parents[1]
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.total.steps=3',
  '--config.checkpoint.every.steps=1',
  '--config.evals.validation.every.steps=1',
)


def digits(*flags: str):
  return config_lib.load(str(ROOT / 'configs/vit_digits.py'), [*TINY, *flags])


def changed(config, **fields):
  """A copy of a config with other fields."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, value in fields.items():
      config[name] = value
  return config_lib.override(config)


def first(config):
  """The state that a run of `config` would start from scratch."""
  made = experiment.setup(config)
  with jax.set_mesh(made.mesh):
    return experiment.prepare_state(made)[0]()


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  """A run of 3 steps, and its parameters by name."""
  workdir = tmp_path_factory.mktemp('learned')
  state = train.train_and_evaluate(digits(), workdir)
  return workdir, named(jax.device_get(state))


def test_the_same_model_gets_all_parameters_and_nothing_else(learned):
  workdir, wanted = learned
  state, text = init_from(first(digits('--config.seed=5')), {'workdir': str(workdir)})
  for name, leaf in named(state).items():
    if name.startswith('params/'):
      np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)
  assert int(state.step) == 0 and not any(map(np.any, jax.tree.leaves(state.opt_state)))
  assert text.endswith(f'step 3: {sum(n.startswith("params/") for n in wanted)} arrays taken')


def test_a_run_starts_from_them_once_and_then_goes_on_by_itself(learned, tmp_path, capsys):
  workdir, wanted = learned
  config = changed(digits(), init_from={'workdir': str(workdir), 'step': '3', 'rules': None})
  config = config_lib.override(config, ['--config.optimizer.learning_rate=1e-20'])
  state = train.train_and_evaluate(config, tmp_path / 'run')
  # No update to speak of: what it ends with is what it started from.
  for name, leaf in named(state.params).items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  assert f'starting from {workdir}, step 3' in capsys.readouterr().out
  train.train_and_evaluate(config, tmp_path / 'run')
  assert 'starting from' not in capsys.readouterr().out


def test_the_best_may_be_the_least(tmp_path):
  flags = '--config.checkpoint.best=validation/loss', '--config.checkpoint.mode=min'
  train.train_and_evaluate(digits(*flags), tmp_path)
  losses = {row['step']: row['validation/loss'] for row in metrics.read(tmp_path)}
  _, text = init_from(first(digits()), {'workdir': str(tmp_path), 'step': 'best'})
  assert f'step {min(losses, key=losses.get)}: ' in text
  assert len(losses) == 3


def test_differences_are_said_in_both_directions(learned):
  workdir, wanted = learned
  deeper = first(digits('--config.objective.encoder.depth=2'))
  before = named(jax.device_get(deeper))
  rules = (('params/head/.*', 'elsewhere'), ('(params/.*)', r'\1'))
  state, text = init_from(deeper, {'workdir': str(workdir), 'rules': rules})
  after = named(state)
  for name in before:
    if 'block_1' in name or 'head' in name:
      np.testing.assert_array_equal(after[name], before[name])
  np.testing.assert_array_equal(
    after['params/encoder/norm/scale'], wanted['params/encoder/norm/scale']
  )
  kept, unused = text.split('; as they were: ')[1].split('; not used: ')
  assert "'params/encoder/block_1/" in kept and 'more' in kept
  assert unused == "'params/head/bias', 'params/head/kernel'"


def test_an_average_starts_from_the_new_parameters(learned):
  workdir, wanted = learned
  config = changed(digits(), ema={'decay': 0.9, 'warmup': None})
  state, _ = init_from(first(config), {'workdir': str(workdir)})
  for name, leaf in named(state.ema).items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  # Donated together, they must not share memory.
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
    shards = zip(a.addressable_shards, b.addressable_shards, strict=True)
    assert all(x.data.unsafe_buffer_pointer() != y.data.unsafe_buffer_pointer() for x, y in shards)


def test_a_teacher_is_taken_from_a_run(learned):
  workdir, wanted = learned
  student = digits().objective
  config = changed(
    digits(),
    objective={
      'type': 'objectives.distillation.Distillation',
      'student': student.to_dict(),
      'teacher': student.to_dict(),
    },
    evals={},
    checkpoint={'every': {'steps': 1}},
  )
  state, text = init_from(first(config), {'workdir': str(workdir), 'rules': (TEACHER,)})
  teacher = named(state.model_state['teacher']['frozen']['variables']['params'])
  assert teacher
  for name, leaf in teacher.items():
    np.testing.assert_array_equal(leaf, wanted[f'params/{name}'])
  assert "as they were: 'params/student/" in text


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'step': 77}, 'has no checkpoint of step 77; it has 2, 3'),
    ({'rules': (('params/(', 'x'),)}, r"init_from.rules has \('params/\(', 'x'\), no \(pattern"),
    ({'rules': (('nothing', 'params/x'),)}, 'init_from finds nothing in .* for this model'),
    ({'rules': (('params/.*', 'params/head/bias'),)}, "takes 'params/head/bias' from both"),
  ],
)
def test_what_cannot_be_is_one_sentence(learned, fields, message):
  workdir, _ = learned
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    init_from(first(digits()), {'workdir': str(workdir), **fields})


def test_other_shapes_are_refused_by_name(learned):
  workdir, _ = learned
  wider = first(digits('--config.objective.encoder.mlp_dim=24'))
  with pytest.raises(ValueError, match=r"fc_1/bias' in .* is float32 \[16\], .* float32 \[24\]"):
    init_from(wider, {'workdir': str(workdir)})


def test_no_run(tmp_path):
  with pytest.raises(FileNotFoundError, match="is no run's folder"):
    init_from(first(digits()), {'workdir': str(tmp_path)})


# -- From any checkpoint.

ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2,
  activation='gelu_tanh', position_resize='bilinear_zoom',
)  # fmt: skip
SUPERVISED = dict(type='objectives.supervised.Supervised', num_classes=8)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A file of vision_transformer, for images of 16x16, and what it has by our names."""
  objective = build({**SUPERVISED, 'num_classes': 5, 'encoder': ENCODER})
  batch = {'image': np.zeros((1, 16, 16, 3), np.uint8)}
  shapes = jax.eval_shape(
    lambda: nn.unbox(objective.init(jax.random.key(0), batch, method='logits'))
  )
  rng = np.random.default_rng(0)
  variables = {
    name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in named(shapes).items()
  }
  path = tmp_path_factory.mktemp('published') / 'tiny.npz'
  rules = flax_vit.export_rules(objective.encoder, 5)
  write.save(path, dict(write.their_arrays(rules, variables)))
  return str(path), variables


def emoji(path, *, host='decode | resize(16)', mesh=None, ema=None, encoder=None, **fields):
  """A config of emoji that starts from a checkpoint."""
  return config_lib.override(
    ml_collections.ConfigDict(
      dict(
        seed=3,
        total=dict(steps=2),
        batch_size=8,
        data=dict(source=dict(type='data.emoji.Emoji'), host=host),
        objective=dict(**SUPERVISED, encoder=encoder or ENCODER),
        init_from=dict(checkpoint=str(path), **{'fresh': ('params/head/.*',), **fields}),
        optimizer=dict(name='sgd', learning_rate=0.1),
        ema=dict(decay=ema),
        mesh=mesh or dict(data=8),
      )
    )
  )


def start(config, mesh=None):
  """The first state of a config, what is said of it, and the one from scratch by name."""
  made = experiment.setup(config)
  made = dataclasses.replace(made, mesh=mesh or made.mesh)
  with jax.set_mesh(made.mesh):
    make, _ = experiment.prepare_state(made)
    state, text = experiment.new_state(made, make)
    return state, text, named(make())


def test_a_file_gives_all_but_what_is_to_be_fresh(published):
  path, wanted = published
  state, text, scratch = start(emoji(path, ema=0.9))
  for name, leaf in named(state.params).items():
    expected = scratch if name.startswith('head/') else wanted
    np.testing.assert_array_equal(leaf, expected[f'params/{name}'], err_msg=name)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_array_equal(a, b)
  encoder = {name: x.size for name, x in wanted.items() if 'head' not in name}
  assert text == (
    f'starting from {path} (vision_transformer): {sum(encoder.values()):,} parameters in '
    f'{len(encoder)} arrays loaded\n  initialised: params/head/bias, params/head/kernel'
  )


def test_positions_and_patches_fit_the_model(published):
  path, wanted = published
  encoder = {**ENCODER, 'patch_size': 8, 'grid': (2, 4)}
  state, text, _ = start(emoji(path, host='decode | resize(16, 32)', encoder=encoder))
  loaded = pretrained.load(
    path, image_size=(16, 32), encoder={'patch_size': 8}, num_classes=8, progress=False
  )
  for name, leaf in named(loaded.params).items():
    np.testing.assert_array_equal(named(state.params)[name], leaf, err_msg=name)
  np.testing.assert_array_equal(
    state.params['encoder']['embedding']['kernel'],
    resize_patches(wanted['params/encoder/embedding/kernel'], (8, 8)),
  )
  assert 'pos_embedding from a grid of 4x4 to 2x4 (bilinear_zoom)' in text
  assert 'embedding/kernel from patches of 4x4 to 8x8' in text


def test_a_grid_that_nobody_states_is_that_of_the_images(published):
  path, _ = published
  # As many patches as 6x6.
  _, text, _ = start(emoji(path, host='decode | resize(8, 72)'))
  assert 'from a grid of 4x4 to 2x18' in text


def test_blocks_of_a_scan_are_stacked(published):
  path, wanted = published
  state, _, _ = start(emoji(path, encoder={**ENCODER, 'scan': True}))
  kernels = state.params['encoder']['blocks']['mlp']['fc_1']['kernel']
  for i, kernel in enumerate(kernels):
    np.testing.assert_array_equal(
      kernel, wanted[f'params/encoder/block_{i}/mlp/fc_1/kernel'], strict=True
    )


def test_rules_say_where_the_arrays_of_a_checkpoint_go(published):
  path, wanted = published
  lora = dict(type='models.lora.LoRA', encoder=ENCODER, kernels=('.*/query/kernel',), rank=2)
  rules = (('params/encoder/(.*)', r'params/encoder/encoder/\1'), ('(.*)', r'\1'))
  state, text, _ = start(emoji(path, encoder=lora, rules=rules))
  for name, leaf in named(state.params['encoder']['encoder']).items():
    np.testing.assert_array_equal(leaf, wanted[f'params/encoder/{name}'])
  assert 'missing: params/encoder/lora/block_*/attention/query/kernel/a (2), ' in text
  assert 'unused' not in text


def test_what_a_model_has_no_place_for_is_said(published):
  path, _ = published
  _, text, _ = start(emoji(path, encoder={**ENCODER, 'depth': 1, 'pre_logits': 16}))
  assert 'missing: params/encoder/pre_logits/bias, params/encoder/pre_logits/kernel' in text
  assert 'unused: Transformer/encoderblock_1/' in text


def test_each_device_gets_its_shard_and_together_they_are_the_state_of_one(published):
  path, _ = published
  one, _, _ = start(emoji(path), sharding.make_mesh(dict(data=1), jax.devices()[:1]))
  state, _, _ = start(emoji(path, mesh=dict(data=4, fsdp=2)))
  split = 0
  for (name, leaf), other in zip(named(state).items(), named(one).values(), strict=True):
    np.testing.assert_array_equal(leaf, other, err_msg=name)
    assert len(leaf.addressable_shards) == 8
    for shard in leaf.addressable_shards:
      assert shard.data.shape == leaf.sharding.shard_shape(leaf.shape)
      np.testing.assert_array_equal(shard.data, np.asarray(other)[shard.index])
    split += leaf.addressable_shards[0].data.size == leaf.size // 2
  assert split > 20  # All kernels, at least: fsdp=2.


def test_a_run_may_give_its_average(tmp_path):
  run = emoji('none', ema=0.5)
  with run.unlocked():
    del run.init_from
  state = train.train_and_evaluate(run, tmp_path / 'run')
  averaged, _, _ = start(emoji(tmp_path / 'run', average=True, fresh=None))
  for a, b in zip(jax.tree.leaves(averaged.params), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_array_equal(a, b)
  name = 'head/kernel'
  assert not np.array_equal(named(averaged.params)[name], named(state.params)[name])


def test_a_run_is_a_checkpoint_too(tmp_path):
  resnet = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8, small_stem=True)
  first = emoji('none', encoder=resnet)
  with first.unlocked():
    del first.init_from
  learned = named(train.train_and_evaluate(first, tmp_path / 'run'))
  state, text, _ = start(emoji(tmp_path / 'run', encoder=resnet, fresh=None))
  for name, leaf in named({'params': state.params, 'model_state': state.model_state}).items():
    np.testing.assert_array_equal(leaf, learned[name], err_msg=name)
  assert any('batch_stats' in name for name in learned)
  assert f'{tmp_path / "run"}, step 2 (vit_jax run)' in text
  assert text.count('\n') == 0  # Nothing is missing, resized or unused.


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'fresh': ('params/haed/.*',)}, "init_from.fresh: 'params/haed/.*' matches none of"),
    ({'rules': (('nothing', 'x'),)}, 'init_from finds nothing in .*tiny.npz for this model'),
    ({'rules': (('params/.*', 'params/head/bias'),), 'fresh': ()}, "'params/head/bias' from both"),
    ({'format': 'timn'}, "unknown format 'timn'; choose from"),
    ({'facts': {'heads': 2}}, "unknown fact 'heads'; choose from"),
    (
      {'encoder': {**ENCODER, 'width': 32}},
      r'tiny.npz makes .* \[2, 8\], and the model has \[2, 16\]',
    ),
    ({'fresh': ()}, r"tiny.npz makes 'params/head/bias' \[5\], and the model has \[8\]"),
    ({'workdir': '/tmp/run'}, "init_from takes one of 'workdir', .* and 'checkpoint'"),
  ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence(published, fields, message):
  with pytest.raises(ValueError, match=message):
    start(emoji(published[0], **fields))


def test_a_start_is_one_of_two():
  def check(**fields):
    config = digits().copy_and_resolve_references()
    with config.unlocked():
      config.init_from = fields
    config_lib.check(config)

  check(workdir='/tmp/run', step='best', rules=())
  check(checkpoint='hf://google/vit', format=None, facts={}, step='last', fresh=(), rules=())
  with pytest.raises(ValueError, match="init_from takes one of 'workdir'"):
    check(step='last')
  with pytest.raises(
    ValueError, match="init_from.fresh goes with 'checkpoint', not with 'workdir'"
  ):
    check(workdir='/tmp/run', fresh=('params/head/.*',))
  with pytest.raises(
    ValueError, match="unknown config field 'init_from.file'; choose from 'workdir'"
  ):
    check(file='/tmp/x.npz')
