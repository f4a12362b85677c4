import argparse
import base64
import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from vit_jax.cli import report as command
from vit_jax.metrics import Writer
from vit_jax.report import write_report

VOID = {'meta', 'img', 'br', 'hr', 'input', 'link'}
CONFIG = {
  'seed': 0,
  'total': {'epochs': 100},
  'data': {'source': {'type': 'data.emoji.Emoji', 'styles': ['google', 'twitter']}},
  'objective': {
    'type': 'objectives.supervised.Supervised',
    'encoder': {'type': 'models.vit.ViT', 'variant': 'Ti/4', 'representation': None},
  },
  'optimizer': {'learning_rate': 0.00125, 'decay': [['head/kernel', 100.0]], 'freeze': []},
  'note': '<script>alert("x")</script> & \'more\'',
}
PICTURES = (
  'attention/filters',
  'attention/rollout',
  'test/google/confusion',
  'test/google/mistakes',
  'a <b> & c',
)


class Page(HTMLParser):
  """Checks that tags are balanced; keeps tags with attributes, and the text outside styles."""

  def __init__(self, html):
    super().__init__()
    self.open, self.tags, self.texts = [], [], []
    self.feed(html)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
    self.open.pop()

  def handle_data(self, data):
    if not {'style', 'script'} & set(self.open):
      self.texts.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.texts).split())

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


def make_run(workdir):
  """A run of 40 steps with two evaluations; returns the bytes of its pictures."""
  with Writer(workdir, total_steps=40, batch_size=8, console=False, tensorboard=False) as writer:
    for step in range(1, 41):
      train = {'loss': 2 / step, 'accuracy': step / 50, 'learning_rate': 1e-3, 'data_wait': 0.01}
      train['images_per_second'] = 6000.0 + step
      writer.scalars(step, {f'train/{k}': v for k, v in train.items()})
      if step % 20 == 0:
        values = {
          'test/google/accuracy': step / 64,
          'test/google/loss': 1.5,
          'test/google/class/Food & Drink': 0.75,
          'test/google/class/Flags': 0.875,
          'test/openmoji/accuracy': 0.333,
          'baseline/google/accuracy': 0.222,
        }
        writer.scalars(step, values)
    attention = {'mask_share': 0.713, 'mask_area': 0.412, 'untrained_mask_share': 0.405}
    writer.scalars(40, {f'attention/{k}': v for k, v in attention.items()})
    for i, name in enumerate(PICTURES):
      writer.picture(40, name, np.full((4, 6, 3), 40 * i, np.uint8))
  rows = [
    {'name': 'encoder/block_0/mlp/kernel', 'shape': [192, 768], 'size': 147456}
    | {'multiplier': 0.5, 'decay': 1e-4, 'frozen': False},
    {'name': 'encoder/embedding/kernel', 'shape': [4, 4, 3, 192], 'size': 9216}
    | {'multiplier': 0, 'decay': 0, 'frozen': True},
    {'name': 'scale', 'shape': [], 'size': 1, 'multiplier': 1, 'decay': 0, 'frozen': False},
  ]
  run = {'command': 'vit_jax train --config x.py', 'started': '2026-01-02 03:04:05', 'steps': 40}
  run |= {'seconds': 125.2, 'devices': '8 x TPU v5e', 'versions': {'jax': '0.10.2'}}
  for name, content in (('config', CONFIG), ('parameters', rows), ('run', run)):
    (workdir / f'{name}.json').write_text(json.dumps(content))
  return {name: (workdir / 'pictures' / f'{name}.png').read_bytes() for name in PICTURES}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The pictures and the report of a finished run."""
  workdir = tmp_path_factory.mktemp('runs') / 'emoji_run'
  pictures = make_run(workdir)
  path = write_report(workdir)
  assert path == workdir / 'report.html'
  html = path.read_text()
  return pictures, html, Page(html)


def test_the_report_refers_to_nothing_outside_itself(whole):
  _, html, page = whole
  for tag, attrs in page.tags:
    assert tag not in ('link', 'iframe', 'object', 'base')
    for name in ('src', 'href', 'xlink:href', 'srcset', 'action'):
      assert (attrs.get(name) or 'data:').startswith('data:')
  assert 'http' not in re.sub(r'base64,[A-Za-z0-9+/=]+', '', html)
  assert '@import' not in html and 'url(' not in html


def test_every_picture_is_in_it(whole):
  pictures, _, page = whole
  shown = {i['alt']: i['src'] for i in page.all('img')}
  assert set(shown) == set(PICTURES)
  for name, data in pictures.items():
    kind, encoded = shown[name].split(',')
    assert kind == 'data:image/png;base64'
    assert base64.b64decode(encoded) == data


def test_numbers_stand_beside_the_pictures_they_belong_to(whole):
  page = whole[2]
  assert (
    '71.3% of the attention falls on the drawing, by rollout. The drawing covers 41.2% of the '
    'image, which is what even attention would give. With random parameters the model gives it '
    '40.5%.'
  ) in page.text
  assert 'predictions by column. Accuracy 0.625, loss 1.500.' in page.text


def test_every_config_value_is_in_it_and_escaped(whole):
  _, html, page = whole

  def leaves(value):
    if isinstance(value, dict):
      for key, inner in value.items():
        yield key
        yield from leaves(inner)
    else:
      yield from ([json.dumps(v) for v in value] if isinstance(value, list) else [])
      if not isinstance(value, list):
        yield json.dumps(value)

  for text in leaves(CONFIG):
    assert text.strip('[]') in page.text
  assert '<script>alert' not in html
  assert len(page.all('script')) == 1


def test_every_curve_is_in_it_with_its_final_value(whole):
  page = whole[2]
  titles = [s['aria-label'] for s in page.all('svg') if 'aria-label' in s]
  assert titles == [
    'Loss',
    'Accuracy',
    'Learning rate',
    'Throughput, images a second',
    'Share of time spent waiting for data',
  ]
  labels = [line['data-label'] for line in page.all('polyline')]
  accuracy = ['train', 'test google', 'test openmoji', 'baseline google']
  assert labels == ['train', 'test google', *accuracy, 'train', 'train', 'train']
  for value in ('0.050', '0.800', '0.333', '6,040', '0.010'):
    assert value in page.texts


def test_results_classes_and_parameters_are_tabled(whole):
  page = whole[2]
  assert 'Results test baseline accuracy loss accuracy google 0.625 1.500 0.222' in page.text
  assert 'test: 2 classes google openmoji' not in page.text  # openmoji has no classes.
  assert 'test: 2 classes google Flags 0.875 Food & Drink 0.750' in page.text
  assert '156,673 parameters in 3 arrays; 9,216 of them frozen.' in page.text
  assert 'encoder/embedding/kernel 4 x 4 x 3 x 192 9,216 frozen 0' in page.text
  assert 'steps 40 time 2:05 parameters 156,673' in page.text
  assert 'vit_jax train --config x.py' in page.text and 'jax 0.10.2' in page.text
  assert 'not complete' not in page.text


def test_a_run_killed_midway_still_has_a_report_that_says_what_is_missing(tmp_path):
  make_run(tmp_path)
  for path in (tmp_path / 'pictures').rglob('*.png'):
    path.unlink()
  (tmp_path / 'parameters.json').write_text('[{"name": "enc')
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()[:10]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join([*lines, '{"step": 11, "train/lo']))
  page = Page(write_report(tmp_path).read_text())
  assert 'This report is not complete.' in page.text
  assert 'parameters.json cannot be read.' in page.text
  assert 'No pictures' in page.text
  assert 'The last numbers are of step 10 of 40.' in page.text
  assert 'Loss' in page.text and not page.all('img')


def test_a_whole_run_whose_evaluations_draw_nothing_is_complete(tmp_path):
  make_run(tmp_path)
  shutil.rmtree(tmp_path / 'pictures')
  page = Page(write_report(tmp_path).read_text())
  assert 'not complete' not in page.text and not page.all('img')


def test_a_run_that_left_only_its_config_has_a_report(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  text = Page(write_report(tmp_path).read_text()).text
  for missing in ('No run.json.', 'No parameters.json.', 'No numbers', 'No pictures'):
    assert missing in text
  assert 'Curves' not in text and 'models.vit.ViT' in text


def test_numbers_that_are_not_finite_do_not_break_it(tmp_path):
  with Writer(tmp_path, total_steps=9, batch_size=1, console=False, tensorboard=False) as writer:
    for step, loss in enumerate([1.0, math.nan, math.inf], start=1):
      writer.scalars(step, {'train/loss': loss, 'test/a/class/b': math.nan, 'test/a/loss': loss})
  assert 'inf' in Page(write_report(tmp_path).read_text()).text


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r'is no run: there is no such folder$'):
    write_report(tmp_path / 'nowhere')
  with pytest.raises(
    ValueError, match=r'is no run: it holds neither config\.json nor metrics\.jsonl$'
  ):
    write_report(tmp_path)
  assert not list(tmp_path.iterdir())


def test_the_command_prints_the_path_and_opens_the_page_if_asked(tmp_path, capsys, monkeypatch):
  make_run(tmp_path)
  opened = []
  monkeypatch.setattr(command.webbrowser, 'open', opened.append)
  parser = argparse.ArgumentParser()
  command.add_arguments(parser)
  assert command.run(parser.parse_args([str(tmp_path)])) == 0
  path = tmp_path / 'report.html'
  assert capsys.readouterr().out == f'{path}\n' and opened == []
  assert command.run(parser.parse_args([str(tmp_path), '--open'])) == 0
  assert opened == [path.as_uri()]


def test_only_what_was_measured_more_than_once_is_a_curve(tmp_path):
  rows = [
    {'step': 1, 'train/loss': 3.0, 'knn/google/accuracy': 0.2, 'knn/google/accuracy_random': 0.1},
    {'step': 2, 'train/loss': 2.0, 'knn/google/accuracy': 0.4, 'knn/google/accuracy_random': 0.1}
    | {'test/google/accuracy': 0.3, 'test/recall@1': 0.3},
  ]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  page = Page(write_report(tmp_path).read_text())
  assert [s['aria-label'] for s in page.all('svg') if 'aria-label' in s] == ['Loss', 'Accuracy']
  assert [line['data-label'] for line in page.all('polyline')] == ['train', 'knn google']


PREFLIGHT = {
  'objective': 'objectives.<x>', 'batch_size': 64, 'accumulate': 1, 'devices': 8, 'device': 'TPU',
  'topology': 'v5e:2x4', 'mesh': {'data': 8}, 'sharding': 'fsdp', 'examples': 9,
  'missing_data': 'no <b>data</b> & no path', 'fits': False, 'needed': 1 << 31, 'limit': 1 << 30,
  'bytes': {'parameters': 1 << 20},
  'flops': {'forward': 64, 'step': 192, 'layers': {'<i>': [64, 192]}},
  'choices': [{'choice': "remat='full'", 'impossible': 'a < b'}],
}  # fmt: skip


def test_what_preflight_found_is_a_section_of_it(tmp_path):
  make_run(tmp_path)
  (tmp_path / 'preflight.json').write_text(json.dumps(PREFLIGHT))
  html = write_report(tmp_path).read_text()
  text = Page(html).text
  assert 'Preflight objectives.<x>, 64 examples a step' in text
  assert 'The data cannot be opened (no <b>data</b> & no path)' in text
  assert 'DOES NOT FIT' in text and 'Memory of a device' in text and 'parameters 1' in text
  assert "Not remat='full': a < b." in text
  assert '<b>data' not in html and '<i>' not in html
  assert 'not complete' not in text


def test_a_preflight_alone_has_a_report_and_a_damaged_one_breaks_none(tmp_path):
  file = tmp_path / 'preflight.json'
  file.write_text(json.dumps(PREFLIGHT))
  assert 'DOES NOT FIT' in Page(write_report(tmp_path).read_text()).text
  make_run(tmp_path)
  for damaged, said in (('{"fits', 'preflight.json cannot be read.'), ('[]', ''), ('{}', '')):
    file.write_text(damaged)
    text = Page(write_report(tmp_path).read_text()).text
    assert said in text and '156,673 parameters' in text and 'DOES NOT FIT' not in text
