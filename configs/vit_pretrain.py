"""ViT as first pre-trained, on any large labelled data. Dosovitskiy et al. 2020, arXiv:2010.11929.

vit_jax prepare parquet:/my/data.parquet /data/prepared
python -m vit_jax.main --config configs/vit_pretrain.py:L/16 --workdir /tmp/vit_pretrain \
  --config.data.source.path=/data/prepared --config.evals.validation.source.path=/data/prepared \
  --config.objective.num_classes=18291
The fields are those of JFT-300M (Table 3). On ImageNet-21k the paper has a learning rate of 1e-3, a
decay of 0.03, dropout of 0.1 and 30 or 90 epochs. Hardware: a TPU v3-256 or more.
Published (Table 5, pre-trained on JFT-300M, then fine-tuned on ImageNet): B/32 80.73%, B/16 84.15%,
L/32 84.37%, L/16 86.30% after 7 epochs and 87.12% after 14, H/14 88.08%.
Measured here: nothing at this scale; the step is traced and its parts are tested.
"""

import ml_collections

from vit_jax.choices import check_choice

# Table 3: epochs, learning rate, and the width of the pre-logits.
VARIANTS = {
  'B/32': (7, 8e-4, 768),
  'B/16': (7, 8e-4, 768),
  'L/32': (7, 6e-4, 1024),
  'L/16': (14, 4e-4, 1024),
  'H/14': (14, 3e-4, 1280),
}
ARGS = ('', 'L/16')


def get_config(arg=''):
  variant = arg or 'B/16'
  epochs, learning_rate, width = VARIANTS[check_choice('variant', variant, VARIANTS)]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=epochs)
  config.batch_size = 4096
  config.accumulate = 1
  prepared = dict(type='data.array_record.ArrayRecord', path='prepared')
  config.data = dict(
    source=dict(**prepared, split='train'),
    host='decode_random_resized_crop(224, min_area=0.05) | flip',
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=18_291, loss='sigmoid', head_bias=-10.0,
    encoder=dict(
      type='models.vit.ViT', variant=variant, pooling='token', positions='learned',
      pre_logits=width, dropout=0.0, dtype='bfloat16',
    ),
  )  # fmt: skip
  # Adam, and a decay that is multiplied by the learning rate.
  config.optimizer = dict(
    name='adamw', options=dict(b1=0.9, b2=0.999), learning_rate=learning_rate, weight_decay=0.1,
    clip=1.0, schedule='linear', warmup=dict(steps=10_000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.evals = dict(
    validation=dict(
      type='evaluators.classification.Classification', num_workers=8, per_class=False,
      source=dict(**prepared, split='validation'),
      host='decode | resize_small(256) | central_crop(224)', every=dict(epochs=0.1),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(
    every=dict(steps=1000), keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
