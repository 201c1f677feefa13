"""The backward step's passes, what it refuses, and the check that its benchmark makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import attention_step_backward, backward_cases
from parallax.kernels.ring_attention import backward_baselines as baselines
from parallax.kernels.ring_attention.backward_cases import Case
from parallax.kernels.ring_attention.backward_tiles import PASSES, Pass
from parallax.kernels.ring_attention.mask import Mask, score_elements

CASE = Case(64, "bfloat16", 96, 96, heads=2, kv_heads=1, is_causal=True)


@pytest.mark.parametrize("head_dim", PASSES)
def test_the_passes_make_each_gradient_once(head_dim):
    made = [name for cut in PASSES[head_dim] for name in cut.makes]
    assert sorted(made) == ["dk", "dq", "dv"]
    assert sum(cut.products for cut in PASSES[head_dim]) == (9 if head_dim == 512 else 7)


@pytest.mark.parametrize("cut", [PASSES[128][0], PASSES[64][1], PASSES[512][0], PASSES[256][1]])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", [64, 313, 1000])
@pytest.mark.parametrize(("window", "offset"), [(None, 0), (100, 0), (100, 64), (60, 1100)])
def test_score_elements_are_the_blocks_that_a_cluster_visits(
    cut, is_causal, length, window, offset
):
    """Counted one by one: a block is visited where some row of the cluster sees some key of it."""
    rows, tokens = cut.cluster_rows, np.arange(2048)
    mask = Mask(is_causal, window=window, offset=offset)
    back = offset + tokens[:, None] - tokens  # of a query from a key
    seen = (back >= 0) | (not is_causal and window is None)
    if window is not None:
        seen &= back < window
    seen = seen.T if cut.by_keys else seen
    visited = 0
    for first in range(0, length, rows):
        met = seen[first : first + rows]
        blocks = [met[:, x : x + cut.block].any() for x in range(0, length, cut.block)]
        visited += max(sum(blocks), 1)  # one at least: barriers wait for it
    found = score_elements(mask, (length, length), rows, cut.block, by_keys=cut.by_keys)
    assert found == visited * rows * cut.block


def test_the_cost_of_a_window_that_only_the_device_places_is_a_bound():
    cut = PASSES[128][0]

    def count(mask):
        return score_elements(mask, (1000, 1000), cut.cluster_rows, cut.block)

    bound = count(Mask(False, window=100, offset=jnp.int32(0)))
    for offset in (0, 64, 1000):
        assert count(Mask(False, window=100, offset=offset)) <= bound
    assert bound < count(Mask(False))


def test_d_out_of_another_dtype_is_refused():
    q = jnp.zeros((1, 8, 1, 64), jnp.bfloat16)
    sums = jnp.zeros((1, 1, 8), jnp.float32)
    with interpreted(), pytest.raises(NotImplementedError, match="d_out is float32") as refused:
        attention_step_backward(
            q, q, q, q.astype(jnp.float32), sums, sums, is_causal=False, scale=1.0,
            implementation="mosaic",
        )  # fmt: skip
    assert "Use implementation='xla'" in str(refused.value)


def test_the_benchmark_sees_which_gradients_are_right():
    arrays = baselines.draw(CASE, seed=0)
    xla = baselines.baselines(CASE)["xla"]
    assert not isinstance(xla, str)
    right = jax.jit(xla)(*arrays)
    assert baselines.error(CASE, right, *arrays) < 5e-3
    for wrong in range(3):
        out = [np.zeros(x.shape) if i == wrong else x for i, x in enumerate(right)]
        assert baselines.error(CASE, out, *arrays) == pytest.approx(1.0)


def test_a_pass_that_is_not_shipped_is_right_too():
    """One block of each array at a time, and blocks of threads that do not load together."""
    from parallax.kernels.ring_attention import mosaic

    case = Case(256, "bfloat16", 70, 140, heads=2)
    arrays = tuple(map(jnp.asarray, backward_cases.inputs(case, seed=1)))
    options = {"is_causal": False, "scale": 256**-0.5}
    q, k, v, d_out = arrays
    lse, delta = backward_cases.forward_sums(q, k, v, d_out, **options)
    passes = (
        Pass(("dq",), block=64, stages=(1, 1)),
        Pass(("dv", "dk"), block=64, stages=(1, 1), pair=True),
    )
    with interpreted():
        found = mosaic.step_backward(
            q, k, v, d_out, lse, delta, mask=Mask(False), scale=256**-0.5,
            passes=passes,
        )  # fmt: skip
    for mine, right in zip(
        found, backward_cases.exact(case, *map(np.asarray, arrays)), strict=True
    ):
        assert np.linalg.norm(np.asarray(mine) - right) < 5e-3 * np.linalg.norm(right)


@pytest.mark.parametrize("head_dim", [64, 256])
def test_rows_that_saw_nothing_have_no_gradient(head_dim):
    """Their log-sum-exp is -inf; here no key counts, and memory holds numbers all the same."""
    case = Case(head_dim, "bfloat16", 40, 72, limit=0)
    q, k, v, d_out, limit = map(jnp.asarray, backward_cases.inputs(case, seed=1))
    sums = jnp.ones((1, 1, 40), jnp.float32)
    for implementation in ("mosaic", "xla"):
        with interpreted():
            found = attention_step_backward(
                q, k, v, d_out, -jnp.inf * sums, sums, is_causal=False, scale=0.125,
                kv_length=limit, implementation=implementation,
            )  # fmt: skip
        for gradient in found:
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("offset", [-200, 500])
def test_a_window_beyond_all_keys_gives_no_gradient(offset):
    """Pairs of a ring may be farther apart than a window; the device alone knows the offset."""
    case = Case(64, "bfloat16", 40, 72)
    q, k, v, d_out = map(jnp.asarray, backward_cases.inputs(case, seed=1))
    sums = jnp.ones((1, 1, 40), jnp.float32)
    with interpreted():
        found = jax.jit(functools.partial(
            attention_step_backward, is_causal=False, scale=0.125, window=50,
            implementation="mosaic",
        ))(q, k, v, d_out, sums, sums, offset=jnp.int32(offset))  # fmt: skip
    for gradient in found:
        np.testing.assert_array_equal(gradient, 0)
