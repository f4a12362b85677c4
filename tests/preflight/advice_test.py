import math

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax import experiment, sharding
from vit_jax.preflight import advice
from vit_jax.preflight.advice import Found
from vit_jax.preflight.compiling import Outcome

DIGITS = 'configs/vit_digits.py'
CLIP = 'configs/clip_emoji.py'


def load(root, name, *overrides):
  return config_lib.load(str(root / name), overrides)


@pytest.fixture
def root(request):
  return request.config.rootpath


def search(config, needed, limit, step=8):
  """Looks for the largest batch where one of `n` examples needs `needed(n)` bytes."""
  tried = []

  def outcome(batch):
    return Outcome(0.0, needed(batch) <= limit, needed(batch), limit)

  def measure(changed):
    tried.append(changed.batch_size)
    return outcome(changed.batch_size)

  first = outcome(config.batch_size)
  found = advice.largest_batch(config, measure, first, step, needed(0), lambda text: None)
  return found, tried


@pytest.mark.parametrize('own', [64, 1024, 65536])
@pytest.mark.parametrize(
  'needed',
  [
    lambda n: 1000 + 3 * n,
    lambda n: 1000 + 3 * n + n**1.2,
    lambda n: 1000 + 5 * math.sqrt(n) + 2 * n,
    lambda n: 1000 + 4 * n + (500 if n > 1500 else 0),
  ],
)
def test_the_largest_batch_is_found_in_a_few_compiles(root, own, needed):
  config = load(root, DIGITS, f'--config.batch_size={own}')
  limit = 10_000
  exact = max(n for n in range(0, 10_000, 8) if needed(n) <= limit)
  found, tried = search(config, needed, limit)
  assert needed(found.fits) <= limit
  assert exact * 0.9 <= found.fits <= exact
  assert found.too_large is None or needed(found.too_large) > limit
  assert len(tried) == found.compiles <= advice.COMPILES
  assert all(n % 8 == 0 and n > 0 for n in tried)


def test_no_batch_fits(root):
  found, _ = search(load(root, DIGITS), lambda n: 1000 + n, 900)
  assert found.fits == 0
  assert found.too_large == 8


def test_a_program_whose_need_xla_does_not_say(root):
  config = load(root, DIGITS)  # 64 examples
  outcomes = {64: Outcome(0.0, False, None, 1000)}

  def measure(changed):
    n = changed.batch_size
    return Outcome(0.0, n <= 24, 100 + 30 * n if n <= 24 else None, 1000)

  found = advice.largest_batch(config, measure, outcomes[64], 8, 100, lambda text: None)
  assert found == Found(24, 32, found.compiles)


def test_batches_are_multiples_of_all_their_parts(root):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  assert advice.batch_step(load(root, DIGITS), mesh) == 4
  config = load(root, DIGITS).copy_and_resolve_references()
  with config.unlocked():
    config.accumulate = 6
  assert advice.batch_step(config, mesh) == 24
  with config.unlocked():
    config.objective.encoder = dict(
      type='models.chunked.Chunked', chunks=4, encoder=config.objective.encoder.to_dict()
    )
  assert advice.batch_step(config, mesh) == 4 * 12


def test_choices_change_what_they_say_and_can_be_built(root):
  config = load(root, DIGITS)
  before = config_lib.to_json(config)
  found = {choice.label: choice.config for choice in advice.choices(config)}
  assert list(found) == [
    "remat='full'",
    "remat='dots'",
    "remat='dots_no_batch'",
    "sharding='fsdp', mesh.data=1, mesh.fsdp=-1",
    "sharding='zero1'",
    'accumulate=4',
  ]
  assert config_lib.to_json(config) == before
  assert found["remat='full'"].objective.encoder.remat == 'full'
  assert found["sharding='zero1'"].sharding == 'zero1'
  assert found['accumulate=4'].accumulate == 4
  for changed in found.values():
    made = experiment.setup(changed)
    assert config_lib.differences(config_lib.plain(config), changed) != [] or (
      config_lib.plain(changed) != config_lib.plain(config)
    )
    assert made.mesh.size == len(jax.devices())
  split = experiment.setup(found["sharding='fsdp', mesh.data=1, mesh.fsdp=-1"])
  assert dict(split.mesh.shape) == dict(data=1, fsdp=8, tensor=1)


def test_what_is_so_already_is_no_choice(root):
  config = load(root, DIGITS).copy_and_resolve_references()
  with config.unlocked():
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.objective.encoder.remat = 'full'
  labels = [choice.label for choice in advice.choices(config)]
  assert "remat='full'" not in labels
  assert not any(label.startswith("sharding='fsdp'") for label in labels)


def test_a_contrastive_loss_is_chunked_and_not_accumulated(root):
  config = load(root, CLIP)
  found = {choice.label: choice.config for choice in advice.choices(config)}
  made = experiment.setup(found['models.chunked.Chunked(chunks=4) around the encoders'])
  assert type(made.objective.image).__name__ == 'Chunked' and made.objective.image.chunks == 4
  assert type(made.objective.text).__name__ == 'CBOW'  # It has no activations worth the trouble.
  with pytest.raises(ValueError, match='compares the examples of a batch'):
    experiment.setup(found['accumulate=4'])
  assert found["remat='full'"].objective.image.remat == 'full'
