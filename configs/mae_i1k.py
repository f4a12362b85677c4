"""A masked autoencoder, ViT-B/16, on ImageNet-1k. He et al. 2021, arXiv:2111.06377.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/mae_i1k.py --workdir /tmp/mae_i1k
The recipe of Appendix A.1 (Table 8): batch 4096, AdamW with a linearly scaled rate of 1.5e-4 at
256, b2 0.95 and decay 0.05, 40 epochs of warm-up, crops from 20% of the area and flips, 75% of the
patches hidden, a decoder of 8 blocks of width 512. 1600 epochs: --config.total.epochs=1600.
`:S/16` and `:L/16` are other sizes; S/16 has a decoder of 4 blocks of width 256, since the paper's
would cost more than that encoder.
Published: after 1600 epochs 83.6% top-1 of B/16 and 85.9% of L/16 after fine-tuning (Table 3), and
68.0% and 75.8% by a linear probe.
Hardware: meant for a TPU pod. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'S/16', 'L/16')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=800)
  config.batch_size = 4096
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train, host='decode_random_resized_crop(224, min_area=0.2) | flip', num_workers=16
  )
  config.objective = dict(
    type='objectives.masked_autoencoder.MaskedAutoencoder', mask_ratio=0.75, norm_pixels=True,
    decoder_width=512, decoder_depth=8, decoder_num_heads=16,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    encoder=dict(
      type='models.vit.ViT', variant=arg or 'B/16', pooling='token', positions='sincos2d',
      dtype='bfloat16',
    ),
  )  # fmt: skip
  if arg == 'S/16':
    config.objective.update(decoder_width=256, decoder_depth=4, decoder_num_heads=8)
  config.optimizer = dict(
    name='adamw', options=dict(b2=0.95), learning_rate=1.5e-4, scaling='linear', weight_decay=0.05,
    schedule='cosine', warmup=dict(epochs=40),
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
