"""The MLP of decoding: cuts, refusals, weights that stay in their stack; a wrong kernel is seen."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels import dispatch
from parallax.kernels.cache_tiled_mlp import (
    Matrix,
    cache_tiled_mlp,
    mosaic,
)
from parallax.kernels.cache_tiled_mlp import cut as cutting
from parallax.kernels.cache_tiled_mlp.cases import SMALL, TIMED, Case, exact, inputs, program
from parallax.kernels.cache_tiled_mlp.cut import cut
from parallax.kernels.chip import MULTIPROCESSORS, SHARED_BYTES_LIMIT
from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import BASELINES


def relative(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def errors(case, seed=3):
    """(ours, XLA's)."""
    arrays = inputs(case, seed)
    (expected,) = exact(case, *arrays)
    with interpreted():
        (ours,) = jax.jit(program(case, "mosaic"))(*arrays)
    (theirs,) = jax.jit(program(case, "xla"))(*arrays)
    return relative(ours, expected), relative(theirs, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case(20, 512, 256),
        Case(20, 512, 128, "float16", group=0, is_gated=True, activation="silu", has_bias=True),
        Case(20, 512, 256, group=128),
    ],
    ids=lambda case: case.name,
)
def test_one_split_of_more_steps_than_stages(case, monkeypatch):
    """Loader and consumers take turns on each stage, and the first launch has the activation."""
    monkeypatch.setattr(cutting, "splits_of", lambda *_, **__: 1)
    found = cut(
        20, 512, 256, matrices=2 if case.is_gated else 1, item_bytes=1 + (case.group is None)
    )
    assert found.splits == 1
    assert found.steps > found.stages
    ours, theirs = errors(case)
    assert ours <= 1.2 * theirs


def test_a_wrong_kernel_is_seen(monkeypatch):
    """The last step left out. Blocks that write the same columns are a race, and seen as one."""
    right = mosaic.place

    def place(cut, block):
        found = right(cut, block)
        return found._replace(steps=found.steps - 1)

    monkeypatch.setattr(mosaic, "place", place)
    monkeypatch.setattr(cutting, "splits_of", lambda *_, **__: 1)
    assert errors(Case(9, 256, 512))[0] > 0.1


def test_cuts_of_published_sizes_fill_the_gpu():
    """All but 4 % of the multiprocessors stream, and the sums they leave are few bytes."""
    for case in TIMED[:10]:
        for shape in case.shapes:
            item_bytes = 2 if case.group is None else 1
            found = cut(case.tokens, *shape, item_bytes=item_bytes)
            waves = -(-found.blocks // MULTIPROCESSORS)
            assert found.blocks >= 0.96 * waves * MULTIPROCESSORS
            sums = found.splits * case.tokens * shape[1] * 4 if found.splits > 1 else 0
            assert sums <= 0.07 * shape[0] * shape[1] * found.item_bytes


@pytest.mark.parametrize("tokens", [1, 64, 65, 128, 129, 300, 1000])
@pytest.mark.parametrize("item_bytes", [1, 2])
@pytest.mark.parametrize("matrices", [1, 2])
def test_a_cut_covers_everything_and_fits(tokens, item_bytes, matrices):
    found = cut(tokens, 1024, 1100 * 64, matrices=matrices, item_bytes=item_bytes)
    assert tokens <= found.groups * found.rows < tokens + 64 * found.groups
    assert found.tiles * found.columns >= 1100 * 64
    assert found.stages >= 3
    step = 64 * (2 * found.rows + 256 * item_bytes)
    assert found.stages * step + 2 * found.unpacked_bytes + 2 * 8192 <= SHARED_BYTES_LIMIT
    # Registers of sums, of 232: a warpgroup has all rows of its share of the columns.
    assert found.rows * found.share * matrices / 128 <= 128
    where = jax.vmap(functools.partial(mosaic.place, found))(
        jnp.arange(found.blocks, dtype=jnp.int32)
    )
    group, tile, _, first, steps = (np.asarray(x) for x in where)
    assert steps.min() >= 1
    visits = np.zeros((found.groups, found.tiles, found.steps), int)
    for block in range(found.blocks):
        visits[group[block], tile[block], first[block] : first[block] + steps[block]] += 1
    assert (visits == 1).all()


def test_without_a_kernel_that_a_gpu_has_run_it_is_xla():
    case = SMALL[0]
    arrays = inputs(case, 0)
    for found in (program(case, None), program(case, "xla")):
        assert relative(found(*arrays)[0], exact(case, *arrays)[0]) < 1e-2
    with pytest.raises(NotImplementedError, match=r"it is for Hopper GPUs.*implementation='xla'"):
        program(case, "mosaic")(*arrays)
    with dispatch.enabling("mosaic"):
        assert relative(program(case, None)(*arrays)[0], exact(case, *arrays)[0]) < 1e-2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "x is float32"),
        ({"tokens": 513}, "512 tokens at most, and there are 513"),
        ({"d_model": 96}, "96 x 256 bfloat16, it takes multiples of 64"),
        ({"d_ff": 320, "group": 0}, "128 x 320 int8, it takes multiples of 128"),
        ({"group": 32}, "32 inputs share a scale"),
    ],
)
def test_what_the_kernel_cannot_do_it_refuses(change, reason):
    case = Case(3, 128, 256)._replace(**change)
    with pytest.raises(NotImplementedError, match=reason) as refused:
        program(case, "mosaic")(*inputs(case, 0))
    assert "implementation='xla'" in str(refused.value)
    assert program(case, "xla")(*inputs(case, 0))[0].shape == (case.tokens, case.d_model)


def test_arrays_that_do_not_belong_together_are_refused():
    x, up, down = (jnp.zeros(s, jnp.bfloat16) for s in ((3, 64), (1, 64, 128), (1, 128, 64)))
    scales = jnp.ones((1, 1, 128), jnp.float32)
    for change, message in (
        ({"down": Matrix(up)}, r"require down of \(1, 128, 64\)"),
        ({"up": Matrix(up.astype(jnp.float16))}, "up is float16 without scales"),
        ({"up": Matrix(up, scales)}, "up is bfloat16 with scales"),
        ({"up": Matrix(up.astype(jnp.int8), scales[..., :3])}, "scales of up have shape"),
        ({"up": Matrix(up, None, scales[0])}, None),
        ({"up": Matrix(up, None, scales[0, :, :5])}, "the bias of up has shape"),
        ({"activation": "tanh"}, "'tanh' is none of gelu, relu, silu"),
    ):
        arguments: Any = {"up": Matrix(up), "down": Matrix(down)} | change
        if message is None:
            assert cache_tiled_mlp(x, **arguments).shape == x.shape
            continue
        with pytest.raises(ValueError, match=message):
            cache_tiled_mlp(x, **arguments)


def test_the_kernel_has_no_gradient_and_says_so():
    case = SMALL[0]
    x, *rest = map(jnp.asarray, inputs(case, 0))

    def loss(x, implementation):
        return program(case, implementation)(x, *rest)[0].sum()

    assert jax.grad(loss)(x, "xla").shape == x.shape
    with interpreted(), pytest.raises(NotImplementedError, match=r"no gradient.*'xla'"):
        jax.grad(loss)(x, "mosaic")


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_float64_reference_is_exact(activation, is_gated):
    case = Case(7, 48, 80, "float64", is_gated, has_bias=True, activation=activation)
    arrays = inputs(case, 1)
    assert relative(program(case, "xla")(*arrays)[0], exact(case, *arrays)[0]) < 1e-14


def test_a_wrong_row_of_the_benchmark_is_seen():
    baselines, case = BASELINES["cache_tiled_mlp"], Case(9, 64, 128)
    arrays = baselines.draw(case, 0)
    run = baselines.baselines(case)["xla"]
    assert callable(run)
    out = run(*arrays)
    assert baselines.error(case, out, *arrays) < 1e-2
    assert baselines.error(case, out * 0, *arrays) == 1
