"""SimCLR with a ViT on ImageNet-1k, trained as in MoCo v3. Chen et al. 2021, arXiv:2104.02057.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/simclr_vit_i1k.py --workdir /tmp/simclr_vit_i1k
The patch embedding keeps its random start, as in Section 4.2 there, since its gradients are where
training becomes unstable; `:learned_patches` trains it. AdamW with a linearly scaled rate, 40
epochs of warm-up, fixed sin-cos positions, a projection of 3 layers.
Hardware: meant for a TPU pod. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'learned_patches')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=300)
  config.batch_size = 4096
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train,
    host='decode_random_resized_crop(224, min_area=0.08, views=2) | flip',
    num_workers=16,
  )
  jitter = 'color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2)'
  config.objective = dict(
    type='objectives.simclr.SimCLR', temperature=0.2,
    # One view is always blurred, the other seldom, but sometimes solarised.
    augment=(
      f'{jitter} | blur(p=1, sigma=(0.1, 2.0), kernel=0.1)',
      f'{jitter} | blur(p=0.1, sigma=(0.1, 2.0), kernel=0.1) | solarize(p=0.2)',
    ),
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    projection=dict(type='models.projection.Projection', layers=3, width=4096, dim=256),
    encoder=dict(
      type='models.vit.ViT', variant='S/16', num_heads=12, pooling='token', positions='sincos2d',
      dtype='bfloat16',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=1.5e-4, scaling='linear', weight_decay=0.1, schedule='cosine',
    warmup=dict(epochs=40), freeze=() if arg == 'learned_patches' else ('encoder/embedding/.*',),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode | resize_small(256) | central_crop(224)'
  minival = dict(**imagenet, split='train[99%:]')
  val = dict(**imagenet, split='validation')
  config.evals = dict(
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
