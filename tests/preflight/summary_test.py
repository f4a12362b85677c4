import copy

import pytest

from vit_jax.preflight import summary

MIB = 1 << 20
FOUND = {
  'topology': 'v5e:2x4',
  'devices': 8,
  'device': 'TPU v5 lite',
  'objective': 'objectives.supervised.Supervised',
  'batch_size': 1000,
  'accumulate': 2,
  'mesh': {'data': 4, 'fsdp': 2, 'tensor': 1},
  'sharding': 'zero1',
  'missing_data': '',
  'examples': 5,
  'fits': True,
  'needed': 3 << 30,
  'limit': 16 << 30,
  'bytes': {'parameters': 100 * MIB, 'optimizer': 200 * MIB, 'average': 0, 'batch': MIB // 2},
  'memory': {
    'arguments': 301 * MIB,
    'outputs': 310 * MIB,
    'aliased': 300 * MIB,
    'temporaries': 2000 * MIB,
    'code': 5 * MIB,
  },
  'flops': {
    'forward': 4 * 10**12,
    'step': 12 * 10**12,
    'layers': {
      'encoder/block_0/attention/query': [10**12, 3 * 10**12],
      'encoder/block_11/attention/key': [10**12, 3 * 10**12],
      'head': [2 * 10**12, 6 * 10**12],
    },
  },
  'xla_flops': 10**12,
  'collectives': [
    {'kind': 'all-reduce', 'group': 8, 'count': 3, 'bytes': 8 * MIB, 'sent': 14 * MIB}
  ],
  'custom_calls': {'tpu_custom_call': 24},
  'loops_counted_once': 0,
  'cycles': 150_000_000,
  'at_least': {'flops_seconds': 0.05, 'state_seconds': 0.001},
  'uncalibrated': {
    'compute_seconds': 0.1,
    'links_seconds': 0.025,
    'mfu': 0.5,
    'mfu_without_overlap': 0.4,
  },
}

# What XLA says only of a program that fits.
LAID_OUT = ('memory', 'collectives', 'at_least', 'uncalibrated')


def rows(text: str) -> list[list[str]]:
  """The cells of all tables, split where two spaces are."""
  return [[c.strip() for c in line.split('  ') if c.strip()] for line in text.splitlines()]


def test_the_text_says_all_of_it():
  text = summary.text(FOUND)
  found = rows(text)
  assert max(map(len, text.splitlines())) <= 100
  text = ' '.join(text.split())
  assert (
    'objectives.supervised.Supervised, 1,000 examples a step in 2 micro-batches on 8 x TPU v5 lite '
    '(v5e:2x4), mesh data=4 fsdp=2 tensor=1, sharding zero1'
  ) in text
  assert 'FITS: 3.000 GiB of 16.000 GiB a device.' in text
  for row in (
    ['parameters', '100.000'],
    ['XLA: temporaries (activations, gradients)', '2,000'],
    ['XLA: outputs that replace no argument', '10.000'],
    ['encoder/block_*/attention', '2.000', '6.000', '50.0%'],
    ['head', '2.000', '6.000', '50.0%'],
    ['all', '4.000', '12.000', '100.0%'],
    ['all-reduce', '8', '3', '8.000', '14.000'],
    ['at least: model FLOPs at the peak', '50.000 ms'],
    ['at least: state and batch read and written', '1.000 ms'],
    ['cycles of compute, by XLA', '150.000 million'],
    ['compute', '100.000 ms'],
    ['links, at their full speed', '25.000 ms'],
    ['MFU, links hidden behind compute', '50.0%'],
    ['MFU, nothing hidden', '40.0%'],
  ):
    assert row in found, row
  assert not any(row[:1] == ['average'] for row in found)  # There is none.
  assert 'UNCALIBRATED ESTIMATE' in text
  assert 'XLA gives no cycles for its custom calls: tpu_custom_call x 24.' in text
  assert 'XLA counts 1.000 TFLOP a device and step' in text and 'the model has 1.500' in text


@pytest.mark.parametrize(
  ('fits', 'needed', 'sentence'),
  [
    (False, 20 << 30, 'DOES NOT FIT: 20.000 GiB of 16.000 GiB a device.'),
    (False, None, 'DOES NOT FIT: more than 16.000 GiB a device.'),
  ],
)
def test_what_does_not_fit_is_told_without_what_xla_does_not_say(fits, needed, sentence):
  found = {k: v for k, v in FOUND.items() if k not in LAID_OUT}
  found |= {'fits': fits, 'needed': needed}
  guess = FOUND['uncalibrated']
  found['choices'] = [
    {'choice': "remat='full'", 'fits': True, 'needed': 5 << 30, 'uncalibrated': guess},
    {'choice': 'accumulate=4', 'impossible': 'it compares examples'},
  ]
  found['largest_batch'] = {'fits': 512, 'too_large': 544, 'compiles': 3}
  text = summary.text(found)
  assert sentence in text
  assert ["remat='full'", 'yes', '5.000', '100.000', '50.0%'] in rows(text)
  assert 'Not accumulate=4: it compares examples.' in text
  assert 'ms of compute' in text
  for choice in found['choices']:
    choice.pop('uncalibrated', None)
  without = summary.text(found)
  assert ["remat='full'", 'yes', '5.000'] in rows(without)
  assert not any(column in without for column in ('ms of compute', 'MFU'))
  assert ['fits', '512'] in rows(text) and ['does not fit', '544'] in rows(text)
  assert 'UNCALIBRATED' not in text


def test_what_is_not_known_is_not_claimed():
  found = copy.deepcopy(FOUND) | {'fits': None, 'limit': None, 'missing_data': 'no such folder'}
  del found['uncalibrated'], found['at_least']
  found['loops_counted_once'] = 2
  text = ' '.join(summary.text(found).split())
  assert 'Needs 3.000 GiB a device; what these may take is not known.' in text
  assert 'The data cannot be opened (no such folder)' in text
  assert '2 loops end when they are done, as random draws do' in text


def test_no_batch_fits():
  found = FOUND | {'largest_batch': {'fits': 0, 'too_large': 8, 'compiles': 2}}
  assert ['fits', 'none'] in rows(summary.text(found))
