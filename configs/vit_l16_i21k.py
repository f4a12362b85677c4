"""ViT-L/16 on ImageNet-21k, on a pod. Dosovitskiy et al. 2020, arXiv:2010.11929.

vit_jax preflight --config configs/vit_l16_i21k.py --topology v5e:16x16
python -m vit_jax.main --config configs/vit_l16_i21k.py --workdir /mnt/shared/vit_l16_i21k
The row of Table 3 for L/16 on ImageNet-21k: 90 epochs in batches of 4096, `:30` for 30. The data is
as in `configs/vit_i21k.py`, which has the later recipe with augmentation for smaller variants.
Published (Table 2, fine-tuned on ImageNet at 512 px): 85.30%. Hardware: v5e:16x16; what a step
needs there is in docs/scaling.md. Measured here: no accuracy; the step is compiled for that slice.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

EPOCHS = {'': 90, '30': 30}
ARGS = tuple(EPOCHS)


def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=EPOCHS[check_choice('argument', arg, EPOCHS)])
  config.batch_size = 4096
  config.accumulate = 1
  imagenet21k = dict(type='data.tfds.Tfds', name='imagenet21k', data_dir=placeholder(str))
  config.data = dict(
    source=dict(**imagenet21k, split='full[51200:]'),
    host='decode_random_resized_crop(224, min_area=0.05) | flip',
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=21_843, loss='sigmoid', head_bias=-10.0,
    encoder=dict(
      type='models.vit.ViT', variant='L/16', pooling='token', positions='learned', pre_logits=1024,
      dropout=0.1, dtype='bfloat16', scan=False, remat='none',
    ),
  )  # fmt: skip
  # Adam, and a decay that is multiplied by the learning rate.
  config.optimizer = dict(
    name='adamw', options=dict(b1=0.9, b2=0.999, mu_dtype='bfloat16'), learning_rate=1e-3,
    weight_decay=0.03, clip=1.0, schedule='linear', warmup=dict(steps=10_000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = 'zero1'
  config.evals = dict(
    validation=dict(
      type='evaluators.classification.Classification', num_workers=8, per_class=False,
      source=dict(**imagenet21k, split='full[25600:51200]'),
      host='decode | resize_small(256) | central_crop(224)', every=dict(epochs=1),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(
    every=dict(steps=1000), keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
