"""Ring attention in anyone's shard_map: exact, differentiable, balanced, and clear when misused."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.kernels import dispatch
from parallax.lenses.reference import Plain
from parallax.lenses.verifying import relative_error
from parallax.meshes.mesh import MeshSpec
from parallax.parallel import library_attention, pairs, ring_attention, to_order, undo_order
from parallax.parallel.ring import OWN
from parallax.parallel.scoring import CAUSAL, Scoring

pytestmark = pytest.mark.slow


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def around(devices, causal, order, segments=None):
    """(q, k, v) of whole sequences -> attention by a ring of so many devices."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("seq",))
    spec = P(None, "seq")

    def local(q, k, v, ids):
        return ring_attention(
            q, k, v, axis_name="seq", is_causal=causal, segment_ids=ids, order=order
        )

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, spec, spec), out_specs=spec)

    def run(q, k, v):
        ids = None if segments is None else to_order(segments, devices, order)
        q, k, v = (to_order(x, devices, order) for x in (q, k, v))
        return undo_order(mapped(q, k, v, ids), devices, order)

    return jax.jit(run)


def with_gradients(f, d_out):
    def run(q, k, v):
        out, vjp = jax.vjp(f, q, k, v)
        return (out, *vjp(d_out))

    return jax.jit(run)


def worst(found, expected):
    pairs = zip(found, expected, strict=True)
    return max(relative_error(np.asarray(a), np.asarray(b)) for a, b in pairs)


# Pairwise over: devices, tokens a device, heads, key/value heads, mask, order, packed.
CASES = [
    (16, 5, 2, 2, True, "zigzag", False),
    (16, 5, 2, 1, True, "natural", True),
    (16, 2, 2, 1, False, "zigzag", False),
    (16, 1, 1, 1, True, "zigzag", False),
    (4, 6, 4, 2, True, "zigzag", True),
    (4, 3, 4, 4, False, "natural", True),
    (2, 7, 4, 2, True, "zigzag", False),
    (1, 9, 2, 1, True, "zigzag", True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_equals_whole_attention(case):
    devices, tokens, heads, kv_heads, causal, order, packed = case
    length = devices * tokens
    q, d_out = draw((2, length, heads, 4), 0), draw((2, length, heads, 4), 1)
    k, v = draw((2, length, kv_heads, 4), 2), draw((2, length, kv_heads, 4), 3)
    ids = None
    if packed:
        ids = jnp.asarray(np.sort(np.random.default_rng(4).integers(0, 3, (2, length))), jnp.int32)
    found = with_gradients(around(devices, causal, order, ids), d_out)(q, k, v)
    expected = with_gradients(
        lambda q, k, v: Plain().attend(q, k, v, scoring=Scoring(causal), segment_ids=ids), d_out
    )(q, k, v)
    assert worst(found, expected) < 1e-13


@settings(max_examples=5)
@given(tokens=st.integers(1, 9), zigzag=st.booleans(), data=st.data())
def test_any_length_that_the_devices_divide(tokens, zigzag, data):
    kv_heads = data.draw(st.sampled_from([1, 2]))
    length = 4 * tokens
    q = draw((1, length, 2, 4), tokens)
    k, v = draw((1, length, kv_heads, 4), 7), draw((1, length, kv_heads, 4), 8)
    found = around(4, True, "zigzag" if zigzag else "natural")(q, k, v)
    expected = Plain().attend(q, k, v, scoring=CAUSAL, segment_ids=None)
    assert worst([found], [expected]) < 1e-13


def test_the_past_does_not_depend_on_the_future():
    q, k, v = (draw((1, 16, 1, 4), seed) for seed in range(3))
    f = around(4, True, "zigzag")
    gradient = jax.jit(jax.grad(lambda v, weights: (f(q, k, v) * weights).sum()))
    for position in (0, 5, 15):
        weights = jnp.zeros_like(q).at[:, position].set(1.0)
        reached = np.flatnonzero(np.abs(np.asarray(gradient(v, weights))).sum((0, 2, 3)))
        np.testing.assert_array_equal(reached, np.arange(position + 1))


@pytest.mark.parametrize("devices", [2, 4, 16])
def test_sends_one_less_than_the_ring_in_the_stored_dtype(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("seq",))
    spec = P(None, "seq")
    mapped = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, axis_name="seq", is_causal=True, order="zigzag"),
        mesh=mesh, in_specs=spec, out_specs=spec,
    )  # fmt: skip
    q = jnp.zeros((1, 4 * devices, 4, 8), jnp.bfloat16)
    k = q[:, :, :2]
    ledger = jaxpr_ledger(jax.make_jaxpr(mapped)(q, k, k), {"seq": devices})
    assert {c.dtype for c in ledger} == {"bfloat16"}
    assert sum(c.count for c in ledger) == devices - 1  # K and V joined; G heads, not H
    assert ledger.total() == 2 * (devices - 1) * 4 * 2 * 8 * 2


MAPS = {
    "unchecked types": ({"seq": 16}, {"check_vma": False}),
    "a second axis": ({"data": 4, "seq": 4}, {}),
    "partly manual": ({"data": 4, "seq": 4}, {"axis_names": {"seq"}}),
}


@pytest.mark.parametrize("name", MAPS)
def test_works_in_any_shard_map(name):
    axes, options = MAPS[name]
    mesh = MeshSpec(axes).build()
    q, k, v, d_out = (draw((2, 32, 2, 4), seed) for seed in range(4))
    spec = P(None, "seq")
    mapped = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, axis_name="seq", is_causal=True),
        mesh=mesh, in_specs=spec, out_specs=spec, **options,
    )  # fmt: skip
    expected = with_gradients(
        lambda q, k, v: Plain().attend(q, k, v, scoring=CAUSAL, segment_ids=None), d_out
    )
    assert worst(with_gradients(mapped, d_out)(q, k, v), expected(q, k, v)) < 1e-13


def test_keys_that_devices_of_another_axis_share():
    """Queries differ over `data`, keys and values do not: their gradients are summed over it."""
    mesh = MeshSpec({"data": 4, "seq": 4}).build()
    q, d_out = draw((4, 16, 2, 4), 0), draw((4, 16, 2, 4), 1)
    k, v = draw((1, 16, 2, 4), 2), draw((1, 16, 2, 4), 3)
    mapped = jax.shard_map(
        lambda q, k, v: ring_attention(q, k, v, axis_name="seq", is_causal=True),
        mesh=mesh, in_specs=(P("data", "seq"), P(None, "seq"), P(None, "seq")),
        out_specs=P("data", "seq"),
    )  # fmt: skip

    def whole(q, k, v):
        k, v = (jnp.repeat(x, 4, axis=0) for x in (k, v))
        return Plain().attend(q, k, v, scoring=CAUSAL, segment_ids=None)

    found = with_gradients(mapped, d_out)(q, k, v)
    assert worst(found, with_gradients(whole, d_out)(q, k, v)) < 1e-13


def test_losing_a_hop_is_seen(monkeypatch):
    q, k, v = (draw((1, 32, 2, 4), seed) for seed in range(3))
    expected = Plain().attend(q, k, v, scoring=CAUSAL, segment_ids=None)
    exact = pairs.Pairs.visit

    def skip(self, source, *rest, finish=None):
        new = exact(self, source, *rest, finish=finish)
        return new if source is OWN or finish else pairs._where(source == 2, rest[-1], new)

    monkeypatch.setattr(pairs.Pairs, "visit", skip)
    assert worst([around(4, True, "zigzag")(q, k, v)], [expected]) > 1e-2


BAD = {
    "heads": (dict(k=(1, 4, 3, 4), v=(1, 4, 3, 4)), "3 key/value heads do not divide 4"),
    "ranks": (dict(q=(4, 4, 4)), "expected q"),
    "lengths": (dict(k=(1, 5, 4, 4), v=(1, 5, 4, 4)), "must agree in B, L and K"),
    "pair": (dict(v=(1, 4, 2, 4)), "v .* of the same tokens and heads"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shapes_are_named(name):
    shapes, message = BAD[name]
    shapes = {"q": (1, 4, 4, 4), "k": (1, 4, 4, 4), "v": (1, 4, 4, 4)} | shapes
    arrays = {n: jnp.zeros(s) for n, s in shapes.items()}
    with pytest.raises(ValueError, match=message):
        ring_attention(arrays["q"], arrays["k"], arrays["v"], axis_name=None)


def test_bad_choices_are_named():
    q = jnp.zeros((1, 4, 4, 4))
    with pytest.raises(ValueError, match="natural, zigzag; got 'spiral'"):
        ring_attention(q, q, q, axis_name=None, order="spiral")
    with pytest.raises(NotImplementedError, match="xla"):
        ring_attention(q, q, q, axis_name=None, implementation="mosaic")
    with pytest.raises(ValueError, match=r"segment_ids must be \[B, L\] = \(1, 4\)"):
        ring_attention(q, q, q, axis_name=None, segment_ids=jnp.zeros((4,), jnp.int32))


def test_zigzag_gives_every_device_the_same_work():
    """Visible (query, key) pairs of each device, by enumeration."""
    for tokens in (4, 5):
        length, size = 4 * tokens, 4
        order = np.asarray(to_order(jnp.arange(length)[None], size, "zigzag"))[0]
        work = [sum(int(p) + 1 for p in part) for part in order.reshape(size, -1)]
        mean = sum(work) / size
        # Chunks of floor and ceil differ by a token; equal chunks are exactly balanced.
        assert all(abs(w - mean) <= (0 if tokens % 2 == 0 else tokens * size) for w in work)
        assert sorted(itertools.chain(order.tolist())) == list(range(length))


def test_a_whole_sequence_may_be_the_librarys(monkeypatch):
    """cuDNN's own program needs a GPU; here its call is answered by XLA, and seen to be made."""
    asked = []

    def answer(q, k, v, *, implementation, **options):
        asked.append(implementation)
        return dot_product_attention(q, k, v, implementation="xla", **options)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    monkeypatch.setattr(library_attention, "unsupported", lambda *args: None)
    q, k, v = (draw((2, 40, heads, 8), heads).astype("float32") for heads in (4, 2, 2))
    found = ring_attention(q, k, v, axis_name=None, is_causal=True, implementation="cudnn")
    assert asked == ["cudnn"]
    expected = ring_attention(q, k, v, axis_name=None, is_causal=True)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "options", "reason"),
    [
        ("float32", 64, {}, "inputs are float32"),
        ("bfloat16", 256, {}, "up to 128 where no GPU is at hand"),
        ("bfloat16", 64, {"segment_ids": jnp.zeros((1, 4), jnp.int32)}, "segment ids"),
        ("bfloat16", 64, {}, "NVIDIA GPUs"),
    ],
)
def test_what_the_library_cannot_do_is_refused(dtype, head_dim, options, reason):
    q = jnp.zeros((1, 4, 2, head_dim), dtype)
    with pytest.raises(NotImplementedError, match=reason) as refused:
        ring_attention(q, q, q, axis_name=None, implementation="cudnn", **options)
    assert "Use implementation='xla'" in str(refused.value)


def test_the_library_has_no_rings():
    q = jnp.zeros((1, 4, 2, 64), "bfloat16")
    why = library_attention.unsupported(q, q, q, ("seq",), False, None)
    assert "split over seq" in str(why)


def test_the_library_is_not_for_cpus_of_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q = jnp.zeros((1, 4, 2, 64), "bfloat16")
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert library_attention.unsupported(q, q, q, (), False, None) == "it is for NVIDIA GPUs"


def test_why_an_enabled_kernel_cannot_is_recorded_once():
    """Steps, forward and backward, do as attention did: they have no reasons of their own."""
    q = jnp.ones((1, 4, 2, 8))
    with dispatch.refusals() as told, dispatch.enabling("mosaic"):
        jax.grad(lambda q: ring_attention(q, q, q, axis_name=None).sum())(q)
    (reason,) = told
    assert reason.startswith("ring_attention: mosaic cannot do this: inputs are")


def test_a_forward_derivative_is_refused_in_words():
    q = draw((1, 16, 2, 4), 0)
    compiled: Any = around(2, True, "natural")
    with pytest.raises(TypeError, match="forward-mode autodiff"):  # JAX's words
        jax.jvp(lambda q: compiled(q, q, q), (q,), (q,))
    with pytest.raises(TypeError, match=r"ring_attention: .*forward mode.*Use jax\.grad"):
        jax.jvp(lambda q: compiled.__wrapped__(q, q, q), (q,), (q,))
