"""The model that comes with the package: small, with the config that made it, and of some use."""

import json

import numpy as np
import pytest

from vit_jax.adapters.ours import one_by_one
from vit_jax.adapters.published import PACKAGED
from vit_jax.data.emoji import Emoji
from vit_jax.pretrained import load


@pytest.fixture(scope='module')
def model():
  return load('emoji-clip')


def test_it_is_small_and_whole(model):
  assert (PACKAGED / 'emoji-clip.npz').stat().st_size <= 3e6
  assert not model.report.missing and not model.report.unused


def test_the_config_that_made_it_is_beside_it(model):
  config = json.loads((PACKAGED / 'emoji-clip.json').read_text())
  assert one_by_one(config['objective']) == one_by_one(model.spec)
  assert config['data']['source']['split'] == 'all'


@pytest.mark.parametrize('style', ['google', 'twitter', 'openmoji', 'noto-mono'])
def test_it_knows_the_categories_of_what_it_was_trained_on(model, style):
  source = Emoji('test', styles=(style,), alpha=True)
  images = model.embeddings([source[i]['image'] for i in range(len(source))])
  answers = (images @ model.classifier(source.classes, ('{}',)).T).argmax(1)
  assert np.mean(answers == source.labels) > 0.45  # The largest category has 0.213.


def test_another_name_that_is_close_is_asked_for():
  with pytest.raises(ValueError, match="unknown checkpoint 'emoji-clp'; did you mean 'emoji-clip'"):
    load('emoji-clp')
