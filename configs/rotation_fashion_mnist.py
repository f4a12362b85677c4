"""Rotation on Fashion-MNIST, arXiv:1708.07747, judged by a linear probe. arXiv:1803.07728.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/rotation_fashion_mnist.py --workdir /tmp/rotation_fashion
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the evaluators' sources; `:tfds` reads what TFDS has prepared. No label is seen in training.
`:resnet` is for a GPU, a ResNet-18 in bfloat16. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'tfds', 'resnet')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=10)
  config.batch_size = 64  # 256 images with their rotations

  def images(split):
    if arg == 'tfds':
      return dict(
        type='data.tfds.Tfds', name='fashion_mnist', split=split, data_dir=placeholder(str)
      )
    return dict(
      type='data.idx.Idx', dataset='fashion_mnist', split=split, directory=placeholder(str)
    )

  train, validation = images('train[:55000]'), images('train[55000:]')
  host = 'decode(channels=1) | pad_crop(32, 2)'  # 28x28 in the middle of 32x32, halved evenly
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.rotation.Rotation', mean=0.286, std=0.353,
    # Garments hang upright: mirrored left and right, never turned.
    augment='random_resized_crop(min_area=0.25) | flip | color_jitter(0.6, 0.6, p=0.8)',
    encoder=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=4,
      num_heads=4, mlp_dim=256, pooling='mean', positions='learned', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=1),
  )  # fmt: skip
  if arg == 'resnet':
    config.total = dict(epochs=50)
    config.batch_size = 128
    config.data.num_workers = 8
    config.objective.encoder = dict(
      type='models.resnet.ResNet', variant='18', small_stem=True, dtype='bfloat16'
    )
    # Section 3.1, arXiv:1803.07728.
    config.optimizer = dict(
      name='sgd', learning_rate=0.1, weight_decay=5e-4, options=dict(nesterov=True),
      schedule='cosine', warmup=dict(epochs=1),
    )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', source=validation, host=host, every=dict(epochs=1)
    ),
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=validation, host=host, k=20,
      every=dict(epochs=5),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, validation=validation,
      source=images('test'), host=host,
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=100))
  config.checkpoint = dict(every=dict(epochs=5), keep_last=1)
  return config
