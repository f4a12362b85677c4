"""Runs of ours as checkpoints: `load` gives what the state gives, in every kind of run."""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import train, workdirs
from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.run import read_host
from vit_jax.build import build
from vit_jax.checkpoint import named
from vit_jax.data.emoji import read_sheet
from vit_jax.pretrained import load

VIT = dict(
  type='models.vit.ViT', patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=24,
)  # fmt: skip
SUPERVISED = dict(type='objectives.supervised.Supervised', num_classes=8)
EMOJI = dict(type='data.emoji.Emoji', alpha=True)
IMAGES = read_sheet('google')[:5]  # [5, 32, 32, 4]


def make_config(objective, *, host='decode', source=EMOJI, evals=None, **fields):
  return config_lib.override(
    ml_collections.ConfigDict(
      dict(
        seed=3,
        total=dict(steps=3),
        batch_size=8,
        data=dict(source=source, host=host),
        objective=objective,
        optimizer=dict(name='sgd', learning_rate=0.5),
        evals=evals or {},
        mesh=dict(data=8),
        **fields,
      )
    )
  )


def direct(config, state, images, *, params=None):
  """Logits of images as they are, by the objective itself."""
  objective = build(config.objective)
  variables = jax.device_get({'params': params or state.params, **state.model_state})
  return np.asarray(
    jax.jit(lambda v, x: objective.apply(v, {'image': x}, method='logits'))(variables, images)
  )


def close(a, b):
  assert np.abs(b - b.mean()).max() > 1e-3  # It has learned something to compare.
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
  """Images of 16x32 in 2x4 patches, with all that only training does, averaged and evaluated."""
  workdir = tmp_path_factory.mktemp('wide') / 'run'
  objective = dict(
    **SUPERVISED,
    encoder=dict(**VIT, dropout=0.1, drop_path=0.1, patch_dropout=0.2, remat='full'),
    augment='flip | background(p=0.5)',
    eval_augment='background(p=0)',
    mix='mixup(0.5)',
    label_smoothing=0.1,
  )
  validation = dict(
    type='evaluators.classification.Classification', source=dict(**EMOJI, split='validation'),
    host='decode(channels=4) | resize(16, 32)', every=dict(steps=1),
  )  # fmt: skip
  config = make_config(
    objective,
    host='decode(channels=4) | random_resized_crop((16, 32)) | flip',
    evals=dict(validation=validation),
    ema=dict(decay=0.5),
    checkpoint=dict(every=dict(steps=1), keep_last=3, best='validation/loss', mode='min'),
  )
  return workdir, config, train.train_and_evaluate(config, workdir)


def test_a_run_gives_what_its_state_gives(wide):
  workdir, config, state = wide
  model = load(workdir)
  images = model.preprocess(list(IMAGES))
  assert images.shape == (5, 16, 32, 4)
  close(model(list(IMAGES)), direct(config, state, images))
  assert str(model.report).startswith(f'{workdir}, step 3 (vit_jax run): ')
  assert not (model.report.missing or model.report.unused or model.report.resized)
  assert model.classes[:2] == ('Smileys & Emotion', 'People & Body')
  # Without a fact: patches of 2x4, by the images, and not of a square.
  assert model.objective.encoder.grid == (2, 4)


def test_the_average_is_taken_where_it_is_asked_for(wide):
  workdir, config, state = wide
  model = load(workdir, average=True)
  images = model.preprocess(list(IMAGES))
  close(model(list(IMAGES)), direct(config, state, images, params=state.ema))
  assert np.abs(model(list(IMAGES)) - load(workdir)(list(IMAGES))).max() > 1e-3


def test_steps_by_number_and_the_best_by_its_mode(wide):
  workdir, _, _ = wide
  assert 'step 2 ' in load(workdir, step=2).report.origin
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  losses = {row['step']: row['validation/loss'] for row in rows if 'validation/loss' in row}
  best = min(losses, key=losses.get)
  assert max(losses, key=losses.get) != best
  assert f'step {best} ' in load(workdir, step='best').report.origin
  with pytest.raises(FileNotFoundError, match='has no checkpoint of step 7; it has 1, 2, 3'):
    load(workdir, step=7)


def test_another_size_of_images(wide):
  workdir, _, _ = wide
  model = load(workdir, image_size=(32, 32))
  assert model.report.resized == {
    'params/encoder/pos_embedding': 'from a grid of 2x4 to 4x4 (bicubic)'
  }
  np.testing.assert_array_equal(model.preprocess(IMAGES), IMAGES)  # Nothing is lost on the way.
  assert model(IMAGES).shape == (5, 8)


def test_a_run_that_did_not_note_the_size_of_its_images(wide, tmp_path):
  workdir, _, _ = wide
  old = tmp_path / 'run'
  shutil.copytree(workdir, old)
  (old / 'run.json').write_text('{}')
  with pytest.raises(ValueError, match='does not say its grid, of 8 patches; pass grid='):
    load(old, grid=None)
  model = load(old, grid=(2, 4))
  np.testing.assert_array_equal(model(list(IMAGES)), load(workdir)(list(IMAGES)))
  assert model.classes == ()
  saved = json.loads((old / 'config.json').read_text())
  saved['evals'] = {}
  (old / 'config.json').write_text(json.dumps(saved))
  assert load(old, grid=(2, 4)).preprocessing == Preprocessing((16, 32), channels=4)


def test_what_only_runs_have_is_refused_elsewhere(tmp_path):
  np.savez(tmp_path / 'a.npz', a=np.zeros(1))
  with pytest.raises(ValueError, match='averaged parameters: of the folder of a run alone'):
    load(tmp_path / 'a.npz', average=True)
  with pytest.raises(ValueError, match="step 'best': of the folder of a run alone"):
    load(tmp_path / 'a.npz', step='best')


# -- Other models.


def trained(tmp_path, objective, **fields):
  config = make_config(objective, **{'host': 'decode(channels=4) | resize(16)', **fields})
  return config, train.train_and_evaluate(config, tmp_path / 'run')


def test_a_scan_and_lora_in_it(tmp_path):
  encoder = dict(
    type='models.lora.LoRA', rank=2, kernels=('blocks/attention/(query|value)/kernel',),
    encoder=dict(**VIT, scan=True, qk_norm=True, grid=(2, 2)),
  )  # fmt: skip
  config, state = trained(
    tmp_path,
    dict(**SUPERVISED, encoder=encoder, augment='background(p=0)', eval_augment='background(p=0)'),
  )
  looped, scanned = load(tmp_path / 'run'), load(tmp_path / 'run', encoder=dict(scan=True))
  factors = [name for name in named(looped.params) if '/lora/' in name]
  assert len(factors) == 8
  assert all('/block_' in name for name in factors)
  assert 'blocks' in scanned.params['encoder']['lora']
  images = looped.preprocess(IMAGES)
  expected = direct(config, state, images)
  close(looped(IMAGES), expected)
  close(scanned(IMAGES), expected)
  # Adapted indeed.
  assert all(np.any(x) for name, x in named(looped.params).items() if name in factors)
  with pytest.raises(ValueError, match='has no averaged parameters: its config has no ema'):
    load(tmp_path / 'run', average=True)


def test_batch_statistics_come_along(tmp_path):
  encoder = dict(type='models.resnet.ResNet', blocks=(1, 1), width=8, small_stem=True)
  config, state = trained(
    tmp_path,
    dict(**SUPERVISED, encoder=encoder, mean=(0.5, 0.4, 0.3), std=0.25),
    source=dict(type='data.emoji.Emoji'),
    host='decode | resize(16)',
  )
  (tmp_path / 'run/run.json').write_text('{}')  # Convolutions do not say it, and need not.
  model = load(tmp_path / 'run')
  statistics = named(jax.device_get(state.model_state['batch_stats']))
  assert {f'batch_stats/{name}' for name in statistics} < set(model.report.loaded)
  images = model.preprocess(list(IMAGES[:, :, :, :3]))
  close(model(list(IMAGES[:, :, :, :3])), direct(config, state, images))


def test_of_a_distillation_the_student(tmp_path):
  objective = dict(
    type='objectives.distillation.Distillation',
    student=dict(
      **SUPERVISED,
      encoder={**VIT, 'depth': 1},
      eval_augment='background(p=0)',
      augment='background',
    ),
    # Other positions, whose names come first.
    teacher=dict(**SUPERVISED, encoder={**VIT, 'depth': 1, 'width': 32, 'patch_size': 4}),
  )
  config, state = trained(tmp_path, objective)
  model = load(tmp_path / 'run')
  assert model.spec['type'] == 'objectives.supervised.Supervised'
  assert not (model.report.missing or model.report.unused)
  np.testing.assert_allclose(
    model(IMAGES), direct(config, state, model.preprocess(IMAGES)), rtol=1e-5, atol=1e-6
  )


# -- What host transforms are in our terms.


@pytest.mark.parametrize(
  ('host', 'expected'),
  [
    ('decode', Preprocessing((8, 8))),
    ('', Preprocessing((8, 8))),
    ('decode(4)', Preprocessing((8, 8), channels=4)),
    ('decode | resize(12)', Preprocessing((12, 12))),
    ("decode | resize(12, 16, 'bicubic')", Preprocessing((12, 16), None, 'bicubic')),
    ('decode | resize(w=16, h=12)', Preprocessing((12, 16))),
    (
      "decode | resize_small(256, interpolation='bicubic') | central_crop(224)",
      Preprocessing((224, 224), 0.875, 'bicubic'),
    ),
    (
      'decode(channels=1) | resize_small(9) | central_crop(7, 8)',
      Preprocessing((7, 8), 7 / 9, channels=1),
    ),
    # What these cannot say stays as it is.
    ('decode(orient=True) | resize(12)', 'same'),
    ('decode | resize_small(12) | central_crop(16)', 'same'),
    ('decode | resize(12) | central_crop(8)', 'same'),
    # Chance has no place in evaluation.
    ('decode_random_resized_crop(24) | flip', Preprocessing((8, 8))),
    ('decode | resize(12) | pad_crop(12, 2)', Preprocessing((12, 12))),
  ],
)  # fmt: skip
def test_host_transforms_are_read(host, expected):
  found = read_host(host, (8, 8))
  if expected == 'same':
    assert found.host == host
  else:
    assert found == expected


@pytest.mark.parametrize('shorter', [33, 100, 182, 224, 230, 248, 256, 257, 292, 438, 1000])
def test_a_crop_is_of_the_very_same_pixels(shorter):
  for crop in range(min(shorter, 33), shorter + 1, 7):
    text = f'decode(channels=3) | resize_small({shorter}) | central_crop({crop})'
    assert read_host(text).host == text


def test_a_size_that_nobody_says():
  assert read_host('decode') is None
  assert read_host('decode | resize_small(9)') is None


@pytest.mark.parametrize(('count', 'kept'), [(0, 0), (1000, 1000), (1001, 0)])
def test_run_json_has_the_names_of_up_to_1000_classes(count, kept):
  class Source:
    classes = range(count)

  assert workdirs.classes_of(Source()) == [str(i) for i in range(kept)]
  assert workdirs.classes_of(object()) == []


def test_of_a_method_without_logits_the_encoder_is_a_model_without_a_head(tmp_path):
  objective = dict(
    type='objectives.simclr.SimCLR', encoder=VIT, mean=0.4, std=0.3,
    eval_augment='background(p=0)', augment='flip | background(p=0.5)',
  )  # fmt: skip
  host = 'decode(channels=4) | views(2) | random_resized_crop(32)'
  config = make_config(objective, host=host)
  state = train.train_and_evaluate(config, tmp_path / 'run')
  model = load(tmp_path / 'run')
  assert not model.has_head
  assert model.preprocessing.size == (32, 32)
  variables = jax.device_get({'params': state.params, **state.model_state})
  features = build(config.objective).apply(variables, {'image': IMAGES}, method='features')
  close(model.features(IMAGES), np.asarray(features))
  unused = [name for name in model.report.unused if 'projection' in name]
  assert 'params/projection/dense_1/kernel' in unused


@pytest.mark.parametrize(
  'objective',
  [
    dict(type='objectives.colorization.Colorization', mean=0.4, scale=8),
    dict(type='objectives.jigsaw.Jigsaw', tile=8, num_permutations=4, tile_dim=8, hidden_dim=8),
  ],
  ids=['colorization', 'jigsaw'],
)
def test_an_encoder_sees_images_as_its_method_shows_them(tmp_path, objective):
  encoder = dict(VIT, positions='sincos2d')  # Of tiles and of whole images.
  objective = dict(
    **objective, encoder=encoder, augment='background', eval_augment='background(p=0)'
  )
  config = make_config(objective, host='decode(channels=4) | resize(32)')
  state = train.train_and_evaluate(config, tmp_path / 'run')
  variables = jax.device_get({'params': state.params, **state.model_state})
  features = build(config.objective).apply(variables, {'image': IMAGES}, method='features')
  close(load(tmp_path / 'run').features(IMAGES), np.asarray(features))


def test_of_clip_both_towers_and_the_tokenizer_or_one_alone(tmp_path):
  text = dict(
    type='models.text.TextTransformer', vocab_size=600, context=8, width=16, depth=1, num_heads=2,
    mlp_dim=24, end_id=599,
  )  # fmt: skip
  objective = dict(
    type='objectives.clip.CLIP', image=dict(**VIT, scan=True), text=text, projection=16,
    augment='background(p=0.5)', eval_augment='background(p=0)',
  )  # fmt: skip
  tokenizer = 'data.tokenizers.clip.ClipBpe'
  host = f'decode(channels=4) | caption | tokenize("{tokenizer}", vocab_size=600, context=8)'
  config = make_config(objective, host=host, source=dict(**EMOJI, text=True))
  state = train.train_and_evaluate(config, tmp_path / 'run')
  model = load(tmp_path / 'run')
  assert not model.report.missing
  tokens = np.stack([model.tokenizer(text) for text in ('a cat', 'rain')])
  variables = jax.device_get({'params': state.params, **state.model_state})
  batch = {'image': IMAGES, 'text': tokens}

  def direct(method):
    return np.asarray(build(config.objective).apply(variables, batch, method=method))

  close(model.embeddings(IMAGES), direct('embeddings'))
  close(model.text_embeddings(['a cat', 'rain']), direct('text_embeddings'))
  assert 'params/text/token_embedding' in ' '.join(
    load(tmp_path / 'run', tower='image').report.unused
  )

  # A classifier starts from the image tower, unasked.
  start = dict(checkpoint=str(tmp_path / 'run'), fresh=('params/head/.*',))
  fine = make_config(
    dict(**SUPERVISED, encoder=VIT, augment='background', eval_augment='background(p=0)'),
    init_from=start,
    host='decode',
  )
  fine.optimizer.learning_rate = 1e-30
  state = train.train_and_evaluate(fine, tmp_path / 'fine')
  kernel = np.asarray(variables['params']['image']['embedding']['kernel'])
  np.testing.assert_array_equal(state.params['encoder']['embedding']['kernel'], kernel)
