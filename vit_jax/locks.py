"""Locks between processes, which the operating system takes back from one that dies."""

import errno
import fcntl
from typing import IO

# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(stream: IO[str], *, wait: bool) -> None:
  """Locks an open file until it is closed; goes on without where the file system has no locks.

  Args:
    stream: the file.
    wait: whether to wait for another process that has it.

  Raises:
    BlockingIOError: another process has it, and `wait` is False.
    OSError: the file system failed.
  """
  try:
    fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno not in NO_LOCKS:
      raise
