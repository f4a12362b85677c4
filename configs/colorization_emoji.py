"""Colorization on the packaged emoji. Zhang et al. 2016, arXiv:1603.08511.

python -m vit_jax.main --config configs/colorization_emoji.py --workdir /tmp/colorization_emoji
No label is seen in training. The encoder sees lightness alone, in training often as outlines; their
colours are asked for all the same. `:resnet` trains a small ResNet, by hypercolumns of its stages.
Takes 7 minutes on one core; what it learns is in the README's table of pretext tasks. Rare colours
weigh most, so that in all pixels alike the error of the colours was above that of no colour at all
(after 40 epochs, on validation, 26.2 and 23.9 on google, 25.5 and 22.6 on twitter).
"""

import ml_collections

from vit_jax.choices import check_choice

ARGS = ('', 'resnet')

AUGMENT = (
  'affine(scale=(0.6, 1.2), aspect=1.2, rotate=12, shear=0.08, shift=0.1, flip=0.5)'
  '| background(p=0)'
)
# Line drawings are half of what is seen, so that colours are guessed from them too.
LIGHT_AUGMENT = 'outline(0.5) | sketch(0.3) | stencil(0.1)'
ENCODERS = {
  '': dict(
    type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=4,
    num_heads=4, mlp_dim=256, pooling='mean', positions='sincos2d', activation='gelu_tanh',
  ),
  'resnet': dict(type='models.resnet.ResNet', blocks=(1, 1, 1), width=32, small_stem=True),
}  # fmt: skip


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=90)
  config.batch_size = 128
  drawn = dict(type='data.emoji.Emoji', alpha=True)
  emoji = dict(**drawn, label='category')
  trained = ('google', 'twitter')
  host = 'decode(channels=4)'
  train = dict(**emoji, split='train', styles=trained)
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.colorization.Colorization', augment=AUGMENT,
    light_augment=LIGHT_AUGMENT, eval_augment='background(p=0)',
    encoder=ENCODERS[arg],
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=3e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  styles = (*trained, 'openmoji', 'noto-mono')
  validation = dict(**emoji, split='validation', styles=trained)

  def by_style(split, styles):
    return {style: dict(**emoji, split=split, styles=(style,)) for style in styles}

  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', sources=by_style('validation', styles), host=host,
      every=dict(epochs=45),
    ),
    knn=dict(
      type='evaluators.knn.KNN', train=train, sources=by_style('validation', styles), host=host,
      k=20, every=dict(epochs=45),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, validation=validation,
      sources=by_style('test', styles), host=host,
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=20))
  config.checkpoint = dict(keep_last=1)
  return config
