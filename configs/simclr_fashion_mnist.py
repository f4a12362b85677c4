"""SimCLR on Fashion-MNIST, arXiv:1708.07747, judged by a linear probe. arXiv:2002.05709.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/simclr_fashion_mnist.py --workdir /tmp/simclr_fashion_mnist
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the evaluators' sources; `:tfds` reads what TFDS has prepared. No label is seen in training.
Hardware: one CPU core, 72 minutes of training beside tests on the other; not timed alone. The last
evaluation takes half as long again: the probe of pixels is fitted with nine l2.
Measured (seed 0; nothing was tuned): the linear probe on the test split 0.895, of a random encoder
0.773, of pixels 0.843; 20-NN on validation 0.880, 0.745, 0.849.
`:resnet` is for a GPU, a ResNet-18 in bfloat16 and batches of 512. Measured on one H100 (seed 0, l2
one of 1e-3, 1e-2 and 1e-1): 0.920, of a random encoder 0.666; 55 epochs take 96 seconds at 31,500
images a second, all together three minutes.
"""

import ml_collections
from ml_collections.config_dict import placeholder

ARGS = ('', 'tfds', 'resnet')


def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=50)
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
    type='objectives.simclr.SimCLR', temperature=0.2, mean=0.286, std=0.353,
    augment='random_resized_crop(min_area=0.25) | flip | color_jitter(0.6, 0.6, p=0.8)'
    '| blur(p=0.3, sigma=(0.3, 1.0)) | erase(p=0.3, area=(0.02, 0.2))',
    projection=dict(type='models.projection.Projection', layers=2, dim=64),
    encoder=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=4,
      num_heads=4, mlp_dim=256, pooling='mean', positions='learned', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=2),
  )  # fmt: skip
  if arg == 'resnet':
    config.total = dict(epochs=55)
    config.batch_size = 512
    config.data.num_workers = 8
    config.objective.projection.dim = 128
    config.objective.encoder = dict(
      type='models.resnet.ResNet', variant='18', small_stem=True, dtype='bfloat16'
    )
    config.optimizer = dict(
      name='lars', learning_rate=1.0, scaling='linear', weight_decay=1e-6, schedule='cosine',
      warmup=dict(epochs=5),
    )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  validation = images('train[55000:]', 'train[55000:]')
  test = images('test', 'test')
  config.evals = dict(
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
