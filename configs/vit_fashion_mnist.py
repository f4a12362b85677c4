"""A small ViT from scratch on Fashion-MNIST, arXiv:1708.07747, from IDX files or TFDS.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/vit_fashion_mnist.py --workdir /tmp/vit_fashion_mnist
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the evaluators' sources; `:tfds` reads what TFDS has prepared.
Hardware: 2 CPU cores, 16 minutes, `:long` 51, both with other work beside them. Trains on 55,000
images; choices are made on the other 5,000.
Measured (seed 0, accuracy; the first two rows on raw pixels, k and C chosen on validation by
`benchmarks/pixel_baselines.py`):

                     validation  test
4-NN                 0.859       0.856
logistic regression  0.860       0.845
22 epochs            0.920       0.913
:long, 55 epochs     0.937       0.929
"""

import ml_collections
from ml_collections.config_dict import placeholder

ARGS = ('', 'long', 'tfds')


def get_config(arg=''):
  long = arg == 'long'
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=55 if long else 22)
  config.batch_size = 64

  def images(idx, tfds):
    if arg == 'tfds':
      return dict(
        type='data.tfds.Tfds', name='fashion_mnist', split=tfds, data_dir=placeholder(str)
      )
    return dict(type='data.idx.Idx', dataset='fashion_mnist', split=idx, directory=placeholder(str))

  train = images('train[:55000]', 'train[:55000]')
  # 28x28 inside 32x32, which the stem can halve twice; in training at a random place.
  config.data = dict(
    source=train, host='decode(channels=1) | pad_crop(32, 4)', num_workers=0, max_bad_share=0.0
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=10, label_smoothing=0.1,
    augment='flip' + (' | erase(p=0.5, area=(0.02, 0.4))' if long else ''),
    mean=0.286, std=0.353,
    encoder=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=6,
      num_heads=4, mlp_dim=256, pooling='mean', positions='learned', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=0.5),
  )  # fmt: skip
  every = dict(epochs=5 if long else 2)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  classification = dict(
    type='evaluators.classification.Classification', host='decode(channels=1) | pad_crop(32, 2)'
  )
  test = images('test', 'test')
  config.evals = dict(
    validation=dict(
      **classification, source=images('train[55000:]', 'train[55000:]'), every=every
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
    every=every, keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
