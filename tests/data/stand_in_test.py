import numpy as np
import pytest

from vit_jax.data.spec import batch_spec
from vit_jax.data.stand_in import SIZE, StandIn


@pytest.mark.parametrize(
  ('host', 'shape'),
  [
    ('decode_random_resized_crop(224, min_area=0.05) | flip', (224, 224, 3)),
    ('decode | resize_small(64) | central_crop(32)', (32, 32, 3)),
    ('decode(channels=1) | resize(20, 30)', (20, 30, 1)),
    ('decode', (240, 320, 3)),
  ],
)
def test_host_transforms_of_photographs_give_their_own_shape(host, shape):
  spec = batch_spec(StandIn(num_classes=5), host, 16)
  assert spec['image'].shape == (16, *shape)
  assert spec['image'].dtype == np.uint8
  assert set(spec) == {'image', 'id', 'label'}


def test_images_of_a_given_size_are_arrays():
  spec = batch_spec(StandIn(image=(28, 28, 1)), 'decode(channels=1) | pad_crop(32, 4)', 8)
  assert spec['image'].shape == (8, 32, 32, 1)
  assert set(spec) == {'image', 'id'}


def test_texts_are_there_to_be_tokenized():
  host = 'decode | resize(8) | caption | tokenize("data.tokenizers.clip.ClipBpe")'
  spec = batch_spec(StandIn(text=True), host, 4)
  assert spec['text'].shape == (4, 77)


def test_views_are_as_many_as_the_host_makes():
  spec = batch_spec(StandIn(), 'decode | views(2) | random_resized_crop(32)', 4)
  assert spec['views'].shape == (4, 2, 32, 32, 3)


def test_it_has_classes_and_a_length():
  source = StandIn(num_classes=3, size=7)
  assert (len(source), source.classes, source.num_classes) == (7, ('0', '1', '2'), 3)
  assert len(StandIn()) == SIZE and StandIn().classes == ()
  assert source[6]['id'] == 6 and source[6]['label'] == 0
