"""Colorization on ImageNet-1k. Zhang et al. 2016, arXiv:1603.08511.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/colorization_i1k.py --workdir /tmp/colorization_i1k
A ResNet-50 with hypercolumns (Larsson et al. 2016, arXiv:1603.06668) in the place of the paper's
VGG; `:vit` trains a ViT-S/16. Colours are predicted at a quarter of the resolution, in 261 bins,
rare ones weighted up (lambda 1/2). The paper trains with Adam, a rate of 3e-5 and batches of 40;
the batch, AdamW and the cosine here are choices of today.
Hardware: meant for a TPU slice. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'vit')
ENCODERS = {
  '': dict(type='models.resnet.ResNet', variant='50', dtype='bfloat16'),
  'vit': dict(
    type='models.vit.ViT', variant='S/16', pooling='mean', positions='sincos2d', dtype='bfloat16'
  ),
}


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=100)
  config.batch_size = 1024
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train,
    host='decode_random_resized_crop(224, min_area=0.2) | flip',
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.colorization.Colorization', scale=4,
    decoder=dict(type='models.hypercolumns.Hypercolumns', width=64),
    encoder=ENCODERS[arg],
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=5),
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
  config.checkpoint = dict(every=dict(epochs=5), keep_last=2)
  return config
