"""What all tokenizers share: begin and end tokens, truncation and padding."""

from collections.abc import Iterable

import numpy as np
from etils import epath


class Tokenizer:
  """`tokenizer(text)` is an array [context] of int32.

  A subclass has `_encode(text) -> list[int]` and `_decode(ids) -> str`, without special tokens.

  Attributes:
    vocab_size: the number of ids.
    context: the length of every array.
    begin: the id that comes first; None where there is none.
    end: the id that closes the text, where a causal tower pools; None where there is none.
    pad: the id that fills up.
  """

  def __init__(
    self, *, vocab_size: int, context: int, begin: int | None, end: int | None, pad: int
  ):
    """Keeps the frame that every text gets.

    Raises:
      ValueError: no room for text in `context`, or `pad` is no id.
    """
    special = [token for token in (begin, end) if token is not None]
    if context <= len(special):
      raise ValueError(
        f'context {context} has no room for text: {len(special)} of it are begin and end tokens'
      )
    if not 0 <= pad < vocab_size:
      raise ValueError(f'pad {pad} is no id; choose from 0 to {vocab_size - 1}')
    self.vocab_size, self.context = vocab_size, context
    self.begin, self.end, self.pad = begin, end, pad
    self._room = context - len(special)

  def __call__(self, text: str | bytes) -> np.ndarray:
    """The ids of a text, [context] int32: begin, as much text as fits, end, padding.

    Raises:
      TypeError: `text` is neither a string nor bytes, which are read as UTF-8.
    """
    begin = [] if self.begin is None else [self.begin]
    end = [] if self.end is None else [self.end]
    framed = begin + self.ids(text)[: self._room] + end
    tokens = np.full(self.context, self.pad, np.int32)
    tokens[: len(framed)] = framed
    return tokens

  def ids(self, text: str | bytes) -> list[int]:
    """The ids of a text: all of them, without begin and end.

    Raises:
      TypeError: `text` is neither a string nor bytes, which are read as UTF-8.
    """
    return self._encode(as_text(text))

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, up to the first end token.

    Raises:
      ValueError: a number that is no id.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size:
        raise ValueError(f'{i} is no token; choose from 0 to {self.vocab_size - 1}')
    if self.end in ids:
      ids = ids[: ids.index(self.end)]
    if ids and ids[0] == self.begin:
      ids = ids[1:]
    return self._decode(ids)


def as_text(text: str | bytes) -> str:
  """A string that UTF-8 can hold: what is no text becomes the replacement character."""
  if isinstance(text, bytes):
    return text.decode('utf-8', 'replace')
  if not isinstance(text, str):
    raise TypeError(f'a text is a str or bytes, not {type(text).__name__}')
  # JSON can hold half a surrogate pair, which the tokenizers' libraries refuse.
  return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def read_file(path: str, what: str) -> bytes:
  """The bytes of a file, also of one in a bucket.

  Args:
    path: where it is.
    what: what it is, for the message.

  Raises:
    FileNotFoundError: no such file.
  """
  file = epath.Path(path)
  if not file.is_file():
    raise FileNotFoundError(f'{what} {str(path)!r} is no file')
  return file.read_bytes()
