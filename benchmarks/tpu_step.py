"""XLA's estimate of a training step on TPUs that are not there.

pip install -e . libtpu==0.0.42
python benchmarks/tpu_step.py [NAME=VALUE ...] [--models S/16 B/16] [--images 128] [--accumulate 1]

`vit_jax preflight` says it, and more, of a config; here it is of a bare model. Compiles a step of
AdamW (first moment in bfloat16, clipping at 1) for a ViT with sin-cos positions and mean pooling in
bfloat16, and prints the sum of the cycles that XLA estimates (not of custom kernels, of which this
program has none; a loop's body times its trips), and the memory of its temporaries. NAME=VALUE sets
fields of the encoder, as in `depth=2`. It takes minutes.

Measured with jax 0.10.2 and libtpu 0.0.42, at 128 images a chip of v5e:2x4:

      --accumulate  cycles, millions  temporaries, GB
S/16             1             107.5             3.91
S/16             2              83.1             2.08
B/16             1             262.0             7.89
B/16             4             212.4             2.80

L/16 at 16 images a chip, compiled with other work beside it:

                                  cycles, millions  temporaries, GB  compiled in s
unrolled                                      97.7             2.76            198
scan=True                                    163.9             7.53             38
scan=True remat='dots_no_batch'              159.3             4.97             51

Micro-batches pay because what a layer needs then stays in a chip's 128 MB of fast memory: 64 images
of S/16, 32 of B/16.
"""

import argparse
import ast
import sys
import time

from vit_jax.preflight import topologies


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('fields', nargs='*', metavar='NAME=VALUE')
  parser.add_argument('--models', nargs='+', default=['S/16', 'B/16'])
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--images', type=int, default=128)
  parser.add_argument('--accumulate', type=int, default=1, help='micro-batches')
  parser.add_argument('--dump', help='write the compiled text to this file')
  options = parser.parse_args()
  fields = {
    name: ast.literal_eval(value) for name, value in (f.split('=', 1) for f in options.fields)
  }
  topologies.set_environment(options.topology)  # Before JAX starts.
  rows = [measure(model, fields, options) for model in options.models]
  from vit_jax import tables

  header = ('', 'cycles, millions', 'temporaries, GB', 'custom kernels', 'compiled in s')
  print(tables.table(rows, header))


def measure(model, fields, options):
  """A row of the table."""
  import jax
  import steps

  from vit_jax import sharding
  from vit_jax.preflight import hlo, memory

  mesh = sharding.make_mesh(dict(data=-1), topologies.devices(options.topology))
  encoder = dict(
    variant=model, pooling='mean', positions='sincos2d', dtype='bfloat16', activation='gelu_tanh'
  )
  begun = time.perf_counter()
  with jax.set_mesh(mesh):
    step, _, state, batch = steps.supervised_step(
      {**encoder, **fields}, options.images * mesh.size, mesh, accumulate=options.accumulate
    )
    compiled = step.lower(state, batch).compile()
  seconds = time.perf_counter() - begun
  text = compiled.as_text()
  if options.dump:
    with open(options.dump, 'w') as file:
      file.write(text)
  program = hlo.Program(text)
  kernels = program.custom_calls().get('tpu_custom_call', 0)
  held = memory.of_compiled(compiled).temporaries
  print(model, 'is compiled', file=sys.stderr, flush=True)
  return model, f'{program.cycles() / 1e6:.1f}', f'{held / 1e9:.2f}', kernels, f'{seconds:.0f}'


if __name__ == '__main__':
  main()
