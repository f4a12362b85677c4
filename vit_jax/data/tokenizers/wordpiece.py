"""BERT's WordPiece. Devlin et al. 2018, arXiv:1810.04805; LiT has it too, arXiv:2111.07991."""

import functools
from typing import Any

from vit_jax.choices import listed
from vit_jax.data.tokenizers import base

BEGIN, END, PAD, UNKNOWN, MASK = '[CLS]', '[SEP]', '[PAD]', '[UNK]', '[MASK]'


class WordPiece(base.Tokenizer):
  """`[CLS]`, the pieces of the words, `[SEP]`, and `[PAD]`, as in BERT.

  LiT's published text towers (big_vision) were trained with `end=False`. The names of special
  tokens in a text are the special tokens, as in transformers' `BertTokenizer`.
  """

  def __init__(self, vocab: str, context: int = 64, lower: bool = True, end: bool = True):
    """Reads the vocabulary, once in a process.

    Args:
      vocab: BERT's `vocab.txt`: a piece a line, the first has id 0.
      context: the number of tokens of a text, with [CLS] and [SEP].
      lower: whether the vocabulary is of lower case ('uncased'); accents are then dropped.
      end: whether [SEP] closes the text; if not, the attribute `end` is None.

    Raises:
      FileNotFoundError: no file at `vocab`.
      ValueError: the file lacks a special token or has a piece twice, `context` has no room, or the
        library is missing.
    """
    self._vocab, self._lower = vocab, lower
    self._tokenizer = _read(str(vocab), lower)
    find = self._tokenizer.token_to_id
    super().__init__(
      vocab_size=self._tokenizer.get_vocab_size(),
      context=context,
      begin=find(BEGIN),
      end=find(END) if end else None,
      pad=find(PAD),
    )

  def __reduce__(self):
    return WordPiece, (self._vocab, self.context, self._lower, self.end is not None)

  def _encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)


@functools.lru_cache(maxsize=4)
def _read(path: str, lower: bool) -> Any:
  """The library's tokenizer for a vocabulary."""
  try:
    import tokenizers
  except ImportError:
    raise ValueError(
      f'tokenizers, which reads {path}, is not installed: pip install tokenizers'
    ) from None
  vocab = _read_vocab(path)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=UNKNOWN))
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = tokenizers.decoders.WordPiece()
  tokenizer.add_special_tokens([t for t in (BEGIN, END, PAD, UNKNOWN, MASK) if t in vocab])
  return tokenizer


def _read_vocab(path: str) -> dict[str, int]:
  """From pieces to ids."""
  data = base.read_file(path, 'the WordPiece vocabulary')
  try:
    # Only these end a line: a piece may be a character that Unicode counts as a line's end.
    lines = data.decode().replace('\r\n', '\n').removesuffix('\n').split('\n')
  except UnicodeDecodeError as e:
    raise ValueError(f'{path} is no text: {e}') from None
  vocab = {piece: i for i, piece in enumerate(lines)}
  if missing := [piece for piece in (BEGIN, END, PAD, UNKNOWN) if piece not in vocab]:
    raise ValueError(f'{path} is no WordPiece vocabulary: it lacks {listed(missing)}')
  if len(vocab) < len(lines):
    twice = [piece for i, piece in enumerate(lines) if vocab[piece] != i]
    raise ValueError(f'{path} has pieces twice: {listed(twice)}')
  return vocab
