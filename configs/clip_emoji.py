"""CLIP on the packaged emoji: a drawing and its name agree. Radford et al. 2021, arXiv:2103.00020.

python -m vit_jax.main --config configs/clip_emoji.py --workdir /tmp/clip_emoji
Trained on two styles, without ten subcategories. Not yet trained to its end, so nothing is claimed.
"""

import ml_collections

ARGS = ('',)

# Kept back whole, to ask for what no caption named: one or two of each category.
UNSEEN = (
  'cat-face', 'face-affection', 'person-sport', 'animal-bird', 'plant-flower', 'food-fruit',
  'transport-water', 'game', 'musical-instrument', 'arrow',
)  # fmt: skip
# Line drawings are among what is seen, so that features do without colour.
AUGMENT = (
  'affine(scale=(0.6, 1.2), aspect=1.2, rotate=12, shear=0.08, shift=0.1, flip=0.5)'
  '| color_distort(0.5, p=0.8, gray=0.2) | outline(0.3) | sketch(0.2) | stencil(0.1)'
  '| background(p=0)'
)
VOCABULARY, CONTEXT = 4096, 16
STYLES = ('google', 'twitter', 'openmoji', 'noto-mono')


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=200)
  config.batch_size = 256
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', vocab_size=VOCABULARY, context=CONTEXT)
  emoji = dict(type='data.emoji.Emoji', label='category', alpha=True)
  config.data = dict(
    source=dict(**emoji, text=True, split='train', styles=STYLES[:2], without=UNSEEN),
    host='decode(channels=4) | caption(first=0.6, join=3)'
    '| template("{}", "a drawing of {}", "an emoji of {}", "{} emoji")'
    f'| tokenize("data.tokenizers.clip.ClipBpe", vocab_size={VOCABULARY}, context={CONTEXT})',
    num_workers=0,
    max_bad_share=0.0,
  )
  config.objective = dict(
    type='objectives.clip.CLIP', projection=96, augment=AUGMENT, eval_augment='background(p=0)',
    image=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=96, depth=4, num_heads=3,
      mlp_dim=192, pooling='mean', positions='sincos2d', activation='gelu_tanh',
    ),
    text=dict(
      type='models.text.TextTransformer', vocab_size=VOCABULARY, context=CONTEXT, width=96, depth=2,
      num_heads=3, mlp_dim=192, causal=False, pooling='mean', end_id=VOCABULARY - 1,
      mask_padding=True, projection=96, activation='gelu_tanh', dropout=0.1,
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.1, clip=1.0,
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  images = dict(**emoji, split='validation')
  config.evals = dict(
    categories=dict(
      type='evaluators.zero_shot.ZeroShot', tokenizer=tokenizer, templates=('{}',),
      sources={style: dict(**images, styles=(style,)) for style in STYLES},
      host='decode(channels=4)', every=dict(epochs=20),
    ),
  )  # fmt: skip
  config.log = dict(every=dict(steps=20))
  config.checkpoint = dict(keep_last=1)
  return config
