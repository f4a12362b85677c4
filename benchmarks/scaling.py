"""Weak scaling of a config's step over TPU slices that are not there, compiled and not run.

pip install -e . 'jax[tpu]'
python benchmarks/scaling.py OUT --config configs/vit_l16_i21k.py --images 16 [--config.field=value]

The batch is `--images` a chip. For each slice: what a chip sends in a step, what its links and, by
XLA's estimate of cycles, its compute take, and what of the chip's peak the model's FLOPs then are
(see `vit_jax preflight`; none of it is calibrated). A chip's links carry while it computes, so a
step takes between the longer of the two and their sum. What has been compiled is kept in OUT, and
read from there another time. It takes minutes a slice.
"""

import argparse
import json
import sys
from pathlib import Path

from vit_jax import tables
from vit_jax.preflight import topologies

SLICES = ('v5e:2x4', 'v5e:4x8', 'v5e:8x8', 'v5e:16x16')


def measured(out, name, topology, options, overrides):
  """What preflight finds out, from `out` where it has been there."""
  from vit_jax import config as config_lib
  from vit_jax.preflight import verdict

  file = Path(out) / f'{name}-{topology.replace(":", "-")}.json'
  if file.exists():
    return json.loads(file.read_text())
  batch = options.images * len(topologies.devices(topology))
  config = config_lib.load(options.config, [*overrides, f'--config.batch_size={batch}'])
  print(f'{name}: {batch:,} examples on {topology} ...', file=sys.stderr, flush=True)
  found = verdict.verdict(config, topology, advise=False)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(found, indent=2) + '\n')
  return found


def row(topology, found):
  """A line of the table."""
  collectives, estimate = found['collectives'], found['uncalibrated']
  state = sum(value for name, value in found['bytes'].items() if name != 'batch')
  sent = sum(one['sent'] for one in collectives)
  return (
    topology,
    f'{found["batch_size"]:,}',
    f'{state / 2**30:.2f}',
    f'{found["needed"] / 2**30:.2f}',
    sum(one['count'] for one in collectives),
    f'{sent / 2**20:,.0f}',
    f'{estimate["links_seconds"] * 1e3:.1f}',
    f'{estimate["compute_seconds"] * 1e3:.1f}',
    f'{estimate["mfu_without_overlap"]:.1%}',
    f'{estimate["mfu"]:.1%}',
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
  parser.add_argument('out', metavar='OUT', help='folder of the results')
  parser.add_argument('--config', required=True)
  parser.add_argument('--images', type=int, required=True, help='examples a chip')
  parser.add_argument('--name', help="of the results' files; the config's by default")
  parser.add_argument('--slices', nargs='+', default=SLICES)
  options, overrides = parser.parse_known_args()
  topologies.set_environment(options.slices[0])  # Before JAX starts.
  name = options.name or Path(options.config.partition(':')[0]).stem
  found = {one: measured(options.out, name, one, options, overrides) for one in options.slices}
  header = (
    'slice', 'batch', 'state, GiB', 'needs, GiB', 'collectives', 'a chip sends, MiB', 'links, ms',
    'compute, ms', 'MFU, no overlap', 'MFU, overlapped',
  )  # fmt: skip
  print(tables.table([row(*one) for one in found.items()], header))


if __name__ == '__main__':
  main()
