"""Models that open_clip made: the same logits in, and the same arrays out again."""

import io
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from vit_jax.adapters import open_clip as adapter
from vit_jax.adapters import write
from vit_jax.adapters.tensors import open_tensors
from vit_jax.checkpoint import named
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
open_clip = pytest.importorskip('open_clip')

WIDTH, SIDE, VOCAB, CONTEXT, DIM = 64, 32, 50, 9, 24
TEXT = dict(context_length=CONTEXT, vocab_size=VOCAB, width=WIDTH, heads=1, layers=2)
VIT = dict(layers=2, width=WIDTH, patch_size=8, image_size=SIDE)
SIGLIP_TEXT = dict(
  TEXT, no_causal_mask=True, proj_bias=True, pool_type='last', norm_kwargs={'eps': 1e-6}
)
# By name: open_clip's own configs.
TINY = {
  'vit': dict(embed_dim=DIM, vision_cfg=VIT, text_cfg=TEXT),
  'vit, quick': dict(
    embed_dim=DIM, quick_gelu=True, vision_cfg=dict(VIT, mlp_ratio=2.0), text_cfg=TEXT
  ),
  'vit, heads, norms and approximation': dict(
    embed_dim=DIM,
    vision_cfg=dict(VIT, head_width=16, no_ln_pre=True, act_kwargs={'approximate': 'tanh'}),
    text_cfg=dict(TEXT, heads=4, mlp_ratio=3.0, norm_kwargs={'eps': 1e-3}),
  ),
  'vit, end': dict(
    embed_dim=DIM,
    vision_cfg=VIT,
    text_cfg=dict(TEXT, pool_type='eos', eos_id=7, no_causal_mask=True),
  ),
  'resnet': dict(
    embed_dim=DIM,
    quick_gelu=True,
    vision_cfg=dict(layers=[1, 2, 1, 1], width=8, image_size=64),
    text_cfg=TEXT,
  ),
  'sigmoid': dict(
    embed_dim=DIM, init_logit_bias=-10, custom_text=True, vision_cfg=VIT, text_cfg=SIGLIP_TEXT
  ),
}
# The whole networks; 'ViT-B-16-SigLIP' has timm's image tower.
PUBLISHED = ('RN50', 'ViT-B-32-quickgelu', 'ViT-B-16', 'ViT-B-16-SigLIP')


def make(config, seed=0):
  """A model none of whose parameters is left at 0 or 1, where it would hide an error."""
  config = dict(config)
  custom = config.pop('custom_text', False)
  kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
  torch.manual_seed(seed)
  model = kind(**config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
      if x.is_floating_point() and name != 'attn_mask' and 'logit' not in name:
        noise = torch.randn(x.shape, generator=generator)
        x += 0.05 * (noise.abs() if name.endswith('running_var') else noise)
  return model


def save(model, folder, config=None, **images):
  folder.mkdir(exist_ok=True)
  torch.save(model.state_dict(), folder / 'open_clip_pytorch_model.bin')
  if config is not None:
    file = {'model_cfg': config, 'preprocess_cfg': images}
    (folder / 'open_clip_config.json').write_text(json.dumps(file))
  return folder


def batch(model, count=3):
  """Images as they are seen by both, and texts, each with an end and some behind it."""
  rng = np.random.default_rng(1)
  (height, width) = (
    model.visual.image_size
    if hasattr(model.visual.image_size, '__len__')
    else ((model.visual.image_size,) * 2)
  )
  images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
  text = rng.integers(8, model.vocab_size - 1, (count, model.context_length)).astype(np.int32)
  for row, end in enumerate((model.context_length - 1, 4, 6)):
    text[row, end] = model.vocab_size - 1
    text[row, end + 1 :] = 0
  text[0, 2], text[1, 3], text[2, 5] = 7, 7, 7  # The end of one of them.
  return images, text


@torch.no_grad()
def peer_logits(model, images, text, mean, std):
  x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
  logits = model.get_logits(torch.from_numpy(x), torch.from_numpy(text).long())
  return logits[0].numpy()


def our_logits(model, images, text):
  def run(variables, images, text):
    image = model.objective.apply(variables, {'image': images}, method='embeddings')
    texts = model.objective.apply(variables, {'text': text}, method='text_embeddings')
    return model.objective.apply(variables, image, texts, method='similarity')

  return np.asarray(jax.jit(run)(model.variables, images, text))


def largest_difference(model, peer):
  images, text = batch(peer)
  mean, std = (np.float64(model.spec[name]) for name in ('mean', 'std'))
  theirs = peer_logits(peer, images, text, mean, std)
  assert theirs.std() > 0.05  # They tell the pairs apart.
  ours = our_logits(model, images, text)
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function from a name of `TINY` to the model and its folder."""
  made = {}

  def get(name):
    if name not in made:
      peer = make(TINY[name])
      made[name] = peer, save(peer, tmp_path_factory.mktemp('peer'), TINY[name])
    return made[name]

  return get


def export(model, folder):
  """Writes it as `vit_jax convert` does, and reads the arrays."""
  assert not model.save(folder, 'open_clip').unsaid
  return load_file(folder / 'model.safetensors')


# -- In.


@pytest.mark.parametrize('name', TINY)
def test_logits_are_those_of_open_clip(saved, name):
  peer, folder = saved(name)
  model = load(folder, progress=False)
  report = model.report
  assert not (report.missing or report.resized or report.initialised or report.unused)
  assert sum(x.size for x in named(model.params).values()) == sum(
    p.numel() for p in peer.parameters()
  )
  assert largest_difference(model, peer) < 1e-4


def test_an_image_tower_of_timm(tmp_path):
  pytest.importorskip('timm')
  vision = dict(timm_model_name='test_vit', timm_pool='map', timm_proj='none', image_size=160)
  config = dict(
    embed_dim=WIDTH,
    init_logit_bias=-10,
    custom_text=True,
    vision_cfg=vision,
    text_cfg=dict(SIGLIP_TEXT, act_kwargs={'approximate': 'tanh'}),
  )
  peer = make(config)
  model = load(save(peer, tmp_path, config), progress=False)
  assert not (model.report.missing or model.report.unused)
  image, text = model.objective.image, model.objective.text
  assert (image.pooling, image.activation, text.activation) == ('map', 'gelu', 'gelu_tanh')
  assert (image.ln_eps, text.ln_eps) == (1e-6, 1e-6)
  assert largest_difference(model, peer) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLISHED)
def test_logits_of_whole_networks_are_those_of_open_clip(tmp_path, name):
  if 'SigLIP' in name:
    pytest.importorskip('timm')
  config = open_clip.get_model_config(name)
  peer = make(config)
  model = load(save(peer, tmp_path, config), progress=False)
  assert not (model.report.missing or model.report.unused)
  difference = largest_difference(model, peer)
  print(f'{name}: largest difference of logits {difference:.2e}')
  assert difference < 1e-4
  rules, state = adapter.joint_rules(model.objective), peer.state_dict()
  written = dict(write.their_arrays(rules, named(model.variables)))
  assert written.keys() == state.keys()
  for key, array in written.items():
    np.testing.assert_array_equal(array, state[key].numpy())
  said = adapter.companions(model)['open_clip_config.json']['model_cfg']
  assert said['vision_cfg'].get('timm_model_name') == config['vision_cfg'].get('timm_model_name')


def test_a_scale_beyond_the_bound_of_training_is_taken(saved, tmp_path):
  peer = make(TINY['vit'])
  with torch.no_grad():
    peer.logit_scale.fill_(5.0)
  model = load(save(peer, tmp_path, TINY['vit']), progress=False)
  assert largest_difference(model, peer) < 2e-4
  assert load(saved('vit')[1], progress=False).objective.max_scale == 100


def test_a_file_alone_needs_the_activation(saved, tmp_path):
  peer, _ = saved('vit, quick')
  save(peer, tmp_path)
  with pytest.raises(ValueError, match="activation: 'quick_gelu' of what OpenAI has published"):
    load(tmp_path, progress=False)
  model = load(tmp_path, progress=False, activation='quick_gelu')
  assert largest_difference(model, peer) < 1e-4
  assert model.preprocessing.host == (
    f"decode(channels=3) | resize_small({SIDE}, interpolation='bicubic') | central_crop({SIDE})"
  )


def test_a_state_dict_of_openai_is_known_by_what_it_holds(saved, tmp_path):
  peer, _ = saved('vit, quick')
  state = {**peer.state_dict(), 'input_resolution': torch.tensor(SIDE)}
  torch.save(state, tmp_path / 'clip.pt')
  model = load(tmp_path / 'clip.pt', progress=False)
  assert model.objective.image.activation == model.objective.text.activation == 'quick_gelu'
  assert model.report.unused == ['input_resolution']
  assert largest_difference(model, peer) < 1e-4


def test_a_program_is_refused_and_the_error_says_what_to_do(tmp_path):
  program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
  torch.jit.save(program, str(tmp_path / 'clip.pt'))
  with pytest.raises(ValueError, match=r'TorchScript.*torch\.jit\.load.*state_dict'):
    load(tmp_path / 'clip.pt', progress=False)


def test_images_go_through_what_the_file_says(saved, tmp_path):
  peer, _ = saved('vit')
  images = dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], resize_mode='squash')
  model = load(save(peer, tmp_path, TINY['vit'], **images), progress=False)
  assert model.preprocessing.host == (
    f"decode(channels=3) | resize({SIDE}, interpolation='bicubic')"
  )
  assert largest_difference(model, peer) < 1e-4
  save(peer, tmp_path, TINY['vit'], resize_mode='longest')
  with pytest.raises(ValueError, match="unknown resize_mode 'longest'; choose from 'shortest', 's"):
    load(tmp_path, progress=False)


def test_the_image_tower_alone(saved):
  peer, folder = saved('resnet')
  model = load(folder, progress=False, tower='image')
  assert not model.has_text
  assert not model.has_head
  images, _ = batch(peer)
  mean, std = (np.float64(model.spec[name]) for name in ('mean', 'std'))
  x = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
  with torch.no_grad():
    expected = peer.visual(torch.from_numpy(x)).numpy()
  ours = model.features(images, preprocessed=True)
  assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_tokenizer_is_clips_where_the_vocabulary_is(tmp_path):
  config = dict(TINY['vit'], text_cfg=dict(TEXT, vocab_size=49408, layers=1))
  folder = save(make(config), tmp_path / 'a', config)
  model = load(folder, progress=False)
  assert model.tokenizer_spec == {'type': 'data.tokenizers.clip.ClipBpe', 'context': CONTEXT}
  theirs = open_clip.SimpleTokenizer(context_length=CONTEXT)
  np.testing.assert_array_equal(model.tokenizer('a photo.'), theirs('a photo.')[0].numpy())
  config['text_cfg']['hf_tokenizer_name'] = 'somebody/else'
  assert load(save(make(config), tmp_path / 'b', config), progress=False).tokenizer_spec is None


# -- Out.


@pytest.mark.parametrize('name', TINY)
def test_export_gives_the_file_back(saved, tmp_path, name):
  peer, folder = saved(name)
  arrays = export(load(folder, progress=False), tmp_path)
  state = {key: x.numpy() for key, x in peer.state_dict().items()}
  counters = {key for key in state if key.endswith('num_batches_tracked')}
  assert arrays.keys() == state.keys()
  for key in state.keys() - counters:
    np.testing.assert_array_equal(arrays[key], state[key])
    assert arrays[key].shape == state[key].shape


@pytest.mark.parametrize('name', TINY)
def test_open_clip_opens_what_is_written_and_gives_its_own_numbers(saved, tmp_path, name):
  peer, folder = saved(name)
  model = load(folder, progress=False)
  export(model, tmp_path)
  again = open_clip.create_model(f'local-dir:{tmp_path}', load_weights=True).eval()
  data = batch(peer)
  colours = model.spec['mean'], model.spec['std']
  np.testing.assert_allclose(
    peer_logits(again, *data, *colours), peer_logits(peer, *data, *colours), rtol=0, atol=1e-5
  )
  assert load(tmp_path, progress=False).spec == model.spec


@pytest.mark.parametrize(
  ('tower', 'fields', 'match'),
  [
    ('image', dict(registers=2), 'open_clip has no place for registers=2; it takes 0'),
    ('image', dict(pooling='mean'), "no place for pooling='mean'; it takes 'token' or 'map'"),
    ('text', dict(pooling='mean'), "no place for pooling='mean'; it takes 'end' or 'last' or"),
    ('text', dict(pad_id=3), 'no place for pad_id=3'),
    ('text', dict(projection=None), 'a TextTransformer with a projection'),
  ],
)
def test_what_open_clip_has_no_place_for_is_refused(saved, tower, fields, match):
  objective = load(saved('vit')[1], progress=False).objective
  changed = objective.clone(**{tower: getattr(objective, tower).clone(**fields)})
  with pytest.raises(ValueError, match=match):
    adapter.joint_rules(changed)


# -- What does not fit.


def broken(change, name='vit'):
  """A file of a model whose state dict `change` has gone over."""
  state = dict(make(TINY[name]).state_dict())
  change(state)
  file = io.BytesIO()
  torch.save(state, file)
  return file.getvalue()


def other_text(state):
  state['text_projection'] = torch.zeros(WIDTH, DIM + 1)


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda s: s.pop('visual.proj'), "has no 'visual.proj', which its format has"),
    (lambda s: s.pop('logit_scale'), "has no 'logit_scale', which its format has"),
    (
      lambda s: s.pop('transformer.resblocks.1.ln_2.bias'),
      r"has no 'transformer\.resblocks\.1\.ln_2\.bias', which its format has",
    ),
    (
      lambda s: s.update({'ln_final.weight': torch.zeros(WIDTH + 1)}),
      r"'ln_final\.weight' in .*: its shape is \[65\] and should be \[64\]",
    ),
    (other_text, 'embeddings of 24 features of images and of 25 of texts, which cannot be compar'),
    (
      lambda s: s.update({'visual.attnpool.k_proj.bias': torch.zeros(2)}),
      r"has 'visual\.attnpool\.k_proj\.bias' \(another architecture\), which no model here has",
    ),
    (
      lambda s: s.update({'visual.transformer.resblocks.0.ls_1.gamma': torch.zeros(2)}),
      r'ls_1\.gamma.* \(LayerScale\), which no model here has',
    ),
  ],
)
def test_a_file_that_does_not_fit_is_one_error(tmp_path, change, match):
  (tmp_path / 'clip.pt').write_bytes(broken(change))
  with pytest.raises(ValueError, match=match):
    load(tmp_path / 'clip.pt', progress=False, activation='gelu')


@pytest.mark.parametrize(
  ('tower', 'fields', 'match'),
  [
    ('vision_cfg', dict(pool_type='avg'), "has pool_type 'avg', which no model here has"),
    ('text_cfg', dict(embed_cls=True), 'has embed_cls True, which no model here has'),
  ],
)
def test_a_config_of_another_architecture_is_refused(saved, tmp_path, tower, fields, match):
  config = dict(TINY['vit'])
  config[tower] = {**config[tower], **fields}
  with pytest.raises(ValueError, match=match):
    load(save(saved('vit')[0], tmp_path, config), progress=False)


def test_one_tower_alone_is_another_file(saved):
  names = list(open_tensors(saved('vit')[1] / 'open_clip_pytorch_model.bin'))
  assert adapter.matches(names)
  assert not adapter.matches(name for name in names if not name.startswith('visual.'))
  assert not adapter.matches(name for name in names if name.startswith('visual.'))
