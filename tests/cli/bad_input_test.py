"""Mistakes on the command line: one sentence that names the choices, and nothing is changed."""

import shutil
from pathlib import Path

import pytest

from vit_jax import cli

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/vit_digits.py')
TINY = (
  '--config.objective.encoder.width=16',
  '--config.objective.encoder.depth=1',
  '--config.objective.encoder.num_heads=2',
  '--config.objective.encoder.mlp_dim=16',
  '--config.total.steps=2',
  '--config.checkpoint.every.steps=1',
  '--config.evals.validation.every.steps=1',
)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
  """Bytes and time of the last change of every file."""
  return {
    str(p.relative_to(folder)): (p.read_bytes() if p.is_file() else b'', p.stat().st_mtime_ns)
    for p in sorted(folder.rglob('*'))
  }


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """The workdir of a run of 2 steps."""
  workdir = tmp_path_factory.mktemp('cli') / 'run'
  assert cli.main(['train', '--config', CONFIG, '--workdir', str(workdir), *TINY]) == 0
  return workdir


@pytest.fixture
def mistake(capfd):
  """A function that runs a command which must fail, and returns its one line on stderr."""

  def run(*argv: str) -> str:
    capfd.readouterr()
    assert cli.main(list(argv)) not in (0, None)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('vit_jax: error: ')
    return lines[0].removeprefix('vit_jax: error: ')

  return run


# -- Before anything is built.


def test_an_unknown_config_names_the_nearest(mistake, tmp_path):
  text = mistake('train', '--config', CONFIG.replace('digits', 'digit'), '--workdir', str(tmp_path))
  assert "did you mean 'vit_digits.py'" in text
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--config.sed=1', "unknown field 'sed' in --config.sed; config has 'batch_size', "),
    ('--config.total.hours=1', "has 'epochs', 'examples', 'steps'"),
    ('--config.seed=x', "--config.seed takes a value of type int, not 'x'"),
    ('--seed=1', "cannot read '--seed=1'; write --config.field=value"),
    ('more', "cannot read 'more'; write --config.field=value"),
    ('--config.objective.type=models.vit.Vit', "did you mean 'ViT'? vit_jax.models.vit has"),
    ('--config.objective.encoder.type=models.vti.ViT', "did you mean 'vit'? modules in vit_jax"),
    ('--config.objective.encoder.type=ViT', "is no dotted path such as 'models.vit.ViT'"),
    ('--config.objective.encoder.pooling=cls', "choose from 'token', 'mean', 'map'"),
    ('--config.objective.encoder.num_heads=5', 'width 64 is not divisible by num_heads 5'),
    ('--config.objective.encoder.patch_size=3', 'image 8x8 is not divisible by patch 3x3'),
    (
      '--config.data.source.type=data.digit.Digits',
      "did you mean 'digits'? modules in vit_jax.data",
    ),
    ('--config.data.source.split=dev', "choose from 'train', 'validation', 'test'"),
    (
      '--config.data.host=decode | mirror',
      "unknown transform 'mirror' in 'decode | mirror'; choose",
    ),
    ('--config.data.host=decode | flip(q=1)', "unexpected keyword argument 'q'; it is flip("),
    ('--config.data.host=decode | flip(x)', 'must be literals'),
    ('--config.batch_size=12', 'choose 8 or 16'),
    ('--config.batch_size=0', 'choose 8'),
    ('--config.mesh.fsdp=3', 'needs a multiple of 3 devices; there are 8'),
    ('--config.mesh.data=16', 'needs 16 devices; there are 8'),
    ('--config.mesh.data=0', 'sizes are positive'),
    (
      '--config.sharding=zero',
      "unknown sharding 'zero'; choose from 'fsdp', 'zero1', 'replicated'",
    ),
    ('--config.optimizer.name=adam', "unknown optimizer 'adam'; choose from 'sgd', 'adamw'"),
    ('--config.optimizer.schedule=step', "choose from 'cosine', 'linear', 'rsqrt', 'constant'"),
    ('--config.optimizer.learning_rate=-1', 'optimizer.learning_rate must be a number > 0'),
    ('--config.total.steps=0', 'at least 1 step'),
    ('--config.total.steps=-1', 'steps of total must be a number of at least 0, got -1'),
    ('--config.checkpoint.mode=least', "unknown checkpoint mode 'least'; choose from 'max', 'min'"),
    ('--config.checkpoint.keep_last=0', 'it must keep at least 1 of the last'),
    ('--config.data.num_workers=-1', 'data.num_workers must be 0 or more, got -1'),
    ('--config.data.max_bad_share=-1', 'data.max_bad_share must be 0 or more, got -1'),
    ('--config.seed=-1', 'seed must be 0 or more, got -1'),
    ('--config.objective.num_classes=0', 'objective.num_classes is 0; set it to at least 10'),
    ('--config.objective.augment=mirror', "unknown transform 'mirror' in 'mirror'; choose from"),
    ("--config.objective.augment=affine(rotate='x')", "rotate takes no text, got 'x'"),
    ("--config.data.host=decode | flip('x')", "transform 'flip' in "),
    ('--config.objective.encoder.patch_size=0', 'patch_size must be at least 1, got 0'),
    ('--config.objective.loss=hinge', "unknown field 'loss' in --config.objective.loss"),
    ('--config.evals.test.type=evaluators.classification.Accuracy', 'unknown type'),
    ('--config.evals.test.source.split=dev', "choose from 'train', 'validation', 'test'"),
    (
      '--config.objective.num_classes=9',
      'the source has 10 classes and objective.num_classes is 9',
    ),
    (
      '--config.checkpoint.best=test/accuracy',
      'of no evaluator that has `every`; choose a metric of',
    ),
  ],
)
def test_a_config_that_cannot_be_leaves_no_trace(mistake, tmp_path, flag, message):
  workdir = tmp_path / 'run'
  text = mistake('train', '--config', CONFIG, '--workdir', str(workdir), flag)
  assert message in text
  assert not workdir.exists()


def test_an_unknown_field_of_a_model_or_evaluator(mistake, tmp_path):
  text = Path(CONFIG).read_text()
  for old, new, message in [
    ('depth=2', 'dpeth=2', "unknown field 'dpeth' of models.vit.ViT; choose from 'variant', "),
    ('num_classes=10', 'classes=10', "unknown field 'classes' of objectives.supervised.Supervised"),
    ('config.seed = 0', 'pass', "the config lacks 'seed'"),
    ('config.seed', 'config.sed', "unknown config field 'sed'; choose from 'seed', 'total'"),
    ('keep_last=2', 'keep=2', "unknown field 'keep' of checkpoint.Checkpoints"),
    ('num_workers=0', 'workers=0', "unknown config field 'data.workers'; choose from 'source'"),
    ('epochs=60', 'epoch=60', "unknown unit 'epoch'"),
  ]:
    assert text.count(old) == 1, old
    file = tmp_path / 'changed.py'
    file.write_text(text.replace(old, new))
    workdir = tmp_path / 'run'
    assert message in mistake('train', '--config', str(file), '--workdir', str(workdir))
    assert not workdir.exists(), new


# -- Against the workdir of a run.


def test_another_config_in_the_same_workdir_changes_nothing_there(mistake, trained):
  before = contents(trained)
  text = mistake(
    *('train', '--config', CONFIG, '--workdir', str(trained), *TINY),
    *('--config.seed=1', '--config.objective.encoder.depth=2'),
  )
  assert 'seed: 0 -> 1' in text
  assert 'objective.encoder.depth: 1 -> 2' in text
  assert 'choose another workdir' in text
  assert contents(trained) == before


def test_at_most_three_differences_are_named(mistake, trained):
  text = mistake('train', '--config', CONFIG, '--workdir', str(trained), *TINY[4:])
  assert text.count(' -> ') == 3
  assert 'and 1 more' in text


def test_an_unreadable_config_of_a_run(mistake, trained, tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'config.json').write_text('{')
  for command in (
    ('train', '--config', CONFIG, '--workdir', str(workdir)),
    ('evaluate', str(workdir)),
  ):
    assert 'config.json is not readable JSON' in mistake(*command)
  assert contents(workdir).keys() == {'config.json'}


@pytest.mark.parametrize('text', ['[]', 'null'])
def test_a_config_of_a_run_that_is_none(mistake, tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  for command in (
    ('train', '--config', CONFIG, '--workdir', str(tmp_path)),
    ('evaluate', str(tmp_path)),
  ):
    assert 'config.json holds no config' in mistake(*command)


def test_checkpoints_that_nothing_says_what_they_are_of(mistake, trained, tmp_path):
  shutil.copytree(trained / 'checkpoints', tmp_path / 'checkpoints')
  before = contents(tmp_path)
  text = mistake('train', '--config', CONFIG, '--workdir', str(tmp_path), *TINY)
  assert 'has checkpoints but no config.json' in text
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ('step', 'message'),
  [
    ('7', 'has no checkpoint of step 7; it has 1, 2'),
    ('newest', "unknown step 'newest'; choose from 'last', 'best', [1, 2]"),
    ('1.5', "unknown step '1.5'; choose from 'last', 'best', [1, 2]"),
  ],
)
def test_evaluate_with_a_step_that_is_not_there(mistake, trained, step, message):
  before = contents(trained)
  assert message in mistake('evaluate', str(trained), '--step', step)
  assert contents(trained) == before


@pytest.mark.parametrize('command', ['evaluate', 'report'])
def test_a_folder_that_is_no_run(mistake, tmp_path, command):
  (tmp_path / 'notes.txt').write_text('x')
  before = contents(tmp_path)
  assert str(tmp_path) in mistake(command, str(tmp_path))
  assert str(tmp_path / 'none') in mistake(command, str(tmp_path / 'none'))
  assert contents(tmp_path) == before


def test_evaluate_where_nothing_was_saved(mistake, trained, tmp_path):
  shutil.copy(trained / 'config.json', tmp_path)
  assert 'has no checkpoint' in mistake('evaluate', str(tmp_path))


def test_evaluate_takes_overrides_and_nothing_else(mistake, trained):
  text = mistake('evaluate', str(trained), '--stpe', '3')
  assert text == "cannot read '--stpe'; write --config.field=value"
  assert 'needs 3 devices' in mistake('evaluate', str(trained), '--config.mesh.data=3')


# -- The form of a command.


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'COMMAND'),
    (['trian'], "invalid choice: 'trian' (choose from"),
    (['train'], '--config'),
    (['train', '--config', CONFIG], '--workdir'),
    (['evaluate'], 'workdir'),
    (['report', 'x', '--stpe', '3'], 'unrecognized arguments: --stpe 3'),
    (['report', 'x', 'y'], 'unrecognized arguments: y'),
  ],
)
def test_the_wrong_form_shows_the_usage(argv, message, capfd):
  with pytest.raises(SystemExit) as raised:
    cli.main(argv)
  assert raised.value.code == 2
  text = capfd.readouterr().err
  assert text.startswith('usage: vit_jax')
  assert message in text


@pytest.mark.parametrize('argv', [['--help'], *([name, '--help'] for name in cli.COMMANDS)])
def test_help(argv, capfd):
  with pytest.raises(SystemExit) as raised:
    cli.main(argv)
  assert raised.value.code == 0
  text = ' '.join(capfd.readouterr().out.split())
  for name, about in cli.COMMANDS.items():
    if argv[0] in ('--help', name):
      assert about.partition(';')[0] in text


def test_debug_shows_where_an_error_comes_from(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no config'):
    cli.main(['train', '--debug', '--config', 'no.py', '--workdir', str(tmp_path)])
