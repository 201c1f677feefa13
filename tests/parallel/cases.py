"""Calls of every attention part and product of parts, and how they are run and counted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.lenses.reference import Plain
from parallax.lenses.verifying import relative_error
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_part import AttentionPart, AttentionShape
from parallax.parallel.attention_parts import HeadSlices, Local, Ring, Ulysses
from parallax.parallel.order import undo_positions
from parallax.parallel.scoring import Scoring
from parallax.programs.parameters import mesh_entry


@dataclasses.dataclass(frozen=True)
class Case:
    """A part on a mesh, and one call: heads a device, tokens a device of the sequence."""

    part: AttentionPart
    mesh: dict
    heads: int = 4
    kv_heads: int = 2
    tokens: int = 8
    causal: bool = True
    packed: bool = False
    head_dim: int = 8
    value_dim: int | None = None  # of values that are the first elements of the keys
    window: int | None = None
    cap: float | None = None
    scale: float | None = None
    has_sinks: bool = False

    @property
    def scoring(self):
        return Scoring(self.causal, self.window, self.scale, self.cap)

    @property
    def sinks(self):
        return draw((self.heads,), 5) if self.has_sinks else None

    @property
    def length(self):
        return self.tokens * int(np.prod([self.mesh[a] for a in self.part.seq_axes]))

    @property
    def shape(self):
        return AttentionShape(
            2, self.length, self.heads, self.kv_heads, self.head_dim, 8, self.packed, self.scoring,
            self.value_dim, self.value_dim is not None,
        )  # fmt: skip


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
    d_out = draw(whole, 3)[..., : case.value_dim]
    return draw(whole, 0), draw(fewer, 1), None if case.value_dim else draw(fewer, 2), d_out, ids


def mapped(case):
    """(q, k, v, ids, sinks) in the part's order -> attention in the part's order."""
    part, mesh = case.part, MeshSpec(case.mesh).build(jax.devices()[: MeshSpec(case.mesh).size])
    seq = mesh_entry(part.seq_axes)
    spec = P(None, seq, None, mesh_entry(part.slice_axes))

    def local(q, k, v, ids, sinks):
        return part.attend(
            q, k, v, scoring=case.scoring, segment_ids=ids, sinks=sinks, value_dim=case.value_dim
        )

    whole = jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec, spec, P(None, seq), P()), out_specs=spec
    )
    return lambda q, k, v, ids, sinks=None: whole(q, k, v, ids, sinks)


def held(case):
    """Positions of all devices' tokens, one device after the other."""
    count = case.length // case.tokens
    return np.concatenate([case.part.positions(i, case.tokens, case.mesh) for i in range(count)])


def program(case, ids):
    """(q, k, v, d_out) of whole sequences -> output and gradients."""
    order = held(case)
    ids = None if ids is None else ids[:, order]

    def forward(q, k, v, sinks=None):
        q, k, v = jax.tree.map(lambda x: x[:, order], (q, k, v))
        return undo_positions(mapped(case)(q, k, v, ids, sinks), order)

    return functools.partial(with_gradients, forward, case)


def with_gradients(f, case, q, k, v, d_out):
    out, vjp = jax.vjp(f, q, k, v, *([case.sinks] if case.has_sinks else []))
    return out, *vjp(d_out)


def textbook(case, ids):
    def forward(q, k, v, sinks=None):
        v = k[..., : case.value_dim] if v is None else v
        return Plain().attend(q, k, v, scoring=case.scoring, segment_ids=ids, sinks=sinks)

    return functools.partial(with_gradients, forward, case)


def worst(case, expected=textbook):
    *arrays, ids = inputs(case)
    found, right = jax.jit(program(case, ids))(*arrays), jax.jit(expected(case, ids))(*arrays)
    return max(
        relative_error(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)
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


SINKS: dict = {"window": 6, "has_sinks": True, "cap": 2.0, "scale": 0.7, "packed": True}
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
    "window": Case(Local(), {"seq": 2}, tokens=16, **SINKS),
    "window ring": Case(Ring("seq"), {"seq": 4}, tokens=5, **SINKS),
    "window of two hops": Case(Ring("seq"), {"seq": 8}, tokens=3, window=5),
    "window of one hop": Case(Ring("seq"), {"seq": 4}, window=2),
    "window of all": Case(Ring("seq"), {"seq": 4}, tokens=3, window=40, has_sinks=True),
    "window zigzag": Case(Ring("seq", "zigzag"), {"seq": 4}, tokens=5, **SINKS),
    "window double": Case(Ring(("node", "seq")), DOUBLE, tokens=3, **SINKS),
    "window double zigzag": Case(Ring(("node", "seq"), "zigzag"), DOUBLE, tokens=3, **SINKS),
    "window ulysses": Case(Ulysses("seq", Ring("node")), DOUBLE, tokens=4, **SINKS),
    "window exchange": Case(slices("exchange"), SLICES, kv_heads=4, tokens=16, **SINKS),
    "window shards": Case(slices("exchange"), SLICES, heads=2, kv_heads=1, tokens=20, **SINKS),
    "window scores": Case(slices("scores", inner=Ring("seq")), RING2, **SINKS),
    "window scores zigzag": Case(slices("scores", inner=Ring("seq", "zigzag")), RING2, **SINKS),
    "window gather": Case(slices("gather"), SLICES, tokens=16, **SINKS),
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
    "latent ring": Case(Ring("seq"), {"seq": 4}, kv_heads=1, packed=True, value_dim=6),
    "latent double": Case(Ring(("node", "seq"), "zigzag"), DOUBLE, kv_heads=1, tokens=5,
                          value_dim=6),
    "latent ulysses ring": Case(Ulysses("seq", Ring("node", "zigzag")), DOUBLE, kv_heads=1,
                                tokens=5, packed=True, value_dim=6),
    "ulysses of slices": Case(Ulysses("seq", slices("exchange")), {"seq": 2, "head_slice": 2}),
}  # fmt: skip
