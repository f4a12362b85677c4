"""Both towers of transformers' CLIP and SigLIP: the same logits in, and the same arrays out."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from vit_jax.adapters import hf
from vit_jax.adapters.tensors import open_tensors
from vit_jax.checkpoint import named
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WIDTH, VOCAB, CONTEXT, DIM = 32, 50, 9, 24
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
SPECIAL = dict(bos_token_id=None, pad_token_id=None)
TEXT = dict(SIZES, vocab_size=VOCAB, max_position_embeddings=CONTEXT, **SPECIAL)
VISION = dict(SIZES, image_size=32, patch_size=8)
CLIP_TEXT = dict(TEXT, eos_token_id=VOCAB - 1)
# By name: the family, and what its config is made of.
PEERS = {
  'clip': ('CLIP', dict(text_config=CLIP_TEXT, vision_config=VISION, projection_dim=DIM)),
  'clip of 2021': (
    'CLIP',
    dict(
      text_config=dict(CLIP_TEXT, eos_token_id=2, hidden_act='gelu', layer_norm_eps=1e-3),
      vision_config=dict(VISION, hidden_size=40),
      projection_dim=DIM,
    ),
  ),
  'clip, another end': (
    'CLIP',
    dict(text_config=dict(TEXT, eos_token_id=7), vision_config=VISION, projection_dim=DIM),
  ),
  'siglip': (
    'Siglip',
    dict(text_config=dict(TEXT, eos_token_id=1), vision_config=dict(VISION, layer_norm_eps=1e-3)),
  ),
}
WHOLE = {
  'CLIPModel': ('CLIP', {}),
  'SiglipModel': ('Siglip', {}),
}


def make(family, fields):
  """A model none of whose parameters is left at 0 or 1, where it would hide an error."""
  torch.manual_seed(0)
  config = getattr(transformers, f'{family}Config')(**fields)
  model = getattr(transformers, f'{family}Model')(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, x in model.named_parameters():
      if 'logit' not in name:
        x += 0.05 * torch.randn(x.shape, generator=generator)
  return model


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function from a name of `PEERS` to the model and its folder."""
  made = {}

  def get(name):
    if name not in made:
      peer = make(*PEERS[name])
      folder = tmp_path_factory.mktemp('peer')
      peer.save_pretrained(folder)
      made[name] = peer, folder
    return made[name]

  return get


def open_(folder, **facts):
  return load(folder, progress=False, mean=MEAN, std=STD, **facts)


def batch(peer):
  """Images, and texts, each with an end and something behind it."""
  vision, text = peer.config.vision_config, peer.config.text_config
  rng = np.random.default_rng(1)
  side, context, vocab = vision.image_size, text.max_position_embeddings, text.vocab_size
  images = rng.integers(0, 256, (3, side, side, 3), np.uint8)
  tokens = rng.integers(8, vocab - 1, (3, context)).astype(np.int32)
  for row, end in enumerate((context - 1, 4, 6)):
    tokens[row, [2, 3, 5][row]] = 7  # The end of one of them.
    tokens[row, end] = vocab - 1
    tokens[row, end + 1 :] = 0
  return images, tokens


@torch.no_grad()
def peer_logits(peer, images, tokens):
  x = ((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
  out = peer(pixel_values=torch.tensor(x.copy()), input_ids=torch.from_numpy(tokens).long())
  return out.logits_per_image.numpy()


def our_logits(model, images, tokens):
  def run(variables, images, tokens):
    image = model.objective.apply(variables, {'image': images}, method='embeddings')
    texts = model.objective.apply(variables, {'text': tokens}, method='text_embeddings')
    return model.objective.apply(variables, image, texts, method='similarity')

  return np.asarray(jax.jit(run)(model.variables, images, tokens))


def largest_difference(model, peer):
  data = batch(peer)
  theirs, ours = peer_logits(peer, *data), our_logits(model, *data)
  assert ours.shape == theirs.shape
  assert theirs.std() > 0.01  # They tell the pairs apart.
  return np.abs(ours - theirs).max()


def export(model, folder):
  """Writes it as `vit_jax convert` does, and reads the arrays."""
  assert not model.save(folder, 'transformers').unsaid
  return load_file(folder / 'model.safetensors')


# -- In.


@pytest.mark.parametrize('name', PEERS)
def test_logits_are_those_of_transformers(saved, name):
  peer, folder = saved(name)
  model = open_(folder)
  report = model.report
  assert not (report.missing or report.unused or report.resized or report.initialised)
  assert sum(x.size for x in named(model.params).values()) == sum(
    p.numel() for p in peer.parameters()
  )
  assert largest_difference(model, peer) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', WHOLE)
def test_logits_of_whole_networks_are_those_of_transformers(tmp_path, name):
  peer = make(*WHOLE[name])
  peer.save_pretrained(tmp_path)
  model = open_(tmp_path)
  difference = largest_difference(model, peer)
  print(f'{name}: largest difference of logits {difference:.2e}')
  assert difference < 1e-4


def test_the_image_tower_alone_needs_no_text(saved):
  model = open_(saved('clip')[1], tower='image')
  assert not model.has_text
  assert 'text_projection.weight' in model.report.unused
  with pytest.raises(ValueError, match="unknown tower 'text'; choose from 'both', 'image'"):
    open_(saved('clip')[1], tower='text')


def test_without_a_config_heads_are_of_64_features_and_the_rest_is_asked(tmp_path):
  sizes = dict(hidden_size=64, num_attention_heads=1, hidden_act='gelu')
  text, vision = {**CLIP_TEXT, **sizes}, {**VISION, **sizes}
  peer = make('CLIP', dict(text_config=text, vision_config=vision, projection_dim=DIM))
  torch.save(peer.state_dict(), tmp_path / 'pytorch_model.bin')
  facts = dict(num_heads=1, activation='gelu', ln_eps=1e-5)
  for missed in facts:
    given = {name: value for name, value in facts.items() if name != missed}
    with pytest.raises(ValueError, match=f'does not say its {missed}; pass {missed}='):
      open_(tmp_path, **given)
  assert largest_difference(open_(tmp_path, **facts), peer) < 1e-4


def test_the_tokenizer_is_clips_where_the_vocabulary_is(saved, tmp_path):
  assert open_(saved('clip')[1]).tokenizer_spec is None
  fields = dict(PEERS['clip'][1])
  fields['text_config'] = dict(CLIP_TEXT, vocab_size=49408, eos_token_id=49407)
  make('CLIP', fields).save_pretrained(tmp_path)
  spec = open_(tmp_path).tokenizer_spec
  assert spec == {'type': 'data.tokenizers.clip.ClipBpe', 'context': CONTEXT}


def test_the_tokenizer_of_siglip_is_what_lies_beside_the_weights(tmp_path):
  fields = dict(PEERS['siglip'][1])
  fields['text_config'] = dict(TEXT, vocab_size=32000, eos_token_id=1)
  make('Siglip', fields).save_pretrained(tmp_path)
  assert open_(tmp_path).tokenizer_spec is None
  (tmp_path / 'spiece.model').touch()
  assert open_(tmp_path).tokenizer_spec == {
    'type': 'data.tokenizers.sentencepiece.SentencePiece',
    'model': str(tmp_path / 'spiece.model'),
    'context': CONTEXT,
  }


# -- Out.


@pytest.mark.parametrize('name', PEERS)
def test_export_gives_the_file_back(saved, tmp_path, name):
  _, folder = saved(name)
  file = open_tensors(folder / 'model.safetensors')
  arrays = export(open_(folder), tmp_path)
  assert arrays.keys() == set(file)
  for key, array in arrays.items():
    np.testing.assert_array_equal(array, file[key])
    assert array.shape == file[key].shape


@pytest.mark.parametrize('name', PEERS)
def test_transformers_opens_what_is_written_and_gives_its_own_numbers(saved, tmp_path, name):
  peer, folder = saved(name)
  model = open_(folder)
  export(model, tmp_path)
  again, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info.values()), info
  assert type(again) is type(peer)
  data = batch(peer)
  np.testing.assert_allclose(
    peer_logits(again.eval(), *data), peer_logits(peer, *data), rtol=0, atol=1e-5
  )
  assert load(tmp_path, progress=False).spec == model.spec


@pytest.mark.parametrize(
  ('name', 'fields', 'match'),
  [
    ('clip', dict(loss='sigmoid'), "CLIP has no place for loss='sigmoid'; it takes 'softmax'"),
    ('siglip', dict(loss='softmax'), "SigLIP has no place for loss='softmax'"),
    ('clip', dict(projection=None), 'CLIP has a projection of texts and images'),
    ('siglip', dict(projection=4), 'SigLIP has a projection of texts alone'),
  ],
)
def test_what_transformers_has_no_place_for_is_refused(saved, name, fields, match):
  objective = open_(saved(name)[1]).objective
  with pytest.raises(ValueError, match=match):
    hf.joint_rules(objective.clone(**fields))
  text = objective.text.clone(causal=name == 'siglip')
  with pytest.raises(ValueError, match='has no place for causal='):
    hf.joint_rules(objective.clone(text=text))


# -- What does not fit.


@pytest.mark.parametrize(
  ('name', 'change', 'match'),
  [
    ('clip', lambda s: s.pop('logit_scale'), "has no 'logit_scale', which its format has"),
    (
      'clip',
      lambda s: s.pop('visual_projection.weight'),
      "has no 'visual_projection.weight', which its format has",
    ),
    (
      'siglip',
      lambda s: s.pop('text_model.head.bias'),
      r"has no 'text_model\.head\.bias', which its format has",
    ),
    (
      'clip',
      lambda s: s.update({'text_projection.weight': torch.zeros(DIM + 1, WIDTH)}),
      'embeddings of 24 features of images and of 25 of texts, which cannot be compared',
    ),
    (
      'siglip',
      lambda s: s.update({'text_model.final_layer_norm.bias': torch.zeros(3)}),
      r"'text_model\.final_layer_norm\.bias' in .*: its shape is \[3\] and should be \[32\]",
    ),
    (
      'clip',
      lambda s: s.update({'text_model.encoder.layers.0.mlp.gate_proj.weight': torch.zeros(3)}),
      r'gate_proj\.weight.* \(a SwiGLU MLP\), which no model here has',
    ),
  ],
)
def test_a_file_that_does_not_fit_is_one_error(saved, tmp_path, name, change, match):
  peer, _ = saved(name)
  state = dict(peer.state_dict())
  change(state)
  torch.save(state, tmp_path / 'pytorch_model.bin')
  peer.config.save_pretrained(tmp_path)
  with pytest.raises(ValueError, match=match):
    open_(tmp_path)
