"""What commands share that several processes can run together: flags, and the start."""

import argparse

START_TIMEOUT, HEARTBEAT_TIMEOUT = 300, 60  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say which of how many processes this one is."""
  group = parser.add_argument_group(
    'several processes',
    'not needed under SLURM and on Cloud TPU slices, where JAX finds the others',
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0')
  group.add_argument('--processes', metavar='N', type=int, help='how many; 1 to be alone')
  group.add_argument('--process', metavar='I', type=int, help='the number of this one, from 0')
  group.add_argument(
    '--start-timeout',
    metavar='S',
    type=float,
    default=START_TIMEOUT,
    help='seconds in which all must have come (%(default)s)',
  )
  group.add_argument(
    '--heartbeat-timeout',
    metavar='S',
    type=float,
    default=HEARTBEAT_TIMEOUT,
    help='seconds without a sign of life after which a process is gone (%(default)s)',
  )


def start(args: argparse.Namespace, *, heeds_notice: bool = False) -> None:
  """Joins the other processes where there are others; see `distributed.initialize`.

  Args:
    args: of a parser with these flags.
    heeds_notice: whether the command saves and ends by itself on SIGTERM.
  """
  from vit_jax import distributed

  distributed.initialize(
    args.coordinator,
    args.processes,
    args.process,
    start_timeout=args.start_timeout,
    heartbeat_timeout=args.heartbeat_timeout,
    heeds_notice=heeds_notice,
  )
