"""Shards as img2dataset writes them: read in any order, prepared, and what of them is left out."""

import io
import json
import pickle
import tarfile

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from vit_jax import cli
from vit_jax.data.array_record import ArrayRecord
from vit_jax.data.pipeline import TrainPipeline
from vit_jax.data.substitute import BadExample
from vit_jax.data.tokenizers.clip import ClipBpe
from vit_jax.data.webdataset import WebDataset


def image(i, format='JPEG'):
  pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format)
  return file.getvalue()


def pair(i, caption, **more):
  """The members of sample i, as img2dataset has them: the text is str() of any caption."""
  text = '' if caption is None else str(caption)
  noted = json.dumps({'caption': caption, 'url': f'http://x/{i}', 'status': 'success'}, indent=4)
  return f'{i:09}', {'jpg': image(i), 'json': noted.encode(), 'txt': text.encode(), **more}


def write(file, samples):
  """A tar of (key, members by suffix); a member that is None is not there."""
  file.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(file, 'w') as archive:
    for key, members in samples:
      for suffix, data in members.items():
        if data is not None:
          info = tarfile.TarInfo(f'{key}.{suffix}')
          info.size, info.mtime = len(data), 1.7e9 + 0.25  # a fraction, as WebDataset's writer
          archive.addfile(info, io.BytesIO(data))
  return file


@pytest.fixture
def folder(tmp_path):
  """11 pairs in 3 tars, and what img2dataset writes beside them."""
  folder = tmp_path / 'pairs'
  for k, ids in enumerate([range(4), range(4, 9), range(9, 11)]):
    write(folder / f'{k:05}.tar', [pair(i, f'größer {i}\n') for i in ids])
    (folder / f'{k:05}_stats.json').write_text('{"successes": 4}')
    (folder / f'{k:05}.parquet').write_bytes(b'PAR1')
  return folder


def reasons(source):
  """Why an example is not used, by its name."""
  found = {}
  for i in range(len(source)):
    try:
      source[i]
    except BadExample as e:
      found[source.name(i)] = str(e)
  return found


def test_every_pair_reads_back_in_any_order(folder):
  source = WebDataset(str(folder))
  assert (len(source), source.fields, source.damaged) == (11, ('text',), ())
  for i in np.random.default_rng(0).permutation(11):
    assert source[i] == {'id': i, 'image': image(i), 'text': [f'größer {i}\n']}
  assert source.name(4) == '00001.tar/000000004'
  assert source[0]['id'].dtype == np.int64
  with pytest.raises(IndexError):
    source[11]


@pytest.mark.parametrize(
  ('path', 'split', 'ids'),
  [('', 'data[3:5]', [3, 4]), ('*2.tar', None, [9, 10]), ('00000.tar', None, range(4))],
)
def test_patterns_and_slices(folder, path, split, ids):
  source = WebDataset(f'{folder}/{path}', split)
  assert [source[i]['image'] for i in range(len(source))] == [image(i) for i in ids]


def test_splits_by_name_keep_ids(tmp_path):
  for name, ids in (('test-0000', [5]), ('train-0000', [0, 1]), ('train-0001', [2])):
    write(tmp_path / f'{name}.tar', [pair(i, 'a') for i in ids])
  assert [int(e['id']) for e in WebDataset(str(tmp_path), 'test')] == [3]
  assert [e['image'] for e in WebDataset(str(tmp_path))] == [image(i) for i in range(3)]


def test_an_index_of_16_bytes_a_sample_travels_to_workers(tmp_path):
  sizes = []
  for n in (10, 110):
    file = write(tmp_path / f'{n}.tar', [(f'{i:09}', {'jpg': b'x', 'txt': b'a'}) for i in range(n)])
    source = WebDataset(str(file))
    data = pickle.dumps(source)
    assert pickle.loads(data)[7] == source[7]
    sizes.append(len(data))
  assert abs(sizes[1] - sizes[0] - 100 * 16) < 10


@pytest.mark.parametrize('suffix', ['png', 'webp', 'jpeg', 'JPG'])
def test_kinds_of_images(tmp_path, suffix):
  data = image(3, {'png': 'PNG', 'webp': 'WEBP'}.get(suffix, 'JPEG'))
  samples = [('sub/a', {'seg.png': b'x', suffix: data}), ('sub/b.c', {suffix: data})]
  source = WebDataset(str(write(tmp_path / '0.tar', samples)))
  assert (source[0], source.fields) == ({'id': 0, 'image': data}, ())
  assert reasons(source) == {'0.tar/sub/b': 'no image'}  # The key ends at the first dot.


@pytest.mark.parametrize(
  ('members', 'texts'),
  [
    (dict(txt=b'a dog'), ['a dog']),
    (dict(txt=b'a dog', json=b'{"caption": "a cat"}'), ['a dog']),
    (dict(txt=b'a dog', json=b'{"caption": ["a cat", "b"]}'), ['a dog']),
    (dict(json=b'{"caption": "a cat"}'), ['a cat']),
    (dict(json=b'{"caption": ["a cat", " ", null, "b"]}'), ['a cat', 'b']),
    # What img2dataset makes of a list, and a caption that only looks like one.
    (dict(txt=b"['a cat', 'b']", json=b'{"caption": ["a cat", "b"]}'), ['a cat', 'b']),
    (dict(txt=b'[a cat', json=b'{"caption": "[a cat"}'), ['[a cat']),
    (dict(txt=b'[a cat'), ['[a cat']),
    (dict(txt=b'caf\xe9'), ['caf\ufffd']),
    (dict(json=b'{"caption": "\\ud83d"}'), ['\ufffd']),
    (dict(txt=b''), 'blank caption'),
    (dict(txt=b' \n', json=b'{"caption": "a cat"}'), 'blank caption'),
    (dict(json=b'{"caption": ["", " "]}'), 'blank caption'),
    (dict(json=b'{"caption": null}'), 'no caption'),
    (dict(json=b'{"caption": []}'), 'no caption'),
    (dict(json=b'{"caption": 5}'), 'no caption'),
    (dict(json=b'{"alt": "a cat"}'), 'no caption'),
    (dict(json=b'{"capt'), 'no caption'),
    (dict(json=b'["a cat"]'), 'no caption'),
    ({}, 'no caption'),
  ],
)
def test_captions(tmp_path, members, texts):
  file = write(tmp_path / '0.tar', [('a', {'jpg': b'x', **members})])
  source = WebDataset(str(file), fields=('text',))
  if isinstance(texts, str):
    assert reasons(source) == {'0.tar/a': texts}
  else:
    assert source[0]['text'] == texts


def test_another_field_of_the_json(tmp_path):
  file = str(write(tmp_path / '0.tar', [('a', {'jpg': b'x', 'json': b'{"alt": ["b", "c"]}'})]))
  assert WebDataset(file, text_key='alt')[0]['text'] == ['b', 'c']
  assert WebDataset(file)[0].keys() == {'id', 'image'}


def test_labels(tmp_path):
  labels = [b'3', b'0\n', b'x', None]
  samples = [(f'{i}', {'jpg': b'x', 'cls': label}) for i, label in enumerate(labels)]
  file = write(tmp_path / '0.tar', samples)
  source = WebDataset(str(file))
  assert source.fields == ('label',)
  assert [source[i]['label'] for i in range(2)] == [3, 0]
  assert source[0]['label'].dtype == np.int32
  assert reasons(source) == {'0.tar/2': "label is no integer: 'x'", '0.tar/3': 'no label'}
  assert WebDataset(str(file), fields=())[3].keys() == {'id', 'image'}
  source = WebDataset(str(file), classes=('ant', 'bee'))
  assert (source.num_classes, source[1]['label']) == (2, 0)
  with pytest.raises(ValueError, match="label 3 is no class; classes has 'ant', 'bee'"):
    source[0]


def bad_samples():
  """Ten samples, of which four are good."""
  return [
    pair(0, 'good'),
    pair(1, None),
    pair(2, 'no image', jpg=None),
    pair(3, 'no text', txt=None, json=None),
    pair(4, 'broken image', jpg=image(4)[:100]),
    pair(5, ['one', 'two']),
    pair(0, 'good, again'),
    pair(7, 'twice'),
    pair(7, 'twice'),
    ('.hidden', {'jpg': b'x'}),
    pair(9, 'good'),
  ]


def test_what_cannot_be_used_is_named(tmp_path):
  source = WebDataset(str(write(tmp_path / '00003.tar', bad_samples())))
  assert len(source) == 10
  assert reasons(source) == {
    '00003.tar/000000001': 'blank caption',
    '00003.tar/000000002': 'no image',
    '00003.tar/000000003': 'no caption',
    '00003.tar/000000000': 'duplicate key',
    '00003.tar/000000007': 'duplicate key',
  }
  assert source[0]['text'] == ['good']


def test_a_key_may_come_again_in_another_tar(tmp_path):
  for k in range(2):
    write(tmp_path / f'{k}.tar', [('0', {'jpg': b'%d' % k})])
  source = WebDataset(str(tmp_path))
  assert [e['image'] for e in source] == [b'0', b'1']


def cut(file, size):
  file.write_bytes(file.read_bytes()[:size])


def test_a_tar_that_is_cut_short_is_named_and_limited(folder):
  with tarfile.open(folder / '00001.tar') as archive:
    size = archive.getmember('000000008.jpg').offset_data + 100
  cut(folder / '00001.tar', size)
  with pytest.raises(
    ValueError, match=r'1 of 3 tars are damaged, too many for max_bad_share=0.3'
  ) as e:
    WebDataset(str(folder), max_bad_share=0.3)
  assert f'00001.tar is cut short at byte {size:,}: fetch them again' in str(e.value)
  source = WebDataset(str(folder), max_bad_share=0.4)
  assert source.damaged == (f'00001.tar is cut short at byte {size:,}',)
  assert reasons(source) == {'00001.tar/000000007': 'last of a damaged tar'}
  assert source[9]['image'] == image(10)  # of the tar after it
  cut(folder / '00001.tar', 0)
  assert len(WebDataset(str(folder), max_bad_share=0.4)) == 6


def test_a_tar_that_changes_is_noticed(folder):
  source = WebDataset(str(folder))
  file = folder / '00000.tar'
  data = file.read_bytes()
  for changed in (data[:-512], data[5:] + data[:5]):
    file.write_bytes(changed)
    with pytest.raises(ValueError, match='00000.tar has changed since it was opened; start again'):
      source[2]


def test_mistakes_are_one_sentence(folder, tmp_path):
  with pytest.raises(ValueError, match="unknown field 'image'; choose from 'text', 'label'"):
    WebDataset(str(folder), fields=('image',))
  with pytest.raises(FileNotFoundError, match=r"no file .*\*.tar; .* has 'pairs'"):
    WebDataset(str(tmp_path))
  (tmp_path / 'x.tar').write_bytes(b'<html>404</html>' * 100)
  with pytest.raises(ValueError, match='x.tar is no tar file; unpack it first') as e:
    WebDataset(str(tmp_path))
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='is empty'):
    WebDataset(str(write(tmp_path / 'none/0.tar', [])))


def run(capfd, *argv):
  capfd.readouterr()
  code = cli.main(['prepare', *map(str, argv), '--workers', '0'])
  out = capfd.readouterr()
  return code, out.out.splitlines(), out.err.splitlines()


def test_prepare_writes_what_is_read(folder, tmp_path, capfd):
  write(folder / '00003.tar', [pair(11, ['one', ' ', 'two'])])
  code, lines, _ = run(capfd, f'webdataset:{folder}', tmp_path / 'out', '--shards', 3)
  assert (code, lines) == (0, [f"{tmp_path / 'out'}: 'data' has 12 examples in 3 files"])
  source, written = WebDataset(str(folder)), ArrayRecord(str(tmp_path / 'out'))
  assert [written[i] for i in range(12)] == [source[i] for i in range(12)]
  assert written[11]['text'] == ['one', 'two']
  assert written.features == {'id': 'int64', 'image': 'bytes', 'text': 'list of str'}


def test_prepare_counts_what_it_leaves_out(folder, tmp_path, capfd):
  write(folder / '00003.tar', bad_samples())
  cut(folder / '00002.tar', 9000)  # in its second pair
  argv = f'webdataset:{folder}', tmp_path / 'out'
  code, _, errors = run(capfd, *argv)
  assert (code, '1 of 4 tars are damaged' in errors[-1]) == (1, True)
  code, _, errors = run(capfd, *argv, '--max-bad-share', 0.25)
  assert code == 1
  assert 'too many for a share of 0.25 of ' in errors[-1]
  assert 'duplicate key: 2' in errors[-1]
  for _ in range(2):  # The second time, all is there.
    code, (line, *table), _ = run(capfd, *argv, '--max-bad-share', 0.5)
    assert (code, line.partition(': ')[2]) == (0, "'data' has 13 examples in 1 files")
    assert {tuple(row.rsplit(maxsplit=1)) for row in table[2:]} == {
      ('duplicate key', '2'),
      ('blank caption', '1'),
      ('no image', '1'),
      ('no caption', '1'),
      ('image does not decode', '1'),
      ('last of a damaged tar', '1'),
      (WebDataset(str(folder), max_bad_share=1).damaged[0], 'unknown'),
    }


def steps(source, host, start=0):
  sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ('data',)), PartitionSpec('data'))
  with TrainPipeline(
    source,
    host=host,
    batch_size=4,
    seed=0,
    sharding=sharding,
    start_step=start,
    max_bad_share=0.5,
  ) as batches:
    return [jax.tree.map(np.asarray, next(batches)) for _ in range(start, 5)]


def test_shuffled_stopped_and_gone_on_with_the_same_from_tars_and_prepared(folder, tmp_path, capfd):
  write(folder / '00003.tar', [pair(11, ['one', 'two', 'three'])])
  run(capfd, f'webdataset:{folder}', tmp_path / 'out')
  host = 'decode | caption | tokenize(context=8)'
  tars = WebDataset(str(folder))
  whole = steps(tars, host)
  assert sorted(np.concatenate([b['id'] for b in whole[:3]])) == list(range(12))
  tokenizer = ClipBpe(context=8)
  for batch in whole:
    for i, tokens in zip(batch['id'], batch['text'], strict=True):
      texts = [f'größer {i}\n'] if i < 11 else ['one', 'two', 'three']
      assert tokens.tolist() in [tokenizer(text).tolist() for text in texts]
  for others in (steps(tars, host, start=2), steps(ArrayRecord(str(tmp_path / 'out')), host)):
    expected = whole[-len(others) :]
    assert jax.tree.all(jax.tree.map(np.array_equal, others, expected))
