"""CLIP's byte-pair encoding. Radford et al. 2021, arXiv:2103.00020.

Byte-pair encoding is of Sennrich et al. 2015, arXiv:1508.07909. The ids are those of
open_clip's `SimpleTokenizer`; `README.md` says whose list of merges this is.
"""

import functools
import gzip
import heapq
import html
import itertools
import pathlib
import zlib

from vit_jax.data.tokenizers import base

MERGES = pathlib.Path(__file__).with_name('bpe_simple_vocab_16e6.txt.gz')
NUM_MERGES = 48894
EXTRA = 2 * 256 + 2  # tokens that no merge makes
BEGIN, END = '<start_of_text>', '<end_of_text>'

# Special tokens, English endings, letters, one digit, and runs of what is neither nor a space.
PATTERN = rf"{BEGIN}|{END}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"

# A byte's id is its place: first those that print in Latin-1, which the file writes as they are.
PRINTING = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = PRINTING + [b for b in range(256) if b not in PRINTING]


class ClipBpe(base.Tokenizer):
  """The tokenizer of CLIP: 49408 tokens, in lower case, padded with 0.

  With a smaller vocabulary it makes the first merges alone, for small models: more tokens a text.

  Id 0 is also the token '!' inside a word, so the padding is what follows `end`. The words
  '<start_of_text>' and '<end_of_text>' in a text are the special tokens, as in open_clip.
  """

  def __init__(
    self, context: int = 77, merges: str | None = None, vocab_size: int = NUM_MERGES + EXTRA
  ):
    """Reads the merges, once in a process.

    Args:
      context: the number of tokens of a text, with begin and end.
      merges: a file of merges, in order, plain or compressed by gzip; None is CLIP's own.
      vocab_size: tokens: 256 bytes, in a word and at its end, one a merge, begin and end.

    Raises:
      FileNotFoundError: no file at `merges`.
      ValueError: the file holds no 48894 merges, a vocabulary outside 514 to 49408, `context` has
        no room, or a library is missing.
    """
    if not EXTRA <= vocab_size <= NUM_MERGES + EXTRA:
      raise ValueError(f'vocab_size {vocab_size} is not in {EXTRA} to {NUM_MERGES + EXTRA}')
    self._merges = merges
    self._bpe = _read(str(MERGES if merges is None else merges), vocab_size - EXTRA)
    begin, end = self._bpe.special.values()
    super().__init__(vocab_size=end + 1, context=context, begin=begin, end=end, pad=0)

  def __reduce__(self):
    return ClipBpe, (self.context, self._merges, self.vocab_size)

  def _encode(self, text: str) -> list[int]:
    return [i for word in self._bpe.pattern.findall(clean(text)) for i in self._bpe.tokens(word)]

  def _decode(self, ids: list[int]) -> str:
    joined = b''.join(self._bpe.pieces[i] for i in ids)
    return joined.decode('utf-8', 'replace').removesuffix(' ')


def clean(text: str) -> str:
  """Repairs the encoding, resolves HTML's entities, collapses spaces and lower-cases."""
  # In such a text there is nothing to repair, and to find that out costs more than all the rest.
  if not (text.isascii() and text.isprintable()) or '&' in text:
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


class _Bpe:
  """The merges, by ids: 256 bytes, 256 bytes that end a word, one a merge, begin and end."""

  def __init__(self, merges: dict[tuple[int, int], int]):
    import regex

    self.merges = merges
    self.pieces = [bytes([b]) for b in BYTES] + [bytes([b]) + b' ' for b in BYTES]
    for a, b in merges:
      self.pieces.append(self.pieces[a] + self.pieces[b])
    self.special = {BEGIN: len(self.pieces), END: len(self.pieces) + 1}
    self.pieces += [word.encode() for word in self.special]
    self.pattern = regex.compile(PATTERN, regex.IGNORECASE)
    self.tokens = functools.lru_cache(maxsize=2**15)(self._tokens)
    self._ids = {b: i for i, b in enumerate(BYTES)}

  def _tokens(self, word: str) -> tuple[int, ...]:
    """The ids of a word."""
    if word in self.special:
      return (self.special[word],)
    ids = [self._ids[b] for b in word.encode()]
    ids[-1] += 256
    return tuple(_merge(ids, self.merges))


def _merge(ids: list[int], merges: dict[tuple[int, int], int]) -> list[int]:
  """Merges the pair that comes first in the list, again and again: in n log(n), for long words."""
  ids = [*ids, -1]  # the end, which is in no pair
  after = [*range(1, len(ids)), 0]
  before = [*range(-1, len(ids) - 1)]
  # Ids are in the order of the merges. What a merge makes is only in later ones.
  pairs = enumerate(itertools.pairwise(ids))
  heap = [(merges[pair], i) for i, pair in pairs if pair in merges]
  heapq.heapify(heap)
  while heap:
    merged, i = heapq.heappop(heap)
    gone = after[i]
    if merges.get((ids[i], ids[gone])) != merged:
      continue  # another merge took one of the two
    ids[i], ids[gone] = merged, -1
    after[i] = after[gone]
    before[after[i]] = i
    for left in (before[i], i):
      pair = ids[left], ids[after[left]]
      if pair in merges:
        heapq.heappush(heap, (merges[pair], left))
  return [i for i in ids if i >= 0]


@functools.lru_cache(maxsize=4)
def _read(path: str, count: int) -> _Bpe:
  """The first merges of a file."""
  try:
    import ftfy  # noqa: F401
    import regex  # noqa: F401
  except ImportError:
    raise ValueError(
      "CLIP's tokenizer needs ftfy and regex, which are not installed: pip install ftfy regex"
    ) from None
  data = base.read_file(path, "CLIP's list of merges")
  try:
    text = (gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data).decode()
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
    raise ValueError(f'{path} is damaged or no text: {e}') from None
  header, *lines = text.rstrip('\n').split('\n')
  if '#version: 0.2' not in header:
    raise ValueError(f"{path} is no list of merges: its first line has no '#version: 0.2'")
  if len(lines) < NUM_MERGES:
    raise ValueError(f'{path} has {len(lines)} merges, and CLIP has {NUM_MERGES}')
  return _Bpe(_parse(path, lines[:count]))


def _parse(path: str, lines: list[str]) -> dict[tuple[int, int], int]:
  """From pairs of symbols to the id that each pair makes; the file has a character for a byte."""
  characters = [chr(b) for b in PRINTING]
  characters += [chr(256 + i) for i in range(256 - len(PRINTING))]
  symbols = characters + [character + '</w>' for character in characters]
  ids = {symbol: i for i, symbol in enumerate(symbols)}
  merges = {}
  for number, line in enumerate(lines, start=2):
    pair = line.split(' ')
    made = ''.join(pair)
    if len(pair) != 2 or not all(symbol in ids for symbol in pair) or made in ids:
      raise ValueError(f'line {number} of {path} is no merge of two earlier symbols: {line[:80]!r}')
    ids[made] = len(ids)
    merges[ids[pair[0]], ids[pair[1]]] = ids[made]
  return merges
