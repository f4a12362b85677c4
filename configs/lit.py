"""LiT: a text tower learns to read a locked image tower. Zhai et al. 2022, arXiv:2111.07991.

vit_jax prepare 'webdataset:/data/cc12m/*.tar' /data/prepared
python -m vit_jax.main --config configs/lit.py --workdir /tmp/lit \
  --config.data.source.path=/data/prepared
The image tower comes from any checkpoint that `vit_jax.load` opens, here AugReg's ViT-B/16 of
ImageNet-21k (`--config.init_from.checkpoint=...`), is a constant of the loss, and keeps no
activations; the text tower, of its width, is new. `:unlock=2` trains the image tower's last two
blocks and its last LayerNorm too, at a tenth of the learning rate.
Hardware: meant for 8 accelerators. Not trained here, so no accuracy is claimed.
"""

import re

import ml_collections
from ml_collections.config_dict import placeholder

BLOCKS = 12
ARGS = ('', 'unlock=2')


def get_config(arg=''):
  match = re.fullmatch(r'(?:unlock=(\d+))?', arg)
  unlocked = int(match[1] or 0) if match else BLOCKS + 1
  if unlocked > BLOCKS:
    raise ValueError(f'unlock=N takes 0 to {BLOCKS} of the last blocks, not {arg!r}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=10)
  config.batch_size = 4096
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', vocab_size=49_408, context=77)
  config.data = dict(
    source=dict(type='data.array_record.ArrayRecord', path='prepared', split='train'),
    host='decode_random_resized_crop(224, min_area=0.5) | flip'
    ' | caption | tokenize("data.tokenizers.clip.ClipBpe")',
    num_workers=16,
    max_bad_share=0.01,
  )
  config.objective = dict(
    type='objectives.clip.CLIP', loss='softmax', max_scale=100.0, mean=0.5, std=0.5,
    image=dict(
      type='models.vit.ViT', variant='B/16', pooling='token', positions='learned',
      dtype='bfloat16', scan=False,
    ),
    text=dict(
      type='models.text.TextTransformer', variant='B', vocab_size=49_408, context=77,
      end_id=49_407, projection=768, dtype='bfloat16', scan=False, remat='none',
    ),
  )  # fmt: skip
  config.init_from = dict(
    checkpoint='augreg/B/16-i21k', rules=(('params/encoder/(.*)', r'params/image/\1'),)
  )
  last = '|'.join(f'block_{i}' for i in range(BLOCKS - unlocked, BLOCKS))
  config.optimizer = dict(
    name='adamw', options=dict(b1=0.9, b2=0.98, eps=1e-6), learning_rate=1e-3, weight_decay=1e-4,
    schedule='cosine', warmup=dict(steps=2000), clip=1.0,
    freeze=(rf'image/(?!(?:{last}|norm)/).*' if unlocked else 'image/.*',),
    multiplier=(('image/.*', 0.1),) if unlocked else (),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.evals = dict(
    imagenet=dict(
      type='evaluators.zero_shot.ZeroShot', tokenizer=tokenizer, prompts='imagenet', num_workers=8,
      source=dict(
        type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str), split='validation'
      ),
      host='decode | resize(224)',
      every=dict(epochs=1),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(steps=1000), keep_last=2)
  return config
