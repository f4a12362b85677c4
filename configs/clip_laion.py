"""CLIP on image-text pairs from the web, on a pod. Radford et al. 2021, arXiv:2103.00020.

img2dataset --url_list=laion400m --output_folder=/data/laion400m --output_format=webdataset
vit_jax prepare 'webdataset:/data/laion400m/*.tar' /data/prepared
python -m vit_jax.main --config configs/clip_laion.py:B/16 --workdir /tmp/clip_laion \
  --config.data.source.path=/data/prepared
Batch, learning rates, AdamW's constants, decay, warm-up and 32 epochs are those of Tables 18 and 19
there; crops are large and nothing else changes an image. The loss goes over all pairs in a ring and
never holds the matrix of them. Zero-shot ImageNet, for which TFDS must have prepared it, with 80
templates. Hardware: a TPU pod; docs/scaling.md says what a step needs of v5e:16x16. Not trained
here, so no accuracy is claimed.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from vit_jax.choices import check_choice

# Tables 18 and 19: the image tower, the text tower, the common space and the learning rate. Last
# what the optimizer's state is split over: on v5e:16x16 'zero1' pays for B/16 and not for B/32.
VARIANTS = {
  'B/32': ('B/32', 'B', 512, 5e-4, 'fsdp'),
  'B/16': ('B/16', 'B', 512, 5e-4, 'zero1'),
  'L/14': ('L/14', 'L', 768, 4e-4, 'zero1'),
}
ARGS = ('', 'L/14')


def get_config(arg=''):
  arg = arg or 'B/32'
  check_choice('variant', arg, VARIANTS)
  image, text, projection, learning_rate, sharding = VARIANTS[arg]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=32)
  config.batch_size = 32_768
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', vocab_size=49_408, context=77)
  config.data = dict(
    source=dict(type='data.array_record.ArrayRecord', path='prepared', split='train'),
    host='decode_random_resized_crop(224, min_area=0.9)'
    ' | caption | tokenize("data.tokenizers.clip.ClipBpe")',
    num_workers=32,
    max_bad_share=0.01,
  )
  config.objective = dict(
    type='objectives.clip.CLIP', projection=projection, loss='softmax', max_scale=100.0,
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
    image=dict(
      type='models.vit.ViT', variant=image, pooling='token', positions='learned', pre_norm=True,
      patch_bias=False, ln_eps=1e-5, dtype='bfloat16', scan=False, remat='none',
    ),
    text=dict(
      type='models.text.TextTransformer', variant=text, vocab_size=49_408, context=77,
      end_id=49_407, projection=projection, dtype='bfloat16', scan=False, remat='none',
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', options=dict(b1=0.9, b2=0.98, eps=1e-6), learning_rate=learning_rate,
    weight_decay=0.2, schedule='cosine', warmup=dict(steps=2000),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sharding = sharding
  config.evals = dict(
    imagenet=dict(
      type='evaluators.zero_shot.ZeroShot', tokenizer=tokenizer, prompts='imagenet', num_workers=8,
      source=dict(
        type='data.tfds.Tfds', name='imagenet2012', data_dir=placeholder(str), split='validation'
      ),
      host='decode | resize_small(224, interpolation="bicubic") | central_crop(224)',
      every=dict(epochs=1),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=50))
  config.checkpoint = dict(every=dict(steps=1000), keep_last=2)
  return config
