"""Fine-tuning: it starts at the pretrained function, and trains what it says and nothing else."""

import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, finetune, metrics, pretrained, train
from vit_jax.adapters import flax_vit, write
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.data.emoji import Emoji

ROOT = Path(__file__).parents[1]
TINY = (
  '--config.total.steps=2',
  '--config.batch_size=16',
  '--config.data.num_workers=0',
  '--config.optimizer.warmup.steps=0',
  '--config.optimizer.learning_rate=0.1',
)
IMAGES = np.stack([Emoji('test')[i]['image'] for i in range(4)])


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A file of vision_transformer, for images of 16x16, with pre-logits and 5 classes."""
  encoder = dict(
    type='models.vit.ViT', patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2, pre_logits=12
  )  # fmt: skip
  objective = build(dict(type='objectives.supervised.Supervised', num_classes=5, encoder=encoder))
  image = np.zeros((1, 16, 16, 3), np.uint8)
  shapes = jax.eval_shape(
    lambda: nn.unbox(objective.init(jax.random.key(0), {'image': image}, method='logits'))
  )
  rng = np.random.default_rng(0)
  variables = {n: rng.normal(0.5, 0.3, x.shape).astype('float32') for n, x in named(shapes).items()}
  path = tmp_path_factory.mktemp('published') / 'tiny.npz'
  rules = flax_vit.export_rules(objective.encoder, 5)
  write.save(path, dict(write.their_arrays(rules, variables)))
  return str(path)


def config_of(path, options, *flags):
  """A tiny run of `configs/finetune.py`, with decoding in this process."""
  config = config_lib.load(f'{ROOT}/configs/finetune.py:init={path},{options}', (*TINY, *flags))
  return config_lib.override(config, [f'--config.evals.{e}.num_workers=0' for e in config.evals])


def first_state(config):
  """What is built, and the state before the first step."""
  made = experiment.setup(config)
  with jax.set_mesh(made.mesh):
    return made, experiment.new_state(made, experiment.prepare_state(made)[0])[0]


def apply(objective, variables, image, method):
  """What an objective gives for images, on one device."""
  variables = jax.device_get(variables)
  return np.asarray(
    jax.jit(lambda v, x: objective.apply(v, {'image': x}, method=method))(variables, image)
  )


def assert_same_start(config, loaded):
  """The first state of a run gives what a loaded model gives, exactly."""
  made, state = first_state(config)
  images = loaded.preprocess(IMAGES)
  assert made.batch_spec['image'].shape[1:] == images.shape[1:]
  variables = {'params': state.params, **state.model_state}
  features = apply(made.objective, variables, images, 'features')
  np.testing.assert_array_equal(features, loaded.features(IMAGES))
  assert np.abs(features).max() > 0.1
  logits = apply(made.objective, variables, images, 'logits')
  np.testing.assert_array_equal(logits, loaded(IMAGES))
  np.testing.assert_array_equal(logits, np.zeros((4, config.objective.num_classes)))


@pytest.mark.parametrize(
  ('options', 'size'),
  [
    ('tune=all', 16),
    ('tune=head,size=(16, 24),pre_logits=keep', (16, 24)),
    ('tune=lora,size=24', 24),
  ],
)
def test_it_starts_at_the_pretrained_function(published, options, size):
  config = config_of(published, f'data=emoji,{options}')
  changed = {} if 'keep' in options else {'pre_logits': None}
  loaded = pretrained.load(
    published, image_size=size, num_classes=8, encoder=changed, progress=False
  )
  assert_same_start(config, loaded)


@pytest.fixture(scope='module')
def runs(published, tmp_path_factory):
  """A function that runs two steps in some way and gives the config, both states and the folder."""
  done = {}

  def run(options):
    if options not in done:
      config = config_of(published, options)
      _, before = first_state(config)
      workdir = tmp_path_factory.mktemp('runs') / 'run'
      after = train.train_and_evaluate(config, workdir)
      done[options] = config, named(before.params), named(after.params), workdir
    return done[options]

  return run


@pytest.mark.parametrize(
  ('tune', 'trained'),
  [
    ('all', ('encoder/', 'head/')),
    ('head', ('head/',)),
    # The head of zeros and B of zeros: A has its first gradient in the third step.
    ('lora', ('encoder/lora/', 'head/')),
  ],
)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_is_trained(runs, tune, trained):
  _, before, after, _ = runs(f'data=emoji,tune={tune},test_size=24')
  changed = {name for name in after if not np.array_equal(after[name], before[name])}
  assert changed <= {name for name in after if name.startswith(trained)}
  assert {'head/kernel', 'head/bias'} <= changed
  for start in trained:
    assert any(name.startswith(start) for name in changed)


def test_it_is_evaluated_at_both_sizes(runs):
  config, _, _, workdir = runs('data=emoji,tune=all,test_size=24')
  values = metrics.read(workdir)[-1]
  assert {'validation/accuracy', 'validation_24/accuracy'} <= set(values)
  assert values['validation/loss'] != values['validation_24/loss']
  assert config.evals.validation.source.split == 'validation'
  assert config.evals.validation.host == 'decode(channels=3) | resize(16)'
  assert config.evals.validation_24.host == 'decode(channels=3) | resize(24)'
  assert config.data.host == 'decode_random_resized_crop(16) | flip'


def test_a_batch_may_be_larger_than_the_data_and_a_test_split_does_not_choose(published, tmp_path):
  few = "data=emoji:validation,styles=('twitter',),label=subcategory"
  config = config_of(published, few, '--config.batch_size=256', '--config.total.steps=1')
  assert config.checkpoint.best is None and set(config.evals) == {'test'}
  source = build(config.data.source)
  assert config.objective.num_classes == len(source.classes) == 95
  assert len(source) < 256
  state = train.train_and_evaluate(config, tmp_path / 'run')
  assert int(state.step) == 1


def test_a_run_goes_on_without_the_checkpoint(published, tmp_path, capsys):
  mine = shutil.copy(published, tmp_path / 'mine.npz')
  config = config_of(
    mine, 'data=emoji', '--config.total.steps=4', '--config.checkpoint.every.steps=2',
    '--config.evals.validation.every.steps=2',
  )  # fmt: skip
  whole = train.train_and_evaluate(config, tmp_path / 'run')
  assert f'starting from {mine} (vision_transformer): ' in capsys.readouterr().out
  shutil.rmtree(tmp_path / 'run/checkpoints/4')
  Path(mine).unlink()
  again = train.train_and_evaluate(config, tmp_path / 'run')
  assert 'resuming after step 2 of 4 steps' in capsys.readouterr().out
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)


def test_each_layer_learns_by_a_share_of_the_next(published):
  made = experiment.setup(config_of(published, 'data=emoji,layer_decay=0.75'))
  layers = {'encoder/block_0/': 0.75**2, 'encoder/block_1/': 0.75, 'encoder/norm/': 1, 'head/': 1}
  for row in made.optimizer.table:
    expected = next((v for start, v in layers.items() if row.name.startswith(start)), 0.75**3)
    assert row.multiplier == pytest.approx(expected, rel=1e-12), row.name
  lowest = {row.name for row in made.optimizer.table if row.multiplier < 0.75**2}
  assert lowest == {
    f'encoder/{name}' for name in ('cls', 'pos_embedding', 'embedding/kernel', 'embedding/bias')
  }


@pytest.fixture(scope='module')
def transparent(tmp_path_factory):
  """A run of `configs/vit_emoji.py`: four channels, a convolutional stem, positions of no grid."""
  workdir = tmp_path_factory.mktemp('transparent') / 'run'
  flags = [
    f'--config.objective.encoder.{name}'
    for name in ('width=16', 'depth=1', 'num_heads=2', 'mlp_dim=16', 'conv_stem=(8,)')
  ]
  config = config_lib.load(
    f'{ROOT}/configs/vit_emoji.py',
    [*flags, '--config.total.steps=1', '--config.batch_size=16'],
  ).copy_and_resolve_references()
  with config.unlocked():
    config.evals, config.checkpoint = {}, {}
  train.train_and_evaluate(config_lib.override(config), workdir)
  return str(workdir)


def test_a_run_is_a_start_like_any_other(transparent, tmp_path):
  config = config_of(transparent, 'data=emoji:alpha=True,label=subcategory,size=16')
  assert config.data.host == 'decode_random_resized_crop(16, channels=4) | flip'
  assert config.evals.validation.host == 'decode(channels=4) | resize(16)'
  assert config.objective.augment == config.objective.eval_augment == 'background(p=0)'
  loaded = pretrained.load(transparent, image_size=16, num_classes=95, progress=False)
  assert_same_start(config, loaded)
  state = train.train_and_evaluate(config, tmp_path / 'run')
  assert int(state.step) == 2


def test_batch_statistics_come_along(tmp_path):
  resnet = dict(type='models.resnet.ResNet', blocks=(1,), width=8, small_stem=True)
  config = config_lib.load(f'{ROOT}/configs/vit_digits.py', ['--config.total.steps=1'])
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.objective.encoder, config.evals, config.checkpoint = resnet, {}, {}
  learned = named(train.train_and_evaluate(config_lib.override(config), tmp_path / 'run'))
  config = config_of(tmp_path / 'run', 'data=digits:train[:100]')
  assert config.objective.encoder.to_dict() == resnet
  _, state = first_state(config)
  assert state.model_state
  for name, leaf in named(state.model_state).items():
    np.testing.assert_array_equal(leaf, learned[f'model_state/{name}'], err_msg=name)
  with pytest.raises(ValueError, match='layer_decay is of a ViT, not of a models.resnet.ResNet'):
    config_of(tmp_path / 'run', 'data=digits,layer_decay=0.5')


# -- The argument.


def test_a_comma_ends_a_value_only_before_an_option():
  options = finetune.read_options(
    "data=csv:/a,b.csv,label_key=kind,classes=('x', 'y'),init=gs://a,b/c=1.npz:params/img,"
    'size=(32, 48),test_size=64,mean=(0.5, 0.4, 0.3),num_heads=3,step=7,average=True,'
    'val=digits:test'
  )
  csv = dict(type='data.csv.Csv', path='/a,b.csv', label_key='kind', classes=('x', 'y'))
  assert options == finetune.Options(
    init='gs://a,b/c=1.npz:params/img',
    data=csv,
    val=dict(type='data.digits.Digits', split='test'),
    size=(32, 48),
    test_size=(64, 64),
    step=7,
    average=True,
    facts=dict(mean=(0.5, 0.4, 0.3), num_heads=3),
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', "init=PATH,data=SOURCE; 'init' is missing, and other options are 'val', 'size'"),
    ('init=x', "'data' is missing"),
    ('init=,data=emoji', "'init' is missing"),
    ('inti=x,data=emoji', "unknown option 'inti'; choose from 'init', 'data'"),
    ('init=x,tunee=head,data=emoji', "unknown option 'tunee'; choose from 'init', 'data'"),
    ('data=digits:test,tunee=head,init=x', "data: unknown field 'tunee' .*may follow: 'init'"),
    ('init=x,data=emojis', "data: unknown source 'emojis' in 'emojis'; choose from"),
    ('init=x,data=emoji,tune=heads', "unknown tune 'heads'; choose from 'all', 'head', 'lora'"),
    ('init=x,data=emoji,pre_logits=no', "unknown pre_logits 'no'; choose from 'drop', 'keep'"),
    ('init=x,data=emoji,size=8,size=16', "option 'size' stands twice"),
    ('init=x,data=emoji,size=0', "size is pixels of a side, or .*, not '0'"),
    ('init=x,data=emoji,test_size=(1, 2, 3)', 'test_size is pixels of a side'),
    ('init=x,data=emoji,size=large', "size is pixels of a side, or .*, not 'large'"),
    ('init=x,data=emoji,average=yes', "unknown average 'yes'; choose from 'True', 'False'"),
    ('init=x,data=emoji,layer_decay=2', 'layer_decay must be a number above 0 and at most 1'),
    ('init=x,data=emoji,layer_decay=0.5,tune=head', 'layer_decay goes with tune=all, not'),
  ],
)
def test_a_wrong_argument_is_one_sentence(text, message):
  with pytest.raises(ValueError, match=message):
    finetune.read_options(text)


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ('size=18', ValueError, 'image_size 18x18 is not divisible by patches of 4x4'),
    ('test_size=18', ValueError, 'image_size 18x18 is not divisible by patches of 4x4'),
    ('format=timn', ValueError, "unknown format 'timn'; choose from"),
    ('pre_logits=keep,init=/none.npz', ValueError, "option 'init' stands twice"),
    ('val=emoji:test,label=subcategory', ValueError, 'the classes of val are not those of data'),
    ('val=emoji:tests', ValueError, "unknown split 'tests'; choose from"),
  ],
)
def test_what_does_not_fit_the_checkpoint_is_one_sentence(published, options, error, message):
  with pytest.raises(error, match=message):
    config_of(published, f'data=emoji,{options}')


def test_a_checkpoint_that_is_not_there():
  with pytest.raises(FileNotFoundError, match='/none.npz'):
    config_of('/none.npz', 'data=emoji')


def test_what_a_checkpoint_has_not_cannot_be_kept(transparent):
  with pytest.raises(ValueError, match='run has no pre-logits to keep'):
    config_of(transparent, 'data=emoji,pre_logits=keep')


@pytest.mark.parametrize(
  ('data', 'name'),
  [
    ('digits', 'validation'),
    ('digits:train[:10]', 'validation'),
    ('digits:train+validation[:10]', 'test'),
    ('digits:validation', 'test'),
    ('digits:all', ''),
    ('digits:train+validation,val=digits:test', 'validation'),
  ],
)
def test_it_is_evaluated_on_what_it_does_not_train_on(data, name):
  options = finetune.read_options(f'init=x,data={data}')
  found, source = finetune.validation(options)
  assert found == name
  if 'val=' not in data:
    assert source == ({'type': 'data.digits.Digits', 'split': name} if name else None)


def test_a_size_to_test_at_needs_images():
  with pytest.raises(ValueError, match='test_size needs images to evaluate on'):
    finetune.validation(finetune.read_options('init=x,data=digits:all,test_size=8'))
