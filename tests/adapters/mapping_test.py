"""Rules read what they write, and a wrong shape is a sentence."""

import numpy as np
import pytest

from vit_jax.adapters import mapping

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def read(rule, theirs, *shapes):
  return rule.read(theirs, shapes)


def test_a_matrix_of_pytorch_is_a_kernel_of_several_axes():
  x, weight = normal(5, 12), normal(6, 12)  # [out, in]
  (kernel,) = read(mapping.linear('a', 'b'), [weight], (12, 2, 3))
  expected = x @ weight.T
  np.testing.assert_allclose(
    np.einsum('bi,ihk->bhk', x, kernel).reshape(5, 6), expected, rtol=1e-5, atol=1e-6
  )
  (kernel,) = read(mapping.linear('a', 'b', inputs=2), [weight], (3, 4, 6))
  np.testing.assert_allclose(
    np.einsum('bhk,hkd->bd', x.reshape(5, 3, 4), kernel), expected, rtol=1e-5, atol=1e-6
  )


def test_a_convolution_of_pytorch_has_its_outputs_first():
  weight = normal(7, 3, 2, 4)
  (kernel,) = read(mapping.conv('a', 'b'), [weight], (2, 4, 3, 7))
  assert kernel[1, 3, 2, 5] == weight[5, 2, 1, 3]


def test_a_fused_array_holds_its_parts_one_after_another():
  weight = normal(6, 2)  # three matrices [2, 2]
  rule = mapping.fused('qkv', *(mapping.linear(name, 'qkv') for name in 'qkv'))
  q, k, v = read(rule, [weight], (2, 1, 2), (2, 1, 2), (2, 1, 2))
  np.testing.assert_array_equal(k.reshape(2, 2), weight[2:4].T)
  np.testing.assert_array_equal(v.reshape(2, 2), weight[4:].T)
  assert rule.ours == ('q', 'k', 'v')
  assert rule.theirs == ('qkv',)
  assert q.shape == (2, 1, 2)


@pytest.mark.parametrize(
  ('rule', 'shapes'),
  [
    (mapping.same('a', 'b'), [(1, 1, 4)]),
    (mapping.linear('a', 'b'), [(4, 2, 3)]),
    (mapping.linear('a', 'b', inputs=2), [(2, 3, 4)]),
    (mapping.flat('a', 'b'), [(2, 3)]),
    (mapping.conv('a', 'b'), [(2, 3, 4, 5)]),
    (mapping.fused('b', mapping.flat('c', 'b'), mapping.flat('d', 'b')), [(2, 3), (6,)]),
    (mapping.layers('b', *(mapping.same(f'{i}', 'b') for i in range(3))), [(2, 4)] * 3),
  ],
)
def test_what_was_written_is_read_back(rule, shapes):
  ours = [normal(*shape) for shape in shapes]
  back = rule.read(rule.write(ours), shapes)
  assert len(back) == len(ours)
  for a, b in zip(ours, back, strict=True):
    np.testing.assert_array_equal(a, b)


def test_zeros_are_made_and_refused_where_they_are_none():
  rule = mapping.zeros('bias')
  (bias,) = read(rule, [], (3,))
  assert (bias.shape, bias.any()) == ((3,), False)
  assert rule.write([bias]) == []
  with pytest.raises(ValueError, match="'bias' is not 0, and the format has no place for it"):
    rule.write([np.ones(3)])


def test_blocks_one_by_one_become_one_stacked():
  rules = [mapping.same(f'block_{i}/w', f'layer_{i}/w') for i in range(11)]
  other = mapping.same('w', 'layers/w')
  stacked = list(mapping.stack_blocks([*rules, other], 'layer_', 'layer'))
  assert stacked[0] == other
  assert stacked[1].theirs == ('layer/w',)
  assert stacked[1].ours[:3] == ('block_0/w', 'block_1/w', 'block_2/w')
  rows = normal(11, 4)
  np.testing.assert_array_equal(stacked[1].read([rows], [(4,)] * 11)[10], rows[10])


def test_a_prefix_is_put_before_their_names_alone():
  rule = mapping.under('params/img', mapping.same('a', 'b'))
  assert (rule.ours, rule.theirs) == (('a',), ('params/img/b',))
  assert mapping.under('', rule) is rule


@pytest.mark.parametrize(
  ('rule', 'theirs', 'shapes', 'message'),
  [
    (mapping.same('a', 'b'), (4, 1), [(1, 5)], r'shape is \[4, 1\] and should be \[1, 5\]'),
    (mapping.linear('a', 'b'), (4, 6), [(4, 6)], r'shape is \[4, 6\] and should be \[6, 4\]'),
    (mapping.flat('a', 'b'), (2, 3), [(6,)], r'shape is \[2, 3\] and should be \[6\]'),
    (mapping.conv('a', 'b'), (2, 3, 4, 5), [(2, 3, 4, 5)], r'and should be \[5, 4, 2, 3\]'),
    (
      mapping.fused('b', mapping.flat('c', 'b'), mapping.flat('d', 'b')),
      (5,),
      [(2,), (3,)],
      r'shape is \[5\], not 2 arrays one after another',
    ),
    (mapping.layers('b', mapping.same('a', 'b')), (2, 3), [(3,)], r'is \[2, 3\], of 1 layers'),
  ],
)
def test_another_shape_is_a_sentence(rule, theirs, shapes, message):
  with pytest.raises(ValueError, match=message):
    rule.read([normal(*theirs)], shapes)
