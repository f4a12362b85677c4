import pickle
import random
import sys

import numpy as np
import pytest

from vit_jax import build
from vit_jax.data.tokenizers import wordpiece
from vit_jax.data.tokenizers.wordpiece import WordPiece

pytest.importorskip('tokenizers')

PIECES = (
  *('[PAD]', '[unused0]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'photo', 'of', 'the', 'cat'),
  *('dog', '##s', '##ing', 'run', '##n', '.', ',', '!', "'", 's', 'eco', '##le', '漢', '字'),
  *('\u2028', 'Dog', 'École', '##1', '##2', '1', '-', '_', '👍'),
)
TEXTS = (
  '',
  'A photo of the Dogs, running!',
  "the cat's École école e\u0301cole 漢字 123 12 1-2_1",
  'unknown words and 👍 [MASK] [SEP] a [CLS]',
  'tab\tline\n\x00\ufffd\xa0the\u200bcat',
  'the dogs ' * 40,
  'd' * 300,
)


@pytest.fixture
def vocab(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(PIECES) + '\n', encoding='utf-8')
  return str(path)


def draw_texts(number):
  rng = random.Random(0)
  alphabet = [piece.removeprefix('##') for piece in PIECES] + ['é', 'É', '\t', ' ', ' ', '?', 'z']
  return [''.join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(number)]


@pytest.mark.parametrize('lower', [True, False])
def test_it_is_transformers_bert_tokenizer(vocab, lower):
  transformers = pytest.importorskip('transformers')
  ids = {piece: i for i, piece in enumerate(PIECES)}
  peer = transformers.BertTokenizer(vocab=ids, do_lower_case=lower)
  tokenizer = WordPiece(vocab, context=32, lower=lower)
  assert tokenizer.vocab_size == len(PIECES) == peer.vocab_size
  assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (3, 4, 0)
  known = 0
  for text in [*TEXTS, *draw_texts(500)]:
    expected = peer(text, padding='max_length', truncation=True, max_length=32)['input_ids']
    assert tokenizer(text).tolist() == expected, repr(text)
    assert tokenizer.ids(text) == peer(text, add_special_tokens=False)['input_ids'], repr(text)
    known += sum(i > 5 for i in tokenizer.ids(text))
  assert known > 1000


def test_words_are_cut_greedily(vocab):
  names = [PIECES[i] for i in WordPiece(vocab).ids('A photo of Dogs, running.')]
  assert names == ['a', 'photo', 'of', 'dog', '##s', ',', 'run', '##n', '##ing', '.']


def test_the_pad_token_is_where_the_file_has_it(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_bytes(b'[UNK]\r\n[CLS]\r\n[SEP]\r\na\r\n[PAD]')
  tokenizer = WordPiece(str(path), context=5)
  assert tokenizer('a').tolist() == [1, 3, 2, 4, 4]


def test_the_end_token_can_be_left_out(vocab):
  tokenizer = WordPiece(vocab, context=4, end=False)
  assert tokenizer.end is None
  assert [PIECES[i] for i in tokenizer('the dogs run')] == ['[CLS]', 'the', 'dog', '##s']
  assert [PIECES[i] for i in tokenizer('the')] == ['[CLS]', 'the', '[PAD]', '[PAD]']
  assert tokenizer.decode(tokenizer('the')) == 'the'


def test_decode_gives_the_text_back(vocab):
  tokenizer = WordPiece(vocab)
  assert tokenizer.decode(tokenizer('The Dogs running.')) == 'the dogs running.'
  assert tokenizer.decode(tokenizer.ids('a photo')) == 'a photo'


def test_what_is_no_text_is_replaced_and_other_types_are_refused(vocab):
  tokenizer = WordPiece(vocab)
  assert tokenizer.ids(b'a \xff dog') == tokenizer.ids('a \ufffd dog')
  assert tokenizer.ids('a \ud83d dog') == tokenizer.ids('a \ufffd dog')
  with pytest.raises(TypeError, match='a text is a str or bytes, not list'):
    tokenizer.ids(['a'])


def test_it_is_built_by_name_pickled_small_and_read_once(vocab):
  fields = {'vocab': vocab, 'context': 16, 'lower': False, 'end': False}
  built = build.build({'type': 'data.tokenizers.wordpiece.WordPiece', **fields})
  data = pickle.dumps(built)
  copy = pickle.loads(data)
  assert len(data) < 400
  assert copy._tokenizer is built._tokenizer
  assert (copy.context, copy.end) == (16, None)
  np.testing.assert_array_equal(copy('the Dog dog'), built('the Dog dog'))


def test_wrong_files_are_one_sentence(tmp_path):
  cases = {
    'lacking.txt': (b'[PAD]\n[UNK]\na\n', r"it lacks '\[CLS\]', '\[SEP\]'"),
    'empty.txt': (b'', 'is no WordPiece vocabulary'),
    'image.png': (b'\x89PNG', 'is no text'),
    'twice.txt': (b'[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\n', "has pieces twice: 'a'"),
  }
  for name, (content, message) in cases.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
      WordPiece(str(tmp_path / name))
  with pytest.raises(FileNotFoundError, match="the WordPiece vocabulary 'nowhere' is no file"):
    WordPiece('nowhere')


def test_a_missing_library_is_one_sentence(vocab, monkeypatch):
  wordpiece._read.cache_clear()
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(ValueError, match='is not installed: pip install tokenizers'):
    WordPiece(vocab)
