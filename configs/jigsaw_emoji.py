"""Jigsaw on emoji at 64 pixels. Noroozi & Favaro 2016, arXiv:1603.09246.

python -m vit_jax.main --config configs/jigsaw_emoji.py --workdir /tmp/jigsaw_emoji
First fetch the packages that `data/emoji_packages.py` names (the next command says what it lacks),
and draw the emoji into the folder that FOLDER names below; so for train, validation and test:
  vit_jax prepare emoji_packages:/tmp/packages /tmp/emoji64 --split train
No label is seen in training. 3x3 cells of 21 pixels, in each a tile of 16. `:resnet` is a ResNet of
width 32, three quarters of an hour; `:positions` a ViT without positions whose patches each tell
their place, arXiv:2207.11971 and 2207.07611. What they learn is in the README's tables of pretext
tasks.
A drawing on white is a silhouette, by which tiles are placed without knowing what is drawn: nearly
all shuffled ones are told, and a probe of a ViT of whole images gains nothing; of a ResNet it does.
Images as large as twice the frame take the silhouette away; then the ViT learned nothing in 40
epochs.
"""

import ml_collections

from vit_jax.choices import check_choice

ARGS = ('', 'resnet', 'positions')
FOLDER = '/tmp/emoji64'
# Where each style is in a split of all four.
STYLES = {
  'google': '[:25%]', 'twitter': '[25%:50%]', 'openmoji': '[50%:75%]', 'noto-mono': '[75%:]'
}  # fmt: skip

# Half are grey, and no two tiles go on in each other by more than the drawing.
AUGMENT = (
  'affine(scale=(0.7, 1.2), aspect=1.2, rotate=8, shear=0.08, shift=0.06, flip=0.5)'
  '| color_distort(0.5, p=0.8, gray=0.3) | outline(0.5) | sketch(0.3) | stencil(0.1)'
  '| background(p=0)'
)
# A place is asked of single patches, so that much of the drawing must be left to tell it by.
LIGHT_AUGMENT = (
  'affine(scale=(0.85, 1.2), aspect=1.1, rotate=4, shift=0.05, flip=0.5)'
  ' | color_distort(0.4, p=0.8, gray=0.2) | outline(0.2) | sketch(0.1) | background(p=0)'
)


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=80 if arg == 'positions' else 55)
  config.batch_size = 64

  def emoji(split):
    return dict(type='data.array_record.ArrayRecord', path=FOLDER, split=split)

  host = 'decode(channels=4)'
  train, validation = emoji('train[:50%]'), emoji('validation[:50%]')  # google and twitter
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  vit = dict(
    type='models.vit.ViT', width=128, depth=4, num_heads=4, mlp_dim=256, pooling='mean',
    activation='gelu_tanh',
  )  # fmt: skip
  if arg == 'positions':
    config.objective = dict(
      type='objectives.jigsaw_positions.JigsawPositions', keep=0.5, augment=LIGHT_AUGMENT,
      eval_augment='background(p=0)', encoder=dict(vit, patch_size=8, positions='none'),
    )  # fmt: skip
  else:
    encoder = dict(vit, patch_size=8, conv_stem=(32, 64), positions='sincos2d')
    if arg == 'resnet':
      encoder = dict(type='models.resnet.ResNet', blocks=(1, 1, 1, 1), width=32, small_stem=True)
    config.objective = dict(
      type='objectives.jigsaw.Jigsaw', grid=3, tile=16, num_permutations=100, shift=1,
      tile_dim=128, hidden_dim=512, augment=AUGMENT, eval_augment='background(p=0)',
      encoder=encoder,
    )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=2),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)

  def by_style(split):
    return {style: emoji(split + share) for style, share in STYLES.items()}

  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', sources=by_style('validation'), host=host,
      every=dict(epochs=10),
    ),
    knn=dict(
      type='evaluators.knn.KNN', train=train, sources=by_style('validation'), host=host, k=20,
      every=dict(epochs=20),
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
