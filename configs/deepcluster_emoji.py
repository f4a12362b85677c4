"""DeepCluster on the packaged emoji. Caron et al. 2018, arXiv:1807.05520.

python -m vit_jax.main --config configs/deepcluster_emoji.py --workdir /tmp/deepcluster_emoji
No label is seen in training: `train/nmi_labels` is how far the clusters are the categories, and
`train/nmi_previous` how far they are those of the clustering before. `:resnet` has a small ResNet
in the place of the ViT. Takes 7 minutes on one core; what it learns is in the README's table of
pretext tasks.
"""

import ml_collections

from vit_jax.choices import check_choice

ARGS = ('', 'resnet')

# As of SimCLR: what a cluster holds together is decided by what the head must not see.
AUGMENT = (
  'affine(scale=(0.6, 1.2), aspect=1.2, rotate=12, shear=0.08, shift=0.1, flip=0.5)'
  '| color_distort(0.5, p=0.8, gray=0.2) | outline(0.5) | sketch(0.3) | stencil(0.1)'
  '| background(p=0)'
)


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=95)
  config.batch_size = 128
  drawn = dict(type='data.emoji.Emoji', alpha=True)
  emoji = dict(**drawn, label='category')
  trained = ('google', 'twitter')
  styles = (*trained, 'openmoji', 'noto-mono')
  train = dict(**emoji, split='train', styles=trained)
  host = 'decode(channels=4)'
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.deepcluster.DeepCluster', num_clusters=100, pca=64, augment=AUGMENT,
    eval_augment='background(p=0)',
    num_examples=2 * 1629,  # ids number the drawings of all splits, style after style
    encoder=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=4,
      num_heads=4, mlp_dim=256, pooling='mean', positions='sincos2d', activation='gelu_tanh',
    ),
  )  # fmt: skip
  if arg == 'resnet':
    config.objective.encoder = dict(
      type='models.resnet.ResNet', blocks=(1, 1, 1), width=32, small_stem=True
    )
  # An evaluation follows a clustering at the same step, and finds a head that knows nothing yet:
  # the last one is some epochs before the end.
  config.hooks = dict(
    recluster=dict(
      type='hooks.recluster.Recluster', source=train, host=host, every=dict(epochs=12)
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=3e-3, weight_decay=0.05, clip=1.0, options=dict(b2=0.95),
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  validation = dict(**emoji, split='validation', styles=trained)

  def by_style(split):
    return {style: dict(**emoji, split=split, styles=(style,)) for style in styles}

  config.evals = dict(
    knn=dict(
      type='evaluators.knn.KNN', train=train, sources=by_style('validation'), host=host, k=20,
      every=dict(epochs=50),
    ),
    held_out=dict(
      type='evaluators.held_out.HeldOut', sources=by_style('validation'), host=host,
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
