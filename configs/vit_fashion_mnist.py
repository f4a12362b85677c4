"""A small ViT from scratch on Fashion-MNIST, arXiv:1708.07747, from IDX files or TFDS.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/vit_fashion_mnist.py --workdir /tmp/vit_fashion_mnist
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the evaluators' sources; `:tfds` reads what TFDS has prepared.
Hardware: 2 CPU cores, 15 minutes; `:long` 30 minutes. Trains on 55,000 images; choices are made on
the other 5,000. Not yet trained to its end, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

ARGS = ('', 'long', 'tfds')


def get_config(arg=''):
  long = arg == 'long'
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=22 if long else 11)
  config.batch_size = 64

  def images(idx, tfds):
    if arg == 'tfds':
      return dict(
        type='data.tfds.Tfds', name='fashion_mnist', split=tfds, data_dir=placeholder(str)
      )
    return dict(type='data.idx.Idx', dataset='fashion_mnist', split=idx, directory=placeholder(str))

  train = images('train[:55000]', 'train[:55000]')
  config.data = dict(source=train, host='decode(channels=1)', num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=10, label_smoothing=0.1,
    augment='flip' + (' | affine(scale=(0.9, 1.1), shift=0.08, fill=0.0, p=0.3)' if long else ''),
    mean=0.286, std=0.353,
    encoder=dict(
      type='models.vit.ViT', patch_size=4, width=96, depth=4, num_heads=3, mlp_dim=192,
      pooling='mean', positions='learned', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=0.5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  classification = dict(type='evaluators.classification.Classification', host='decode(channels=1)')
  test = images('test', 'test')
  config.evals = dict(
    validation=dict(
      **classification, source=images('train[55000:]', 'train[55000:]'), every=dict(epochs=1)
    ),
    # Looked at once, at the end.
    test=dict(**classification, source=test),
    pixels=dict(
      type='evaluators.nearest_pixel.NearestPixel', train=train, source=test, k=5,
      host='decode(channels=1)',
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=100))
  config.checkpoint = dict(
    every=dict(epochs=1), keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
