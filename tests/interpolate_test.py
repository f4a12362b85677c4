"""Mixtures of two models: NumPy's sum, the ends exactly, and what evaluators say of them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax import cli, experiment, interpolate, pretrained, train
from vit_jax import config as config_lib
from vit_jax.checkpoint import named

DIGITS = dict(type='data.digits.Digits')
HOST = 'decode | resize(8)'
ENCODER = dict(
  type='models.vit.ViT', patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2, pooling='mean'
)  # fmt: skip


def config_of(steps: int, **fields) -> ml_collections.ConfigDict:
  classification = dict(type='evaluators.classification.Classification', host=HOST)
  return config_lib.override(
    ml_collections.ConfigDict(
      dict(
        seed=0,
        total=dict(steps=steps),
        batch_size=32,
        data=dict(source=DIGITS, host=HOST),
        objective=dict(
          type='objectives.supervised.Supervised', num_classes=10, encoder=ENCODER
        ),
        optimizer=dict(name='adamw', learning_rate=1e-2),
        mesh=dict(data=8),
        evals=dict(
          test=dict(**classification, source=dict(**DIGITS, split='test')),
          pixels=dict(
            type='evaluators.nearest_pixel.NearestPixel', host=HOST,
            train=dict(**DIGITS, split='train[:50]'), source=dict(**DIGITS, split='test[:50]'),
          ),
        ),
        **fields,
      )
    )
  )  # fmt: skip


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The folders of a run, and of one that goes on from its weights with an average of its own."""
  first, second = (tmp_path_factory.mktemp('runs') / name for name in ('first', 'second'))
  train.train_and_evaluate(config_of(20), first)
  start = dict(checkpoint=str(first), fresh=())
  train.train_and_evaluate(config_of(4, init_from=start, ema=dict(decay=0.5)), second)
  return first, second


def test_is_the_weighted_sum():
  rng = np.random.default_rng(0)
  a, b = ({'w': rng.normal(size=(3, 4)).astype('float32'), 'n': np.int32(n)} for n in (1, 2))
  mixed = interpolate.mix(a, b, 0.3)
  np.testing.assert_allclose(mixed['w'], 0.7 * a['w'] + 0.3 * b['w'], rtol=1e-6)
  assert mixed['w'].dtype == np.float32
  assert mixed['n'] == 2  # A counter cannot be mixed.
  for alpha, end in ((0, a), (1, b)):
    np.testing.assert_array_equal(interpolate.mix(a, b, alpha)['w'], end['w'])
  infinite = {**a, 'w': np.full_like(a['w'], np.inf)}
  np.testing.assert_array_equal(interpolate.mix(infinite, b, 1)['w'], b['w'])
  half = interpolate.mix({'w': jnp.ones(2, 'bfloat16')}, {'w': jnp.zeros(2, 'bfloat16')}, 0.5)
  assert half['w'].dtype == jnp.bfloat16
  assert interpolate.mix(None, None, 0.5) is None


@pytest.mark.parametrize(
  ('start', 'end', 'alpha', 'message'),
  [
    ({'a': 1.0}, {'a': 2.0}, 1.5, r'alpha is .* in \[0, 1\]; got 1.5'),
    ({'a': 1.0}, {'a': 2.0, 'head': {'bias': 1.0}}, 0.5, "only the second has 'head/bias'"),
    ({'a': 1.0, 'b': 1.0}, {'a': 2.0}, 0.5, "only the first has 'b'"),
    ({'a': np.ones((2, 3))}, {'a': np.ones(2)}, 0.5, r"'a' is \[2, 3\] in the first and \[2\] in"),
  ],
)
def test_models_that_differ_are_one_sentence(start, end, alpha, message):
  start, end = (jax.tree.map(np.asarray, tree) for tree in (start, end))
  with pytest.raises(ValueError, match=message):
    interpolate.mix(start, end, alpha)


def test_two_models_make_one(runs):
  start, end = (pretrained.load(run, progress=False) for run in runs)
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
  middle = interpolate.interpolate(start, end, 0.25)
  for name, leaf in named(middle.params).items():
    expected = 0.75 * named(start.params)[name] + 0.25 * named(end.params)[name]
    np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-8)
  for alpha, model in ((0, start), (1, end)):
    np.testing.assert_array_equal(interpolate.interpolate(start, end, alpha)(images), model(images))
  assert np.abs(middle(images) - end(images)).max() > 1e-3
  assert str(runs[0]) in str(middle.report) and str(runs[1]) in str(middle.report)
  other = pretrained.load(runs[0], num_classes=3, progress=False)
  with pytest.raises(ValueError, match=r"'params/head/bias' is \[3\] in the first and \[10\] in"):
    interpolate.interpolate(other, end, 0.5)


def test_a_run_is_evaluated_between_its_start_and_its_end(runs, capsys):
  first, second = map(str, runs)
  before, after = experiment.evaluate(first), experiment.evaluate(second)
  results = interpolate.evaluate(second, [0, 0.5, 1])
  for name in ('accuracy', 'loss', 'calibration_error'):
    # It began with the weights of the first run, and so did the average.
    assert results[0][f'test/{name}'] == results[0][f'test_ema/{name}'] == before[f'test/{name}']
    assert results[1][f'test/{name}'] == after[f'test/{name}']
    assert results[1][f'test_ema/{name}'] == after[f'test_ema/{name}']
  assert len({results[alpha]['test/loss'] for alpha in results}) == 3
  assert not any(name.startswith('pixels') for name in results[0.5])  # It reads no weights.

  capsys.readouterr()
  assert cli.main(['evaluate', second, '--interpolate', '0', '0.5', '1']) == 0
  header, _, *lines = capsys.readouterr().out.splitlines()
  assert header.split() == ['alpha', '0', '0.5', '1']
  rows = {line.split()[0]: line.split()[1:] for line in lines}
  assert rows['test/loss'] == [f'{results[alpha]["test/loss"]:.3f}' for alpha in (0, 0.5, 1)]
  assert not any(re.search('/class/', name) for name in rows)


def test_a_new_run_mixes_with_its_first_parameters(runs):
  """Without `init_from`, they are those of its seed: a head of zeros, so that all is undecided."""
  results = interpolate.evaluate(str(runs[0]), [0.0])
  assert results[0.0]['test/loss'] == pytest.approx(np.log(10), rel=1e-6)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--interpolate', '0', '2'], 'alpha is the share of the second of two models'),
    (['--interpolate', '0', '--step', '77'], 'has no checkpoint of step 77'),
  ],
)
def test_mistakes_on_the_command_line_are_one_sentence(runs, arguments, message, capfd):
  assert cli.main(['evaluate', str(runs[0]), *arguments]) == 1
  assert message in capfd.readouterr().err


def test_no_run(tmp_path: Path):
  with pytest.raises(FileNotFoundError, match="is no run's folder"):
    interpolate.evaluate(tmp_path, [0.5])
