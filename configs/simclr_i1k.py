"""SimCLR with a ResNet-50 on ImageNet-1k. Chen et al. 2020, arXiv:2002.05709.

tfds build imagenet2012 --file_format=array_record
python -m vit_jax.main --config configs/simclr_i1k.py --workdir /tmp/simclr_i1k
The recipe of Section 2 and Appendix A: batch 4096, LARS with a linearly scaled rate of 0.3 and a
decay of 1e-6 of kernels alone, 10 epochs of warm-up, temperature 0.1, a projection of 2 layers to
128, crops from 8% of the area, flips, colour distortion of strength 1, blur of half the views.
Published: 69.3% top-1 by a linear probe after 1000 epochs (Table 6).
Hardware: a TPU v3-128 there. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=100)
  config.batch_size = 4096
  imagenet = dict(type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str))
  train = dict(**imagenet, split='train[:99%]')
  config.data = dict(
    source=train,
    host='decode_random_resized_crop(224, min_area=0.08, views=2) | flip',
    num_workers=16,
  )
  config.objective = dict(
    type='objectives.simclr.SimCLR', temperature=0.1,
    augment="color_distort(1.0, order='random') | blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    projection=dict(type='models.projection.Projection', layers=2, dim=128),
    encoder=dict(type='models.resnet.ResNet', variant='50', dtype='bfloat16'),
  )  # fmt: skip
  config.optimizer = dict(
    name='lars', learning_rate=0.3, scaling='linear', weight_decay=1e-6, schedule='cosine',
    warmup=dict(epochs=10),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode | resize_small(256) | central_crop(224)'
  minival = dict(**imagenet, split='train[99%:]')
  val = dict(**imagenet, split='validation')
  config.evals = dict(
    few_shot=dict(
      type='evaluators.few_shot.FewShot', train=train, source=minival, host=host, num_workers=8,
      every=dict(epochs=10),
    ),
    # Looked at once, at the end.
    knn=dict(
      type='evaluators.knn.KNN', train=train, source=val, host=host, num_workers=8,
    ),
    probe=dict(
      type='evaluators.linear_probe.LinearProbe', train=train, source=val, host=host,
      num_workers=8, optimizer='sgd', baselines=('random',),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(epochs=5), keep_last=2)
  return config
