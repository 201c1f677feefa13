"""Ledgers of real compiled programs against closed forms, and forms that must be refused."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.hlo import HloError, compare, jaxpr_ledger, parse_module, read_ledger
from parallax.hlo.caveats import branch_caveats
from parallax.hlo.flops import Flops, module_flops

P = PartitionSpec


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_five_kinds_have_their_closed_form(five, compiler, dtype):
    """Local x is [256, 256]: S is that, and four times that where "a" is gathered."""
    ledger = read_ledger(five(dtype).text, {"a": 4, "b": 4})
    # The CPU backend widens bfloat16 collectives.
    widened = compiler.platform == "cpu" and dtype == jnp.bfloat16
    item = 4 if widened else jnp.dtype(dtype).itemsize
    size = 256 * 256 * item
    assert ledger.by_kind_and_axes() == {
        ("all-reduce", ("b",)): 5 * 2 * 3 / 4 * size,
        ("all-gather", ("a",)): 5 * 3 * size,
        ("reduce-scatter", ("a",)): 5 * 3 * size,
        ("collective-permute", ("a",)): 5 * size,
        ("all-to-all", ("b",)): 5 * 3 / 4 * size,
    }
    assert {c.count for c in ledger} == {5}
    assert {c.group_size for c in ledger} == {4}
    assert {c.senders for c in ledger} == {16}


def test_the_jaxpr_says_the_same(five_float16):
    witness = jaxpr_ledger(five_float16.jaxpr, five_float16.axes)
    ledger = read_ledger(five_float16.text, five_float16.axes)
    assert compare(witness, ledger) == ()
    assert len(witness) == len(ledger) == 5


def test_flops_of_five(five_float16):
    assert module_flops(parse_module(five_float16.text)).high == 5 * 2 * 256**3


def test_a_mesh_of_another_size_is_refused(five_float16):
    with pytest.raises(HloError, match="16 partitions"):
        read_ledger(five_float16.text, {"a": 4, "b": 2})


def test_nested_loops_multiply_and_open_chains_send_less(compiler):
    def hop(x, w):
        return lax.ppermute(jnp.tanh(x @ w), "b", [(0, 1), (1, 2), (2, 3)])

    def body(x, w):
        def outer(x, _):
            return lax.scan(lambda x, _: (hop(x, w), None), x, None, length=3)[0], None

        return lax.scan(outer, x, None, length=7)[0]

    mesh = compiler.mesh(a=4, b=4)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=(P("a", "b"), P()), out_specs=P("a", "b"))
    case = compiler(mapped, mesh, ((64, 256), jnp.float32, "a", "b"), ((64, 64), jnp.float32))
    (moved,) = read_ledger(case.text, case.axes)
    assert (moved.count, moved.axes, moved.wire_bytes) == (21, ("b",), 16 * 64 * 4)
    assert moved.senders == 12
    assert module_flops(parse_module(case.text)).gemms == 21
    assert compare(jaxpr_ledger(case.jaxpr, case.axes), read_ledger(case.text, case.axes)) == ()


def test_a_ring_over_two_axes(compiler):
    ring = [(i, (i + 1) % 16) for i in range(16)]
    mesh = compiler.mesh(node=2, seq=8)
    axes = ("node", "seq")
    mapped = jax.shard_map(
        lambda x: lax.ppermute(x, axes, ring), mesh=mesh, in_specs=P(axes), out_specs=P(axes)
    )
    case = compiler(mapped, mesh, ((256, 16), jnp.float32, axes))
    (moved,) = read_ledger(case.text, case.axes)
    assert (moved.axes, moved.group_size) == (axes, 16)
    assert compare(jaxpr_ledger(case.jaxpr, case.axes), read_ledger(case.text, case.axes)) == ()


def test_the_partitioners_collectives(compiler):
    """Contracted over "b": one sum over "b" of the [256, 512] shard, chosen by the partitioner."""
    mesh = compiler.mesh(a=4, b=4)
    where = NamedSharding(mesh, P("a", None))
    case = compiler(
        lambda x, w: lax.with_sharding_constraint(x @ w, where),
        mesh,
        ((1024, 2048), jnp.float32, "a", "b"),
        ((2048, 512), jnp.float32, "b", None),
    )
    ledger = read_ledger(case.text, case.axes)
    assert ledger.by_kind_and_axes() == {("all-reduce", ("b",)): 2 * 3 / 4 * 256 * 512 * 4}
    assert len(jaxpr_ledger(case.jaxpr, case.axes)) == 0


def test_gradients_of_a_tensor_parallel_block(compiler):
    """Sums over "b" forward and backward; the loss and the weights' gradients over "a"."""
    mesh = compiler.mesh(a=4, b=4)

    def loss(x, w1, w2):
        def body(x, w1, w2):
            y = lax.psum(jnp.tanh(x @ w1) @ w2, "b")
            return lax.psum((y * y).sum(), "a")

        specs = (P("a"), P(None, "b"), P("b", None))
        return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P())(x, w1, w2)

    case = compiler(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        mesh,
        ((256, 64), jnp.float32, "a", None),
        ((64, 128), jnp.float32, None, "b"),
        ((128, 64), jnp.float32, "b", None),
    )
    found = read_ledger(case.text, case.axes).by_kind_and_axes()
    item, tokens, weights = 4, 64 * 64, 2 * 64 * 32
    assert found["all-reduce", ("b",)] == 2 * 1.5 * tokens * item
    assert found["all-reduce", ("a",)] == 1.5 * (weights + 1) * item
    assert compare(jaxpr_ledger(case.jaxpr, case.axes), read_ledger(case.text, case.axes)) == ()


def _conditional(compiler, body):
    mesh = compiler.mesh(a=4, b=4)
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P("a"), P(), P()), out_specs=P("a"), check_vma=False
    )
    return compiler(
        mapped, mesh, ((64, 16), jnp.float32, "a"), ((16, 16), jnp.float32), ((), jnp.int32)
    )


def test_of_a_branch_one_side_is_taken(compiler):
    def both(x, w, p):
        return lax.cond(p > 0, lambda: lax.psum(x @ w, "b"), lambda: lax.psum(x - 1.0, "b"))

    def unequal(x, w, p):
        def twice():
            return lax.psum(lax.psum(x, "b") @ w, "b")

        return lax.switch(p, [twice, lambda: lax.psum(x, "b"), lambda: lax.psum(x, "b")])

    once = 2 * 3 / 4 * 16 * 16 * 4
    for body, low, high in ((both, once, once), (unequal, once, 2 * once)):
        case = _conditional(compiler, body)
        ledger = read_ledger(case.text, case.axes)
        assert (ledger.low_total, ledger.total()) == (low, high)
        assert ledger.by_kind_and_axes() == {("all-reduce", ("b",)): high}
        assert sum(c.total_bytes for c in ledger) > high  # each is listed
        (note,) = branch_caveats(ledger, Flops())
        assert ("whichever side" in note) == (low == high)


def test_what_depends_on_data_is_counted_and_says_so(compiler):
    def branch(x, w, p):
        return lax.cond(p > 0, lambda: lax.psum(x @ w, "b"), lambda: x)

    def loop(x, w, p):
        return lax.while_loop(
            lambda c: c[0] < p, lambda c: (c[0] + 1, lax.psum(c[1] @ w, "b")), (jnp.int32(0), x)
        )[1]

    for body, low, is_open in ((branch, 0, False), (loop, 1, True)):
        case = _conditional(compiler, body)
        ledger = read_ledger(case.text, case.axes)
        (moved,) = ledger
        assert (moved.kind, moved.count, moved.low_count) == ("all-reduce", 1, low)
        assert bool(moved.open_loop) == bool(ledger.open_loops) == is_open
        assert (ledger.low_total == 0) == (low == 0)
        flops = module_flops(parse_module(case.text))
        assert (flops.low, flops.high) == (low * 2 * 16**3, 2 * 16**3)
        assert flops.open == frozenset(ledger.open_loops)
        with pytest.raises(HloError, match="how often it runs is unknown"):
            jaxpr_ledger(case.jaxpr, case.axes)
    (moved,) = read_ledger(case.text, case.axes, trips={"while": 2.5})
    assert (moved.count, moved.open_loop) == (2.5, "")


def test_flops_of_a_branch_are_a_range(compiler):
    def body(x, w, p):
        # In a conditional of an axis index neither branch can be chosen beforehand.
        return lax.cond(lax.axis_index("a") > p, lambda: x @ w @ w, lambda: x @ w)

    case = _conditional(compiler, body)
    flops = module_flops(parse_module(case.text))
    assert (flops.low, flops.high) == (2 * 16**3, 2 * 2 * 16**3)
    assert len(read_ledger(case.text, case.axes)) == 0
