"""A masked autoencoder on Fashion-MNIST, arXiv:1708.07747. He et al. 2021, arXiv:2111.06377.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/mae_fashion_mnist.py --workdir /tmp/mae_fashion_mnist
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the evaluators' sources; `:tfds` reads what TFDS has prepared. No label is seen in training.
Hardware: meant for 2 CPU cores. Not trained to its end here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'tfds')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=30)
  config.batch_size = 128

  def images(idx, tfds):
    if arg == 'tfds':
      return dict(
        type='data.tfds.Tfds', name='fashion_mnist', split=tfds, data_dir=placeholder(str)
      )
    return dict(type='data.idx.Idx', dataset='fashion_mnist', split=idx, directory=placeholder(str))

  train = images('train[:55000]', 'train[:55000]')
  host = 'decode(channels=1) | pad_crop(32, 2)'  # 28x28 in the middle of 32x32, halved evenly
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.masked_autoencoder.MaskedAutoencoder', mask_ratio=0.75, norm_pixels=True,
    decoder_width=64, decoder_depth=2, decoder_num_heads=4, mean=0.286, std=0.353,
    augment='random_resized_crop(min_area=0.4) | flip',
    encoder=dict(
      type='models.vit.ViT', patch_size=4, width=128, depth=4, num_heads=4, mlp_dim=256,
      pooling='mean', positions='sincos2d', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', options=dict(b2=0.95), learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=2),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  validation = images('train[55000:]', 'train[55000:]')
  test = images('test', 'test')
  config.evals = dict(
    held_out=dict(
      type='evaluators.held_out.HeldOut', source=validation, host=host, every=dict(epochs=10)
    ),
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=validation, host=host, k=20,
      every=dict(epochs=10),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, validation=validation, source=test,
      host=host,
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=100))
  config.checkpoint = dict(every=dict(epochs=5), keep_last=1)
  return config
