"""Bytes a kernel moves, counted by hand."""

import pytest

from parallax.hlo import HloError
from parallax.hlo.traffic import traffic
from tests.hlo.programs import computation, module

BIG, ROW, ONE = "f32[64,8]", "f32[1,8]", "s32[]"
BIG_BYTES, ROW_BYTES = 64 * 8 * 4, 8 * 4


def moved(body, signature, line, entry, parameters):
    """Of one fusion: bytes read of each operand, and written."""
    made = module(
        computation("f", signature, *body),
        computation("main", entry, *parameters, f"ROOT %k = {line}", entry=True),
    )
    main = made.computation("main")
    reads, written = traffic(made, main, main.by_name["k"])
    return [size for _, size in reads], written


def of_fusion(body, result, *shapes):
    operands = ", ".join(f"%p{n}" for n in range(len(shapes)))
    parameters = [f"%p{n} = {s} parameter({n})" for n, s in enumerate(shapes)]
    signature = f"({', '.join(f'p{n}: {s}' for n, s in enumerate(shapes))}) -> {result}"
    line = f"{result} fusion({operands}), kind=kLoop, calls=%f"
    return moved([*parameters, *body], signature, line, signature, parameters)


def alone(line, result, *shapes):
    parameters = [f"%p{n} = {s} parameter({n})" for n, s in enumerate(shapes)]
    signature = f"({', '.join(f'p{n}: {s}' for n, s in enumerate(shapes))}) -> {result}"
    made = module(computation("main", signature, *parameters, f"ROOT %k = {line}", entry=True))
    main = made.computation("main")
    reads, written = traffic(made, main, main.by_name["k"])
    return [size for _, size in reads], written


def test_a_slice_is_read_and_not_the_array():
    cut = f"{ROW} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={{1,8}}"
    assert of_fusion([f"ROOT %d = {cut}"], ROW, BIG, ONE) == ([ROW_BYTES, 4], ROW_BYTES)
    more = [f"%d = {cut}", f"ROOT %n = {ROW} negate(%d)"]
    assert of_fusion(more, ROW, BIG, ONE) == ([ROW_BYTES, 4], ROW_BYTES)
    assert alone(cut, ROW, BIG, ONE) == ([ROW_BYTES, 4, 4], ROW_BYTES)


def test_an_update_in_place_moves_the_update():
    put = f"ROOT %u = {BIG} dynamic-update-slice(%p0, %p1, %p2, %p2)"
    assert of_fusion([put], BIG, BIG, ROW, ONE) == ([0, ROW_BYTES, 4], ROW_BYTES)
    # Behind another name it is still in place.
    named = [f"%b = {BIG} bitcast(%p0)", put.replace("%p0", "%b").replace("ROOT %u", "%u"),
             f"ROOT %c = {BIG} bitcast(%u)"]  # fmt: skip
    assert of_fusion(named, BIG, BIG, ROW, ONE) == ([0, ROW_BYTES, 4], ROW_BYTES)
    # Of an array made here all is made.
    fresh = [f"%n = {BIG} negate(%p0)", put.replace("%p0", "%n")]
    assert of_fusion(fresh, BIG, BIG, ROW, ONE) == ([BIG_BYTES, ROW_BYTES, 4], BIG_BYTES)


def test_a_gather_reads_the_rows_it_takes_and_its_indices():
    line = "f32[3,8] gather(%p0, %p1), offset_dims={1}"
    expected = ([3 * ROW_BYTES, 3 * 4], 3 * ROW_BYTES)
    assert of_fusion([f"ROOT %g = {line}"], "f32[3,8]", BIG, "s32[3]") == expected
    assert alone(line, "f32[3,8]", BIG, "s32[3]") == expected


def test_a_reduction_reads_all():
    add = computation(
        "add", "(x: f32[], y: f32[]) -> f32[]", "%x = f32[] parameter(0)",
        "%y = f32[] parameter(1)", "ROOT %s = f32[] add(%x, %y)",
    )  # fmt: skip
    signature = f"(p0: {BIG}, p1: f32[]) -> f32[64]"
    parameters = [f"%p0 = {BIG} parameter(0)", "%p1 = f32[] parameter(1)"]
    line = "f32[64] reduce(%p0, %p1), dimensions={1}, to_apply=%add"
    made = module(
        add,
        computation("f", signature, *parameters, f"ROOT %r = {line}"),
        computation("main", signature, *parameters,
                    "ROOT %k = f32[64] fusion(%p0, %p1), kind=kInput, calls=%f", entry=True),
    )  # fmt: skip
    main = made.computation("main")
    assert traffic(made, main, main.by_name["k"]) == ((("p0", BIG_BYTES), ("p1", 4)), 256)


def test_each_result_of_a_tuple_is_written():
    both = f"({BIG}, {ROW})"
    body = [f"%n = {BIG} negate(%p0)", f"%m = {ROW} negate(%p1)",
            f"ROOT %t = {both} tuple(%n, %m)"]  # fmt: skip
    expected = ([BIG_BYTES, ROW_BYTES], BIG_BYTES + ROW_BYTES)
    assert of_fusion(body, both, BIG, ROW) == expected


def test_what_nothing_needs_is_not_read():
    assert of_fusion([f"ROOT %n = {ROW} negate(%p1)"], ROW, BIG, ROW) == ([0, ROW_BYTES], ROW_BYTES)


def test_operands_that_are_not_the_parameters_are_refused():
    signature = f"(p0: {ROW}) -> {ROW}"
    body = [f"%p0 = {ROW} parameter(0)", f"ROOT %n = {ROW} negate(%p0)"]
    with pytest.raises(HloError, match="has 2 operands, %f has 1 parameters"):
        moved(body, signature, f"{ROW} fusion(%p0, %p0), kind=kLoop, calls=%f", signature, body[:1])


def test_a_library_call_inside_a_fusion_has_its_workspace_to_itself():
    """Rows sliced, multiplied, put in place: the scratch beside it is no traffic."""
    rows, w, out = "f16[8,4,64]", "f16[64,32]", "f16[8,4,32]"
    both = f"({out}, s8[4096])"
    body = [
        "%zero = s32[] constant(0)",
        "%x = f16[1,4,64] dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,64}",
        "%y = f16[4,64] bitcast(%x)",
        '%c = (f16[4,32], s8[4096]) custom-call(%y, %p2), custom_call_target="__cublas$lt$matmul"',
        "%z = f16[4,32] get-tuple-element(%c), index=0",
        "%b = f16[1,4,32] bitcast(%z)",
        f"%d = {out} dynamic-update-slice(%p3, %b, %p1, %zero, %zero)",
        "%s = s8[4096] get-tuple-element(%c), index=1",
        f"ROOT %t = {both} tuple(%d, %s)",
    ]
    found = of_fusion(body, both, rows, "s32[]", w, out)
    assert found == ([4 * 64 * 2, 4, 64 * 32 * 2, 0], 4 * 32 * 2)
