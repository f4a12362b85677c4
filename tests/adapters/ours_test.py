"""Our own files say what they are, and can call nothing but our own modules."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.adapters import ours
from vit_jax.adapters.layout import Facts, Preprocessing
from vit_jax.adapters.tensors import open_tensors

ENCODER = dict(type='models.vit.ViT', patch_size=(8, 4), grid=(2, 3), scan=True)
OBJECTIVE = dict(
  type='objectives.supervised.Supervised', encoder=ENCODER, num_classes=2, mean=(0.1, 0.2, 0.3)
)
PREPROCESSING = Preprocessing((16, 12), 0.875, 'bicubic')


def save(path, text, **arrays):
  about = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)
  np.savez(path, **{ours.DESCRIPTION: about, 'params/encoder/cls': np.zeros((1, 1, 4)), **arrays})
  return open_tensors(path)


def describe(path, text, **facts):
  return ours.describe(save(path, text), Facts(facts), {})


def test_what_a_file_says_of_itself_is_read_back(tmp_path):
  about = ours.description(OBJECTIVE, PREPROCESSING, ('cat', 'dog'))
  layout = describe(tmp_path / 'a.npz', about.tobytes())
  assert layout.format == 'vit_jax'
  assert layout.objective == {
    **OBJECTIVE,
    'encoder': {k: v for k, v in ENCODER.items() if k != 'scan'},
  }
  assert layout.preprocessing == PREPROCESSING
  assert layout.classes == ('cat', 'dog')
  assert layout.shapes == {'params/encoder/cls': (1, 1, 4)}
  assert [rule.ours for rule in layout.rules] == [('params/encoder/cls',), ()]
  assert describe(tmp_path / 'a.npz', about.tobytes(), classes=('a', 'b')).classes == ('a', 'b')
  assert ours.matches(save(tmp_path / 'a.npz', about.tobytes()))
  assert not ours.matches(['params/encoder/cls'])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, np.dtype('bfloat16'), 'bfloat16'])
def test_a_dtype_is_said_by_its_name(tmp_path, dtype):
  spec = {**OBJECTIVE, 'encoder': {**ENCODER, 'dtype': dtype}}
  about = ours.description(spec, PREPROCESSING, ())
  assert describe(tmp_path / 'a.npz', about.tobytes()).objective['encoder']['dtype'] == 'bfloat16'


def test_patterns_of_stacked_blocks_hold_for_blocks_one_by_one():
  lora = dict(type='models.lora.LoRA', encoder=ENCODER, kernels=['blocks/.*/query/kernel', 'x'])
  spec = ours.one_by_one({**OBJECTIVE, 'encoder': lora})['encoder']
  assert spec['kernels'] == ('(?:blocks|block_\\d+)/.*/query/kernel', 'x')
  assert 'scan' not in spec['encoder']


def written(**changes):
  fields = json.loads(bytes(ours.description(OBJECTIVE, PREPROCESSING, ())))
  return json.dumps({**fields, **changes})


@pytest.mark.parametrize(
  'text',
  [
    '{',
    '[]',
    '"x"',
    '{"objective": {}}',
    written(classes=3),
    written(preprocessing={'sizes': [1, 2]}),
    written(objective=['models.vit.ViT']),
    written(objective={'encoder': ENCODER}),
    written(objective={**OBJECTIVE, 'encoder': {'type': 'models.vit.nn'}}),
  ],
)
def test_a_damaged_description_is_a_sentence(tmp_path, text):
  with pytest.raises(ValueError, match=r'a.npz does not say what it is \(.+\)$'):
    describe(tmp_path / 'a.npz', text)


@pytest.mark.parametrize(
  'hostile',
  [
    'subprocess.run',
    'os.system',
    'vit_jax.cli.main',
    'hostile.module.Module',
    'models.hostile.Module',
    'models.vit.check_choice',
    'checkpoint.Checkpoints',
    'data.folder.Folder',
    'models.vit.math.prod',
    None,
    7,
  ],
)
@pytest.mark.parametrize('inside', [False, True])
def test_a_file_calls_no_other_code(tmp_path, monkeypatch, hostile, inside):
  for name in ('hostile', 'models'):  # Importing them would be enough.
    (tmp_path / name).mkdir()
    (tmp_path / name / '__init__.py').write_text('')
    for file in ('module', 'hostile'):
      (tmp_path / name / f'{file}.py').write_text('raise SystemExit("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  spec = {'type': hostile, 'args': ['touch', 'x']}
  objective = {**OBJECTIVE, 'encoder': spec} if inside else spec
  with pytest.raises(ValueError, match='does not say what it is .*is no model of vit_jax'):
    describe(tmp_path / 'a.npz', written(objective=objective))
  with pytest.raises(ValueError, match='is no model of vit_jax'):
    ours.description(objective, PREPROCESSING, ())
