"""`python -m vit_jax.main` is `vit_jax train`."""

import sys

from vit_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main(['train', *sys.argv[1:]]))
