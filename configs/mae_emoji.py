"""A masked autoencoder on the packaged emoji. He et al. 2021, arXiv:2111.06377.

python -m vit_jax.main --config configs/mae_emoji.py --workdir /tmp/mae_emoji
No label is seen in training. The encoder reads 16 of the 64 patches of an image.
`:1`, `:2` and so on draw the splits anew.
Takes 8 minutes on one core; what it learns is in the README's table of pretext tasks. A probe on
training and validation emoji, four folds: 0.423 as here, 0.404 with SimCLR's augmentation and 60
epochs (random encoders 0.373 to 0.383: patches of 4 pixels are a good start).
"""

import ml_collections

# Less than SimCLR's: what is drawn must still be told from what is left of it.
AUGMENT = (
  'affine(scale=(0.85, 1.2), aspect=1.1, rotate=4, shift=0.05, flip=0.5)'
  ' | color_distort(0.4, p=0.8, gray=0.2) | outline(0.2) | sketch(0.1) | background(p=0)'
)


def get_config(arg=''):
  if arg and not arg.isdecimal():
    raise ValueError(f'argument {arg!r} is no number of a draw of the splits, such as 1')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=95)
  config.batch_size = 128
  drawn = dict(type='data.emoji.Emoji', alpha=True, splits_seed=int(arg or 0))
  emoji = dict(**drawn, label='category')
  config.data = dict(
    source=dict(**emoji, split='train', styles=('google', 'twitter')),
    host='decode(channels=4)',
    num_workers=0,
    max_bad_share=0.0,
  )
  config.objective = dict(
    type='objectives.masked_autoencoder.MaskedAutoencoder', mask_ratio=0.75, norm_pixels=True,
    decoder_width=64, decoder_depth=2, decoder_num_heads=4,
    augment=AUGMENT, eval_augment='background(p=0)',
    encoder=dict(
      type='models.vit.ViT', patch_size=4, width=128, depth=4, num_heads=4, mlp_dim=256,
      pooling='mean', positions='sincos2d', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', options=dict(b2=0.95), learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=10),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  trained = ('google', 'twitter')
  styles = (*trained, 'openmoji', 'noto-mono')
  train = dict(**emoji, split='train', styles=trained)
  validation = dict(**emoji, split='validation', styles=trained)
  host = 'decode(channels=4)'

  def by_style(split):
    return {style: dict(**emoji, split=split, styles=(style,)) for style in styles}

  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', sources=by_style('validation'), host=host,
      every=dict(epochs=50),
    ),
    knn=dict(
      type='evaluators.knn.KNN', train=train, sources=by_style('validation'), host=host, k=20,
      every=dict(epochs=50),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, validation=validation,
      sources=by_style('test'), host=host,
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=20))
  config.checkpoint = dict(keep_last=1)
  return config
