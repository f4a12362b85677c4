"""SigLIP on the packaged emoji: every pair by itself, right or wrong. Zhai et al. 2023, 2303.15343.

python -m vit_jax.main --config configs/siglip_emoji.py --workdir /tmp/siglip_emoji
`configs/clip_emoji.py` with the sigmoid loss, its learned bias from -10 and its scale from 10.
Hardware: 2 CPU cores. Not run at this length; 60 epochs of it stand in `benchmarks/clip_tables.py`.
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
TEXTS = ('name', 'keywords', 'subcategory', 'category')


def get_config(arg=''):
  del arg
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total = dict(epochs=280)
  config.batch_size = 128
  tokenizer = dict(type='data.tokenizers.clip.ClipBpe', vocab_size=VOCABULARY, context=CONTEXT)
  emoji = dict(type='data.emoji.Emoji', label='category', alpha=True)
  train = dict(**emoji, text=TEXTS, split='train', styles=STYLES[:2], without=UNSEEN)
  config.data = dict(
    source=train,
    host='decode(channels=4) | caption(first=0.5, join=4)'
    '| template("{}", "a drawing of {}", "an emoji of {}", "{} emoji")'
    f'| tokenize("data.tokenizers.clip.ClipBpe", vocab_size={VOCABULARY}, context={CONTEXT})',
    num_workers=0,
    max_bad_share=0.0,
  )
  config.objective = dict(
    type='objectives.slip.SLIP', loss='sigmoid', scale=10.0, bias=-10.0, projection=96,
    augment=AUGMENT, eval_augment='background(p=0)',
    head=dict(type='models.projection.Projection', layers=0),
    image=dict(
      type='models.vit.ViT', patch_size=8, conv_stem=(32, 64), width=96, depth=4, num_heads=3,
      mlp_dim=192, pooling='mean', positions='sincos2d', activation='gelu_tanh',
    ),
    text=dict(
      type='models.text.CBOW', vocab_size=VOCABULARY, width=96, mlp_dim=192, projection=96,
      end_id=VOCABULARY - 1, dropout=0.1,
    ),
  )  # fmt: skip
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, weight_decay=0.1, clip=1.0,
    schedule='cosine', warmup=dict(epochs=5),
  )  # fmt: skip
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  host = 'decode(channels=4)'

  def by_style(styles=STYLES, **fields):
    return {style: dict(**emoji, styles=(style,), **fields) for style in styles}

  def categories(**fields):
    return dict(
      type='evaluators.zero_shot.ZeroShot', tokenizer=tokenizer, templates=('{}',), host=host,
      sources=by_style(**fields), top=(1,),
    )  # fmt: skip

  def retrieval(**fields):
    return dict(
      type='evaluators.image_text_retrieval.ImageTextRetrieval', tokenizer=tokenizer, host=host,
      sources=by_style(text=('name',), **fields), k=(1, 5),
    )  # fmt: skip

  tuned = dict(split='validation', without=UNSEEN)
  # Looked at once, at the end.
  held_out, unseen = dict(split='test', without=UNSEEN), dict(split='all', within=UNSEEN)
  config.evals = dict(
    categories=dict(**categories(**tuned), every=dict(epochs=140)),
    retrieval=dict(**retrieval(**tuned), every=dict(epochs=140)),
    test_categories=categories(**held_out),
    test_retrieval=retrieval(**held_out),
    unseen_categories=categories(**unseen),
    unseen_retrieval=retrieval(**unseen),
  )
  config.log = dict(every=dict(steps=20))
  config.checkpoint = dict(keep_last=1)
  return config
