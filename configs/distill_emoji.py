"""A narrow ViT learns a wider one's answers on emoji. Beyer et al. 2021, arXiv:2106.05237.

python -m vit_jax.main --config configs/vit_emoji.py:long --workdir /tmp/vit_emoji_long
python -m vit_jax.main --config configs/distill_emoji.py --workdir /tmp/distill_emoji
Another teacher: --config.init_from.workdir=..., with its encoder in `config.objective.teacher`.
Hardware: 10 minutes on one CPU core, with other work beside it.
Measured (seed 0, test accuracy; the student has half the width of the teacher):

                       google  twitter  openmoji  noto-mono
teacher                 0.667    0.606     0.517      0.470
student, from labels    0.629    0.575     0.406      0.451
student, distilled      0.613    0.584     0.460      0.432

From labels, for as many epochs, with the augmentation below: --config configs/vit_emoji.py
--config.total.epochs=110 --config.objective.encoder.width=64 --config.objective.encoder.mlp_dim=128
--config.objective.augment='...'.
"""

import ml_collections

from vit_jax.objectives.distillation import TEACHER


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=110)
  config.batch_size = 64
  emoji = dict(type='data.emoji.Emoji', label='category', alpha=True)
  host = 'decode(channels=4)'
  config.data = dict(
    source=dict(**emoji, split='train', styles=('google', 'twitter')), host=host, num_workers=0
  )

  def vit(width, num_heads):
    return dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=width, depth=6,
      num_heads=num_heads, mlp_dim=2 * width, pooling='mean', positions='sincos2d',
      activation='gelu_tanh',
    )  # fmt: skip

  # Both see the student's augmentation and mixture; no label is used.
  config.objective = dict(
    type='objectives.distillation.Distillation', temperature=1.0,
    student=dict(
      type='objectives.supervised.Supervised', num_classes=8, encoder=vit(64, 4),
      augment='affine(scale=(0.75, 1.15), aspect=1.15, rotate=10, shear=0.05, shift=0.08, flip=0.5)'
      '| color_distort(0.3, p=0.5, gray=0.15) | outline(0.1) | sketch(0.1) | background(p=0.1)',
      eval_augment='background(p=0)', mix='mixup(1.0, p=0.5)',
    ),
    teacher=dict(type='objectives.supervised.Supervised', num_classes=8, encoder=vit(128, 4)),
  )  # fmt: skip
  config.init_from = dict(workdir='/tmp/vit_emoji_long', step='last', rules=(TEACHER,))
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)

  def styles(split):
    names = ('google', 'twitter', 'openmoji', 'noto-mono')
    return {name: dict(**emoji, split=split, styles=(name,)) for name in names}

  classification = dict(type='evaluators.classification.Classification', host=host)
  config.evals = dict(
    validation=dict(**classification, sources=styles('validation'), every=dict(epochs=20)),
    # Looked at once, at the end.
    test=dict(**classification, sources=styles('test')),
  )
  config.log = dict(every=dict(steps=20))
  config.checkpoint = dict(
    every=dict(epochs=20), keep_last=2, keep_best=1, best='validation/google/accuracy', mode='max'
  )
  return config
