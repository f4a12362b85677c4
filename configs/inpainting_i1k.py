"""Inpainting with a ResNet-50 on ImageNet-1k. Pathak et al. 2016, arXiv:1604.07379.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/inpainting_i1k.py --workdir /tmp/inpainting_i1k
The task is the paper's without the adversarial loss: random blocks of up to a quarter of the image,
filled with the mean. `:center` cuts out the central half, of which 12 pixels on each side stay
visible and weigh ten times as much, as 7 of 128 do there. `:vit` has a ViT-B/16 in the place of the
ResNet. Encoder, optimizer and schedule are of today: the paper trains AlexNet with Adam.
Hardware: meant for a TPU pod. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'center', 'vit')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=100)
  config.batch_size = 1024
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train, host='decode_random_resized_crop(224, min_area=0.2) | flip', num_workers=16
  )
  config.objective = dict(
    type='objectives.inpainting.Inpainting', mask='blocks', area=0.25, blocks=5, overlap=0,
    overlap_weight=10.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    decoder=dict(type='models.decoder.Decoder', width=256, doublings=2, dtype='bfloat16'),
    encoder=dict(type='models.resnet.ResNet', variant='50', dtype='bfloat16'),
  )  # fmt: skip
  if arg == 'center':
    config.objective.update(mask='center', overlap=12)
  if arg == 'vit':
    config.objective.encoder = dict(
      type='models.vit.ViT', variant='B/16', pooling='mean', positions='sincos2d', dtype='bfloat16'
    )
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0, schedule='cosine',
    warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode | resize_small(256) | central_crop(224)'
  minival = dict(**imagenet, split='train[99%:]')
  val = dict(**imagenet, split='validation')
  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', source=minival, host=host, num_workers=8,
      every=dict(epochs=10),
    ),
    few_shot=dict(
      type='evaluators.few_shot.FewShot', train=train, source=minival, host=host, num_workers=8,
      every=dict(epochs=20),
    ),
    # Looked at once, at the end.
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=val, host=host, num_workers=8, k=20,
    ),
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, source=val, host=host,
      num_workers=8, optimizer='sgd', baselines=('random',),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(epochs=10), keep_last=2)
  return config
