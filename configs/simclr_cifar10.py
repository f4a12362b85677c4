"""SimCLR with a ResNet-18 on CIFAR-10, Appendix B.9 of arXiv:2002.05709.

pip install -e '.[tfds]' && tfds build cifar10 --file_format=array_record
python -m vit_jax.main --config configs/simclr_cifar10.py --workdir /tmp/simclr_cifar10
As there: crops, flips and colour distortion of strength 0.5 without blur, temperature 0.5, LARS
with a linearly scaled rate of 1.0, a stem of one 3x3 convolution without pooling; the encoder there
is a ResNet-50 (94.0% by a linear probe after 1000 epochs).
Hardware: meant for one GPU. Not yet trained to its end, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=500)
  config.batch_size = 512
  cifar10 = dict(type='data.tfds.Tfds', name='cifar10', data_dir=placeholder(str))
  train = dict(**cifar10, split='train[:98%]')
  config.data = dict(source=train, host='decode', num_workers=4, max_bad_share=0.0)
  config.objective = dict(
    type='objectives.simclr.SimCLR', temperature=0.5,
    augment="random_resized_crop(min_area=0.08) | flip | color_distort(0.5, order='random')",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    projection=dict(type='models.projection.Projection', layers=2, dim=128),
    encoder=dict(
      type='models.resnet.ResNet', variant='18', small_stem=True, dtype='bfloat16',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='lars', learning_rate=1.0, scaling='linear', weight_decay=1e-6, schedule='cosine',
    warmup=dict(epochs=10),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  validation, test = dict(**cifar10, split='train[98%:]'), dict(**cifar10, split='test')
  config.evals = dict(
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=validation, host='decode',
      every=dict(epochs=20),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, validation=validation, source=test,
      host='decode',
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(epochs=20), keep_last=2)
  return config
