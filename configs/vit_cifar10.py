"""ViT from scratch on CIFAR-10, as prepared by TFDS (reading it needs no TensorFlow).

pip install -e '.[tfds]' && tfds build cifar10 --file_format=array_record
python -m vit_jax.main --config configs/vit_cifar10.py --workdir /tmp/vit_cifar10
Hardware: meant for one GPU or a TPU board. Not yet trained to its end, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=200)
  config.batch_size = 512
  # The last 2% of the training images are for choosing; test is looked at once, at the end.
  cifar10 = dict(type='data.tfds.Tfds', name='cifar10', data_dir=placeholder(str))
  config.data = dict(
    source=dict(**cifar10, split='train[:98%]'),
    host='decode | pad_crop(32, 4) | flip',
    num_workers=8,
    max_bad_share=0.0,
  )
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=10, label_smoothing=0.1,
    encoder=dict(
      type='models.vit.ViT', variant='Ti/4', pooling='mean', positions='sincos2d',
      drop_path=0.1, dtype='bfloat16',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=dict(epochs=10),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  classification = dict(type='evaluators.classification.Classification', host='decode')
  config.evals = dict(
    validation=dict(
      **classification, source=dict(**cifar10, split='train[98%:]'), every=dict(epochs=5)
    ),
    test=dict(**classification, source=dict(**cifar10, split='test')),
  )
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(
    every=dict(epochs=5), keep_last=2, keep_best=1, best='validation/accuracy', mode='max'
  )
  return config
