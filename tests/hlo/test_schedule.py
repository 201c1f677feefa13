"""What the scheduled CUDA program runs between the start and the done of a transfer."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from parallax.hlo import HloError, jaxpr_ledger, parse_module, read_ledger
from parallax.hlo.compare import compare
from parallax.hlo.flops import module_flops

P = PartitionSpec

COLLECTIVES = {
    "all-reduce": lambda y: lax.psum(y, "b") / 8,
    "all-to-all": lambda y: lax.all_to_all(y, "b", 0, 0, tiled=True),
    "all-gather": lambda y: lax.all_gather(y, "b", axis=0, tiled=True)[::4],
    "reduce-scatter": lambda y: jnp.tile(lax.psum_scatter(y, "b", tiled=True), (4, 1)),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_a_collective_beside_independent_products_is_async_with_them_between(cuda, kind):
    def body(x, w, y):
        def step(carry, _):
            x, y = carry
            sent = COLLECTIVES[kind](y)
            for _ in range(3):
                x = jnp.tanh(x @ w)
            return (x, sent), None

        return lax.scan(step, (x, y), None, length=6)[0]

    mesh = cuda.mesh(a=4, b=4)
    specs = (P("a"), P(), P(("a", "b")))
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=(specs[0], specs[2]), check_vma=False
    )
    case = cuda(
        mapped,
        mesh,
        ((16384, 4096), jnp.bfloat16, "a"),
        ((4096, 4096), jnp.bfloat16),
        ((65536, 2048), jnp.bfloat16, ("a", "b")),
    )
    (moved,) = read_ledger(case.text, case.axes)
    assert (moved.kind, moved.count, moved.gemms_between) == (kind, 6, 3)
    assert moved.async_with_compute
    assert moved.flops_between == 3 * 2 * 4096**3
    assert compare(jaxpr_ledger(case.jaxpr, case.axes), read_ledger(case.text, case.axes)) == ()


def test_a_ring_at_full_size(cuda):
    """Fifteen hops of keys and of values in each of four layers, attention meanwhile."""
    ring = [(i, (i + 1) % 16) for i in range(16)]

    def hop(carry, _, q):
        k, v, o = carry
        onward = lax.ppermute(k, "seq", ring), lax.ppermute(v, "seq", ring)
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        o += jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(s / 64).astype(q.dtype), v)
        return (*onward, o), None

    def body(q, k, v):
        def layer(q, _):
            carry = (k, v, jnp.zeros_like(q))
            return lax.scan(lambda c, x: hop(c, x, q), carry, None, length=15)[0][2], None

        return lax.scan(layer, q, None, length=4)[0]

    mesh = cuda.mesh(seq=16)
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P(None, "seq"),) * 3, out_specs=P(None, "seq")
    )
    case = cuda(mapped, mesh, *[((16, 10000, 16, 512), jnp.float16, None, "seq")] * 3)
    ledger = read_ledger(case.text, case.axes)
    shard_bytes = 16 * 625 * 16 * 512 * 2
    assert [(c.kind, c.axes, c.count, c.wire_bytes) for c in ledger] == [
        ("collective-permute", ("seq",), 60, shard_bytes)
    ] * 2
    assert all(c.async_with_compute for c in ledger)
    # One Q K^T and one P V a hop: 2 x 2 B H Lq Lk K.
    flops = module_flops(parse_module(case.text))
    assert flops.high == 60 * 2 * 2 * 16 * 16 * 625 * 625 * 512
    assert flops.gemms == 120


def test_a_small_sum_inside_a_fusion_is_async(cuda):
    """Small all-reduces become fusions with a start and a done of their own."""
    mesh = cuda.mesh(a=4, b=4)
    mapped = jax.shard_map(
        lambda x: lax.psum(x * 2, "b"), mesh=mesh, in_specs=P("a", "b"), out_specs=P("a")
    )
    case = cuda(mapped, mesh, ((1024, 1024), jnp.float32, "a", "b"))
    assert "fusion-start(" in case.text
    (moved,) = read_ledger(case.text, case.axes)
    assert (moved.kind, moved.axes, moved.count) == ("all-reduce", ("b",), 1)
    assert moved.is_async
    assert not moved.async_with_compute


def test_library_products_are_counted(cuda):
    mesh = cuda.mesh(a=4, b=4)

    def body(x, w):
        heads = x.reshape(4, -1, 512)
        return x @ w, jnp.einsum("bij,bkj->bik", heads, heads)

    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), check_vma=False
    )
    case = cuda(
        mapped,
        mesh,
        ((4096, 512), jnp.bfloat16, "a"),
        ((512, 512), jnp.bfloat16),
        options={"xla_gpu_enable_triton_gemm": False},
    )
    assert "__cublas$" in case.text
    flops = module_flops(parse_module(case.text))
    assert flops.high == 2 * 1024 * 512 * 512 + 2 * 4 * 256 * 256 * 512
    # The epilogue's dimension numbers stand in JSON; without them nothing is guessed.
    with pytest.raises(HloError, match="dot dimensions"):
        module_flops(parse_module(case.text.replace("dot_dimension_numbers", "dims")))
