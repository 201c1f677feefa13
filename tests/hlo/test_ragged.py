"""Programs of routed rows: ragged all-to-alls, and loops over as many tiles as there are rows."""

import random
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from parallax.hlo import HloError, compare, jaxpr_ledger, parse_module, read_ledger
from parallax.hlo.caveats import branch_caveats, open_caveats
from parallax.hlo.flops import Flops, executions, module_flops

P = PartitionSpec
AXES = {"a": 4, "b": 4}
ROWS, BUFFER, TILE, WIDTH = 512, 1024, 128, 256
PAYLOAD = ROWS * WIDTH * 2
TILE_FLOPS = 2 * TILE * WIDTH * WIDTH


def _exchange(rows, tables):
    buffer = jnp.zeros((BUFFER, WIDTH), rows.dtype)
    return lax.ragged_all_to_all(rows, buffer, *tables, axis_name="b")


def _tiles(received, w, tables, scope="expert_tiles"):
    """A product for every tile of rows that came: how many there are is data."""
    filled = (tables[3].sum(dtype=jnp.int32) + TILE - 1) // TILE

    def tile(carry):
        i, out = carry
        rows = lax.dynamic_slice_in_dim(received, i * TILE, TILE)
        return i + 1, lax.dynamic_update_slice_in_dim(out, jnp.tanh(rows @ w), i * TILE, 0)

    with jax.named_scope(scope):
        start = jnp.int32(0), jnp.zeros_like(received)
        return lax.while_loop(lambda c: c[0] < filled, tile, start)[1]


def _routed(cuda, layers):
    """Exchanges of one batch while the rows received before are worked on, layer by layer."""

    def body(rows, received, w, tables):
        def layer(carry, _):
            rows, received = carry
            new = _exchange(rows, tables)
            done = _tiles(received, w, tables)
            return (done[:ROWS], new), None

        return lax.scan(layer, (rows, received), None, length=layers)[0]

    mesh = cuda.mesh(**AXES)
    both = P(("a", "b"))
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(both, both, P(), P()), out_specs=(both, both), check_vma=False
    )
    return cuda(
        mapped,
        mesh,
        ((16 * ROWS, WIDTH), jnp.bfloat16, ("a", "b")),
        ((16 * BUFFER, WIDTH), jnp.bfloat16, ("a", "b")),
        ((WIDTH, WIDTH), jnp.bfloat16),
        ((4, 4), jnp.int32),
    )


@pytest.fixture(scope="module")
def routed(cuda):
    return _routed(cuda, 3)


TRIPS = {"expert_tiles": 2.5}


def test_a_ragged_exchange_is_its_buffer_until_someone_knows_more(routed):
    (moved,) = ledger = read_ledger(routed.text, AXES, trips=TRIPS)
    assert (moved.kind, moved.axes, moved.count) == ("ragged-all-to-all", ("b",), 3)
    assert moved.payload_bytes == moved.wire_bytes == PAYLOAD
    assert moved.dtype == "bf16"
    assert moved.ragged
    assert moved.is_bound
    assert ledger.is_bound
    assert "an upper bound" in branch_caveats(ledger, Flops())[-1]
    witness = jaxpr_ledger(routed.jaxpr, AXES)
    assert witness.is_bound
    assert compare(witness, ledger) == ()


def test_derived_bytes_are_what_is_counted(routed):
    def derived(c):
        return c.payload_bytes * 0.375 if c.axes == ("b",) else None

    (moved,) = ledger = read_ledger(routed.text, AXES, ragged_bytes=derived, trips=TRIPS)
    assert (moved.payload_bytes, moved.wire_bytes) == (PAYLOAD, 0.375 * PAYLOAD)
    assert ledger.by_kind_and_axes() == {("ragged-all-to-all", ("b",)): 3 * 0.375 * PAYLOAD}
    assert not ledger.is_bound
    assert branch_caveats(ledger, Flops()) == ()
    witness = jaxpr_ledger(routed.jaxpr, AXES, ragged_bytes=derived)
    assert compare(witness, ledger) == ()
    assert compare(jaxpr_ledger(routed.jaxpr, AXES), ledger) != ()


@pytest.mark.parametrize("wrong", [-1.0, PAYLOAD + 1, float("nan")])
def test_derived_bytes_that_cannot_be_are_refused(routed, wrong):
    for ledger in (
        lambda: read_ledger(routed.text, AXES, ragged_bytes=lambda c: wrong, trips=TRIPS),
        lambda: jaxpr_ledger(routed.jaxpr, AXES, ragged_bytes=lambda c: wrong),
    ):
        with pytest.raises(HloError, match="one execution"):
            ledger()


def test_flops_of_tiles_are_those_of_the_trips_given(routed):
    module = parse_module(routed.text)
    assert module_flops(module, trips=TRIPS).high == 3 * 2.5 * TILE_FLOPS
    assert module_flops(module, trips={"expert_tiles": 4}).gemms == 3 * 4
    assert module_flops(module, trips={"expert_tiles": 0}).high == 0
    assert module_flops(module, "expert_tiles", TRIPS).high == 3 * 2.5 * TILE_FLOPS
    assert module_flops(module, "attention", TRIPS).high == 0


@pytest.mark.parametrize("trips", [None, {}, {"other": 1}, {"": 1}])
def test_without_trips_a_loop_counts_once_and_says_what_to_pass(routed, trips):
    flops = module_flops(parse_module(routed.text), trips=trips)
    assert flops.high == 3 * TILE_FLOPS
    (note,) = open_caveats(flops.open)
    assert "'expert_tiles': iterations" in note


@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan")])
def test_trips_that_cannot_be_are_refused(routed, wrong):
    with pytest.raises(HloError, match="finite and not negative"):
        module_flops(parse_module(routed.text), trips={"expert_tiles": wrong})


def test_two_scopes_that_disagree_about_a_loop_are_refused(routed):
    module = parse_module(routed.text)
    with pytest.raises(HloError, match="one loop twice"):
        module_flops(module, trips={"expert": 1, "tiles": 2})
    same = module_flops(module, trips={"expert": 2, "tiles": 2})
    assert same == module_flops(module, trips={"expert_tiles": 2})


def test_executions_are_open_until_trips_are_given(routed):
    module = parse_module(routed.text)
    assert {e.loop.split(" ")[0] for e in executions(module)} == {"", "expert_tiles"}
    given = list(executions(module, TRIPS))
    assert 7.5 in {e.times for e in given}
    assert {e.loop for e in given} == {""}


def test_a_loop_in_a_loop_needs_a_scope_of_its_own(cuda):
    """The outer scope is part of the inner loop's name too, and says nothing about its length."""

    def body(x, w, n):
        def outer(carry):
            i, x = carry
            return i + 1, _tiles(x, w, (n,) * 4, "inner_tiles")

        with jax.named_scope("outer_tiles"):
            return lax.while_loop(lambda c: c[0] < n[1], outer, (jnp.int32(0), x))[1]

    mesh = cuda.mesh(**AXES)
    both = P(("a", "b"))
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(both, P(), P()), out_specs=both, check_vma=False
    )
    case = cuda(
        mapped,
        mesh,
        ((16 * BUFFER, WIDTH), jnp.bfloat16, ("a", "b")),
        ((WIDTH, WIDTH), jnp.bfloat16),
        ((4,), jnp.int32),
    )
    module = parse_module(case.text)
    outer = module_flops(module, trips={"outer_tiles": 2})
    assert outer.high == 2 * TILE_FLOPS
    assert [name.split(" ")[0] for name in outer.open] == ["inner_tiles"]
    both_trips = {"outer_tiles": 2, "inner_tiles": 5}
    assert module_flops(module, trips=both_trips).high == 2 * 5 * TILE_FLOPS
    assert len(jaxpr_ledger(case.jaxpr, AXES)) == 0


def test_a_collective_in_such_a_loop_takes_its_trips(cuda):
    def body(x, n):
        with jax.named_scope("expert_tiles"):
            return lax.while_loop(
                lambda c: c[0] < n, lambda c: (c[0] + 1, lax.psum(c[1], "b") / 4), (jnp.int32(0), x)
            )[1]

    mesh = cuda.mesh(**AXES)
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), check_vma=False
    )
    case = cuda(mapped, mesh, ((64, 16), jnp.float32, "a"), ((), jnp.int32))
    for trips, count in ((None, 1), ({"expert_tiles": 1}, 1), ({"expert_tiles": 2.5}, 2.5)):
        (moved,) = read_ledger(case.text, AXES, trips=trips)
        assert moved.count == count
        assert moved.open_loop.startswith("expert_tiles ") == (trips is None)


SYNC = """\
HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (p: bf16[6,8], o: bf16[9,8], t: s64[2]) -> bf16[9,8] {
  %p = bf16[6,8]{1,0} parameter(0)
  %o = bf16[9,8]{1,0} parameter(1)
  %t = s64[2]{0} parameter(2)
  ROOT %r = bf16[9,8]{1,0} ragged-all-to-all(%p, %o, %t, %t, %t, /*index=5*/%t), channel_id=1, \
replica_groups={{0,1},{2,3}}
}
"""
WRAPPED = """\
HloModule m, is_scheduled=true, num_partitions=4

%wrapped (p: bf16[6,8], o: bf16[9,8], t: s64[2]) -> bf16[9,8] {
  %p = bf16[6,8]{1,0} parameter(0)
  %o = bf16[9,8]{1,0} parameter(1)
  %t = s64[2]{0} parameter(2)
  ROOT %r = bf16[9,8]{1,0} ragged-all-to-all(%p, %o, %t, %t, %t, /*index=5*/%t), channel_id=1, \
replica_groups={{0,1},{2,3}}
}

ENTRY %main (a: bf16[6,8], b: bf16[9,8], c: s64[2]) -> bf16[9,8] {
  %a = bf16[6,8]{1,0} parameter(0)
  %b = bf16[9,8]{1,0} parameter(1)
  %c = s64[2]{0} parameter(2)
  %s = ((bf16[6,8]{1,0}, bf16[9,8]{1,0}, s64[2]{0}), bf16[9,8]{1,0}) async-start(%a, %b, %c), \
calls=%wrapped
  ROOT %d = bf16[9,8]{1,0} async-done(%s), calls=%wrapped
}
"""
SMALL = {"a": 2, "b": 2}
TILES = """\
HloModule m, is_scheduled=true, num_partitions=4

%body (c: f32[8,8]) -> f32[8,8] {
  %c = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%c, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%more (m: f32[8,8]) -> pred[] {
  %m = f32[8,8]{1,0} parameter(0)
  ROOT %is = pred[] custom-call(%m), custom_call_target="more"
}

ENTRY %main (p: bf16[6,8], o: bf16[9,8], t: s64[2], x: f32[8,8]) -> (bf16[9,8], f32[8,8]) {
  %p = bf16[6,8]{1,0} parameter(0)
  %o = bf16[9,8]{1,0} parameter(1)
  %t = s64[2]{0} parameter(2)
  %x = f32[8,8]{1,0} parameter(3)
  %s = ((bf16[6,8]{1,0}, bf16[9,8]{1,0}, s64[2]{0}, s64[2]{0}, s64[2]{0}, /*index=5*/s64[2]{0}), \
bf16[9,8]{1,0}) ragged-all-to-all-start(%p, %o, %t, %t, %t, /*index=5*/%t), channel_id=1, \
replica_groups={{0,1},{2,3}}
  %w = f32[8,8]{1,0} while(%x), condition=%more, body=%body, \
metadata={op_name="jit(f)/layers/while/body/expert_tiles/while"}
  %d = bf16[9,8]{1,0} ragged-all-to-all-done(%s)
  ROOT %r = (bf16[9,8]{1,0}, f32[8,8]{1,0}) tuple(%d, %w)
}
"""


@pytest.mark.parametrize(("text", "is_async"), [(SYNC, False), (WRAPPED, True)])
def test_both_forms_by_hand(text, is_async):
    (moved,) = read_ledger(text, SMALL)
    assert (moved.payload_bytes, moved.wire_bytes, moved.count) == (6 * 8 * 2, 6 * 8 * 2, 1)
    assert (moved.axes, moved.is_async, moved.is_bound) == (("b",), is_async, True)


def test_tiles_between_start_and_done_count_with_their_trips():
    (moved,) = read_ledger(TILES, SMALL, trips=TRIPS)
    assert moved.async_with_compute
    # The number of products is rounded up.
    assert (moved.gemms_between, moved.flops_between) == (3, 2.5 * 2 * 8**3)
    for trips in (None, {"layers": 2.5}):
        (moved,) = read_ledger(TILES, SMALL, trips=trips)
        assert (moved.gemms_between, moved.flops_between) == (1, 2 * 8**3)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("%t, %t, %t, /*index=5*/%t)", "%t, %t, %t)", "expected 6 operands, got 5"),
        ("%p, %o,", "%o, %p,", "received over"),
        ("%r = bf16[9,8]", "%r = bf16[9,7]", "received over"),
        ("%r = bf16[9,8]", "%r = f16[9,8]", "received over"),
        ("%p = bf16[6,8]", "%p = bf16[6,4]", "do not fit"),
        ("%p = bf16[6,8]", "%p = f16[6,8]", "do not fit"),
        ("%p = bf16[6,8]{1,0}", "%p = bf16[]", "do not fit|received over"),
        ("%t = s64[2]", "%t = s64[3]", "multiple of the group's 2"),
        ("%t = s64[2]", "%t = s64[0]", "multiple of the group's 2"),
        ("%t = s64[2]{0}", "%t = s64[2,1]{1,0}", "tables of integers"),
        ("%t = s64[2]", "%t = f32[2]", "tables of integers"),
        ("{{0,1},{2,3}}", "{{0,1,2,3}}", "multiple of the group's 4"),
        ("{{0,1},{2,3}}", "{{0,1},{2,4}}", "each once"),
        ("replica_groups=", "groups=", "expected replica_groups="),
        ("channel_id=1, ", "", "expected channel_id="),
        (" ragged-all-to-all(", " ragged-all-to-al(", "not understood"),
    ],
)
def test_an_altered_exchange_is_refused(old, new, why):
    assert SYNC.count(old) == 1
    with pytest.raises(HloError, match=why):
        read_ledger(SYNC.replace(old, new), SMALL)


def test_tables_of_different_lengths_are_refused():
    text = SYNC.replace("%t, /*index=5*/%t)", "%t, /*index=5*/%long)").replace(
        "  ROOT", "  %long = s64[4]{0} pad(%t, %t), padding=0_2\n  ROOT"
    )
    with pytest.raises(HloError, match="four equal tables"):
        read_ledger(text, SMALL)


@given(st.integers(0, len(WRAPPED.rstrip()) - 1))
def test_an_exchange_that_is_cut_off_is_refused(end):
    with pytest.raises(HloError):
        read_ledger(WRAPPED[:end], SMALL)


@given(st.data())
def test_a_damaged_exchange_is_refused_or_read_the_same(data):
    """Any one character but a digit dropped or put in place of another, on the exchange's lines."""
    text = data.draw(st.sampled_from([SYNC, WRAPPED]))
    places = [
        i
        for line in re.finditer(r".*(ragged-all-to-all|async-).*", text)
        for i in range(*line.span())
        if not text[i].isdigit()
    ]
    at = data.draw(st.sampled_from(places))
    put = data.draw(st.sampled_from(["", *'(){}[],%="x- ']))
    try:
        found = read_ledger(text[:at] + put + text[at + 1 :], SMALL)
    except HloError:
        return
    assert found.by_kind_and_axes() == read_ledger(text, SMALL).by_kind_and_axes()


@pytest.mark.parametrize("drop", range(8))
def test_a_real_exchange_that_is_damaged_is_refused_or_read_the_same(routed, drop):
    lines = routed.text.rstrip().split("\n")
    where = [i for i, line in enumerate(lines) if " ragged-all-to-all-" in line]
    expected = read_ledger(routed.text, AXES, trips=TRIPS).by_kind_and_axes()
    rng, refused = random.Random(drop), 0
    for _ in range(12):
        at = rng.choice(where)
        line = lines[at]
        start = rng.choice([i for i, c in enumerate(line) if not c.isdigit()])
        cut = line[:start] + line[start + 1 + drop :]
        damaged = "\n".join([*lines[:at], cut, *lines[at + 1 :]]) + "\n"
        try:
            assert read_ledger(damaged, AXES, trips=TRIPS).by_kind_and_axes() == expected, cut
        except HloError:
            refused += 1
    assert refused
