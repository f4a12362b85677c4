"""CLIP on the 12 million pairs of CC12M (arXiv:2102.08981). Radford et al. 2021, arXiv:2103.00020.

img2dataset --url_list=cc12m.tsv --input_format=tsv --output_folder=/data/cc12m \
  --output_format=webdataset --image_size=256 --resize_mode=keep_ratio
vit_jax prepare 'webdataset:/data/cc12m/*.tar' /data/prepared
python -m vit_jax.main --config configs/clip_cc12m.py --workdir /tmp/clip_cc12m \
  --config.data.source.path=/data/prepared
A ViT-B/16, or with `:RN50` CLIP's ResNet, and the text tower of CLIP. The smaller data wants more
epochs of the same optimizer: 1e-3, a decay of 0.2 and 32 epochs in batches of 4,096. Where a batch
does not fit, `models.chunked.Chunked` around the encoders makes it fit, with the same gradients.
Hardware: meant for 8 accelerators. Not trained here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

ARGS = ('', 'RN50')


def get_config(arg=''):
  check_choice('argument', arg, ARGS)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=32)
  config.batch_size = 4096
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', vocab_size=49_408, context=77)
  config.data = dict(
    source=dict(type='data.array_record.ArrayRecord', path='prepared', split='train'),
    host='decode_random_resized_crop(224, min_area=0.5) | flip'
    ' | caption | tokenize("data.tokenizers.clip.ClipBpe")',
    num_workers=16,
    max_bad_share=0.01,
  )
  vit = dict(
    type='models.vit.ViT', variant='B/16', pooling='token', positions='learned', pre_norm=True,
    patch_bias=False, ln_eps=1e-5, dtype='bfloat16', scan=False, remat='none',
  )  # fmt: skip
  resnet = dict(type='models.clip_resnet.ClipResNet', variant='RN50', dtype='bfloat16')
  width = 1024 if arg == 'RN50' else 512
  config.objective = dict(
    type='objectives.clip.CLIP', loss='softmax', max_scale=100.0,
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
    image=resnet if arg == 'RN50' else vit,
    text=dict(
      type='models.text.TextTransformer', variant='B', vocab_size=49_408, context=77,
      end_id=49_407, projection=width, dtype='bfloat16', scan=False, remat='none',
    ),
  )  # fmt: skip
  if arg != 'RN50':  # Whose attention pooling projects.
    config.objective.projection = width
  config.optimizer = dict(
    name='adamw', options=dict(b1=0.9, b2=0.98, eps=1e-6), learning_rate=1e-3, weight_decay=0.2,
    schedule='cosine', warmup=dict(steps=2000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.evals = dict(
    imagenet=dict(
      type='evaluators.zero_shot.ZeroShot', tokenizer=tokenizer, prompts='imagenet', num_workers=8,
      source=dict(
        type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str), split='validation'
      ),
      host='decode | resize_small(224, interpolation="bicubic") | central_crop(224)',
      every=dict(epochs=2),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(steps=1000), keep_last=2)
  return config
