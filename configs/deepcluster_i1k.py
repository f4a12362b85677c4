"""DeepCluster on ImageNet-1k with a ResNet-50. Caron et al. 2018, arXiv:1807.05520.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/deepcluster_i1k.py --workdir /tmp/deepcluster_i1k
The recipe of Section 3.4: 10,000 clusters of central crops, features whitened to 256 dimensions,
found anew every epoch; edges in place of colours (their strength, where the paper has one channel
for each of two directions); SGD with momentum 0.9 and a rate of 0.05 for batches of 256. The
paper's encoders are AlexNet and VGG-16, and its rate is constant.
`:vit` has a ViT-S/16, AdamW and colours.
A host holds the features of all images, 10.4 GB for a ResNet-50. Not trained here, so no accuracy
is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'vit')
EDGES = 'grayscale(1) | sobel(p=1)'


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=200)
  config.batch_size = 256
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train, host='decode_random_resized_crop(224, min_area=0.08) | flip', num_workers=16
  )
  config.objective = dict(
    type='objectives.deepcluster.DeepCluster', num_clusters=10_000, num_examples=1_281_167, pca=256,
    augment=EDGES, eval_augment=EDGES, mean=0.0, std=1.0,
    encoder=dict(type='models.resnet.ResNet', variant='50', dtype='bfloat16'),
  )  # fmt: skip
  config.optimizer = dict(
    name='sgd', learning_rate=0.05, weight_decay=1e-5, options=dict(momentum=0.9),
    schedule='constant',
  )  # fmt: skip
  if arg == 'vit':
    config.batch_size = 1024
    config.objective.augment = 'color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8) | grayscale(0.2)'
    config.objective.eval_augment = ''
    config.objective.mean, config.objective.std = 0.45, 0.225
    config.objective.encoder = dict(
      type='models.vit.ViT', variant='S/16', pooling='mean', positions='sincos2d', dtype='bfloat16'
    )
    config.optimizer = dict(
      name='adamw', learning_rate=5e-4, weight_decay=0.05, clip=1.0, options=dict(b2=0.95),
      schedule='cosine', warmup=dict(epochs=10),
    )  # fmt: skip
  host = 'decode | resize_small(256) | central_crop(224)'
  config.hooks = dict(
    recluster=dict(
      type='hooks.recluster.Recluster', source=train, host=host, num_workers=16,
      every=dict(epochs=1),
    ),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  minival = dict(**imagenet, split='train[99%:]')
  val = dict(**imagenet, split='validation')
  config.evals = dict(
    few_shot=dict(
      type='evaluators.few_shot.FewShot', train=train, source=minival, host=host, num_workers=8,
      every=dict(epochs=10),
    ),
    # Looked at once, at the end.
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, source=val, host=host,
      num_workers=8, optimizer='sgd', baselines=('random',),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(epochs=5), keep_last=2)
  return config
