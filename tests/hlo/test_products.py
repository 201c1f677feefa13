"""The FLOPs of every kind of product follow from its shapes and attributes."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from parallax.commands.inspect import inspect_text
from parallax.hlo import HloError, parse_module
from parallax.hlo.flops import module_flops
from parallax.hlo.products import product


def one(line, parameters):
    """Parse a module of one instruction and return the product that it is."""
    names = [f"p{n}" for n in range(len(parameters))]
    shapes = ", ".join(f"{n}: {s}" for n, s in zip(names, parameters, strict=True))
    result = line.partition(" custom-call(")[0] if "custom-call(" in line else line.split(" ")[0]
    lines = "".join(
        f"  %{n} = {s} parameter({i})\n"
        for i, (n, s) in enumerate(zip(names, parameters, strict=True))
    )
    text = f"HloModule m, is_scheduled=true\n\nENTRY %main ({shapes}) -> {result} {{\n{lines}"
    module = parse_module(f"{text}  ROOT %r = {line}\n}}\n")
    main = module.computation("main")
    return product(main, main.instructions[-1])


@st.composite
def convolutions(draw):
    """Draw arguments of lax.conv_general_dilated of one or two spatial dims."""
    rank = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 2, 4]))
    by_batch = draw(st.booleans())
    sizes = st.integers(1, 3)
    few = lambda s: draw(st.lists(s, min_size=rank, max_size=rank))  # noqa: E731
    kernel, space = few(sizes), few(st.integers(5, 9))
    channels, out = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    batch = draw(st.integers(1, 2)) * (groups if by_batch else 1)
    x = (batch, *space, channels * (1 if by_batch else groups))
    return x, (*kernel, channels, out), {
        "window_strides": few(st.integers(1, 2)),
        "padding": [tuple(draw(st.lists(st.integers(0, 2), min_size=2, max_size=2)))
                    for _ in range(rank)],
        "rhs_dilation": few(st.integers(1, 2)),
        "batch_group_count" if by_batch else "feature_group_count": groups,
        "dimension_numbers": ("NHC", "HIO", "NHC") if rank == 1 else ("NHWC", "HWIO", "NHWC"),
    }  # fmt: skip


@given(convolutions())
def test_a_convolution_counts_every_output_times_its_window(case):
    x, kernel, options = case
    f32 = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, kernel)]
    lowered = jax.jit(lambda x, k: lax.conv_general_dilated(x, k, **options)).lower(*f32)
    (out,) = jax.tree.leaves(lowered.out_info)
    flops = module_flops(parse_module(lowered.as_text("hlo")))
    assert flops.high == 2 * math.prod(out.shape) * math.prod(kernel[:-1])
    assert flops.gemms == 1


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_backward_passes_of_a_convolution_count_as_much_as_the_forward_pass(strides, groups):
    def forward(x, k):
        return lax.conv_general_dilated(
            x, k, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        ).sum()  # fmt: skip

    x, k = ((2, 17, 17, 8), (3, 3, 8 // groups, 16))
    f32 = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x, k)]
    size = 15 if strides == (1, 1) else 8
    once = 2 * 2 * size * size * 16 * 9 * 8 // groups
    text = jax.jit(jax.grad(forward, argnums=(0, 1))).lower(*f32).as_text("hlo")
    flops = module_flops(parse_module(text))
    # The gradient of the input has positions at its edges that see part of the window.
    assert 2 * once <= flops.high <= 2 * once * (17 / (strides[0] * size)) ** 2 * 1.3


WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f"
CUDNN = {
    "forward": ("(bf16[32,56,56,128]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1)", "convForward",
                ("bf16[32,56,56,64]", "bf16[128,3,3,64]"), ""),
    "bias": ("(bf16[32,56,56,128]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1, %p2)",
             "convBiasActivationForward",
             ("bf16[32,56,56,64]", "bf16[128,3,3,64]", "bf16[128]"), ""),
    "graph": ("(bf16[32,56,56,128]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1)", "convForwardGraph",
              ("bf16[32,56,56,64]", "bf16[128,3,3,64]"), ""),
    "input": ("(bf16[32,56,56,64]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1)",
              "convBackwardInput", ("bf16[32,56,56,128]", "bf16[128,3,3,64]"), ""),
    "filter": ("(bf16[128,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1)",
               "convBackwardFilter", ("bf16[32,56,56,64]", "bf16[32,56,56,128]"), ""),
    "grouped": ("(bf16[32,56,56,128]{3,2,1,0}, u8[0]{0}) custom-call(%p0, %p1)", "convForward",
                ("bf16[32,56,56,256]", "bf16[128,3,3,64]"), ", feature_group_count=4"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CUDNN)
def test_a_convolution_of_the_library_counts_as_the_forward_one(kind):
    call, target, parameters, more = CUDNN[kind]
    line = f'{call}, {WINDOW}{more}, custom_call_target="__cudnn${target}"'
    found = one(line, parameters)
    assert found is not None
    assert found.flops == 2 * 32 * 56 * 56 * 128 * 3 * 3 * 64
    assert (found.dtype, found.is_convolution) == ("bf16", True)
    assert found.batch == (4 if more else 1)
    for old, new in (("size=3x3", "size=3x2"), ("pad=1_1x1_1", "pad=1_1"), ("o01i", "o01x"),
                     ("56,56,", "56,55,"), ("3,3,", "3,4,")):  # fmt: skip
        broken = line.replace(old, new, 1)
        first = next((n for n, shape in enumerate(parameters) if old in shape), None)
        shapes = list(parameters)
        if broken == line and first is not None:
            shapes[first] = shapes[first].replace(old, new, 1)
        with pytest.raises(HloError, match="convolution|window|dim_labels"):
            one(broken, shapes)


PRODUCTS = {
    "rows in groups": (
        "bf16[4096,1024]{1,0} ragged-dot(%p0, %p1, %p2), lhs_contracting_dims={1}, "
        "rhs_contracting_dims={1}, lhs_ragged_dims={0}, rhs_group_dims={0}",
        ("bf16[4096,512]", "bf16[8,512,1024]", "s32[8]"), 2 * 4096 * 512 * 1024, "bf16"),
    "a contracted dim in groups": (
        "bf16[8,512,1024]{2,1,0} ragged-dot(%p0, %p1, %p2), lhs_contracting_dims={0}, "
        "rhs_contracting_dims={0}, lhs_ragged_dims={0}",
        ("bf16[4096,512]", "bf16[4096,1024]", "s32[8]"), 2 * 4096 * 512 * 1024, "bf16"),
    "a library's grouped product": (
        '(bf16[4096,1024]{1,0}, s8[1024]{0}) custom-call(%p0, %p1, %p2), '
        'custom_call_target="__cublas$lt$groupedMatmul"',
        ("bf16[4096,512]", "bf16[8,512,1024]", "s32[8]"), 2 * 4096 * 512 * 1024, "bf16"),
    "block-scaled": (
        "f32[1,64,96]{2,1,0} scaled-dot(%p0, %p1, %p2, %p3), lhs_batch_dims={0}, "
        "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={2}",
        ("f8e4m3fn[1,64,128]", "f8e4m3fn[1,96,128]", "f8e8m0fnu[1,64,4]", "f8e8m0fnu[1,96,4]"),
        2 * 64 * 96 * 128, "f8"),
    "block-scaled by an op": (
        'f32[2,64,96]{2,1,0} custom-call(%p0, %p1, %p2, %p3), '
        'custom_call_target="__op$block_scaled_dot"',
        ("f8e4m3fn[2,64,128]", "f8e5m2[2,96,128]", "f8e8m0fnu[2,64,4]", "f8e8m0fnu[2,96,4]"),
        2 * 2 * 64 * 96 * 128, "f8"),
    "block-scaled by cuDNN, FP4": (
        '(f32[1,64,96]{2,1,0}, u8[0]{0}) custom-call(%p0, %p1, %p2, %p3), '
        'custom_call_target="__cudnn$blockScaledDot"',
        ("f4e2m1fn[1,64,128]", "f4e2m1fn[1,96,128]", "f8e4m3fn[1,64,8]", "f8e4m3fn[1,96,8]"),
        2 * 64 * 96 * 128, "f8"),
    "FP8": (
        '(bf16[64,96]{1,0}, s8[1024]{0}) custom-call(%p0, %p1, %p2, %p2), '
        'custom_call_target="__cublas$lt$matmul$f8", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]}}}',
        ("f8e5m2[64,128]", "f8e4m3fn[96,128]", "f32[]"), 2 * 64 * 96 * 128, "f8"),
    "FP8 and 16 bits": (
        "bf16[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        ("f8e5m2[64,128]", "bf16[96,128]"), 2 * 64 * 96 * 128, "bf16"),
    "INT8": (
        "s32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        ("s8[64,128]", "u8[96,128]"), 2 * 64 * 96 * 128, "s8"),
    "wide integers": (
        "s32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        ("s32[64,128]", "s32[96,128]"), 2 * 64 * 96 * 128, "f32"),
    "complex numbers": (
        "c128[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        ("c128[64,128]", "c128[96,128]"), 4 * 2 * 64 * 96 * 128, "f64"),
    "float32": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
        ("f32[64,128]", "f32[96,128]"), 2 * 64 * 96 * 128, "tf32"),
    "float32, highest": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "operand_precision={highest,highest}",
        ("f32[64,128]", "f32[96,128]"), 2 * 64 * 96 * 128, "f32"),
    "float32 as asked of a library": (
        '(f32[64,96]{1,0}, s8[1024]{0}) custom-call(%p0, %p1), '
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[]},"precision_config":'
        '{"operand_precision":["DEFAULT","DEFAULT"],"algorithm":"ALG_DOT_F32_F32_F32"}}}',
        ("f32[64,128]", "f32[96,128]"), 2 * 64 * 96 * 128, "f32"),
    "float32 as 16 bits": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "algorithm=dot_bf16_bf16_f32",
        ("f32[64,128]", "f32[96,128]"), 2 * 64 * 96 * 128, "bf16"),
    "float32 as six products of 16 bits": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "algorithm=dot_bf16_bf16_f32_x6",
        ("f32[64,128]", "f32[96,128]"), 6 * 2 * 64 * 96 * 128, "bf16"),
    "float32 as three products of TF32": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "algorithm=dot_tf32_tf32_f32_x3",
        ("f32[64,128]", "f32[96,128]"), 3 * 2 * 64 * 96 * 128, "tf32"),
    "FP8, fast": (
        "f32[64,96]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "algorithm=dot_any_f8_any_f8_f32_fast_accum",
        ("f8e4m3fn[64,128]", "f8e5m2[96,128]"), 2 * 64 * 96 * 128, "f8"),
    "a CPU's library": (
        '(f32[3,64,96]{2,1,0}, u8[1152]{0}) custom-call(%p0, %p1), '
        'custom_call_target="__onednn$matmul"',
        ("f32[3,64,128]", "f32[3,96,128]"), 3 * 2 * 64 * 96 * 128, "tf32"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_has_its_flops_and_dtype(kind):
    line, parameters, flops, dtype = PRODUCTS[kind]
    found = one(line, parameters)
    assert found is not None
    assert (found.flops, found.dtype) == (flops, dtype)
    for size in ("1024", "96"):
        broken = (parameters[0], parameters[1].replace(size, "95"), *parameters[2:])
        if broken != parameters:
            with pytest.raises(HloError, match="is not"):
                one(line, broken)


def test_a_deeper_dtype_is_priced_at_its_own_rate():
    def text(dtype):
        return (
            "HloModule m, is_scheduled=true\n\n"
            f"ENTRY %main (a: {dtype}[8192,8192], b: {dtype}[8192,8192]) -> f32[8192,8192] {{\n"
            f"  %a = {dtype}[8192,8192]{{1,0}} parameter(0)\n"
            f"  %b = {dtype}[8192,8192]{{1,0}} parameter(1)\n"
            "  ROOT %d = f32[8192,8192]{1,0} dot(%a, %b), lhs_contracting_dims={1}, "
            "rhs_contracting_dims={0}\n}\n"
        )

    seconds = {d: inspect_text(text(d)).cost.seconds for d in ("f8e4m3fn", "s8", "bf16", "f32")}
    assert seconds["f8e4m3fn"] == seconds["s8"] < seconds["bf16"] < seconds["f32"]
    on_a100 = {
        d: inspect_text(text(d), cluster="a100_1x1").cost.seconds for d in ("f8e4m3fn", "s8")
    }
    assert on_a100["f8e4m3fn"] > 1.5 * on_a100["s8"]  # no FP8 units
