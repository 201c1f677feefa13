"""Each attention part against the textbook, and what it sends against its closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.kernels.ring_attention import reference
from parallax.lenses.reference import Plain
from parallax.meshes.cluster import cluster
from parallax.meshes.mesh import MeshSpec
from parallax.parallel import head_slices, ring, ulysses
from parallax.parallel.attention_part import AttentionShape
from parallax.parallel.attention_parts import HeadSlices, Local, Ring, Ulysses
from parallax.parallel.cheapest import link_bytes_per_s, seconds
from parallax.parallel.order import undo_positions
from parallax.spmd import mesh_entry


@dataclasses.dataclass(frozen=True)
class Case:
    """A part on a mesh, and one call: heads a device, tokens a device of the sequence."""

    part: object
    mesh: dict
    heads: int = 4
    kv_heads: int = 2
    tokens: int = 8
    causal: bool = True
    packed: bool = False
    head_dim: int = 8

    @property
    def length(self):
        return self.tokens * int(np.prod([self.mesh[a] for a in self.part.seq_axes]))

    @property
    def shape(self):
        return AttentionShape(
            2, self.length, self.heads, self.kv_heads, self.head_dim, 8, self.packed, self.causal
        )


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def inputs(case):
    """q, k, v, the output's gradient, and segment ids or None."""
    whole = (2, case.length, case.heads, case.head_dim)
    fewer = (2, case.length, case.kv_heads, case.head_dim)
    ids = None
    if case.packed:
        ids = np.sort(np.random.default_rng(4).integers(0, 3, (2, case.length)), axis=1)
        ids = jnp.asarray(ids, jnp.int32)
    return draw(whole, 0), draw(fewer, 1), draw(fewer, 2), draw(whole, 3), ids


def mapped(case):
    """(q, k, v, ids) in the part's order -> attention in the part's order."""
    part, mesh = case.part, MeshSpec(case.mesh).build(jax.devices()[: MeshSpec(case.mesh).size])
    seq = mesh_entry(part.seq_axes)
    spec = P(None, seq, None, mesh_entry(part.slice_axes))

    def local(q, k, v, ids):
        return part.attend(q, k, v, is_causal=case.causal, segment_ids=ids)

    return jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec, spec, P(None, seq)), out_specs=spec
    )


def held(case):
    """Positions of all devices' tokens, one device after the other."""
    count = case.length // case.tokens
    return np.concatenate([case.part.positions(i, case.tokens, case.mesh) for i in range(count)])


def program(case, ids):
    """(q, k, v, d_out) of whole sequences -> output and gradients."""
    order = held(case)
    ids = None if ids is None else ids[:, order]

    def forward(q, k, v):
        return undo_positions(mapped(case)(*(x[:, order] for x in (q, k, v)), ids), order)

    return functools.partial(with_gradients, forward)


def with_gradients(f, q, k, v, d_out):
    out, vjp = jax.vjp(f, q, k, v)
    return out, *vjp(d_out)


def textbook(case, ids):
    return functools.partial(
        with_gradients,
        lambda q, k, v: Plain().attend(q, k, v, is_causal=case.causal, segment_ids=ids),
    )


def worst(case, expected=textbook):
    *arrays, ids = inputs(case)
    found, right = jax.jit(program(case, ids))(*arrays), jax.jit(expected(case, ids))(*arrays)
    return max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(found, right, strict=True)
    )


def moved(transfers):
    sums = {}
    for t in transfers:
        sums[t.kind, t.axes] = sums.get((t.kind, t.axes), 0) + t.wire_bytes
    return sums


def counted(case, f):
    *arrays, ids = inputs(case)
    ledger = jaxpr_ledger(jax.make_jaxpr(f(case, ids))(*arrays), case.mesh)
    sums = {}
    for c in ledger:
        sums[c.kind, c.axes] = sums.get((c.kind, c.axes), 0) + c.wire_bytes * c.count
    return sums


SLICES = {"head_slice": 4}
RING2 = {"seq": 2, "head_slice": 4}
DOUBLE = {"node": 2, "seq": 4}


def slices(reduction, **inner):
    return HeadSlices("head_slice", reduction, **inner)


ring_of_2 = {"inner": Ring("seq", "zigzag")}
CASES = {
    "local": Case(Local(), {"seq": 2}, packed=True),
    "ring": Case(Ring("seq"), {"seq": 4}, packed=True),
    "double": Case(Ring(("node", "seq"), "zigzag"), DOUBLE, tokens=5, packed=True),
    "double natural": Case(Ring(("node", "seq")), DOUBLE, tokens=3, kv_heads=4),
    "double full": Case(Ring(("node", "seq")), {"node": 4, "seq": 2}, tokens=3, causal=False),
    "wide double": Case(Ring(("node", "seq"), "zigzag"), {"node": 3, "seq": 3}, tokens=4),
    "triple": Case(Ring(("node", "stage", "seq"), "zigzag"),
                   {"node": 2, "stage": 2, "seq": 2}, tokens=3),
    "ring of one in a ring": Case(Ring(("node", "seq"), "zigzag"), {"node": 2, "seq": 1}),
    "ulysses": Case(Ulysses("seq"), {"seq": 4}, packed=True),
    "ulysses grouped": Case(Ulysses("seq"), {"seq": 2}, heads=6, kv_heads=3, causal=False),
    "ulysses ring": Case(Ulysses("seq", Ring("node", "zigzag")), DOUBLE, tokens=5, packed=True),
    "ulysses double ring": Case(Ulysses("tensor", Ring(("node", "seq"), "zigzag")),
                                {"node": 2, "seq": 2, "tensor": 2}, tokens=3),
    "exchange": Case(slices("exchange"), SLICES, kv_heads=4, packed=True),
    "exchange grouped": Case(slices("exchange"), SLICES, heads=8),
    "exchange one key head": Case(slices("exchange"), SLICES, kv_heads=1, causal=False),
    "exchange straddling": Case(slices("exchange"), {"head_slice": 2}, heads=6, kv_heads=3),
    "exchange shards": Case(slices("exchange"), SLICES, heads=2, kv_heads=1, tokens=20,
                            packed=True),
    "exchange one head": Case(slices("exchange"), SLICES, heads=1, kv_heads=1, tokens=12),
    "exchange one head full": Case(slices("exchange"), SLICES, heads=3, kv_heads=3, causal=False),
    "exchange ring": Case(slices("exchange", **ring_of_2), RING2, tokens=5, packed=True),
    "scores": Case(slices("scores"), SLICES, packed=True),
    "scores full": Case(slices("scores"), SLICES, heads=1, kv_heads=1, causal=False),
    "scores ring": Case(slices("scores", **ring_of_2), RING2, tokens=5, packed=True),
    "scores natural ring": Case(slices("scores", inner=Ring("seq")), RING2, tokens=5),
    "scores ulysses": Case(slices("scores", inner=Ulysses("seq")), RING2),
    "gather": Case(slices("gather"), SLICES, packed=True),
    "gather ring": Case(slices("gather", **ring_of_2), RING2, tokens=5, packed=True),
    "gather double ring": Case(slices("gather", inner=Ring(("node", "seq"), "zigzag")),
                               {"node": 2, "seq": 2, "head_slice": 2}, tokens=4),
    "auto": Case(slices("auto"), SLICES, tokens=24),
    "ulysses of slices": Case(Ulysses("seq", slices("exchange")), {"seq": 2, "head_slice": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_the_textbooks_attention(name):
    assert worst(CASES[name]) < 1e-13


@pytest.mark.parametrize("name", CASES)
def test_sends_what_its_closed_form_says(name):
    case = CASES[name]
    forward = case.part.transfers(case.shape, case.mesh, 1)
    backward = case.part.backward_transfers(case.shape, case.mesh, 1)

    def only_forward(case, ids):
        order = held(case)
        ids = None if ids is None else ids[:, order]
        return lambda q, k, v, _: mapped(case)(q, k, v, ids)

    assert counted(case, only_forward) == pytest.approx(moved(forward), rel=1e-12)
    assert counted(case, program) == pytest.approx(moved(forward + backward), rel=1e-12)
    assert bool(forward) == (case.part != Local())


def lose_a_node(patch):
    exact = ring._send

    def send(axis, pairs, tree):
        return tree if axis == "node" else exact(axis, pairs, tree)

    patch.setattr(ring, "_send", send)
    return "double"


def lose_the_way_home(patch):
    """The gradients of one ring's keys stop one hop short of home."""
    exact = ring._around

    def around(axis, kv, hop, state):
        state, shares = exact(axis, kv, hop, state)
        back = [((i + 1) % 4, i) for i in range(4)]
        return state, shares if axis == "node" else ring._send(axis, back, shares)

    patch.setattr(ring, "_around", around)
    return "double"


def forget_to_sum_scores(patch):
    patch.setattr(reference, "_whole", lambda partial, axis: partial)
    return "scores"


def read_a_neighbours_keys(patch):
    exact = head_slices.kv_heads_read
    patch.setattr(head_slices, "kv_heads_read", lambda *sizes: np.roll(exact(*sizes), 1, axis=0))
    return "exchange grouped"


def mistake_the_shard(patch):
    exact = ring.QueryShards.index
    patch.setattr(ring.QueryShards, "index", lambda self: (exact(self) + 1) % self.size)
    return "exchange shards"


def lose_a_slice(patch):
    exact = head_slices.to_heads

    def to_heads(x, axis, joined):
        return exact(x * (lax.axis_index(axis) != 3).astype(x.dtype), axis, joined)

    patch.setattr(head_slices, "to_heads", to_heads)
    return "exchange"


def spread_as_if_heads_were_many(patch):
    patch.setattr(ulysses, "spread", lambda k, table: jnp.tile(k, (1, 1, table.size // 2, 1)))
    return "ulysses"


MUTATIONS = [
    lose_a_node, lose_the_way_home, forget_to_sum_scores, read_a_neighbours_keys,
    mistake_the_shard, lose_a_slice, spread_as_if_heads_were_many,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_are_seen(mutate, monkeypatch):
    assert worst(CASES[mutate(monkeypatch)]) > 1e-2


def test_local_slices_are_heads_of_their_own_and_say_so():
    """The approximation: the textbook's attention of 16 narrow heads, and not of 4 wide ones."""
    case = Case(slices("local"), SLICES, kv_heads=4)

    def of_narrow_heads(case, ids):
        def narrow(q, k, v):
            cut = (x.reshape(*x.shape[:2], 16, 2) for x in (q, k, v))
            out = Plain().attend(*cut, is_causal=True, segment_ids=None)
            return out.reshape(q.shape)

        return functools.partial(with_gradients, narrow)

    assert worst(case, of_narrow_heads) < 1e-13
    assert worst(case) > 1e-2
    assert "each slice" in case.part.approximation
    assert Ulysses("seq", case.part).approximation == case.part.approximation
    assert {c.part.approximation for c in CASES.values()} == {""}
    assert case.part.transfers(case.shape, case.mesh, 1) == ()


GRID = {"head_group": 4, "head_slice": 4}
LONG = AttentionShape(1, 10_000, 4, 4, 512, 4)  # a group's share of 16 heads


def test_exchanging_slices_sends_a_39th_of_summing_scores():
    """4 x 4 devices, 10,000 tokens, no mask, one dtype: 512 / 20,000, by both accounts."""
    spec = P(None, None, "head_group", "head_slice")

    def sent(reduction):
        part = slices(reduction)
        (form,) = {sum(t.wire_bytes for t in part.transfers(LONG, GRID, 1))}
        mapped = jax.shard_map(
            lambda q, k, v: part.attend(q, k, v, is_causal=False, segment_ids=None),
            mesh=MeshSpec(GRID).abstract(), in_specs=spec, out_specs=spec,
        )  # fmt: skip
        x = jax.ShapeDtypeStruct((1, 10_000, 16, 512), jnp.float32)
        ledger = jaxpr_ledger(jax.make_jaxpr(mapped)(x, x, x), GRID)
        assert ledger.total() == pytest.approx(form, rel=1e-12)
        return form

    assert sent("exchange") / sent("scores") == pytest.approx(512 / 20_000, rel=1e-12)
    assert sent("exchange") / sent("scores") <= 1 / 39


def test_auto_is_the_cheapest_that_can_run():
    auto = slices("auto")
    assert auto.resolve(LONG, GRID) == "exchange"
    short = dataclasses.replace(LONG, seq_len=32)
    assert auto.resolve(short, GRID) == "scores"
    # One head for four slices, the sequence split besides: whole heads do not go around.
    ring_inside, sizes = slices("auto", inner=Ring("seq")), {"seq": 4, "head_slice": 4}
    one = dataclasses.replace(LONG, heads=1, kv_heads=1, item_bytes=2)
    assert ring_inside.resolve(one, sizes) == "gather"
    assert slices("scores").resolve(LONG, GRID) == "scores"
    for shape in (LONG, short):
        costs = {r: seconds(slices(r), shape, GRID, "h100_2x8")
                 for r in ("exchange", "scores", "gather")}  # fmt: skip
        assert auto.resolve(shape, GRID) == min(costs, key=lambda r: costs[r])


def test_rates_follow_where_an_axis_lies():
    (moved, *_) = slices("exchange").transfers(LONG, GRID, 1)
    where = cluster("h100_2x8")
    inside, between = where.gpu.nvlink_bytes_per_s, where.nic_bytes_per_s
    assert link_bytes_per_s(where, moved, GRID) == inside
    assert link_bytes_per_s(where, moved, {"head_slice": 4, "head_group": 4}) == between
    assert link_bytes_per_s(where, moved, {"head_slice": 16}) == between
    assert link_bytes_per_s(cluster("h100_nvl16"), moved, {"head_slice": 16}) == inside


def test_gathering_repeats_the_scores_product():
    flops = {r: slices(r).work(LONG, GRID).flops for r in ("exchange", "scores", "gather")}
    product = 2 * 10_000**2 * 512 * 4 / 4  # Q K^T of four heads, shared by four slices
    assert flops["exchange"] == flops["scores"] == 2 * product
    assert flops["gather"] == (4 + 1) * product
    shards = dataclasses.replace(LONG, heads=2, kv_heads=2, is_causal=True)
    assert 0.5 < slices("exchange").work(shards, GRID).flops / product < 0.55


BAD = {
    "ring of shards": (Case(slices("exchange", **ring_of_2), RING2, heads=2),
                       r"1 part|2 part.* of 2 heads for 4 devices.*inner=Ring"),
    "tokens": (Case(slices("exchange"), SLICES, heads=1, kv_heads=1, tokens=6),
               "4 query shards, which do not divide 6 tokens"),
    "heads": (Case(Ulysses("seq"), {"seq": 4}, heads=6),
              r"'seq' \(size 4\) does not divide 6 query heads"),
    "partial slices": (Case(slices("gather"), SLICES), "already split over 'tensor'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_split_is_refused(name):
    case, message = BAD[name]
    q, k, v, _, ids = inputs(case)
    if name == "partial slices":
        with pytest.raises(ValueError, match=message):
            case.part.attend(q, k, v, is_causal=True, segment_ids=None, partial_over="tensor")
        return
    with pytest.raises(ValueError, match=message):
        jax.make_jaxpr(mapped(case))(q, k, v, ids)


def test_bad_parts_are_named():
    with pytest.raises(ValueError, match="auto, exchange, scores, gather, local; got 'sum'"):
        slices("sum")
    with pytest.raises(ValueError, match="splits head_dim too"):
        slices("gather", inner=slices("gather"))
    with pytest.raises(ValueError, match="major first; got"):
        Ring(("seq", "seq"))
    assert Ring(["node", "seq"]) == Ring(("node", "seq"))
