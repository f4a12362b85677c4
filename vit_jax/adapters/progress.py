"""The bar of a download."""

from typing import Any, Self

from tqdm import tqdm


class Bar:
  """A progress bar that appears with the first bytes, and is gone at the end of its block."""

  def __init__(self, title: str):
    """Takes what stands before the bar; of a long one, its end."""
    self._title, self._bar = title, None

  def __call__(self, done: int, size: int | None) -> None:
    """Shows that `done` bytes are here, of `size`; None where nobody knows."""
    if self._bar is None:
      self._bar = tqdm(
        total=size, initial=done, desc=self._title[-40:], unit='B', unit_scale=True, leave=False
      )
    self._bar.update(done - self._bar.n)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: Any) -> None:
    if self._bar is not None:
      self._bar.close()
