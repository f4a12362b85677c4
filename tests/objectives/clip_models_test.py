"""The published image-text models: their counts against the published figures and open_clip."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.objectives.clip_models import MODELS, clip_model

# By our name: how many parameters were published, and what open_clip calls the model.
COUNTS = {
  'ViT-B/32': (151_277_313, 'ViT-B-32-quickgelu'),
  'ViT-B/16': (149_620_737, 'ViT-B-16-quickgelu'),
  'ViT-L/14': (427_616_513, 'ViT-L-14-quickgelu'),
  'ViT-L/14@336px': (427_944_193, 'ViT-L-14-336-quickgelu'),
  'RN50': (102_007_137, 'RN50-quickgelu'),
  'RN101': (119_688_033, 'RN101-quickgelu'),
  'RN50x4': (178_300_601, 'RN50x4-quickgelu'),
  'SigLIP-B/16': (203_155_970, 'ViT-B-16-SigLIP'),
  'SigLIP-L/16-256': (652_150_786, 'ViT-L-16-SigLIP-256'),
}


def shapes(name):
  """Shapes of the parameters, and of the loss's `[B]`, of images of the published size."""
  objective = build(clip_model(name))
  image = objective.image
  side = image.size.image_size if 'RN' in name else image.grid[0] * image.patch[0]
  batch = {
    'image': jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8),
    'text': jax.ShapeDtypeStruct((2, objective.text.context), jnp.int32),
  }
  init = lambda key, batch: nn.unbox(objective.init(key, batch, train=False))  # noqa: E731
  return jax.eval_shape(init, jax.random.key(0), batch)['params'], side


@pytest.mark.parametrize('name', MODELS)
def test_parameter_count(name):
  torch = pytest.importorskip('torch')
  open_clip = pytest.importorskip('open_clip')
  published, theirs = COUNTS[name]
  params, side = shapes(name)
  assert sum(x.size for x in jax.tree.leaves(params)) == published
  config = open_clip.get_model_config(theirs)
  custom = config.pop('custom_text', False)
  kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
  with torch.device('meta'):
    peer = kind(**config)
  assert sum(p.numel() for p in peer.parameters()) == published
  assert config['vision_cfg']['image_size'] == side
  heads = build(MODELS[name]['text']).size.num_heads
  assert heads == config['text_cfg']['heads']


def test_every_model_has_a_count():
  assert MODELS.keys() == COUNTS.keys()


def test_fields_change_the_model_and_no_table():
  spec = clip_model('ViT-B/32', loss='sigmoid', image=dict(depth=1), text=dict(scan=True))
  assert spec['loss'] == 'sigmoid'
  assert spec['image'] == {**MODELS['ViT-B/32']['image'], 'depth': 1}
  assert spec['text']['scan']
  assert clip_model('ViT-B/32') == MODELS['ViT-B/32']
  assert 'loss' not in clip_model('ViT-B/32')
  np.testing.assert_allclose(spec['mean'], (0.48145466, 0.4578275, 0.40821073))


def test_an_unknown_name_shows_those_there_are():
  with pytest.raises(
    ValueError, match="unknown name 'ViT-B-32'; choose from 'ViT-B/32', 'ViT-B/16"
  ):
    clip_model('ViT-B-32')
