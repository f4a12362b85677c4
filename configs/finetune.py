"""Fine-tuning of any checkpoint on labelled images. Dosovitskiy et al. 2020, arXiv:2010.11929.

python -m vit_jax.main --config configs/finetune.py:init=augreg/B/16-i21k,data=folder:/my/images
--workdir /tmp/finetune
The argument is OPTION=VALUE,OPTION=VALUE,...:

  init          what to start from: whatever `vit_jax.load` opens, the folder of a run too
  data          images, as `vit_jax prepare` names them: folder:/my/images, tfds:cifar10, emoji
  val           what to evaluate on; else the same source's split 'validation', else its 'test'
  size          of an image: pixels of a side, or (height, width); else the checkpoint's
  test_size     another size to evaluate at; a larger one can be better: arXiv:1906.06423
  tune          'all'; 'head', a linear probe; or 'lora', beside a frozen encoder: arXiv:2106.09685
  pre_logits    'drop' the layer between encoder and head, as the paper does, or 'keep' it
  layer_decay   such as 0.75: each block's share of the next one's learning rate: arXiv:2106.08254
  step, average, format  of the checkpoint; and facts that it does not say, such as num_heads=6

Defaults: Appendix B.1.1 and Table 4 of the paper: batches of 512, SGD with momentum 0.9, a cosine,
no weight decay, clipping at 1, a head of zeros; 500 steps (Pets, Flowers), 10,000 (CIFAR) or 20,000
(ImageNet), by the number of images as in BiT, arXiv:1912.11370, whose code's warm-up it
is too (the paper's own has 500 steps for all). It tries learning rates of 0.001 to 0.03 and picks
by validation; 0.01 is in all its ranges. Beside a frozen encoder it is 0.1, which is ours.
Memory: --config.accumulate=8, as the paper's code. Of a ResNet, BatchNorm's statistics follow the
new images even where the parameters are frozen.
Measured: not at the paper's scale. Learning rates on emoji (0.85 million parameters, pretrained on
one half of the subcategories and tuned on the other, `emoji:half=1,label=subcategory`; 150 steps of
128, one seed, validation accuracy, so small differences say nothing):

          0.003   0.01   0.03    0.1    1.0
all       0.209  0.257  0.284  0.297
head             0.250         0.284  0.338
lora             0.257         0.304         (by AdamW with 0.01: 0.338)

Then `vit_jax evaluate /tmp/finetune --interpolate 0 0.5 1` mixes with the start: arXiv:2109.01903.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax import finetune
from vit_jax.build import build

# From so many training images on: steps, and how many of them warm up.
STEPS = {500_000: (20_000, 500), 20_000: (10_000, 500), 0: (500, 100)}

ARGS = (
  'init=CHECKPOINT,data=emoji',
  'init=CHECKPOINT,data=emoji,size=32,test_size=48,layer_decay=0.75,val=emoji:test',
  "init=CHECKPOINT,data=emoji:styles=('google',),label=subcategory,tune=head,size=(16, 32)",
  'init=CHECKPOINT,data=emoji:train+validation,tune=lora,pre_logits=keep,mean=(0.4, 0.4, 0.5)',
)


def get_config(arg=''):
  options = finetune.read_options(arg)
  start = finetune.open_start(options)
  images = build(options.data)
  steps, warmup = next(plan for count, plan in STEPS.items() if len(images) >= count)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(steps=steps)
  config.batch_size = 512
  config.accumulate = 1
  config.data = dict(source=options.data, host=start.train_host, num_workers=4, max_bad_share=0.01)
  config.objective = dict(
    type='objectives.supervised.Supervised',
    num_classes=finetune.count_classes(images, options.data['type']),
    loss='softmax', label_smoothing=0.0, mix='', augment=start.augment, eval_augment=start.augment,
    mean=start.mean, std=start.std, encoder=start.encoder,
  )  # fmt: skip
  config.init_from = dict(
    **{**options.checkpoint, 'format': placeholder(str)}, fresh=('params/head/.*',), rules=()
  )
  config.init_from.format = options.format
  config.optimizer = dict(
    name='sgd', learning_rate=0.01 if options.tune == 'all' else 0.1, weight_decay=0.0,
    clip=1.0, schedule='cosine', warmup=dict(steps=warmup), multiplier=(), freeze=(),
  )  # fmt: skip
  if options.layer_decay:
    config.optimizer.multiplier = finetune.layer_decay(start.encoder, options.layer_decay)
  if options.tune == 'head':
    config.optimizer.freeze = ('encoder/.*',)
  if options.tune == 'lora':
    config.objective.encoder = dict(
      type='models.lora.LoRA', encoder=start.encoder,
      kernels=(r'.*/attention/(query|value)/kernel',), rank=8, alpha=16.0,
    )  # fmt: skip
    config.init_from.rules = (
      (r'(params|model_state/\w+)/encoder/(.*)', r'\1/encoder/encoder/\2'),
      ('(.*)', r'\1'),
    )
    config.optimizer.freeze = ('encoder/encoder/.*',)
  config.ema = dict(decay=placeholder(float), warmup=False)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  name, source = finetune.validation(options)
  every = dict(steps=steps // 10)
  config.evals = {}
  sizes = [start.size, options.test_size] if options.test_size else [start.size]
  for size in sizes if source else ():
    at = '' if size == start.size else '_' + 'x'.join(map(str, dict.fromkeys(size)))
    config.evals[name + at] = dict(
      type='evaluators.classification.Classification', source=source,
      host=start.eval_host(size), num_workers=4, every=every,
    )  # fmt: skip
  config.log = dict(every=dict(steps=10))
  # A test split must not choose.
  config.checkpoint = dict(every=every, keep_last=2, keep_best=1, best=placeholder(str), mode='max')
  if name == 'validation':
    config.checkpoint.best = 'validation/accuracy'
  return config
