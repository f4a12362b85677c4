"""Every pretext task, SimCLR, a supervised and a random encoder under one budget: one table.

apt-get install dataset-fashion-mnist
python benchmarks/pretext_compare.py train OUT [--only rotation mae rotation_resnet] [--jobs 1]
python benchmarks/pretext_compare.py table OUT [--picture docs/pretext.png]
python benchmarks/pretext_compare.py examples OUT --picture docs/pretext_examples.png

The recipes are those of `configs/`, supervised and SimCLR for other numbers of epochs (`TASKS`), so
that all take about the same time (the table says how long each took), and with one encoder: a ViT
of width 128 and depth 4, with a convolutional stem, but for the masked autoencoder and the
prediction of positions, which can have none. `rotation_resnet` and its like (`RESNETS`) are those
recipes with a ResNet, which take longer, and are run where they are named. The jigsaw's 64-px emoji
lie where `configs/jigsaw_emoji.py` says.

All are judged alike, on frozen features: a linear probe, 20-NN and 25 examples a class on the test
split (means over its four styles), and linear probes on scikit-learn's digits and on Fashion-MNIST
(5,000 training images); and by fine-tuning with 10% and all of the labels. The probe is asked
example by example, for the trained encoder and for three random ones of the same objective: a
difference is that from the best of the three, over the examples of all styles, and behind it are
two standard errors, by base emoji (variants of one emoji are not independent).

The README has the tables. Recipes were chosen on training and validation emoji; earlier ones of
rotation, inpainting, colorization and DeepCluster had once been looked at on test.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import types

import numpy as np
from ablations import bases
from jobs import run_all

ROOT = pathlib.Path(__file__).parents[1]
STYLES = ('google', 'twitter', 'openmoji', 'noto-mono')
RANDOM_SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Task:
  """A row of the table.

  Attributes:
    config: of `configs/`, with its argument.
    epochs: of training, where not as many as in the config; 0 for none.
    side: pixels that other data are resized to.
    reported: what the objective reports of held-out images, and
    chance: what that is by chance: a number, or the name of another thing that it reports.
  """

  config: str
  epochs: int | None = None
  side: int = 32
  reported: str = ''
  chance: float | str = 0.0

  @property
  def trained(self):
    """Whether there is any training."""
    return self.epochs != 0


TASKS = {
  'random': Task('vit_emoji', 0),
  'supervised': Task('vit_emoji', 100),
  'simclr': Task('simclr_emoji', 45),
  'rotation': Task('rotation_emoji', reported='accuracy', chance=0.25),
  'jigsaw': Task('jigsaw_emoji', side=64, reported='accuracy', chance=0.01),
  'positions': Task('jigsaw_emoji:positions', side=64, reported='accuracy', chance=1 / 64),
  'inpainting': Task('inpainting_emoji', reported='hole', chance='baseline'),
  'mae': Task('mae_emoji', reported='loss', chance='baseline'),
  'colorization': Task('colorization_emoji', reported='loss', chance='baseline'),
  'deepcluster': Task('deepcluster_emoji', reported='accuracy', chance='baseline'),
}
RESNETS = {
  f'{name}_resnet': dataclasses.replace(TASKS[name], config=f'{TASKS[name].config}:resnet')
  for name in ('rotation', 'jigsaw', 'inpainting', 'colorization', 'deepcluster')
}
ALL = TASKS | RESNETS


def recipe(task):
  """The config of one task, and the specs of its evaluators by name."""
  from vit_jax import config as config_lib

  name, colon, argument = task.config.partition(':')
  config = config_lib.load(str(ROOT / f'configs/{name}.py{colon}{argument}')).unlock()
  simclr = config_lib.load(str(ROOT / 'configs/simclr_emoji.py'))
  if task.config == 'vit_emoji':
    config.objective.encoder = simclr.objective.encoder
  probe = (config if 'probe' in config.evals else simclr).evals.probe.to_dict()
  if task.epochs:
    config.total = dict(epochs=task.epochs)
  config.evals, config.checkpoint, config.log.every = {}, dict(keep_last=1), dict(epochs=1)
  return config, evaluators(probe, task)


def evaluators(probe, task):
  """Of everything but the probe itself, which is asked example by example, by name."""
  shared = {key: probe[key] for key in ('train', 'sources', 'host')}
  labelled = dict(**shared, baselines=())
  other = dict(
    type='evaluators.linear_probe.LinearProbe', baselines=(), l2=(1e-3, 1e-2, 1e-1),
    host=f'decode | channels(3) | resize({task.side})',
  )  # fmt: skip

  def fashion(split):
    return dict(type='data.idx.Idx', dataset='fashion_mnist', split=split)

  def digits(split):
    return dict(type='data.digits.Digits', split=split)

  made = dict(
    probe=dict(probe, baselines=('random', 'pixels')),
    knn=dict(type='evaluators.knn.KNN', k=20, **labelled),
    few_shot=dict(type='evaluators.few_shot.FewShot', shots=(25,), **labelled),
    fine_tuning=dict(
      type='evaluators.fine_tuning.FineTuning', shares=(0.1, 1.0), epochs=(20, 5), batch_size=64,
      train_host=f'{probe["host"]} | flip', **labelled,
      optimizer=dict(
        name='adamw', learning_rate=5e-4, weight_decay=0.05, schedule='cosine',
        warmup=dict(steps=20),
      ),
    ),
    digits=dict(
      **other, train=digits('train'), validation=digits('validation'), source=digits('test')
    ),
    fashion_mnist=dict(
      **other, train=fashion('train[:5000]'), validation=fashion('train[55000:]'),
      source=fashion('test'),
    ),
  )  # fmt: skip
  if task.reported:
    sources = {key: probe[key] for key in ('sources', 'host')}
    made['held_out'] = dict(type='evaluators.held_out.HeldOut', **sources)
  return made


def child(out, name):
  """Trains one task and writes what the evaluators say of it."""
  import jax

  from vit_jax import experiment, train
  from vit_jax.build import build

  task = ALL[name]
  config, specs = recipe(task)
  made = experiment.setup(config.lock())
  probe = specs.pop('probe')
  # Before training: data that is not there shows here.
  judges = {
    key: build(spec, objective=made.objective, mesh=made.mesh) for key, spec in specs.items()
  }
  if task.trained:
    state = train.train_and_evaluate(config, out / 'run' / name)
  else:
    with jax.set_mesh(made.mesh):
      make, _ = experiment.prepare_state(made)
      state = make()
  results = {}
  for key, evaluator in judges.items():
    results |= {f'{key}/{k}': v for k, v in evaluator.run(state, final=True).items()}
    print(key, flush=True)
  (out / f'{name}.json').write_text(json.dumps(results))
  right = {}
  for seed in RANDOM_SEEDS:
    asked = build({**probe, 'random_seed': seed}, objective=made.objective, mesh=made.mesh)
    encoders = asked.encoders(state)
    wanted = {'trained': 'trained'} if seed == RANDOM_SEEDS[0] else {}
    if name == 'random' and wanted:
      wanted['pixels'] = 'pixels'  # The same for every task.
    for key, encoder in {**wanted, f'random_{seed}': 'random'}.items():
      for style, (answers, ids) in asked.judge(encoders[encoder])[0].items():
        right[f'{key}/{style}'], right[f'ids/{style}'] = answers, ids
  np.savez(out / f'{name}.npz', **right)


class Run:
  """What one task left."""

  def __init__(self, out, name):
    self.name, self.task = name, ALL[name]
    self.results = json.loads((out / f'{name}.json').read_text())
    self.right = dict(np.load(out / f'{name}.npz'))
    about = out / 'run' / name / 'run.json'
    self.minutes = json.loads(about.read_text())['seconds'] / 60 if self.task.trained else 0.0

  def all(self, encoder):
    """Whether each example of each style is right, [N]."""
    return np.concatenate([self.right[f'{encoder}/{style}'] for style in STYLES]).astype(float)

  def mean(self, metric):
    """The mean over the styles of a metric, whose name has {} in the place of the style."""
    return float(np.mean([self.results[metric.format(style)] for style in STYLES]))

  @property
  def best_random(self):
    """The random encoder whose probe is right most often."""
    return max((f'random_{seed}' for seed in RANDOM_SEEDS), key=lambda key: self.all(key).mean())

  def difference(self):
    """What the training adds to the best random encoder, and its standard error."""
    ids = np.concatenate([self.right[f'ids/{style}'] for style in STYLES])
    of_row = bases()
    return mean_and_error(
      self.all('trained') - self.all(self.best_random), of_row[ids % len(of_row)]
    )

  def pretext(self):
    """How the task went on held-out images."""
    task = self.task
    if not task.reported:
      return ''
    chance = task.chance
    if isinstance(chance, str):
      chance = self.mean(f'held_out/{{}}/{chance}')
    return f'{task.reported} {self.mean(f"held_out/{{}}/{task.reported}"):.3g} ({chance:.3g})'


def mean_and_error(values, units):
  """The mean of `values` [N], and its standard error where those of a unit are not independent."""
  _, units = np.unique(units, return_inverse=True)
  mean = values.mean()
  sums = np.bincount(units, values - mean)
  return mean, np.sqrt(np.sum(sums**2) * len(sums) / (len(sums) - 1)) / len(values)


METRICS = (
  'knn/{}/accuracy',
  'few_shot/{}/25shot',
  'fine_tuning/{}/10pct_accuracy',
  'fine_tuning/{}/100pct_accuracy',
)


def row(run):
  """Of the table."""
  added, error = run.difference()
  return (
    run.name,
    f'{run.minutes:.1f}',
    run.pretext(),
    f'{run.all("trained").mean():.3f}',
    f'{run.all(run.best_random).mean():.3f}',
    f'{added:+.3f} ± {2 * error:.3f}' if run.task.trained else '',
    *(f'{run.mean(metric):.3f}' for metric in METRICS),
    *(f'{run.results[f"{data}/accuracy"]:.3f}' for data in ('digits', 'fashion_mnist')),
  )


def show(out, picture):
  """Prints the tables of what has been run, and draws their picture."""
  from vit_jax import tables

  runs = [Run(out, name) for name in ALL if (out / f'{name}.npz').exists()]
  header = (
    'task', 'minutes', 'held out (chance)', 'probe', 'random', 'added ± 2 SE', '20-NN', '25-shot',
    'tuned 10%', 'tuned 100%', 'digits', 'Fashion',
  )  # fmt: skip
  print(tables.table(map(row, runs), header), end='\n\n')
  rows = [
    (run.name, *(f'{run.right[f"trained/{style}"].mean():.3f}' for style in STYLES)) for run in runs
  ]
  if runs[0].name == 'random':
    pixels = (f'{runs[0].right[f"pixels/{style}"].mean():.3f}' for style in STYLES)
    rows.append(('pixels', *pixels))
  print(tables.table(rows, ('probe', *STYLES)))
  if picture:
    draw([run for run in runs if run.name in TASKS], picture)


def draw(runs, path):
  """A bar of the probe for each run and style, with the best random encoder's and the pixels'."""
  from PIL import Image

  from vit_jax.plots import figures

  figure = figures.new(1000, 60 + 44 * len(runs))
  axes = figure.subplots(1, len(STYLES), sharey=True)
  for style, ax in zip(STYLES, axes, strict=True):
    ours = [run.right[f'trained/{style}'].mean() for run in runs]
    random = [run.right[f'{run.best_random}/{style}'].mean() for run in runs]
    places = np.arange(len(runs))
    ax.barh(places, ours, color='#4878a8', height=0.62)
    ax.scatter(random, places, marker='|', s=220, color='black', label='random encoder', zorder=3)
    pixels = runs[0].right[f'pixels/{style}'].mean()
    ax.axvline(pixels, color='#c0504d', linewidth=1.2, label='pixels')
    for place, *values in zip(places, ours, random, strict=True):
      ax.text(max(*values, pixels) + 0.015, place, f'{values[0]:.2f}', va='center', fontsize=9)
    ax.set_title(style, fontsize=11)
    ax.set_xlim(0, 0.8)
    ax.set_yticks(places, [run.name for run in runs])
    ax.invert_yaxis() if style == STYLES[0] else None
    ax.spines[['top', 'right']].set_visible(False)
  figure.legend(*axes[0].get_legend_handles_labels(), loc='lower center', ncols=2, frameon=False)
  figure.tight_layout(rect=(0, 0.06, 1, 1))
  Image.fromarray(figures.to_array(figure)).save(path)


def examples(out, path, style='google', count=4):
  """Draws what each task makes of some held-out emoji of one style, one task below another."""
  from PIL import Image

  from vit_jax import experiment, train
  from vit_jax.build import build

  pictures = []
  writer = types.SimpleNamespace(picture=lambda step, name, image: pictures.append(image))
  for name, task in TASKS.items():
    config, specs = recipe(task)
    made = experiment.setup(config.lock())
    if not hasattr(made.objective, 'pictures'):
      continue
    state = train.train_and_evaluate(config, out / 'run' / name)
    spec = specs['held_out']
    spec['sources'] = {name: spec['sources'][style]}
    evaluator = build({**spec, 'pictures': count}, objective=made.objective, mesh=made.mesh)
    evaluator.writer = writer
    evaluator.run(state, final=True)
  width = max(picture.shape[1] for picture in pictures)
  margins = [((0, 0), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
  rows = [np.pad(*pair, constant_values=255) for pair in zip(pictures, margins, strict=True)]
  Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('command', choices=('train', 'child', 'table', 'examples'))
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('name', nargs='?')
  parser.add_argument('--only', nargs='*', choices=ALL, help='tasks; by default those of TASKS')
  parser.add_argument('--jobs', type=int, default=1)
  parser.add_argument('--picture', type=pathlib.Path)
  options = parser.parse_args()
  if options.command == 'child':
    child(options.out, options.name)
  elif options.command == 'train':
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in options.only or TASKS if not (options.out / f'{name}.npz').exists()]
    run_all(sys.argv[0], options.out, names, options.jobs)
  elif options.command == 'examples':
    examples(options.out, options.picture)
  else:
    show(options.out, options.picture)


if __name__ == '__main__':
  main()
