import numpy as np
import pytest

from vit_jax.data.tokenizers import base


class Letters(base.Tokenizer):
  """'a' is 3, 'b' is 4 ...; '?' is all else."""

  def __init__(self, context=6, begin=1, end=2, pad=0):
    super().__init__(vocab_size=30, context=context, begin=begin, end=end, pad=pad)

  def _encode(self, text):
    return [ord(c) - ord('a') + 3 if 'a' <= c <= 'z' else 29 for c in text]

  def _decode(self, ids):
    return ''.join('?' if i == 29 else chr(ord('a') + i - 3) for i in ids)


@pytest.mark.parametrize(
  ('fields', 'text', 'expected'),
  [
    ({}, '', [1, 2, 0, 0, 0, 0]),
    ({}, 'ab', [1, 3, 4, 2, 0, 0]),
    ({}, 'abcd', [1, 3, 4, 5, 6, 2]),
    ({}, 'abcdefgh', [1, 3, 4, 5, 6, 2]),
    ({'begin': None}, 'abcdefgh', [3, 4, 5, 6, 7, 2]),
    ({'begin': None, 'pad': 2}, 'ab', [3, 4, 2, 2, 2, 2]),
    ({'end': None}, 'abcdefgh', [1, 3, 4, 5, 6, 7]),
    ({'begin': None, 'end': None, 'context': 1}, 'ab', [3]),
  ],
)
def test_a_text_is_framed_cut_and_padded(fields, text, expected):
  tokens = Letters(**fields)(text)
  assert tokens.dtype == np.int32
  assert tokens.tolist() == expected


def test_decode_inverts_and_stops_at_the_end():
  tokenizer = Letters()
  assert tokenizer.decode(tokenizer('abc')) == 'abc'
  assert tokenizer.decode(tokenizer.ids('abcdefghij')) == 'abcdefghij'
  assert tokenizer.decode([3, 2, 4]) == 'a'
  assert tokenizer.decode([]) == ''
  with pytest.raises(ValueError, match='30 is no token; choose from 0 to 29'):
    tokenizer.decode([3, 30])
  with pytest.raises(ValueError, match='-1 is no token'):
    tokenizer.decode([-1])


def test_bytes_are_utf8_and_what_is_no_text_is_replaced():
  tokenizer = Letters()
  assert tokenizer.ids(b'ab') == tokenizer.ids('ab') == [3, 4]
  assert tokenizer.ids('é'.encode()) == [29]
  assert tokenizer.ids(b'a\xffb') == tokenizer.ids('a\ufffdb') == [3, 29, 4]
  assert tokenizer.ids(np.str_('ab')) == tokenizer.ids(np.bytes_(b'ab')) == [3, 4]


def test_half_a_surrogate_pair_is_replaced_and_a_pair_is_one_character():
  seen = []

  class Recorder(Letters):
    def _encode(self, text):
      seen.append(text)
      return []

  for text in ('a\ud83db', '\ude00', 'a\ud83d\ude00', '\ufeffa', '\U0001f600'):
    Recorder().ids(text)
  assert seen == ['a\ufffdb', '\ufffd', 'a\U0001f600', '\ufeffa', '\U0001f600']


@pytest.mark.parametrize('wrong', [None, 3, ['a'], np.array('a')])
def test_what_is_neither_text_nor_bytes_is_named(wrong):
  expected = f'a text is a str or bytes, not {type(wrong).__name__}'
  with pytest.raises(TypeError, match=expected):
    Letters().ids(wrong)
  with pytest.raises(TypeError, match=expected):
    Letters()(wrong)


def test_a_frame_without_room_and_a_pad_that_is_no_id_are_refused():
  assert Letters(context=3)('ab').tolist() == [1, 3, 2]
  with pytest.raises(ValueError, match='context 2 has no room for text: 2 of it are begin and end'):
    Letters(context=2)
  with pytest.raises(ValueError, match='pad 30 is no id; choose from 0 to 29'):
    Letters(pad=30)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match="the list 'nowhere.txt' is no file"):
    base.read_file('nowhere.txt', 'the list')
  with pytest.raises(FileNotFoundError, match='is no file'):
    base.read_file(str(tmp_path), 'the list')
