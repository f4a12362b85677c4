"""`vit_jax augment`: a picture of a config's own training images, before and after."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import cli, config
from vit_jax.cli.augment import training_images
from vit_jax.plots import augmentations, images

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/vit_emoji.py')
CELL = 96  # pixels, three times those of an emoji


def draw(tmp_path, *argv: str, to: str = 'a.png') -> np.ndarray:
  out = tmp_path / 'new' / to
  assert cli.main(['augment', '--config', CONFIG, '--out', str(out), *argv]) == 0
  return np.asarray(Image.open(out))


def width(columns: int) -> int:
  return images.GAP + columns * (CELL + images.GAP)


def test_a_configs_chain_is_drawn_several_times(tmp_path, capsys):
  override = '--config.objective.augment=grayscale(p=1) | background(p=0)'
  picture = draw(tmp_path, '--images', '2', '--times', '3', override)
  assert str(tmp_path / 'new' / 'a.png') in capsys.readouterr().out
  assert picture.shape[1] == width(4)
  y = images.GAP + images.TITLE
  first = [picture[y : y + CELL, width(i) : width(i) + CELL].astype(int) for i in range(4)]
  drawing = training_images(config.load(CONFIG), 1)[0]
  np.testing.assert_array_equal(first[0][1::3, 1::3], images.to_rgb(drawing))
  assert np.abs(first[0].max(-1) - first[0].min(-1)).max() > 0
  for gray in first[1:]:
    assert (gray == gray[..., :1]).all() and (gray < 255).any()


def test_operations_are_those_of_the_figure(tmp_path):
  picture = draw(tmp_path, '--operations', '--images', '1')
  assert picture.shape[1] == width(1 + len(augmentations.DEFAULTS))


def test_views_of_the_host_are_images_and_an_augmentation_a_view_has_columns(tmp_path):
  spec = config.load(CONFIG, ['--config.data.host=decode(channels=4) | views(2) | flip(0.5)'])
  assert len(training_images(spec, 3)) == 6
  file = tmp_path / 'two.py'
  file.write_text(
    f'import importlib.util\n'
    f'spec = importlib.util.spec_from_file_location("emoji", {CONFIG!r})\n'
    f'module = importlib.util.module_from_spec(spec)\n'
    f'spec.loader.exec_module(module)\n'
    f'def get_config():\n'
    f'  config = module.get_config()\n'
    f'  del config.objective.augment\n'
    f'  config.objective.augment = ("flip | background(p=0)", "invert(p=1)")\n'
    f'  return config\n'
  )
  out = tmp_path / 'two.png'
  argv = ['augment', '--config', str(file), '--out', str(out), '--images', '1', '--times', '2']
  assert cli.main(argv) == 0
  assert np.asarray(Image.open(out)).shape[1] == width(5)


def test_the_augmentation_may_stand_in_an_objective_inside(tmp_path):
  """Distillation has it in its student."""
  out = tmp_path / 'a.png'
  argv = ['augment', '--config', str(ROOT / 'configs/distill_emoji.py'), '--out', str(out)]
  assert cli.main([*argv, '--images', '1', '--times', '2']) == 0
  assert np.asarray(Image.open(out)).shape[1] == width(3)


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--images', '0'], '--images must be at least 1, got 0'),
    (['--times', '-1'], '--times must be at least 1, got -1'),
    (['--config.objective.augment='], 'config.objective has no augment'),
    (['--config.objective.augment=flop'], "unknown transform 'flop'"),
    (['--config.data.host=crop'], "unknown transform 'crop'"),
  ],
)
def test_a_mistake_is_one_sentence(argv, message, tmp_path, capsys):
  out = tmp_path / 'a.png'
  assert cli.main(['augment', '--config', CONFIG, '--out', str(out), *argv]) == 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and message in lines[0]
  assert not out.exists()
