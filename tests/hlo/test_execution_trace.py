"""Execution traces of scheduled programs, by hand."""

import pytest

from parallax.hlo import HloError, parse_module, read_ledger
from parallax.hlo.execution_trace import Call, Choice, Gemm, Kernel, Loop, Send, Start, Wait
from parallax.hlo.flops import module_flops, uncounted_calls
from parallax.hlo.read_trace import read_trace
from tests.hlo.programs import computation, module, work

A, B, C = "f32[4,8,16]", "f32[4,16,32]", "f32[4,8,32]"
X = "f16[8,8]"


def one(line, *shapes, result=None):
    """Steps of a program of one line over parameters of these shapes."""
    result = result or line.split(" ")[0]
    parameters = [f"%p{n} = {s} parameter({n})" for n, s in enumerate(shapes)]
    signature = f"({', '.join(f'p{n}: {s}' for n, s in enumerate(shapes))}) -> {result}"
    return work(computation("main", signature, *parameters, f"ROOT %k = {line}", entry=True))


def dot(kind, more=""):
    dims = "lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, "
    dims += f"rhs_contracting_dims={{1}}{more}"
    a, b, c = (s.replace("f32", kind) for s in (A, B, C))
    (kernel,) = one(f"{c} dot(%p0, %p1), {dims}", a, b).steps["main"]
    return kernel


def test_a_product_has_its_dims_and_dtype():
    kernel = dot("f16")
    assert kernel.gemms == (Gemm(4, 8, 32, 16, "f16"),)
    assert kernel.gemms[0].flops == 2 * 4 * 8 * 32 * 16
    assert kernel.reads == (("p0", 4 * 8 * 16 * 2), ("p1", 4 * 16 * 32 * 2))
    assert kernel.written_bytes == 4 * 8 * 32 * 2


def test_float32_is_tf32_unless_precision_is_asked():
    assert dot("f32").gemms[0].dtype == "tf32"
    assert dot("f32", ", operand_precision={highest,highest}").gemms[0].dtype == "f32"
    assert dot("f64").gemms[0].dtype == "f64"


CUBLAS = (
    'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
    '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}'
)


def test_a_librarys_workspace_is_not_counted():
    result = f"({X}, s8[4194304])"
    (kernel,) = one(f"{result} custom-call(%p0, %p1), {CUBLAS}", X, X, result=result).steps["main"]
    assert kernel.gemms == (Gemm(1, 8, 8, 8, "f16"),)
    assert (kernel.n_bytes, kernel.written_bytes) == (3 * 128, 128)


def test_a_declared_cost_is_taken_and_an_unknown_call_named():
    declared = 'frontend_attributes={cost_flops="1e9",cost_bytes="5e6"}'
    known = one(f'{X} custom-call(%p0), custom_call_target="mine", {declared}', X)
    (kernel,) = known.steps["main"]
    assert (kernel.flops, kernel.n_bytes, known.unpriced) == (1e9, 5e6, ())
    picking = computation(
        "picking", f"(p: {X}) -> {X}", f"%p = {X} parameter(0)",
        f'ROOT %c = {X} custom-call(%p), custom_call_target="mine", {declared}',
    )  # fmt: skip
    main = computation(
        "main", f"(p0: {X}) -> {X}", f"%p0 = {X} parameter(0)",
        f"ROOT %k = {X} fusion(%p0), kind=kCustom, calls=%picking", entry=True,
    )  # fmt: skip
    (fused,) = work(picking, main).steps["main"]
    assert (fused.flops, fused.n_bytes) == (1e9, 5e6)
    assert fused.computes == "attention"
    declared = declared.replace("{", '{cost_of="products",')
    (kernel,) = one(f'{X} custom-call(%p0), custom_call_target="mine", {declared}', X).steps["main"]
    assert (kernel.flops, kernel.computes) == (1e9, "products")
    unknown = one(f'{X} custom-call(%p0), custom_call_target="mine"', X)
    assert unknown.unpriced == ("mine",)
    assert unknown.steps["main"][0].n_bytes == 2 * 128


ADD = computation(
    "add", "(x: f16[], y: f16[]) -> f16[]", "%x = f16[] parameter(0)", "%y = f16[] parameter(1)",
    "ROOT %s = f16[] add(%x, %y)",
)  # fmt: skip
P = f"%p = {X} parameter(0)"
SIGNATURE = f"(p: {X}) -> {X}"
REDUCE = "channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add"


@pytest.mark.parametrize(
    ("target", "mask", "products", "visible"),
    [("Softmax", "NO_MASK", 2, 1.0), ("SoftmaxBackward", "CAUSAL", 5, 0.5)],
)
def test_attention_of_the_library_is_counted(target, mask, products, visible):
    config = (
        '{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":["1","2","32","64"'
        f']}},"mask_type":"{mask}"}}}}'
    )
    query = "bf16[1,32,2,8]"
    line = f'custom-call(%p0), custom_call_target="__cudnn$fmha{target}", backend_config={config}'
    (kernel,) = one(f"{query} {line}", query).steps["main"]
    assert kernel.attention == (1, 2, 32, 64, 8, visible, "bf16", products)
    assert kernel.attention.flops == products * 2 * (2 * 32 * 64 * 8) * visible
    text = computation(
        "main", f"(p0: {query}) -> {query}", f"%p0 = {query} parameter(0)",
        f"ROOT %k = {query} {line}", entry=True,
    )  # fmt: skip
    made = module(text)
    assert module_flops(made).high == kernel.attention.flops
    assert uncounted_calls(made) == ()


def test_a_start_and_its_wait_with_a_kernel_between():
    made = work(
        ADD,
        computation(
            "main", SIGNATURE, P, f"%s = {X} all-reduce-start(%p), {REDUCE}",
            f"%n = {X} negate(%p)", f"%d = {X} all-reduce-done(%s)", f"ROOT %r = {X} add(%n, %d)",
            entry=True,
        ), devices=4,
    )  # fmt: skip
    start, between, wait, last = made.steps["main"]
    assert isinstance(start, Start)
    assert isinstance(start.what, Send)
    assert start.what.collective.wire_bytes == 2 * 3 / 4 * 128
    assert (between.name, wait, last.name) == ("n", Wait("s"), "r")
    assert last.reads == (("n", 128), ("s", 128))  # behind the done is what was started


def test_a_collective_inside_a_fusion_is_all_there_is_of_it():
    inner = computation("f", SIGNATURE, P, f"ROOT %a = {X} all-reduce(%p), {REDUCE}")
    line = f"ROOT %k = {X} fusion(%p), kind=kCustom, calls=%f"
    made = work(ADD, inner, computation("main", SIGNATURE, P, line, entry=True), devices=4)
    (send,) = made.steps["main"]
    assert isinstance(send, Send)
    assert (send.name, send.collective.payload_bytes) == ("a", 128)


def test_a_conditional_and_a_call():
    side = [computation(n, SIGNATURE, P, f"ROOT %{n}k = {X} negate(%p)") for n in ("a", "b", "c")]
    main = computation(
        "main", SIGNATURE, P, "%i = pred[] constant(true)",
        f"%w = {X} conditional(%i, %p, %p), true_computation=%a, false_computation=%b",
        f"ROOT %r = {X} call(%w), to_apply=%c", entry=True,
    )  # fmt: skip
    made = work(*side, main)
    assert made.steps["main"] == (Choice("w", ("a", "b")), Call("c"))
    assert [k.name for n in "abc" for k in made.steps[n]] == ["ak", "bk", "ck"]


def loop(more, trips=None):
    body = computation("body", SIGNATURE, P, f"ROOT %n = {X} negate(%p)")
    test = computation("test", f"(p: {X}) -> pred[]", P, "ROOT %c = pred[] constant(true)")
    line = f"ROOT %w = {X} while(%p), condition=%test, body=%body{more}"
    return work(body, test, computation("main", SIGNATURE, P, line, entry=True), trips=trips)


def test_a_loop_is_counted_by_the_compiler_or_told():
    known = loop(', backend_config={"known_trip_count":{"n":"7"}}')
    assert known.steps["main"] == (Loop("w", 7.0, "body", "test", known=True),)
    named = ', metadata={op_name="jit(f)/tiles/while"}'
    unknown = loop(named)
    assert unknown.steps["main"] == (Loop("w", 1.0, "body", "test", known=False),)
    assert unknown.open_loops == ("tiles (line 15)",)
    told = loop(named, {"tiles": 2.5})
    assert told.steps["main"] == (Loop("w", 2.5, "body", "test", known=False),)
    assert told.open_loops == ()


def test_names_launch_nothing():
    made = one(f"{X} bitcast(%p0)", X)
    assert made.steps["main"] == ()


def test_a_module_without_a_schedule_and_an_opcode_without_a_cost_are_refused():
    text = f"HloModule m\n\nENTRY %main {SIGNATURE} {{\n  ROOT {P}\n}}\n"
    made = parse_module(text)
    with pytest.raises(HloError, match="is not scheduled"):
        read_trace(made, read_ledger(made, {}))
    with pytest.raises(HloError, match="the cost of frobnicate is not known"):
        one(f"{X} frobnicate(%p0)", X)
    assert isinstance(one(f"{X} negate(%p0)", X).steps["main"][0], Kernel)


def test_a_loop_says_what_it_hands_on_unchanged():
    carry = "(s32[], f32[8], f32[4])"
    parts = ["%i = s32[] get-tuple-element(%p), index=0",
             "%w = f32[8] get-tuple-element(%p), index=1",
             "%y = f32[4] get-tuple-element(%p), index=2"]  # fmt: skip
    parts += ["%n = f32[4] negate(%y)", f"ROOT %t = {carry} tuple(%i, %w, %n)"]
    body = computation("body", f"(p: {carry}) -> {carry}", f"%p = {carry} parameter(0)", *parts)
    test = computation("test", f"(p: {carry}) -> pred[]", f"%p = {carry} parameter(0)",
                       "ROOT %c = pred[] constant(true)")  # fmt: skip
    main = computation(
        "main", "(a: s32[], b: f32[8], c: f32[4]) -> (s32[], f32[8], f32[4])",
        "%a = s32[] parameter(0)", "%b = f32[8] parameter(1)", "%c = f32[4] parameter(2)",
        "%made = f32[8] negate(%b)", f"%t0 = {carry} tuple(%a, %made, %c)",
        f"ROOT %l = {carry} while(%t0), condition=%test, body=%body, "
        'backend_config={"known_trip_count":{"n":"5"}}', entry=True,
    )  # fmt: skip
    loop = work(body, test, main).steps["main"][-1]
    assert isinstance(loop, Loop)
    assert loop.held == (("i", "a", 4.0), ("w", "made", 32.0))
