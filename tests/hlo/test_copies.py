"""Bytes of arguments that a program copies, counted by hand."""

from parallax.hlo.copies import copied_bytes
from tests.hlo.programs import computation, module

STACK, LAYER, X = "bf16[4,8,16]", "bf16[1,8,16]", "bf16[2,8]"
LAYER_BYTES, STACK_BYTES = 8 * 16 * 2, 4 * 8 * 16 * 2


def of_entry(*lines, others=(), arguments=(0,)):
    """The copies of a program with the arguments w (a stack), v (another one) and n (a number)."""
    parameters = (f"%w = {STACK} parameter(0)", f"%v = {STACK} parameter(1)",
                  "%n = s32[] parameter(2)")  # fmt: skip
    signature = f"(w: {STACK}, v: {STACK}, n: s32[]) -> {LAYER}"
    made = module(*others, computation("main", signature, *parameters, *lines, entry=True))
    return copied_bytes(made, arguments)


def fusion(name, result, *body):
    return computation(
        name, f"(a: {STACK}, b: {STACK}, i: s32[]) -> {result}",
        f"%a = {STACK} parameter(0)", f"%b = {STACK} parameter(1)", "%i = s32[] parameter(2)",
        "%z = s32[] constant(0)", *body,
    )  # fmt: skip


SLICE = "dynamic-slice(%a, %i, %z, %z), dynamic_slice_sizes={1,8,16}"
SLICED = fusion("f", LAYER, f"ROOT %s = {LAYER} {SLICE}")
CALL = f"{LAYER} fusion(%w, %v, %n), kind=kLoop, calls=%f"


def test_what_moves_is_copied_and_what_computes_is_not():
    assert of_entry(f"ROOT %k = {CALL}", others=(SLICED,)) == LAYER_BYTES
    assert of_entry(f"ROOT %k = {CALL}", others=(SLICED,), arguments=(1,)) == 0
    cast = fusion("f", LAYER, f"%s = {LAYER} {SLICE}", f"ROOT %c = {LAYER} negate(%s)")
    assert of_entry(f"ROOT %k = {CALL}", others=(cast,)) == 0


def test_of_weights_laid_side_by_side_all_is_written():
    joined = "bf16[4,16,16]"
    body = fusion("f", joined, f"ROOT %s = {joined} concatenate(%a, %b), dimensions={{1}}")
    line = f"ROOT %k = {joined} fusion(%w, %v, %n), kind=kLoop, calls=%f"
    assert of_entry(line, others=(body,), arguments=(0, 1)) == 2 * STACK_BYTES


def test_a_copy_of_a_copy_counts_and_a_copy_on_another_stream_too():
    start = CALL.replace("fusion(", "fusion-start(").replace(
        LAYER, f"(({STACK}, {STACK}, s32[]), {LAYER}, u32[])", 1
    )
    lines = (f"%k = {start}", f"%d = {LAYER} fusion-done(%k)",
             "%t = bf16[1,16,8] transpose(%d), dimensions={0,2,1}",
             f"ROOT %r = {LAYER} copy(%t)")  # fmt: skip
    assert of_entry(*lines, others=(SLICED,)) == 3 * LAYER_BYTES


def test_each_result_of_a_fusion_counts_alone():
    both = f"({LAYER}, {LAYER})"
    body = fusion("f", both, f"%s = {LAYER} {SLICE}", f"%c = {LAYER} negate(%s)",
                  f"ROOT %t = {both} tuple(%s, %c)")  # fmt: skip
    line = f"ROOT %k = {both} fusion(%w, %v, %n), kind=kLoop, calls=%f"
    assert of_entry(line, others=(body,)) == LAYER_BYTES


def test_a_loop_copies_in_every_iteration_what_it_is_handed():
    state = f"({STACK}, {STACK}, s32[])"
    body = computation(
        "body", f"(t: {state}) -> {state}", f"%t = {state} parameter(0)",
        f"%w = {STACK} get-tuple-element(%t), index=0",
        f"%v = {STACK} get-tuple-element(%t), index=1",
        "%n = s32[] get-tuple-element(%t), index=2", f"%k = {CALL}",
        "%one = s32[] constant(1)", "%next = s32[] add(%n, %one)",
        f"ROOT %r = {state} tuple(%w, %v, %next)",
    )  # fmt: skip
    test = computation(
        "test", f"(t: {state}) -> pred[]", f"%t = {state} parameter(0)",
        "%n = s32[] get-tuple-element(%t), index=2", "%most = s32[] constant(5)",
        "ROOT %l = pred[] compare(%n, %most), direction=LT",
    )  # fmt: skip
    lines = (
        "%zero = s32[] constant(0)",
        f"%before = {state} tuple(%w, %v, %zero)",
        f"%loop = {state} while(%before), condition=%test, body=%body",
        f"%after = {STACK} get-tuple-element(%loop), index=0",
        f"ROOT %last = {STACK} copy(%after)",
    )
    others = (SLICED, body, test)
    assert of_entry(*lines, others=others) == 5 * LAYER_BYTES + STACK_BYTES
    assert of_entry(*lines, others=others, arguments=(1,)) == 0
