"""Decode, random resized crop to 224 and flip of JPEGs on one core: ours beside the peers'.

pip install -e '.[test,fast]' torchvision tensorflow-cpu
python benchmarks/input.py FOLDER [--sides 375 1000 0] [--repeats 7]

FOLDER holds photographs, searched with its sub-folders; Debian's package mate-backgrounds has some
(/usr/share/backgrounds/mate/nature). Each side is a set of its own: the photographs with that
shorter side, written anew at quality 92; 0 takes them as they are. Each contender is a process of
one thread on one core, and they take turns; a cell is images per second of CPU time, all threads
of the process together, by the median of passes over the set: what else runs on that core does not
count. All draw crops from one distribution (5 to 100 % of the area, aspect 3/4 to 4/3), each with
its own seed. tf.data resizes without antialiasing unless told, which is less work; the others and
its last column do the same transform.

Measured on the photographs of mate-backgrounds, images/s (torchvision 0.28, TensorFlow 2.21,
simplejpeg 1.9, cykooz-resizer 4.0.1):

                                   375 pixels  1000 pixels  as they are
ours                                     1570          435          176
ours, without the extra `fast`            854          298          136
ours, in two steps                        813          165           45
torchvision                              1330          273          109
torchvision, by Pillow                    824          174           68
tf.data                                  1548          430          161
tf.data, antialiased                      679          240          116
times the best peer                      1.01         1.01         1.09
times the best that antialiases          1.18         1.59         1.52
"""

import argparse
import io
import os
import statistics
import sys
import time
from pathlib import Path

import contenders

from vit_jax import tables

SIZE, AREA, ASPECT = 224, (0.05, 1.0), (3 / 4, 4 / 3)
ENDINGS = ('.jpg', '.jpeg')
PASS = 128  # images in a pass
QUALITY = 92


def read(folder, side):
  """The photographs as bytes, the shorter side `side` pixels long; 0 for as they are."""
  from PIL import Image

  files = [p for p in sorted(Path(folder).rglob('*')) if p.suffix.lower() in ENDINGS]
  if not files:
    raise SystemExit(f'no file in {folder} ends in {" or ".join(ENDINGS)}')
  if not side:
    return [p.read_bytes() for p in files]
  written = []
  for path in files:
    image = Image.open(path).convert('RGB')
    scale = side / min(image.size)
    if scale < 1:
      size = tuple(round(scale * n) for n in image.size)
      image = image.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=QUALITY)
    written.append(stream.getvalue())
  return written


def ours(text, fast=True):
  """A function from bytes to pixels: the host transforms of a config."""
  import numpy as np

  from vit_jax import compose
  from vit_jax.data import jpeg, transforms

  if not fast:
    jpeg.installed = lambda: False
  elif not jpeg.installed():
    raise SystemExit("ours is measured with the extra 'fast'; pip install -e '.[fast]'")

  steps, rng = compose.build(text, transforms), np.random.default_rng(0)

  def work(data):
    example = {'image': data}
    for step in steps:
      example = step(example, rng)
    return np.ascontiguousarray(example['image'])

  return work


def torchvision():
  """The decoder of torchvision and its transforms on tensors."""
  import torch
  from torchvision.io import ImageReadMode, decode_jpeg
  from torchvision.transforms import v2

  torch.set_num_threads(1)
  crop = v2.RandomResizedCrop(SIZE, scale=AREA, ratio=ASPECT, antialias=True)
  flip = v2.RandomHorizontalFlip()

  def work(data):
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return flip(crop(decode_jpeg(encoded, mode=ImageReadMode.RGB)))

  return work


def torchvision_pillow():
  """What torchvision's `ImageFolder` does: Pillow decodes, crops and resizes."""
  import torch
  from PIL import Image
  from torchvision.transforms import v2

  torch.set_num_threads(1)
  crop = v2.RandomResizedCrop(SIZE, scale=AREA, ratio=ASPECT)
  flip, to_tensor = v2.RandomHorizontalFlip(), v2.PILToTensor()

  def work(data):
    return to_tensor(flip(crop(Image.open(io.BytesIO(data)).convert('RGB'))))

  return work


def draw(data, rng):
  """A crop (top, left, height, width) of one image."""
  from PIL import Image

  from vit_jax.data import transforms

  width, height = Image.open(io.BytesIO(data)).size
  box = transforms.random_resized_crop(SIZE, *AREA, *ASPECT).keywords['function'].keywords['draw']
  return box(height, width, rng)


def tf_data(images, antialias):
  """One pass over `images` as a tf.data pipeline, which decodes the crop alone.

  The crops are drawn beforehand, since `tf.image.sample_distorted_bounding_box` draws smaller ones:
  on the photographs above 30 % of the area on average, the others 37 %.
  """
  import numpy as np
  import tensorflow as tf

  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)

  rng = np.random.default_rng(0)
  boxes = np.array([draw(data, rng) for data in images], np.int32)

  def one(data, box):
    image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
    image = tf.image.resize(image, (SIZE, SIZE), antialias=antialias)
    return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))

  dataset = tf.data.Dataset.from_tensor_slices((images, boxes)).map(one, num_parallel_calls=1)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  dataset = dataset.with_options(options)

  def work():
    for image in dataset.as_numpy_iterator():
      assert image.shape == (SIZE, SIZE, 3)

  return work


CROP = f'{SIZE}, {AREA[0]}, {AREA[1]}'
ONE = f'decode_random_resized_crop({CROP}) | flip'
# By name: what makes a function of one image's bytes.
BY_IMAGE = {
  'ours': lambda: ours(ONE),
  'ours, Pillow': lambda: ours(ONE, fast=False),
  'ours, in two steps': lambda: ours(f'decode | random_resized_crop({CROP}) | flip'),
  'torchvision': torchvision,
  'torchvision, Pillow': torchvision_pillow,
}
# By name: what makes a pass over all images.
BY_PASS = {
  'tf.data': lambda images: tf_data(images, antialias=False),
  'tf.data, antialiased': lambda images: tf_data(images, antialias=True),
}
CONTENDERS = (*BY_IMAGE, *BY_PASS)


def child(name, folder, side):
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  images = read(folder, int(side))
  images = [images[i % len(images)] for i in range(PASS)]
  if name in BY_PASS:
    once = BY_PASS[name](images)
  else:
    work = BY_IMAGE[name]()

    def once():
      for data in images:
        work(data)

  contenders.serve(once, time.process_time)


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('folder')
  parser.add_argument('--sides', nargs='+', type=int, default=[375, 1000, 0])
  parser.add_argument('--contenders', nargs='+', choices=CONTENDERS, default=list(CONTENDERS))
  parser.add_argument('--repeats', type=int, default=7)
  options = parser.parse_args()
  rows = []
  for side in options.sides:
    times = contenders.race(
      __file__,
      {name: [name, options.folder, str(side)] for name in options.contenders},
      threads=1,
      repeats=options.repeats,
      warm_up=1,
    )
    speeds = {name: PASS / statistics.median(values) for name, values in times.items()}
    peers = [speed for name, speed in speeds.items() if not name.startswith('ours')]
    ratio = f'{speeds["ours"] / max(peers):.2f}' if peers and 'ours' in speeds else None
    label = f'{side} pixels' if side else 'as they are'
    rows.append((label, *(f'{speed:.0f}' for speed in speeds.values()), ratio))
    print(' '.join(map(str, rows[-1])), flush=True)
  print(tables.table(rows, ('images/s a core', *options.contenders, 'times the best peer')))


if __name__ == '__main__':
  child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main()
