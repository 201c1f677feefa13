"""Shapes in HLO text: bytes of every dtype, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.hlo.shapes import HloError, parse_shape

BITS = {"pred": 8, "s4": 4, "s64": 64, "u8": 8, "f8e4m3fn": 8, "f16": 16, "bf16": 16, "f32": 32,
        "f64": 64, "c128": 128, "f4e2m1fn": 4}  # fmt: skip
arrays = st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 99), max_size=4))


def _text(array, layout):
    dtype, dims = array
    order = ",".join(str(d) for d in reversed(range(len(dims))))
    return f"{dtype}[{','.join(map(str, dims))}]" + (f"{{{order}:T(8,128)}}" if layout else "")


@given(arrays, st.booleans())
def test_an_array_reads_back(array, layout):
    dtype, dims = array
    shape = parse_shape(_text(array, layout))
    assert (shape.dtype, shape.dims) == (dtype, tuple(dims))
    assert shape.n_bytes == math.ceil(math.prod(dims) * BITS[dtype] / 8)


@given(st.lists(arrays, max_size=4))
def test_a_tuple_holds_the_bytes_of_its_arrays(parts):
    inner = ", /*index=5*/".join(_text(a, True) for a in parts)
    shape = parse_shape(f"(({inner}), token[])")
    assert len(shape.elements[0].elements) == len(parts)
    assert shape.n_bytes == sum(parse_shape(_text(a, False)).n_bytes for a in parts)


@pytest.mark.parametrize(
    "text", ["f17[2]", "f32[2", "f32[2,]", "f32[<=8]", "(f32[2]", "(f32[2] f32[2])", "f32[2] x", ""]
)
def test_other_forms_are_refused(text):
    with pytest.raises(HloError):
        parse_shape(text)
