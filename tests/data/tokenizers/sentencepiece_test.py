import pathlib
import pickle
import random
import sys

import numpy as np
import pytest

from vit_jax import build
from vit_jax.data.tokenizers import sentencepiece as module
from vit_jax.data.tokenizers.sentencepiece import SentencePiece

library = pytest.importorskip('sentencepiece')

# A text that stays: two segmentations of one score, where peers may differ, are no matter of luck.
CORPUS = (pathlib.Path(__file__).parents[3] / 'LICENSE').read_text(encoding='utf-8')
TEXTS = [
  '',
  '!!!',
  'A photo of a cat.',
  'Hello, World_x! snake_case "quoted" (and more)',
  '  two  spaces\t\n and \r a \xa0 line ',
  'É école ﬁne \uff26\uff35 漢字 😀',
  'the work, the licence and the copyright ' * 20,
]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A tiny model in SigLIP's and T5's convention: pad 0, end 1, unknown 2."""
  prefix = tmp_path_factory.mktemp('model') / 'spiece'
  library.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS.splitlines()),
    model_prefix=str(prefix),
    vocab_size=400,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return f'{prefix}.model'


def draw_texts(number):
  rng = random.Random(0)
  # Without '<': transformers reads '<pad>' and the like as special tokens.
  words = [*CORPUS.split(), ' ', '\t', '\n', '\xa0', *'.,!?-_\'"()#$%&*ÉßﬁĲ漢😀', 'e\u0301']
  return [''.join(rng.choices(words, k=rng.randrange(30))) for _ in range(number)]


def test_it_is_transformers_siglip_tokenizer(model):
  transformers = pytest.importorskip('transformers')
  peer = transformers.SiglipTokenizer(model)
  tokenizer = SentencePiece(model)
  assert (tokenizer.context, tokenizer.end, tokenizer.pad) == (64, 1, 1)
  assert tokenizer.vocab_size == peer.vocab_size
  for text in [*TEXTS, *draw_texts(500)]:
    expected = peer(text, padding='max_length', truncation=True, max_length=64)['input_ids']
    assert tokenizer(text).tolist() == expected, repr(text)
    assert tokenizer.ids(text) == peer(text, add_special_tokens=False)['input_ids'], repr(text)


def test_it_is_transformers_t5_tokenizer(model):
  transformers = pytest.importorskip('transformers')
  peer = transformers.T5Tokenizer.from_pretrained(str(pathlib.Path(model).parent), extra_ids=0)
  tokenizer = SentencePiece(model, context=24, pad=0, clean='none')
  for text in [*TEXTS, *draw_texts(500)]:
    expected = peer(text, padding='max_length', truncation=True, max_length=24)['input_ids']
    assert tokenizer(text).tolist() == expected, repr(text)


def test_ids_are_the_librarys_and_each_cleaning_is_as_stated(model):
  processor = library.SentencePieceProcessor(model_file=model)
  text = "It's A  Snake_case, Text!"
  cleaned = {
    'canonicalize': 'its a snakecase text',
    'lower': "it's a  snake_case, text!",
    'none': text,
  }
  encoded = {clean: SentencePiece(model, clean=clean).ids(text) for clean in module.CLEAN}
  assert encoded == {clean: processor.encode(cleaned[clean]) for clean in module.CLEAN}
  assert len({*map(tuple, encoded.values())}) == 3


def test_the_end_token_can_be_left_out(model):
  tokenizer = SentencePiece(model, context=8, end=False, pad=0)
  assert tokenizer.end is None
  ids = tokenizer.ids('the rights of the licensor')
  assert len(ids) > 8
  assert tokenizer('the rights of the licensor').tolist() == ids[:8]
  assert tokenizer('').tolist() == [0] * 8


def test_a_control_symbol_in_a_text_is_text(model):
  tokenizer = SentencePiece(model, clean='none')
  assert not {0, 1} & {*tokenizer.ids('a </s> b <pad> c')}


def test_decode_gives_the_text_back(model):
  for tokenizer in (SentencePiece(model), SentencePiece(model, end=False, pad=0)):
    assert (
      tokenizer.decode(tokenizer('The Rights, of the licensor.')) == 'the rights of the licensor'
    )
    assert tokenizer.decode(tokenizer.ids('any work')) == 'any work'


def test_what_is_no_text_is_replaced_and_other_types_are_refused(model):
  tokenizer = SentencePiece(model)
  assert tokenizer.ids(b'a\xffb') == tokenizer.ids('a\ufffdb') == tokenizer.ids('a\ud83db')
  with pytest.raises(TypeError, match='a text is a str or bytes, not int'):
    tokenizer.ids(3)


def test_it_is_built_by_name_pickled_small_and_read_once(model):
  fields = {'context': 16, 'end': False, 'pad': 0, 'clean': 'none'}
  built = build.build(
    {'type': 'data.tokenizers.sentencepiece.SentencePiece', 'model': model, **fields}
  )
  data = pickle.dumps(built)
  copy = pickle.loads(data)
  assert len(data) < 400
  assert copy._processor is built._processor
  np.testing.assert_array_equal(copy('The work.'), built('The work.'))
  assert (copy.context, copy.end, copy.pad) == (16, None, 0)


def test_wrong_fields_and_files_are_one_sentence(model, tmp_path):
  with pytest.raises(
    ValueError, match="unknown clean 'upper'; choose from 'canonicalize', 'lower'"
  ):
    SentencePiece(model, clean='upper')
  with pytest.raises(ValueError, match='pad -1 is no id'):
    SentencePiece(model, pad=-1)
  with pytest.raises(FileNotFoundError, match="the SentencePiece model 'nowhere' is no file"):
    SentencePiece('nowhere')
  for name, content in (('text', b'no model'), ('empty', b''), ('cut', _half(model))):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name} is no SentencePiece model'):
      SentencePiece(str(tmp_path / name))


def _half(model):
  data = pathlib.Path(model).read_bytes()
  return data[: len(data) // 2]


def test_a_model_without_an_end_token_says_what_to_set(tmp_path):
  prefix = tmp_path / 'endless'
  library.SentencePieceTrainer.train(
    sentence_iterator=iter(['a b c d', 'a cat and a dog']),
    model_prefix=str(prefix),
    vocab_size=30,
    eos_id=-1,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match='has no end token; set end=False and pad'):
    SentencePiece(f'{prefix}.model')
  assert SentencePiece(f'{prefix}.model', context=4, end=False, pad=0)('').tolist() == [0] * 4


def test_a_missing_library_is_one_sentence(model, monkeypatch):
  module._read.cache_clear()
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  with pytest.raises(ValueError, match='is not installed: pip install sentencepiece'):
    SentencePiece(model)
