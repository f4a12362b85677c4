"""Jigsaw with a ResNet-50 on ImageNet-1k. Noroozi & Favaro 2016, arXiv:1603.09246.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/jigsaw_i1k.py --workdir /tmp/jigsaw_i1k
Crops of 225, 3x3 cells of 75 pixels, in each a tile of 64, a set of 1000 permutations, and 30% of
the images without colour, as there; ResNets, 35 epochs and a rate of 0.1 for a batch of 256 after 5
epochs of warm-up as in Kolesnikov et al. 2019, arXiv:1901.09005; the rate falls along a cosine.
`:vit` is a ViT-S/16 with AdamW, which sees 4x4 patches of a tile; `:positions` one without
positions, which tells the place of half of the patches of a whole crop, arXiv:2207.11971.
Hardware: meant for a TPU pod or a node of GPUs. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'vit', 'positions')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=35)
  config.batch_size = 1024  # 9216 tiles
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train,
    host='decode_random_resized_crop(225, min_area=0.35) | flip',
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.jigsaw.Jigsaw', grid=3, tile=64, num_permutations=1000,
    augment='grayscale(0.3)',
    encoder=dict(type='models.resnet.ResNet', variant='50', dtype='bfloat16'),
  )  # fmt: skip
  config.optimizer = dict(
    name='sgd', learning_rate=0.1, scaling='linear', weight_decay=1e-4,
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  if arg:  # a ViT
    config.total = dict(epochs=100)
    config.objective.encoder = dict(
      type='models.vit.ViT', variant='S/16', pooling='mean', positions='sincos2d', dtype='bfloat16'
    )
    config.optimizer = dict(
      name='adamw', learning_rate=1e-3, weight_decay=0.1, clip=1.0, schedule='cosine',
      warmup=dict(epochs=10),
    )  # fmt: skip
  puzzle = 'decode | resize_small(256) | central_crop(225)'
  if arg == 'positions':
    config.data.host = 'decode_random_resized_crop(224, min_area=0.35) | flip'
    config.objective = dict(
      type='objectives.jigsaw_positions.JigsawPositions', keep=0.5,
      augment='color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2)',
      mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
      encoder=dict(config.objective.encoder, positions='none'),
    )  # fmt: skip
    puzzle = 'decode | resize_small(256) | central_crop(224)'
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode | resize_small(256) | central_crop(224)'
  minival = dict(**imagenet, split='train[99%:]')
  val = dict(**imagenet, split='validation')
  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', source=minival, host=puzzle, num_workers=8,
      every=dict(epochs=1),
    ),
    few_shot=dict(
      type='evaluators.few_shot.FewShot', train=train, source=minival, host=host, num_workers=8,
      every=dict(epochs=10),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, source=val, host=host,
      num_workers=8, optimizer='sgd', baselines=('random',),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(epochs=5), keep_last=2)
  return config
