"""The rule by which a GPU's output is right, on outputs made by hand and by the interpreter."""

import ml_dtypes
import numpy as np
import pytest

from parallax.kernels.decode_attention import cases as decode
from parallax.kernels.errors import BOUNDS, judge, relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import OPERATIONS
from parallax.studies.kernels.checking import check, compile_case, reference

TILE = 64
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def one_query(dtype, *, rounded=True, kept=None, keys=1000):
    """(o, m, l) of one query a key head, as a kernel has them: p rounded before its product.

    Args:
      rounded: False leaves p in float32, as XLA does where it may.
      kept: which keys the kernel sees; None: all.
    """
    random = np.random.default_rng(0)
    q, k, v = (
        random.standard_normal(shape).astype(DTYPES[dtype]).astype(np.float64)
        for shape in ((4, 128), (4, keys, 128), (4, keys, 128))
    )
    scores = np.einsum("hk,hmk->hm", q, k)[:, :kept] * 128**-0.5
    m = scores.max(-1)
    p = np.exp(scores - m[:, None])
    weights = p.astype(np.float32)
    if rounded:
        weights = weights.astype(DTYPES[dtype])
    o = np.einsum("hm,hmk->hk", weights.astype(np.float64), v[:, : scores.shape[1]])
    exact = (np.einsum("hm,hmk->hk", p, v[:, : scores.shape[1]]), m, p.sum(-1))
    return tuple(x.astype(np.float32) for x in (o, m, p.sum(-1))), exact


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_kernel_passes_where_xla_rounds_less(dtype):
    out, exact = one_query(dtype)
    assert judge(dtype, [out] * 3, exact).is_right
    # What the rule was: no more than 1.2 times the error of XLA, which here does not round p.
    xla, _ = one_query(dtype, rounded=False)
    assert relative_error(out[0], exact[0]) > 1.2 * relative_error(xla[0], exact[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1000, 10_000])
def test_a_kernel_that_drops_a_tile_fails(dtype, keys):
    _, exact = one_query(dtype, keys=keys)
    out, _ = one_query(dtype, keys=keys, kept=keys - TILE)
    verdict = judge(dtype, [out] * 3, exact)
    assert not verdict.is_right
    assert verdict.is_repeatable
    assert verdict.errors[0] > BOUNDS[dtype]


def test_what_differs_from_call_to_call_is_not_right():
    out, exact = one_query("bfloat16")
    again = (np.nextafter(out[0], np.float32(9)), *out[1:])
    verdict = judge("bfloat16", [out, again, out], exact)
    assert max(verdict.errors) < BOUNDS["bfloat16"]
    assert not verdict.is_repeatable
    assert not verdict.is_right


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_memory_that_was_not_written_is_not_right(value):
    out, exact = one_query("bfloat16")
    out[2][3] = value
    assert not judge("bfloat16", [out] * 3, exact).is_right


def test_an_output_that_is_missing_is_not_right():
    out, exact = one_query("bfloat16")
    assert not judge("bfloat16", [(*out, out[0])] * 3, exact).is_right


def test_the_decode_kernel_passes_interpreted():
    case = decode.SMALL[0]
    arrays = decode.inputs(case, 0)
    with interpreted():
        compiled = compile_case(decode, case, "mosaic", arrays)
        verdict = check(compiled, case.dtype, arrays, decode.exact(case, *arrays))
    assert verdict.is_right, verdict


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_reference_on_the_device_is_float64(name):
    """The same values as NumPy's, which shares no code, to float32's last digits."""
    operation = OPERATIONS[name]
    case = operation.SMALL[0]
    arrays = operation.inputs(case, 0)
    found, expected = reference(operation, case, arrays), operation.exact(case, *arrays)
    for mine, right in zip(found, expected, strict=True):
        assert relative_error(mine, right) < 2e-7
