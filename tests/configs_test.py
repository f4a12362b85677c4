"""Every file of `configs/`, in every variant, builds and traces its step; its data may be missing.

A config of data that must be fetched first names the size of its images in `IMAGES`, and a config
with variants lists the arguments of its `get_config` in `ARGS`, a tuple in the file; where one says
CHECKPOINT, a small one stands here.
"""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax import build, experiment, sharding, train
from vit_jax import config as config_lib
from vit_jax.adapters import flax_vit, write
from vit_jax.average import SUFFIX
from vit_jax.checkpoint import named
from vit_jax.data.stand_in import StandIn
from vit_jax.state import abstract_variables

FOLDER = Path(__file__).parents[1] / 'configs'

# [H, W, C] of an image before the host transforms, where the source may be missing.
IMAGES: dict[str, tuple[int, int, int]] = {
  'clip_cc12m': (240, 320, 3),
  'clip_laion': (240, 320, 3),
  'colorization_i1k': (240, 320, 3),
  'deepcluster_fashion_mnist': (28, 28, 1),
  'deepcluster_i1k': (240, 320, 3),
  'inpainting_i1k': (240, 320, 3),
  'jigsaw_emoji': (64, 64, 4),
  'jigsaw_i1k': (240, 320, 3),
  'lit': (240, 320, 3),
  'mae_fashion_mnist': (28, 28, 1),
  'mae_i1k': (240, 320, 3),
  'rotation_fashion_mnist': (28, 28, 1),
  'rotation_i1k': (240, 320, 3),
  'simclr_cifar10': (32, 32, 3),
  'simclr_fashion_mnist': (28, 28, 1),
  'simclr_i1k': (240, 320, 3),
  'simclr_vit_i1k': (240, 320, 3),
  'vit_cifar10': (32, 32, 3),
  'vit_fashion_mnist': (28, 28, 1),
  'vit_h14_i21k': (240, 320, 3),
  'vit_i1k': (240, 320, 3),
  'vit_i21k': (240, 320, 3),
  'vit_l16_i21k': (240, 320, 3),
  'vit_pretrain': (240, 320, 3),
  'vit_s16_i1k': (240, 320, 3),
}


@functools.cache
def module_of(name: str) -> Any:
  spec = importlib.util.spec_from_file_location(f'configs_{name}', FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


NAMES = sorted(p.stem for p in FOLDER.glob('*.py'))
CASES = [(name, arg) for name in NAMES for arg in getattr(module_of(name), 'ARGS', ('',))]


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> str:
  """A checkpoint of vision_transformer for images of 32x32."""
  encoder = dict(
    type='models.vit.ViT', patch_size=8, width=16, depth=2, mlp_dim=16, num_heads=2, pre_logits=16
  )  # fmt: skip
  objective = build.build(
    dict(type='objectives.supervised.Supervised', num_classes=4, encoder=encoder)
  )
  batch = {'image': np.zeros((1, 32, 32, 3), np.uint8)}
  init = functools.partial(objective.init, jax.random.key(0), batch, method='logits')
  variables = named(nn.unbox(jax.jit(init)()))
  path = tmp_path_factory.mktemp('checkpoint') / 'tiny.npz'
  rules = flax_vit.export_rules(objective.encoder, 4)
  write.save(path, dict(write.their_arrays(rules, variables)))
  return str(path)


@pytest.fixture
def load(monkeypatch, checkpoint):
  """A function that loads a config; its sources are substituted where their data is not there."""
  resolve = build.resolve

  def loaded(name: str, arg: str, *overrides: str) -> ml_collections.ConfigDict:
    path, arg = str(FOLDER / f'{name}.py'), arg.replace('CHECKPOINT', checkpoint)
    config = config_lib.load(f'{path}:{arg}' if arg else path, overrides)
    num_classes = config.objective.get('num_classes') or 10

    def resolved(dotted: str) -> Any:
      made = resolve(dotted)
      if not dotted.startswith('data.'):
        return made

      @functools.wraps(made)
      def construct(*args: Any, **kwargs: Any) -> Any:
        try:
          return made(*args, **kwargs)
        except FileNotFoundError:
          assert name in IMAGES, f'the data of {name} is not here: give its shape in IMAGES'
          text = 'tokenize' in config.data.host
          return StandIn(num_classes, text, IMAGES[name], size=50_000)

      return construct

    monkeypatch.setattr(build, 'resolve', resolved)
    return config

  return loaded


def test_there_are_configs_and_every_shape_is_of_one():
  assert NAMES
  assert set(IMAGES) <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_the_docstring_is_the_recipe(name):
  text = module_of(name).__doc__
  assert f'python -m vit_jax.main --config configs/{name}.py' in text
  assert '--workdir' in text
  assert text.splitlines()[0].endswith('.') or ':' in text.splitlines()[0]


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_is_pure_data_that_survives_json(name, arg, load):
  config = load(name, arg)
  config_lib.check(config)
  saved = json.loads(config_lib.to_json(config))
  assert config_lib.differences(saved, config) == []
  assert config_lib.to_json(load(name, arg)) == config_lib.to_json(config)


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_every_field_can_be_set_by_a_flag(name, arg, load):
  def visit(config: ml_collections.ConfigDict, prefix: str) -> None:
    for key in config:
      value = config[key]
      if isinstance(value, ml_collections.ConfigDict):
        visit(value, f'{prefix}.{key}')
        continue
      assert not isinstance(value, list), f'{prefix}.{key}: write a tuple'
      assert config.get_type(key) is not type(None), f'{prefix}.{key}: write placeholder(type)'

  visit(load(name, arg), 'config')


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_builds_and_traces_its_step(name, arg, load):
  config = load(name, arg)
  made = experiment.setup(config)
  assert made.total_steps > 0
  with jax.set_mesh(made.mesh):
    _, like = experiment.prepare_state(made)
    step = train.make_train_step(made.objective, made.optimizer.tx, made.accumulate, made.average)
    after, metrics = jax.eval_shape(step, like, made.batch_spec)
  assert jax.tree.structure(after) == jax.tree.structure(like)
  for (path, a), b in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(like), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype), path
  assert {'loss', 'grad_norm'} <= set(metrics)
  assert all(value.shape == () for value in metrics.values())
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(like.params))

  # Its parameters can be split along every axis of a mesh.
  with jax.set_mesh(made.mesh):
    variables = abstract_variables(made.objective, made.batch_spec)
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
  names = {n for box in boxes for n in getattr(box, 'names', ())} - {None}
  assert names <= set(sharding.LOGICAL_AXES)
  placed = sharding.parameter_shardings(variables, mesh)
  for leaf, to in zip(jax.tree.leaves(nn.unbox(variables)), jax.tree.leaves(placed), strict=True):
    to.shard_shape(leaf.shape)
  kernels = [
    to for path, to in jax.tree.leaves_with_path(placed['params']) if 'kernel' in str(path[-1])
  ]
  assert any(not to.is_fully_replicated for to in kernels)


@pytest.mark.parametrize(('name', 'arg'), CASES)
def test_what_runs_between_the_steps_builds(name, arg, load, tmp_path):
  config = load(name, arg)
  made = experiment.setup(config)
  evals = experiment.build_evals(made)
  hooks = experiment.build_periodic(made, 'hooks')
  given = set(config.get('evals') or {})
  assert given <= set(evals) <= given | {name + SUFFIX for name in given}
  assert all(callable(evaluator.run) for evaluator, _ in evals.values())
  assert all(callable(hook) for hook, _ in hooks.values())
  # What is due during training is due at least once before its end.
  for field, (_, every) in {**evals, **hooks}.items():
    assert every is None or 0 < every <= made.total_steps, field
  with experiment.open_checkpoints(tmp_path, config) as checkpoints:
    assert checkpoints.latest is None
  best = (config.get('checkpoint') or {}).get('best')
  if best:
    name, _, metric = best.partition('/')
    assert metric
    assert evals[name][1], f'{best} decides the best checkpoint, but {name} runs at the end only'


def test_a_substitute_is_what_a_config_can_be_built_on(load, monkeypatch):
  """The way of a config whose data is not here, on one whose data is."""

  class Missing:
    def __init__(self, split='train'):
      raise FileNotFoundError(split)

  from vit_jax.data import digits

  monkeypatch.setattr(digits, 'Digits', Missing)
  with pytest.raises(AssertionError, match='give its shape in IMAGES'):
    experiment.setup(load('vit_digits', ''))
  monkeypatch.setitem(IMAGES, 'vit_digits', (8, 8, 1))
  made = experiment.setup(load('vit_digits', ''))
  assert made.batch_spec['image'].shape == (64, 8, 8, 1)
  assert len(experiment.build_evals(made)) == len(made.config.evals)
