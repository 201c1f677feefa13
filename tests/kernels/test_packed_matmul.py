"""Packed products: exact integers, declared bytes, parts of the inputs, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.compression import compress, decompress, parse_format
from parallax.kernels import dispatch, hopper
from parallax.kernels.chip import MULTIPROCESSORS
from parallax.kernels.errors import relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import BASELINES
from parallax.kernels.packed_matmul import PackedMatrix, mosaic, packed_matmul
from parallax.kernels.packed_matmul.cases import (
    SHIPPED,
    TIMED,
    Case,
    exact,
    inputs,
    program,
    stored_like,
)
from parallax.kernels.packed_matmul.limits import COLUMNS, splits

INT8, SPARSE = Case(3, 128, 128), Case(3, 128, 128, is_sparse=True)
INT4 = Case(3, 128, 128, bits=4, group=128)


def by_kernel(case, arrays):
    with interpreted():
        return jax.jit(program(case, "mosaic"))(*arrays)[0]


@pytest.mark.parametrize("case", [INT8, SPARSE, INT4], ids=lambda case: case.name)
def test_integers_are_multiplied_exactly(case):
    """Whole numbers that float32 sums without rounding: the result is exact, to the last bit."""
    x, values, *rest = inputs(case, 0)
    x = np.round(4 * x)
    scales = np.exp2(np.round(np.log2(rest[-1])))
    arrays = (x, values, *rest[:-1], scales.astype(np.float32))
    np.testing.assert_array_equal(by_kernel(case, arrays), exact(case, *arrays)[0])


def test_integer_sums_are_exact(monkeypatch):
    """Beyond 2 ** 24, where float32 has even numbers only, already in one warpgroup's half."""
    monkeypatch.setattr(mosaic.limits, "splits", lambda *_: 1)
    case = Case(3, 2304, 128, "int8")
    x, values = (np.full(a.shape, -128, np.int8) for a in inputs(case, 0))
    x[0, 0] = values[0, 0] = -127
    right = exact(case, x, values)[0]
    assert right[0, 0] % 2
    assert (right > 2**25).all()
    found = by_kernel(case, (x, values))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, right)


def test_each_expert_has_its_own_tokens_and_weight():
    case = SPARSE._replace(experts=3, outputs=256)
    arrays = inputs(case, 0)
    found = by_kernel(case, arrays)
    for expert in range(3):
        alone = by_kernel(case._replace(experts=0), [a[expert] for a in arrays])
        np.testing.assert_array_equal(found[expert], alone)


@pytest.mark.parametrize("case", [*SHIPPED[::2], SHIPPED[-1]], ids=lambda case: case.name)
def test_declared_bytes_are_the_packed_ones(case, monkeypatch):
    """Beside them x, and the sums of each part of the inputs."""
    declared, call = [], hopper.call

    def noted(*arguments, bytes_accessed, **options):
        declared.append(bytes_accessed)
        return call(*arguments, bytes_accessed=bytes_accessed, **options)

    monkeypatch.setattr(mosaic.hopper, "call", noted)
    like = stored_like(case)
    with interpreted():
        jax.eval_shape(program(case, "mosaic"), *inputs(case, 0))
    parts = splits(case.tokens, *like.shape, like.group, like.bits_per_weight, like.experts)
    beside = 2 * case.tokens * case.inputs + 4 * parts * case.outputs * case.tokens
    assert declared == [case.packed_bytes + beside * max(1, case.experts)]


@pytest.mark.parametrize("name", ["int8", "int8+2:4", "int4", "int4+2:4", "float16+2:4"])
def test_bytes_are_those_of_the_format(name):
    """A matrix that `compression` packs is one that the operation takes, of the format's bytes."""
    form = parse_format(name)
    w = jnp.asarray(np.random.default_rng(0).standard_normal((256, 128)), jnp.float16)
    packed = compress(w, form, (0,))
    stored = PackedMatrix(*packed)
    assert stored.shape == w.shape
    assert packed.n_bytes == form.n_bytes(*w.shape)
    assert stored.bits_per_weight == form.bits_per_weight
    x = jnp.eye(256, dtype=jnp.float16)
    dense = decompress(packed, form, 0, jnp.float16)
    np.testing.assert_array_equal(packed_matmul(x, stored, implementation="xla"), dense)


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_the_inputs_add_up(parts, monkeypatch):
    """Also more steps than stages, and a number that the parts do not divide."""
    monkeypatch.setattr(mosaic.limits, "splits", lambda *_: parts)
    case = Case(8, 1408, 128)
    arrays = inputs(case, 0)
    assert relative_error(by_kernel(case, arrays), exact(case, *arrays)[0]) < 1e-6


def test_published_sizes_fill_the_gpu():
    """Most multiprocessors stream, and the sums are few bytes beside the weight's."""
    for case in TIMED:
        like = stored_like(case)
        parts = splits(case.tokens, *like.shape, like.group, like.bits_per_weight)
        blocks = case.outputs // COLUMNS * parts
        waves = -(-blocks // MULTIPROCESSORS)
        assert blocks >= (0.96 if case.tokens <= 16 else 0.7) * waves * MULTIPROCESSORS
        sums = 4 * parts * case.outputs * case.tokens
        assert sums <= (0.13 if case.tokens <= 16 else 0.5) * case.packed_bytes


def test_a_wrong_kernel_is_seen(monkeypatch):
    """Positions read from the wrong bits."""
    right = mosaic.unpacked
    monkeypatch.setattr(
        mosaic, "unpacked", lambda rows, places, dtype: right(rows, places ^ 1, dtype)
    )
    arrays = inputs(SPARSE, 0)
    assert relative_error(by_kernel(SPARSE, arrays), exact(SPARSE, *arrays)[0]) > 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "x is float32"),
        ({"tokens": 65}, "64 tokens at most, and there are 65"),
        ({"inputs": 192}, "a matrix is 192 x 128, and it takes multiples of 128 inputs"),
        ({"outputs": 192}, "a matrix is 128 x 192"),
        ({"group": 64}, "64 inputs share a scale"),
    ],
)
def test_what_the_kernel_cannot_do_it_refuses(change, reason):
    case = INT8._replace(**change)
    arrays = inputs(case, 0)
    with pytest.raises(NotImplementedError, match=reason) as refused:
        program(case, "mosaic")(*arrays)
    assert "implementation='xla'" in str(refused.value)
    found = program(case, "xla")(*arrays)[0]
    assert relative_error(found, exact(case, *arrays)[0]) < 1e-2


def test_without_a_gpu_that_ran_it_it_is_xla():
    arrays = inputs(INT8, 0)
    right = program(INT8, "xla")(*arrays)[0]
    with dispatch.enabling("mosaic"):  # this is no Hopper GPU
        np.testing.assert_array_equal(program(INT8, None)(*arrays)[0], right)
    with pytest.raises(NotImplementedError, match="it is for Hopper GPUs"):
        program(INT8, "mosaic")(*arrays)


def test_integer_tokens_need_integers_without_scales():
    x, values, scales = map(jnp.asarray, inputs(INT8, 0))
    with pytest.raises(ValueError, match="scale the sums"):
        packed_matmul(x.astype(jnp.int8), PackedMatrix(values, scales=scales))


def test_arrays_that_do_not_belong_together_are_refused():
    x, values, positions, scales = map(jnp.asarray, inputs(SPARSE, 0))
    for wrong in (
        PackedMatrix(values, positions[1:], scales),
        PackedMatrix(values, None, scales),
        PackedMatrix(values, positions, scales[:, :3]),
        PackedMatrix(values[:-2], positions, scales),
        PackedMatrix(values[None], positions[None], scales[None]),
    ):
        with pytest.raises(ValueError, match="does not fit values, positions and scales"):
            packed_matmul(x, wrong)


def test_a_float64_reference_is_exact():
    case = SPARSE._replace(dtype="float64")
    arrays = inputs(case, 1)
    assert relative_error(program(case, "xla")(*arrays)[0], exact(case, *arrays)[0]) < 1e-14


def test_a_wrong_row_of_the_benchmark_is_seen():
    baselines, case = BASELINES["packed_matmul"], INT4._replace(tokens=9, experts=2)
    arrays = baselines.draw(case, 0)
    run = baselines.baselines(case)["xla"]
    assert callable(run)
    out = run(*arrays)
    assert baselines.error(case, out, *arrays) < 1e-2
    assert baselines.error(case, out * 0, *arrays) == 1
