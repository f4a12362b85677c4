"""SentencePiece, as SigLIP and T5 use it. Kudo and Richardson 2018, arXiv:1808.06226."""

import functools
import string
from typing import Any

from vit_jax.choices import check_choice
from vit_jax.data.tokenizers import base

CLEAN = ('canonicalize', 'lower', 'none')


class SentencePiece(base.Tokenizer):
  """The pieces of a trained model, an end token and padding; no begin token.

  SigLIP (arXiv:2303.15343) has `SentencePiece(model, context=64)`: padded with the end token, so
  that the last of the 64 always is one. T5 (arXiv:1910.10683) has `clean='none', pad=0`. A control
  symbol in a text, such as '</s>', is text.
  """

  def __init__(
    self,
    model: str,
    context: int = 64,
    end: bool = True,
    pad: int | None = None,
    clean: str = 'canonicalize',
  ):
    """Reads the model, once in a process.

    Args:
      model: a `.model` file.
      context: the number of tokens of a text, with the end token.
      end: whether the model's end token closes the text; if not, the attribute `end` is None.
      pad: the id that fills up; None is the model's end token, 1 in SigLIP's and T5's models.
      clean: 'canonicalize' lower-cases, takes out ASCII punctuation and collapses spaces, as
        transformers' SigLIP (big_vision's prompts have a space for '_'); 'lower' is how SigLIP was
        trained, where big_vision lower-cases ASCII alone; 'none' leaves the text as it is.

    Raises:
      FileNotFoundError: no file at `model`.
      ValueError: the file is no model, it has no end token, `pad` is no id, an unknown `clean`, or
        the library is missing.
    """
    self._model, self._clean = model, check_choice('clean', clean, CLEAN)
    self._processor = _read(str(model))
    end_id = self._processor.eos_id()  # -1 where the model has none
    if end_id < 0 and (end or pad is None):
      raise ValueError(f'{model} has no end token; set end=False and pad')
    super().__init__(
      vocab_size=self._processor.get_piece_size(),
      context=context,
      begin=None,
      end=end_id if end else None,
      pad=end_id if pad is None else pad,
    )

  def __reduce__(self):
    end = self.end is not None
    return SentencePiece, (self._model, self.context, end, self.pad, self._clean)

  def _encode(self, text: str) -> list[int]:
    if self._clean != 'none':
      text = text.lower()
    if self._clean == 'canonicalize':
      text = ' '.join(text.translate(_NO_PUNCTUATION).split())
    return self._processor.encode(text)

  def _decode(self, ids: list[int]) -> str:
    return self._processor.decode(ids)


_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


@functools.lru_cache(maxsize=4)
def _read(path: str) -> Any:
  """The library's processor for a model."""
  try:
    import sentencepiece
  except ImportError:
    raise ValueError(
      f'sentencepiece, which reads {path}, is not installed: pip install sentencepiece'
    ) from None
  data = base.read_file(path, 'the SentencePiece model')
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(data)
  except RuntimeError:
    raise ValueError(f'{path} is no SentencePiece model') from None
  return processor
