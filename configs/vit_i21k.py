"""ViT on ImageNet-21k, pre-training of the AugReg checkpoints. Steiner et al., arXiv:2106.10270.

python -m vit_jax.main --config configs/vit_i21k.py:B/16 --workdir /tmp/vit_i21k
The data is a TFDS data set called `imagenet21k`, prepared as ArrayRecord, with 21,843 classes and
all images in one split `full`; another one: --config.data.source.name=..., and the evaluators' too.
The argument is a variant, and after a comma an augmentation other than the one below:
`configs/vit_i21k.py:B/16,medium2`. Hardware: a TPU v3-128 or more; 300 epochs.
Published: as heat maps (Figure 4), after fine-tuning; no table.
Measured here: nothing at this scale; the step is traced and its parts are tested.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

# Figure 4: layers and magnitude of RandAugment, and alpha of mixup.
AUGMENT = {
  'none': (None, None),
  'light1': ((2, 0), None),
  'light2': ((2, 10), 0.2),
  'medium1': ((2, 15), 0.2),
  'medium2': ((2, 15), 0.5),
  'strong1': ((2, 20), 0.5),
  'strong2': ((2, 20), 0.8),
}
# What suits a variant, between 30 and 300 epochs.
VARIANTS = {
  'Ti/16': 'none',
  'S/32': 'none',
  'S/16': 'light1',
  'B/32': 'light2',
  'B/16': 'light2',
  'L/16': 'medium2',
}
ARGS = ('', 'Ti/16')


def get_config(arg=''):
  variant, _, augment = (arg or 'B/16').partition(',')
  usual = VARIANTS[check_choice('variant', variant, VARIANTS)]
  randaugment, mixup = AUGMENT[check_choice('augmentation', augment or usual, AUGMENT)]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=300)
  config.batch_size = 4096
  config.accumulate = 1
  imagenet21k = dict(type='data.tfds.Tfds', name='imagenet21k', data_dir=placeholder(str))
  config.data = dict(
    source=dict(**imagenet21k, split='full[51200:]'),
    host='decode_random_resized_crop(224, min_area=0.05) | flip'
    + (f' | randaugment{randaugment}' if randaugment else ''),
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=21_843, loss='sigmoid', head_bias=-10.0,
    mix=f'mixup({mixup})' if mixup else '',
    encoder=dict(
      type='models.vit.ViT', variant=variant, pooling='mean', positions='learned',
      dropout=0.0, drop_path=0.0, dtype='bfloat16',
    ),
  )  # fmt: skip
  # The authors' code decays by 1e-4 x the schedule, which is 0.1 x the learning rate.
  config.optimizer = dict(
    name='adamw', options=dict(mu_dtype='bfloat16'), learning_rate=1e-3, weight_decay=0.1, clip=1.0,
    schedule='cosine', warmup=dict(steps=10_000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)

  def pets(split):
    return dict(
      type='data.tfds.Tfds', name='oxford_iiit_pet', split=split, data_dir=placeholder(str)
    )

  classification = dict(
    type='evaluators.classification.Classification', num_workers=8, per_class=False,
    host='decode | resize_small(256) | central_crop(224)',
  )  # fmt: skip
  config.evals = dict(
    validation=dict(
      **classification, source=dict(**imagenet21k, split='full[25600:51200]'), every=dict(epochs=5)
    ),
    test=dict(**classification, source=dict(**imagenet21k, split='full[:25600]')),
    pets=dict(
      type='evaluators.few_shot.FewShot', train=pets('train'), source=pets('test'),
      host='decode | resize(256) | central_crop(224)', num_workers=8, every=dict(epochs=25),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(
    every=dict(steps=1000), keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
