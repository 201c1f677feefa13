"""The schedule that a report draws: lanes, order and waiting, on a small program by hand."""

import pytest

from parallax.hlo.ledger import read_ledger
from parallax.hlo.parse import parse_module
from parallax.lenses.timeline import busiest_timeline
from parallax.meshes.cluster import cluster

# A loop of 3: send, multiply meanwhile, wait, add what came.
TEXT = """HloModule m, is_scheduled=true, num_partitions=16

%add (a: f32[1024,1024], b: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0} parameter(0)
  %b = f32[1024,1024]{1,0} parameter(1)
  ROOT %sum = f32[1024,1024]{1,0} add(%a, %b)
}

%body (p: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %p = (s32[], f32[1024,1024]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[1024,1024]{1,0} get-tuple-element(%p), index=1
  %send = ((f32[1024,1024]{1,0}), f32[1024,1024]{1,0}) collective-permute-start(%x), channel_id=1, source_target_pairs={PAIRS}, metadata={op_name="ring"}
  %gemm = f32[1024,1024]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %come = f32[1024,1024]{1,0} collective-permute-done(%send)
  %out = f32[1024,1024]{1,0} fusion(%come, %gemm), kind=kLoop, calls=%add
  ROOT %t = (s32[], f32[1024,1024]{1,0}) tuple(%i, %out)
}

%condition (q: (s32[], f32[1024,1024])) -> pred[] {
  %q = (s32[], f32[1024,1024]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x.1: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %x.1 = (s32[], f32[1024,1024]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[1024,1024]{1,0}) while(%x.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
""".replace("PAIRS", ",".join(f"{{{i},{(i + 1) % 16}}}" for i in range(16)))  # noqa: E501


def test_what_waits_for_what():
    where = cluster("h100_2x8")
    module = parse_module(TEXT)
    send, gemm, add = busiest_timeline(module, read_ledger(module, {"seq": 16}), where)
    assert (send.lane, gemm.lane, add.lane) == ("communication", "compute", "compute")
    assert send.start_s == gemm.start_s == 0
    assert send.stop_s == 4 * 2**20 / where.nic_bytes_per_s
    assert gemm.stop_s == 2 * 2**30 / where.gpu.peak_flops("bfloat16")
    assert gemm.name.startswith("GEMM")
    assert add.start_s == send.stop_s  # it waits for the transfer, not for the product
    assert add.stop_s > add.start_s


def test_a_loop_of_routed_length_is_drawn_where_its_trips_are_given():
    where = cluster("h100_2x8")
    ledger = read_ledger(parse_module(TEXT), {"seq": 16})
    known = 'backend_config={"known_trip_count":{"n":"3"}}'
    named = 'metadata={op_name="jit(f)/tiles/while"}'
    module = parse_module(TEXT.replace(known, named))
    events = busiest_timeline(module, ledger, where, {"tiles": 0.5})
    assert events == busiest_timeline(parse_module(TEXT), ledger, where)
    assert len(events) == 3
    assert busiest_timeline(module, ledger, where) == events  # one iteration is drawn either way


def test_transfers_of_one_place_in_the_python_program_keep_their_own_widths():
    """The CUDA compiler leaves some without an op_name: the instruction's name tells them apart."""
    where = cluster("h100_2x8")
    send = next(line for line in TEXT.split("\n") if "%send =" in line)
    half = send.replace("%send", "%half").replace("1024,1024", "512,1024").replace("(%x)", "(%y)")
    half = half.replace("channel_id=1", "channel_id=2")
    cut = "  %y = f32[512,1024]{1,0} slice(%x), slice={[0:512], [0:1024]}"
    done = "  %halved = f32[512,1024]{1,0} collective-permute-done(%half)"
    module = parse_module(TEXT.replace(send, "\n".join([send, cut, half, done])))
    events = busiest_timeline(module, read_ledger(module, {"seq": 16}), where)
    widths = [e.stop_s - e.start_s for e in events if e.lane == "communication"]
    assert widths[0] == pytest.approx(2 * widths[1])
