"""What zero-shot answers are worth on the emoji: towers, controls and supervised baselines.

python benchmarks/clip_tables.py train OUT [--only NAME ...] [--jobs 2]
python benchmarks/clip_tables.py table OUT

Every row is `configs/clip_emoji.py` with something else in it, for `EPOCHS` epochs of the same
drawings (google and twitter, without ten subcategories) and captions; two rows learn from the
categories alone, with the same image encoder: by a classifier, and by SimCLR and a linear probe.
`category` is the accuracy of the eight categories: zero-shot, by their names; `recall` that of the
drawing by its name among all of the same set. Sets are the test split of each style, and the ten
subcategories that none of them has seen, from all splits. `pixels` answers with the category, and
ranks by the captions, of the training drawing that is nearest in pixels.
"""

import argparse
import json
import pathlib

from jobs import run_all

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS = 60
STYLES = ('google', 'twitter', 'openmoji', 'noto-mono')
RECALLS = (1, 5)


def unchanged(config):
  del config


def shuffled(config):
  """Each drawing with the texts of another one."""
  config.data.source = dict(type='data.shuffled.ShuffledTexts', source=config.data.source.to_dict())


def clip(config):
  """Without views that agree."""
  del config.objective.head
  config.objective.type = 'objectives.clip.CLIP'


def transformer(config):
  text = config.objective.text
  fields = {name: text[name] for name in ('vocab_size', 'width', 'mlp_dim', 'projection', 'end_id')}
  config.objective.text = dict(
    type='models.text.TextTransformer', context=16, depth=2, num_heads=3, causal=False,
    pooling='mean', mask_padding=True, activation='gelu_tanh', dropout=0.1, **fields,
  )  # fmt: skip


def sigmoid(config):
  config.objective.loss = 'sigmoid'


def resnet(config):
  config.objective.image = dict(
    type='models.resnet.ResNet', blocks=(1, 1, 1), bottleneck=False, width=16, small_stem=True
  )


def supervised(config):
  objective = config.objective
  fields = {name: objective[name] for name in ('augment', 'eval_augment')}
  config.objective = dict(
    type='objectives.supervised.Supervised', num_classes=8, encoder=objective.image, **fields
  )
  without_texts(config)


def simclr(config):
  objective = config.objective
  fields = {name: objective[name] for name in ('augment', 'eval_augment')}
  config.objective = dict(
    type='objectives.simclr.SimCLR', temperature=0.1, encoder=objective.image,
    projection=dict(type='models.projection.Projection', layers=0), **fields,
  )  # fmt: skip
  without_texts(config)


def without_texts(config):
  config.data.host = 'decode(channels=4)'
  config.data.source.text = False


def together(*changes):
  def change(config):
    for one in changes:
      one(config)

  return change


ROWS = {
  'ViT, CBOW': unchanged,
  'ViT, transformer': transformer,
  'ResNet, CBOW': resnet,
  'ResNet, transformer': together(resnet, transformer),
  'sigmoid': sigmoid,
  'without views': clip,
  'shuffled pairs': shuffled,
  'supervised': supervised,
  'SimCLR, linear': simclr,
}


def load(row):
  """A row's config, and that which it was made from."""
  from vit_jax import config as config_lib

  recipe = config_lib.load(str(ROOT / 'configs/clip_emoji.py'))
  config = config_lib.load(str(ROOT / 'configs/clip_emoji.py')).unlock()
  with config.ignore_type():
    ROWS[row](config)
  config.total, config.evals = dict(epochs=EPOCHS), {}
  config.checkpoint, config.log.every = dict(keep_last=1), dict(epochs=5)
  return config.lock(), recipe


def sets(recipe, **fields):
  """What is looked at once, at the end, by name: sources."""
  drawn = recipe.data.source.to_dict()
  unseen = drawn.pop('without')
  made = {}
  for name, more in (
    ('', dict(split='test', without=unseen)), (' unseen', dict(split='all', within=unseen))
  ):  # fmt: skip
    for style in STYLES:
      made[style + name] = {**drawn, **more, 'styles': (style,), **fields}
  return made


def measure(row, out):
  """Trains a row where it learns, and writes its numbers."""
  from vit_jax import sharding, train
  from vit_jax.build import build

  mesh, results = sharding.make_mesh({}), {}
  config, recipe = load('supervised' if row == 'pixels' else row)
  host = 'decode(channels=4)'
  drawings = {**recipe.data.source.to_dict(), 'text': False}
  tokenizer = recipe.evals.retrieval.tokenizer

  def run(kind, state, objective, **fields):
    made = dict(type=f'evaluators.{kind}', host=host, **fields)
    return build(made, objective=objective, mesh=mesh).run(state, final=True)

  if row == 'pixels':
    results |= run(
      'nearest_pixel.NearestPixel', None, None, train=drawings, sources=sets(recipe, text=False)
    )
    results |= run(
      'pixel_captions.PixelCaptions', None, None, k=RECALLS, captions=1,
      train=recipe.data.source.to_dict(), sources=sets(recipe),
    )  # fmt: skip
  else:
    state = train.train_and_evaluate(config, out / 'run' / row)
    objective = build(config.objective)
    if row == 'supervised':
      results |= run(
        'classification.Classification', state, objective, sources=sets(recipe, text=False)
      )
    elif row == 'SimCLR, linear':
      validation = {**drawings, 'split': 'validation'}
      results |= run(
        'linear_probe.LinearProbe', state, objective, train=drawings, validation=validation,
        sources=sets(recipe, text=False), baselines=(),
      )  # fmt: skip
    else:
      results |= run(
        'zero_shot.ZeroShot', state, objective, tokenizer=tokenizer, templates=('{}',),
        sources=sets(recipe, text=False),
      )  # fmt: skip
      results |= run(
        'image_text_retrieval.ImageTextRetrieval', state, objective, tokenizer=tokenizer,
        captions=1, k=RECALLS, sources=sets(recipe),
      )  # fmt: skip
  numbers = {name: value for name, value in results.items() if isinstance(value, float)}
  (out / f'{row}.json').write_text(json.dumps(numbers))


def show(out):
  """Prints what has been run: of each set the category, then the two recalls."""
  from vit_jax import tables

  found = {row: out / f'{row}.json' for row in (*ROWS, 'pixels')}
  found = {row: json.loads(file.read_text()) for row, file in found.items() if file.exists()}
  for name in ('', ' unseen'):
    rows = []
    for row, numbers in found.items():
      cells = []
      for style in (style + name for style in STYLES):
        keys = ['accuracy', *(f'text_to_image/recall@{k}' for k in RECALLS)]
        values = [numbers.get(f'{style}/{key}') for key in keys]
        cells.append(' '.join('' if v is None else f'{v:.3f}' for v in values).strip())
      rows.append((row, *cells))
    print(tables.table(rows, (f'category, recall@1, recall@5{name}', *STYLES)) + '\n')


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('command', choices=('train', 'child', 'table'))
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('name', nargs='?')
  parser.add_argument('--only', nargs='*', help='rows with these names')
  parser.add_argument('--jobs', type=int, default=2)
  options = parser.parse_args()
  if options.command == 'child':
    measure(options.name, options.out)
  elif options.command == 'train':
    names = [name for name in ('pixels', *ROWS) if not options.only or name in options.only]
    missing = [name for name in names if not (options.out / f'{name}.json').exists()]
    run_all(__file__, options.out, missing, options.jobs)
  else:
    show(options.out)


if __name__ == '__main__':
  main()
