import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import sharding
from vit_jax.preflight import hlo
from vit_jax.preflight.hlo import Collective, Program, collectives

# A program as XLA writes it for TPUs, cut down: a loop of 5 turns whose body has one of 3 turns.
NESTED = """HloModule jit_step, is_scheduled=true, num_partitions=8

%inner_condition (p.0: (s32[], f32[8,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.1), direction=LT
}

%inner_body (p.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %fusion.1 = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  %kernel = f32[8,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %permute = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} collective-permute(%fusion.1), channel_id=2, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
}

%outer_condition (p.2: (s32[], f32[8,16])) -> pred[] {
  %constant.2 = s32[] constant(5)
  ROOT %lt.2 = pred[] compare(%get-tuple-element.2, %constant.2), direction=LT
}

%outer_body (p.3: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %while.1 = (s32[], f32[8,16]) while(%tuple.1), condition=%inner_condition, body=%inner_body
  ROOT %gather = f32[64,16]{1,0} all-gather(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main.1 (p.4: f32[8,16]) -> f32[8,16] {
  %while.2 = (s32[], f32[8,16]) while(%tuple.2), condition=%outer_condition, body=%outer_body
  %copy.1 = f32[8,16] copy(%z), backend_config={"estimated_cycles":"7"}
  %reduce.1 = (f32[4]{0:T(512)S(1)}, bf16[2,3]{1,0}, /*index=2*/f32[]) all-reduce(%a, %b, %c), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add
  ROOT %copy.2 = f32[8,16] copy(%z)
}
"""  # noqa: E501


def test_loops_in_loops_multiply_collectives_cycles_and_kernels():
  program = Program(NESTED)
  assert program.collectives() == [
    Collective('collective-permute', 15, 8 * 16 * 2, 4),
    Collective('all-gather', 5, 64 * 16 * 4, 4),
    Collective('all-reduce', 1, 4 * 4 + 6 * 2 + 4, 8),
  ]
  assert program.cycles() == 15 * 10 + 7
  assert program.custom_calls() == {'tpu_custom_call': 15}
  assert program.endless == 0


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  text = NESTED.replace('constant(3)', 'parameter(1)')
  program = Program(text)
  assert program.endless == 1
  assert program.cycles() == 5 * 10 + 7
  # What XLA found out it writes beside the loop.
  program = Program(
    text.replace('body=%inner_body', 'body=%inner_body, {"known_trip_count":{"n":"4"}}')
  )
  assert (program.endless, program.cycles()) == (0, 20 * 10 + 7)


# A ring as XLA writes it for 8 GPUs, cut down.
GPU = """HloModule jit_ring, is_scheduled=true, num_partitions=8, frontend_attributes={x="ab"}

FileNames
1 "/ring.py"

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%fused_compare (param_0.1: s32[]) -> pred[] {
  %constant_1_clone_2 = s32[] constant(8), metadata={op_name="jit(ring)" stack_frame_id=1}
  ROOT %lt.2.1 = pred[] compare(%param_0.1, %constant_1_clone_2), direction=LT
}

%region_0.1_spmd (param: (s32[], f32[1,128,64])) -> (s32[], f32[1,128,64]) {
  %collective-permute-start = (f32[1,128,64]{2,1,0}, f32[1,128,64]{2,1,0}) collective-permute-start(%get-tuple-element.25), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}, backend_config={"collective_backend_config":{"is_sync":false}}
  %cudnn-conv.4 = (f32[8,16,16,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), custom_call_target="__cudnn$convForward"
  %collective-permute-done = f32[1,128,64]{2,1,0} collective-permute-done(%collective-permute-start)
}

%region_1.2_spmd (param.1: (s32[], f32[1,128,64])) -> pred[] {
  ROOT %loop_compare_fusion = pred[] fusion(%get-tuple-element.17.0), kind=kLoop, calls=%fused_compare
}

ENTRY %main.4_spmd (param.3: f32[1,128,64]) -> f32[1,128,64] {
  %while.11 = (s32[], f32[1,128,64]{2,1,0}) while(%tuple.9), condition=%region_1.2_spmd, body=%region_0.1_spmd, backend_config={"known_trip_count":{"n":"8"},"known_init_step":{"init":"0","step":"1"}}
  %all-reduce-start = (f32[10]{0}, f32[]) all-reduce-start(%a, %b), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add
  ROOT %all-reduce-done = (f32[10]{0}, f32[]) all-reduce-done(%all-reduce-start)
}
"""  # noqa: E501


def test_the_program_of_a_gpu():
  program = Program(GPU)
  assert program.collectives() == [
    Collective('collective-permute', 8, 128 * 64 * 4, 8),
    Collective('all-reduce', 1, 11 * 4, 8),
  ]
  assert (program.cycles(), program.endless) == (0, 0)
  assert program.custom_calls() == {'__cudnn$convForward': 8}


def one(instruction: str) -> Collective:
  """What is found of a single instruction among 8 devices."""
  (found,) = collectives(
    f'HloModule m, num_partitions=8\n\nENTRY %m (p: f32[]) -> f32[] {{\n  {instruction}\n}}'
  )
  return found


@pytest.mark.parametrize(
  ('instruction', 'size', 'group'),
  [
    ('%a = f32[8]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add', 32, 4),
    ('%a = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%add', 32, 8),
    ('%a = f32[8]{0} all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add', 32, 2),
    ("%a = f32[8]{0} all-reduce(%x), replica_groups=mesh['x'=2,'y'=4] {'y'}", 32, 4),
    ("%a = f32[8]{0} all-reduce(%x), replica_groups=mesh['x'=8] {'x':(2)4}", 32, 4),
    ('%a = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1},{2,3}}', 32, 2),
    ('%a = f32[2]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}', 32, 4),
    ('%a = f32[8]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}', 32, 4),
    ('%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8]', 32, 4),
    ('%a = (f32[4], f32[4]) all-to-all(%x, %y), replica_groups={{0,1},{2,3},{4,5},{6,7}}', 32, 2),
    ('%a = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), '
     'source_target_pairs={{0,1},{1,0}}', 32, 2),
    ('%a = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,2}}', 32, 3),
    ('%a = f32[8]{0} collective-permute(%x), source_target_pairs={{1,0},{2,1},{3,2}}', 32, 4),
    # As GPUs write them, operands before results.
    ('%a = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%x), replica_groups=[2,4]<=[8]', 32, 4),
    ('%a = ((f32[6], f32[2]), (f32[3], f32[1])) reduce-scatter-start(%x, %y), '
     "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 32, 2),
    ('%a = ((f32[3], f32[1]), (f32[6], f32[2])) all-gather-start(%x, %y), '
     'replica_groups=[4,2]<=[8]', 32, 2),
    ('%a = ((f32[8]{0}), f32[8]{0}) all-to-all-start(%x), replica_groups={{0,1,2,3}}', 32, 4),
    ('%a = ((f32[8]{0}), f32[8]{0}) collective-broadcast-start(%x), replica_groups={{0,1}}', 32, 2),
    ('%a = pred[32]{0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}', 32, 8),
    ('%a = f8e4m3fn[32]{0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}', 32, 8),
    ('%a = s4[64]{0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}', 32, 8),
  ],
)  # fmt: skip
def test_every_way_to_write_sizes_and_groups(instruction, size, group):
  found = one(instruction)
  assert (found.bytes, found.group, found.count) == (size, group, 1)


def test_the_pieces_of_one_collective_count_once():
  piece = '%a.{} = f32[8]{{0}} all-gather(%x), channel_id={}, replica_groups=[1,8]<=[8], frontend_attributes={{chain_id="{}"}}'  # noqa: E501
  lines = [piece.format(i, 89 + i // 4, i // 4) for i in range(8)]
  text = 'HloModule m, num_partitions=8\n\nENTRY %m (p: f32[]) -> f32[] {\n' + '\n'.join(
    f'  {line}' for line in lines
  ) + '\n}'  # fmt: skip
  assert collectives(text) == [Collective('all-gather', 1, 32, 8)] * 2


def test_what_a_device_sends_in_a_ring():
  assert Collective('all-reduce', 2, 800, 8).sent == 2 * 2 * 700
  assert Collective('all-gather', 1, 800, 8).sent == 700
  assert Collective('reduce-scatter', 1, 800, 8).sent == 700
  assert Collective('collective-permute', 7, 100, 8).sent == 700


# -- What XLA really writes, for 8 simulated devices.


def compiled(function, *arguments) -> str:
  return jax.jit(function).lower(*arguments).compile().as_text()


def shape(mesh, spec, *sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))


def sizes(text: str) -> dict[str, int]:
  """Bytes a step by kind."""
  found = {}
  for c in collectives(text):
    found[c.kind] = found.get(c.kind, 0) + c.count * c.bytes
  return found


def gradient(w, x):
  return jax.grad(lambda w: jnp.mean((x @ w) ** 2))(w)


def test_data_parallel_reduces_as_many_bytes_as_there_are_parameters():
  mesh = sharding.make_mesh(dict(data=8))
  with jax.set_mesh(mesh):
    text = compiled(
      lambda w, x: jax.lax.with_sharding_constraint(gradient(w, x), NamedSharding(mesh, P())),
      shape(mesh, P(), 64, 32),
      shape(mesh, P(('data', 'fsdp')), 16, 64),
    )
  assert sizes(text) == {'all-reduce': 64 * 32 * 4}
  assert {c.group for c in collectives(text)} == {8}


def test_one_device_exchanges_nothing():
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  assert collectives(compiled(gradient, shape(mesh, P(), 8, 8), shape(mesh, P(), 8, 8))) == []


def test_a_scan_counts_as_often_as_it_turns():
  mesh = sharding.make_mesh(dict(data=4, fsdp=2))

  def body(x, w):
    x = jnp.tanh(x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P())))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(('data', 'fsdp')))), None

  with jax.set_mesh(mesh):
    text = compiled(
      lambda w, x: jax.lax.scan(body, x, w)[0],
      shape(mesh, P(None, 'fsdp'), 6, 64, 64),
      shape(mesh, P(('data', 'fsdp')), 16, 64),
    )
  found = [c for c in collectives(text) if c.kind == 'all-gather']
  # The weights of all 6 layers, whether gathered before the loop or in each of its turns.
  assert sum(c.count * c.bytes for c in found) == 6 * 64 * 64 * 4
  assert {c.group for c in found} == {2}


def test_a_ring_of_8_devices():
  mesh = sharding.make_mesh(dict(data=8))

  def walk(x):
    def turn(carry, _):
      total, visitor = carry
      visitor = jax.lax.ppermute(visitor, 'data', [(i, (i + 1) % 8) for i in range(8)])
      return (total + visitor, visitor), None

    return jax.lax.scan(turn, (x, x), length=8)[0][0]

  ring = jax.shard_map(walk, mesh=mesh, in_specs=P('data'), out_specs=P('data'))
  (found,) = collectives(compiled(ring, shape(mesh, P('data'), 8, 100)))
  assert found == Collective('collective-permute', 8, 400, 8)
  x = jax.device_put(np.arange(800.0).reshape(8, 100), NamedSharding(mesh, P('data')))
  np.testing.assert_allclose(jax.jit(ring)(x)[0], 2 * x[0] + x[1:].sum(0), rtol=1e-6)


def test_every_kind_is_looked_for():
  for kind in hlo.KINDS:
    assert one(f'%a = f32[8]{{0}} {kind}(%x), replica_groups=[1,8]<=[8]').kind == kind
