"""`python -m vit_jax` is the command `vit_jax`."""

import sys

from vit_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
