"""DeepCluster on Fashion-MNIST, arXiv:1708.07747. Caron et al. 2018, arXiv:1807.05520.

apt-get install dataset-fashion-mnist
python -m vit_jax.main --config configs/deepcluster_fashion_mnist.py --workdir /tmp/deepcluster_fm
Other places: --config.data.source.directory=FOLDER of the four files as published, and the same for
the hook's and the evaluators' sources. No label is seen in training; `train/nmi_labels` is how far
the clusters are the classes. `:resnet` is for a GPU, a ResNet-18 in bfloat16 and batches of 512.
Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'resnet')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=50)
  config.batch_size = 128

  def images(split):
    return dict(
      type='data.idx.Idx', dataset='fashion_mnist', split=split, directory=placeholder(str)
    )

  train, validation = images('train[:55000]'), images('train[55000:]')
  host = 'decode(channels=1) | pad_crop(32, 2)'  # 28x28 in the middle of 32x32, halved evenly
  config.data = dict(source=train, host=host, num_workers=0, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.deepcluster.DeepCluster', num_clusters=100, num_examples=60_000, pca=64,
    mean=0.286, std=0.353,
    augment='random_resized_crop(min_area=0.25) | flip | color_jitter(0.6, 0.6, p=0.8)'
    '| blur(p=0.3, sigma=(0.3, 1.0)) | erase(p=0.3, area=(0.02, 0.2))',
    encoder=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=128, depth=4,
      num_heads=4, mlp_dim=256, pooling='mean', positions='learned', activation='gelu_tanh',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0, options=dict(b2=0.95),
    schedule='cosine', warmup=dict(epochs=2),
  )  # fmt: skip
  if arg == 'resnet':
    config.batch_size = 512
    config.data.num_workers = 8
    config.objective.encoder = dict(
      type='models.resnet.ResNet', variant='18', small_stem=True, dtype='bfloat16'
    )
    config.optimizer = dict(
      name='sgd', learning_rate=0.1, weight_decay=1e-4, clip=1.0, options=dict(momentum=0.9),
      schedule='cosine', warmup=dict(epochs=2),
    )  # fmt: skip
  config.hooks = dict(
    recluster=dict(
      type='hooks.recluster.Recluster', source=train, host=host, every=dict(epochs=2)
    ),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.evals = dict(
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=validation, host=host, k=20,
      every=dict(epochs=10),
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
