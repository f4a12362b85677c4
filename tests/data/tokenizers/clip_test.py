import gzip
import pathlib
import pickle
import random
import sys

import numpy as np
import pytest

from vit_jax import build
from vit_jax.data.tokenizers import clip
from vit_jax.data.tokenizers.clip import ClipBpe

CAPTIONS = [
  '',
  ' ',
  'a photo of a cat.',
  "It's the DOG's ball, they've said; we'll see, I'd say I'm 3,141 years old",
  'Tom &amp;amp; Jerry &lt;b&gt; &eacute; &#x1F600; &#128512; &nbsp; &bogus; &',
  'a < b &amp;amp;amp; c &amp;lt; d',
  'family: 👨‍👩‍👧‍👦 flag: 🇩🇪 skin: 👍🏽 heart: ❤️ astral: 𝒳𐍈',
  'e\u0301 n\u0303 a\u0308\u0323 \u0301 ﬁne \uff26\uff35\uff2c\uff2c\u3000\uff37',
  'ä½\xa0å¥½ sÃ©rie â€œquotesâ€\x9d schÃ¶n',
  'tab\tnew\nline\r\nfeed\x0c null\x00 bell\x07 escape\x1b[31mred\x1b[0m \x85 \u2028 \u200b \ufeff',
  '<start_of_text> a <END_OF_TEXT> <|endoftext|> <start_of_tex>',
  "'\u017f 'S 'LL İstanbul ẞ ŉ ǅ",
  'Ⅷ ½ ² ٣ 四 १२३ x²',
  '你好世界 こんにちは สวัสดี हिन्दी العربية',
  '!!!???... --- ___ $%^&*() :-) <3',
]
PIECES = (
  *('&amp;', '&lt;', '&#39;', '&#x1f600;', '&eacute;', '&', ';', '<', '>', 'Ã©', 'â€™', "'s"),
  *('\u200d', '\ufe0f', '\u0301', '\u0308', '👩', '🏽', '🇫', ' ', '  ', '\n', '\t', '\xa0'),
  *('<start_of_text>', '<end_of_text>', 'the', 'Photo', 'ing', '12', '\uff13', 'ﬀ', 'İ', '\u017f'),
  *('\x1b[', "'LL", '\ufffd'),
)


@pytest.fixture(scope='module')
def peer():
  pytest.importorskip('open_clip')
  from open_clip.tokenizer import SimpleTokenizer

  return SimpleTokenizer()


@pytest.fixture(scope='module')
def tokenizer():
  return ClipBpe()


def draw_character(rng):
  """ASCII with controls, the basic plane below CJK, or any plane, without surrogates."""
  kind = rng.random()
  if kind < 0.3:
    return chr(rng.randrange(0x80))
  if kind < 0.5:
    return chr(rng.randrange(0x80, 0x3000))
  if kind < 0.6:
    return chr(rng.randrange(0x1F000, 0x1FB00))
  if kind < 0.8:
    return rng.choice(PIECES)
  return chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))


def assert_same_ids(tokenizer, peer, texts):
  for text in texts:
    assert tokenizer.ids(text) == peer.encode(text), repr(text)


def test_ids_are_those_of_open_clip_on_captions(tokenizer, peer):
  assert (tokenizer.vocab_size, tokenizer.context) == (peer.vocab_size, peer.context_length)
  assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (49406, 49407, 0)
  assert_same_ids(tokenizer, peer, CAPTIONS)


def test_ids_are_those_of_open_clip_on_6000_drawn_strings(tokenizer, peer):
  rng = random.Random(0)
  texts = [''.join(draw_character(rng) for _ in range(rng.randrange(40))) for _ in range(6000)]
  assert_same_ids(tokenizer, peer, texts)


def test_ids_are_those_of_open_clip_on_3000_strings_of_printable_ascii(tokenizer, peer):
  # They take the short way, past the libraries that repair a text.
  rng = random.Random(1)
  ascii_ = [chr(c) for c in range(0x20, 0x7F)]
  texts = [''.join(rng.choices(ascii_, k=rng.randrange(40))) for _ in range(3000)]
  assert_same_ids(tokenizer, peer, texts)


def test_ids_are_those_of_open_clip_on_every_character_of_the_basic_plane(tokenizer, peer):
  characters = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000]
  texts = ['x'.join(characters[i : i + 64]) for i in range(0, len(characters), 64)]
  assert_same_ids(tokenizer, peer, texts)


def test_ids_are_those_of_open_clip_on_10000_characters(tokenizer, peer):
  rng = random.Random(2)
  letters = ''.join(rng.choices('etaoinshrdlu', k=300)) + 'a' * 501 + 'ab' * 250
  words = ' '.join(''.join(rng.choices('etaoins', k=rng.randrange(1, 9))) for _ in range(2500))
  drawn = ''.join(draw_character(rng) for _ in range(10_000))
  assert len(drawn) >= 10_000 <= len(words)
  assert_same_ids(tokenizer, peer, [letters, words, drawn])


def test_one_word_of_10000_characters_keeps_every_byte(tokenizer):
  # open_clip's own way through it takes minutes.
  rng = random.Random(3)
  word = ''.join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(10_000))
  assert tokenizer.decode(tokenizer.ids(word)) == word


def test_arrays_are_those_of_open_clip(tokenizer, peer):
  long = ' '.join(['a photo of a dog'] * 30)
  full = ' '.join(['dog'] * 75)
  for text in (*CAPTIONS, full, f'{full} dog', long):
    tokens = tokenizer(text)
    assert (tokens.dtype, tokens.shape) == (np.int32, (77,))
    np.testing.assert_array_equal(tokens, peer(text)[0].numpy())
  assert tokenizer(full)[-1] == tokenizer(long)[-1] == tokenizer.end
  np.testing.assert_array_equal(ClipBpe(context=16)(long), peer(long, context_length=16)[0].numpy())


def test_decode_is_that_of_open_clip_and_gives_the_text_back(tokenizer, peer):
  for text in CAPTIONS:
    if 'of_text>' not in text.lower():
      ids = tokenizer.ids(text)
      assert tokenizer.decode(ids) == peer.decode(ids).removesuffix(' '), repr(text)
  assert tokenizer.decode(tokenizer('Two Dogs run')) == 'two dogs run'
  assert tokenizer.decode(tokenizer.ids('日本 😀')) == '日本 😀'


def test_half_a_surrogate_pair_is_the_replacement_character(tokenizer):
  assert tokenizer.ids('a \ud83d b') == tokenizer.ids('a \ufffd b')


def test_it_is_built_by_name_pickled_small_and_read_once():
  built = build.build({'type': 'data.tokenizers.clip.ClipBpe', 'context': 32})
  data = pickle.dumps(built)
  copy = pickle.loads(data)
  assert len(data) < 200
  assert copy.context == 32
  np.testing.assert_array_equal(copy('a dog'), built('a dog'))
  assert copy._bpe is built._bpe


def test_another_list_of_merges_is_read_plain_or_compressed(tmp_path, tokenizer):
  header, *lines = gzip.decompress(clip.MERGES.read_bytes()).decode().split('\n')
  lines = lines[: clip.NUM_MERGES]
  plain, swapped = tmp_path / 'merges.txt', tmp_path / 'swapped.txt.gz'
  plain.write_text('\n'.join(['#version: 0.2', *lines]) + '\n', encoding='utf-8')
  other = '\n'.join([header, lines[1], lines[0], *lines[2:]])
  swapped.write_bytes(gzip.compress(other.encode()))
  assert lines[:2] == ['i n', 't h']
  assert ClipBpe(merges=str(plain)).ids('a photo') == tokenizer.ids('a photo')
  assert tokenizer.decode([512]) == ClipBpe(merges=str(swapped)).decode([513]) == 'in'
  assert tokenizer.decode([513]) == ClipBpe(merges=str(swapped)).decode([512]) == 'th'


def test_a_file_that_is_no_list_of_merges_is_one_sentence(tmp_path):
  data = clip.MERGES.read_bytes()
  header, *lines = gzip.decompress(data).decode().split('\n')
  lines = lines[: clip.NUM_MERGES]
  cases = {
    'cut.gz': (data[:100_000], 'damaged or no text'),
    'flipped.gz': (data[:5000] + b'\0\0\0\0' + data[5004:], 'damaged or no text'),
    'image.png': (b'\x89PNG\xff\xfe', 'damaged or no text'),
    'empty': (b'', r"its first line has no '#version: 0.2'"),
    'headless.txt': ('\n'.join(lines).encode(), r"its first line has no '#version: 0.2'"),
    'short.txt': (
      '\n'.join([header, *lines[:-1]]).encode(),
      'has 48893 merges, and CLIP has 48894',
    ),
    'three.txt': ('\n'.join([header, 'a b c', *lines[1:]]).encode(), "line 2 of .*: 'a b c'"),
    'late.txt': ('\n'.join([header, 'in g', *lines[1:]]).encode(), "line 2 of .*: 'in g'"),
    'twice.txt': ('\n'.join([header, lines[0], *lines[:-1]]).encode(), "line 3 of .*: 'i n'"),
  }
  for name, (content, message) in cases.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
      ClipBpe(merges=str(tmp_path / name))
    assert '\n' not in str(caught.value)
  with pytest.raises(FileNotFoundError, match="CLIP's list of merges 'nowhere.gz' is no file"):
    ClipBpe(merges='nowhere.gz')


def test_a_missing_library_is_one_sentence(monkeypatch):
  clip._read.cache_clear()
  monkeypatch.setitem(sys.modules, 'ftfy', None)
  with pytest.raises(ValueError, match='pip install ftfy regex'):
    ClipBpe()


def test_the_list_of_merges_is_open_clips_own():
  open_clip = pytest.importorskip('open_clip')
  assert clip.MERGES.read_bytes() == pathlib.Path(open_clip.tokenizer.default_bpe()).read_bytes()
