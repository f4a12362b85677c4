"""`vit_jax convert`: runs and files to files, each with a line that says what was written."""

import numpy as np
import pytest
from jax import export

from vit_jax import cli
from vit_jax.adapters.tensors import open_tensors
from vit_jax.pretrained import load

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
CONFIG = """
import ml_collections

def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.seed, config.batch_size, config.total = 0, 8, dict(steps=2)
  digits = dict(type='data.digits.Digits')
  config.data = dict(source=dict(**digits, split='train'), host='decode')
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=10, augment='flip',
    encoder=dict(type='models.vit.ViT', patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=24,
                 activation='gelu_tanh', position_resize='bilinear_zoom', scan=True),
  )
  config.optimizer = dict(name='adamw', learning_rate=0.1)
  config.ema = dict(decay=0.5)
  validation = dict(type='evaluators.classification.Classification', host='decode',
                    source=dict(**digits, split='validation'), every=dict(steps=1))
  config.evals = dict(validation=validation)
  config.checkpoint = dict(every=dict(steps=1), keep_last=2, best='validation/accuracy')
  config.mesh = dict(data=8)
  return config
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The workdir of a run of 2 steps."""
  folder = tmp_path_factory.mktemp('convert')
  (folder / 'config.py').write_text(CONFIG)
  argv = ['train', '--config', str(folder / 'config.py'), '--workdir', str(folder / 'run')]
  assert cli.main(argv) == 0
  return folder / 'run'


@pytest.fixture
def run(capfd):
  """A function that runs the command; its exit code, and the lines on stdout and stderr."""

  def run(*argv):
    capfd.readouterr()
    code = cli.main(['convert', *map(str, argv)])
    out = capfd.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()

  return run


@pytest.mark.parametrize('name', ['a.npz', 'a.safetensors'])
def test_a_run_becomes_a_file_of_its_weights_alone(run, trained, tmp_path, name):
  file = tmp_path / name
  code, lines, errors = run(trained, file)
  assert (code, errors) == (0, [])
  tensors = open_tensors(file)
  assert all(name.startswith('params/') for name in tensors if name != 'vit_jax')
  model = load(trained)
  parameters = sum(np.prod(s, dtype=int) for n, (s, _) in tensors.shapes.items() if n != 'vit_jax')
  assert lines == [
    f'{trained}, step 2 (vit_jax run): {parameters:,} parameters in {len(tensors) - 1} arrays '
    'loaded',
    f'wrote {file} (vit_jax): {parameters:,} parameters in {len(tensors) - 1} arrays, '
    f'{file.stat().st_size / 1e6:.1f} MB',
  ]
  back = load(file)
  np.testing.assert_array_equal(back(IMAGES), model(IMAGES))
  assert back.classes == tuple('0123456789')
  # And on to another file, with the same arrays.
  other = tmp_path / 'other' / name
  assert run(file, other)[0] == 0
  assert other.read_bytes() == file.read_bytes()


def test_the_average_and_a_step(run, trained, tmp_path):
  for name, options, given in (
    ('ema', ['--ema'], dict(average=True)),
    ('first', ['--step', '1'], dict(step=1)),
    ('best', ['--step', 'best', '--ema'], dict(step='best', average=True)),
  ):
    assert run(trained, tmp_path / f'{name}.npz', *options)[0] == 0
    expected = load(trained, **given)(IMAGES)
    np.testing.assert_array_equal(load(tmp_path / f'{name}.npz')(IMAGES), expected)
    assert np.abs(expected - load(trained)(IMAGES)).max() > 1e-3 or name == 'best'


def test_formats_of_others(run, trained, tmp_path):
  logits = load(trained)(IMAGES)
  code, lines, _ = run(trained, tmp_path / 'a.npz', '--format', 'vision_transformer')
  assert code == 0
  assert lines[-1] == '  not said in it: the names of the classes'
  np.testing.assert_array_equal(load(tmp_path / 'a.npz')(IMAGES), logits)
  for format in ('timm', 'transformers'):
    code, lines, _ = run(trained, tmp_path / format, '--format', format)
    assert code == 0
    assert lines[1].startswith(f'wrote {tmp_path / format} ({format}): ')
    assert (tmp_path / format / 'config.json').exists()
    np.testing.assert_array_equal(load(tmp_path / format)(IMAGES), logits)


def test_a_program(run, trained, tmp_path):
  code, lines, _ = run(trained, tmp_path / 'a.jaxexport')
  assert code == 0
  assert lines[1].startswith(f'wrote {tmp_path / "a.jaxexport"} (jax): ')
  program = export.deserialize(bytearray((tmp_path / 'a.jaxexport').read_bytes()))
  np.testing.assert_allclose(program.call(IMAGES), load(trained)(IMAGES), rtol=1e-5, atol=1e-6)


def test_what_a_file_does_not_say_and_another_size(run, trained, tmp_path):
  run(trained, tmp_path / 'a.npz', '--format', 'vision_transformer')
  code, lines, _ = run(
    *(tmp_path / 'a.npz', tmp_path / 'b.npz', '--image-size', '16x12', '--fact', 'ln_eps=1e-3'),
    *('--fact', 'activation=quick_gelu', '--fact', 'mean=0.1', '--fact', 'classes=("a", "b")'),
  )
  assert code == 0
  assert (
    lines[1] == '  resized: params/encoder/pos_embedding from a grid of 2x2 to 4x3 (bilinear_zoom)'
  )
  model = load(tmp_path / 'b.npz')
  assert model.objective.encoder.ln_eps == 1e-3
  assert model.objective.encoder.activation == 'quick_gelu'
  assert model.preprocessing.size == (16, 12)
  assert (model.spec['mean'], model.classes) == (0.1, ('a', 'b'))


def test_mistakes_are_one_sentence_and_change_nothing(run, trained, tmp_path):
  there = tmp_path / 'there.npz'
  assert run(trained, there)[0] == 0
  before = {p: p.read_bytes() for p in tmp_path.rglob('*')}
  for argv, message in [
    ([trained, there], 'there.npz is there already; --force (overwrite=True) writes over it'),
    ([trained, tmp_path / 'a'], 'say the format of'),
    (
      [trained, tmp_path / 'a.npz', '--format', 'onnx'],
      "unknown format 'onnx'; choose from 'vit_jax'",
    ),
    ([trained, tmp_path / 'a.npz', '--step', '9'], "has no checkpoint of step '9'; it has 1, 2"),
    ([there, tmp_path / 'a.npz', '--ema'], 'averaged parameters: of the folder of a run alone'),
    ([trained, tmp_path / 'a.npz', '--fact', 'heads=2'], "unknown fact 'heads'; choose from"),
    (
      [trained, tmp_path / 'a.npz', '--fact', 'heads'],
      'takes NAME=VALUE, such as num_heads=6, not',
    ),
    ([trained, tmp_path / 'a.npz', '--image-size', '9'], 'is not divisible by patches of 4x4'),
    ([trained, tmp_path / 'a.npz', '--image-size', 'x'], 'a number of pixels or HEIGHTxWIDTH, not'),
    ([tmp_path / 'no.npz', tmp_path / 'a.npz'], f'no file {tmp_path / "no.npz"}'),
  ]:
    code, lines, errors = run(*argv)
    assert (code, lines, len(errors)) == (1, [], 1), argv
    assert message in errors[0]
  assert {p: p.read_bytes() for p in tmp_path.rglob('*')} == before
  assert run(trained, there, '--ema', '--force')[0] == 0
  assert there.read_bytes() != before[there]


def test_help_names_the_formats(capfd):
  with pytest.raises(SystemExit):
    cli.main(['convert', '--help'])
  text = ' '.join(capfd.readouterr().out.split())
  formats = 'vit_jax, vision_transformer, timm, transformers, open_clip, jax'
  assert f'one of {formats}; by default vit_jax' in text
