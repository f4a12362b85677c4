"""ViT on ImageNet-1k, with the augmentation that its size needs. Steiner et al., arXiv:2106.10270.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/vit_i1k.py:B/16 --workdir /tmp/vit_i1k
The argument is a variant, and after a comma an augmentation other than the one below:
`configs/vit_i1k.py:B/16,medium2`. The paper also trains with dropout and stochastic depth of 0.1:
--config.objective.encoder.dropout=0.1 --config.objective.encoder.drop_path=0.1, and with a decay of
0.03. Hardware: a TPU v3-32 or more. Published: as heat maps (Figure 4), no table.
Measured here: no accuracy at this scale; XLA estimates a step of a B/16 (mean pooling, sin-cos
positions, no mixing) on v5e:2x4, 128 images a chip, at 262 million cycles, in 4 micro-batches
(`--config.accumulate=4`) at 212 million (`benchmarks/tpu_step.py`).
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
# What suits a variant, between 30 and 300 epochs, and the width of its pre-logits.
VARIANTS = {
  'Ti/16': ('light1', 192),
  'S/32': ('light2', 384),
  'S/16': ('medium2', 384),
  'B/32': ('medium2', 768),
  'B/16': ('medium2', 768),
  'L/16': ('medium2', 1024),
}
ARGS = ('', 'Ti/16', 'S/32,strong2')


def get_config(arg=''):
  variant, _, augment = (arg or 'B/16').partition(',')
  usual, width = VARIANTS[check_choice('variant', variant, VARIANTS)]
  randaugment, mixup = AUGMENT[check_choice('augmentation', augment or usual, AUGMENT)]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=300)
  config.batch_size = 4096
  config.accumulate = 1
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  config.data = dict(
    source=dict(**imagenet, split='train[:99%]'),
    host='decode_random_resized_crop(224, min_area=0.05) | flip'
    + (f' | randaugment{randaugment}' if randaugment else ''),
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=1000,
    mix=f'mixup({mixup})' if mixup else '',
    encoder=dict(
      type='models.vit.ViT', variant=variant, pooling='token', positions='learned',
      pre_logits=width, dropout=0.0, drop_path=0.0, dtype='bfloat16',
    ),
  )  # fmt: skip
  # The authors' code decays by 1e-4 x the schedule, which is 0.1 x the learning rate.
  config.optimizer = dict(
    name='adamw', options=dict(mu_dtype='bfloat16'), learning_rate=1e-3, weight_decay=0.1, clip=1.0,
    schedule='cosine', warmup=dict(steps=10_000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode | resize_small(256) | central_crop(224)'
  classification = dict(
    type='evaluators.classification.Classification', host=host, num_workers=8, per_class=False
  )

  def test_set(name):
    return dict(type='data.test_sets.test_set', name=name, data_dir=placeholder(str))

  def pets(split):
    return dict(
      type='data.tfds.Tfds', name='oxford_iiit_pet', split=split, data_dir=placeholder(str)
    )

  config.evals = dict(
    minival=dict(
      **classification, source=dict(**imagenet, split='train[99%:]'), every=dict(epochs=10)
    ),
    val=dict(**classification, source=test_set('imagenet2012')),
    real=dict(**classification, source=test_set('imagenet2012_real')),
    v2=dict(**classification, source=test_set('imagenet_v2/matched-frequency')),
    pets=dict(
      type='evaluators.few_shot.FewShot', train=pets('train'), source=pets('test'),
      host='decode | resize(256) | central_crop(224)', num_workers=8,
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(
    every=dict(steps=1000), keep_last=2, keep_best=1, best='minival/accuracy', mode='max'
  )
  return config
