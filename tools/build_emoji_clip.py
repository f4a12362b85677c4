"""Packages a finished run of `configs/clip_emoji.py` as the model 'emoji-clip'.

python -m vit_jax.main --config configs/clip_emoji.py --workdir /tmp/clip_emoji
python tools/build_emoji_clip.py /tmp/clip_emoji

Weights are kept in 16 bits, which halves the file; beside it stands the run's `config.json`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

import vit_jax
from vit_jax.adapters import ours, published, write
from vit_jax.checkpoint import named

NAME = 'emoji-clip'


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('workdir', type=Path, help='the folder of the run')
  options = parser.parse_args()
  model = vit_jax.load(options.workdir)
  arrays = {name: np.asarray(x, np.float16) for name, x in named(model.variables).items()}
  about = ours.description(model.spec, model.preprocessing, model.classes, model.tokenizer_spec)
  file = published.PACKAGED / f'{NAME}.npz'
  write.save(file, {**arrays, ours.DESCRIPTION: about})
  shutil.copy(options.workdir / 'config.json', file.with_suffix('.json'))
  print(f'{file}: {sum(x.size for x in arrays.values()):,} numbers, {file.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
