"""The summed cross-entropy in pieces against the plain one of all logits."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.models.transformer import Transformer
from parallax.parallel.cross_entropy import cross_entropy
from parallax.parallel.fused_cross_entropy import summed_cross_entropy
from parallax.parallel.split import UNSPLIT
from tests.strategies.cases import SMALL

BATCH, LENGTH, WIDTH, COLUMNS, REAL = 4, 6, 10, 16, 13
MESHES = {
    "one device": ({"data": 1}, ()),
    "tensor": ({"tensor": 4}, ("tensor",)),
    "data x tensor": ({"data": 2, "tensor": 2}, ("tensor",)),
    "stage x tensor": ({"stage": 2, "data": 2, "tensor": 2}, ("stage", "tensor")),
    "data alone": ({"data": 2, "tensor": 2}, ()),
}


def inputs(dtype: Any = np.float64):
    r = np.random.default_rng(0)
    x = jnp.asarray(3 * r.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    labels = jnp.asarray(r.integers(0, REAL, (BATCH, LENGTH)), jnp.int32)
    weights = jnp.asarray(r.integers(0, 2, (BATCH, LENGTH)), bool)
    return x, jnp.asarray(r.normal(size=(WIDTH, COLUMNS))), labels, weights


def plain(x, w, labels, weights):
    """Of all logits at once, on one device."""
    losses = cross_entropy(jnp.einsum("bld,dv->blv", x, w)[..., :REAL], labels)
    return (losses * weights.astype(losses.dtype)).sum()


def mapped(axes, vocab_axes, pieces) -> Any:
    """The loss and its gradients under a mesh, in a number of pieces."""
    sizes = tuple(axes.values())
    mesh = Mesh(np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes), tuple(axes))
    split = "data" if "data" in axes else None
    columns = COLUMNS // math.prod(axes[a] for a in vocab_axes)
    tokens = BATCH * LENGTH // axes.get("data", 1)
    specs = P(split), P(None, vocab_axes or None), P(split), P(split)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=True)
    def total(x, w, labels, weights):
        budget = -(-tokens // pieces) * columns * 8
        found = summed_cross_entropy(x, w, labels, weights, REAL, vocab_axes, budget)
        return jax.lax.psum(found, "data") if split else found

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


@pytest.mark.parametrize("pieces", [1, 3, 5])  # five do not divide the tokens of a device
@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_are_the_plain_ones(name, pieces):
    given = inputs()
    expected = jax.value_and_grad(plain, argnums=(0, 1))(*given)
    axes, vocab_axes = MESHES[name]
    found = mapped(axes, vocab_axes, pieces)(*given)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13 * np.abs(b).max())


def arrays(jaxpr) -> Iterator[Any]:
    """The result of every equation below a jaxpr that has none below itself."""
    for equation in jaxpr.eqns:
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        inner += [p for p in equation.params.values() if hasattr(p, "eqns")]
        yield from (a for below in inner for a in arrays(below))
        yield from () if inner else (v.aval for v in equation.outvars)


def test_no_array_holds_all_logits_and_collectives_are_those_said():
    axes, vocab_axes = MESHES["data x tensor"]
    tokens, columns, dims = BATCH * LENGTH // 2, COLUMNS // 2, (BATCH // 2, LENGTH, WIDTH)
    jaxpr = jax.make_jaxpr(mapped(axes, vocab_axes, 4))(*inputs())
    shapes = {a.shape for a in arrays(jaxpr.jaxpr)}
    assert {s for s in shapes if columns in s[-1:]} == {
        (columns,), (1, columns), (tokens // 4, columns), (WIDTH, columns),
    }  # fmt: skip
    of_loss = [c for c in jaxpr_ledger(jaxpr, axes).collectives if c.axes == ("tensor",)]
    row = tokens // 4 * 8
    assert [(c.op_name, c.payload_bytes, c.count) for c in of_loss] == [
        ("pmax", row, 4), ("psum_invariant", row, 4), ("psum_invariant", row, 4),
        ("psum_invariant", 8 * math.prod(dims), 1),
    ]  # fmt: skip


def test_gradients_of_the_unembedding_add_up_wider_than_bfloat16():
    """Rows are bfloat16, and parameters float32 or bfloat16."""
    x, w, labels, weights = inputs(jnp.bfloat16)
    w = w.astype(jnp.float32)
    one, many = (mapped({"data": 1}, (), n)(x, w, labels, weights)[1] for n in (1, 24))
    assert (one[0].dtype, one[1].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(many[1], one[1], rtol=1e-5, atol=1e-6)
    narrow = mapped({"data": 1}, (), 24)(x, w.astype(jnp.bfloat16), labels, weights)[1][1]
    np.testing.assert_array_equal(narrow, one[1].astype(jnp.bfloat16))


@pytest.mark.parametrize("tied", [False, True])
def test_a_models_loss_is_that_of_its_logits(tied):
    config = SMALL.replace(vocab_size=13, num_layers=1, tie_embeddings=tied)
    with nnx.use_eager_sharding(False):
        model = Transformer(config, rngs=nnx.Rngs(params=0))
    _, _, labels, weights = inputs()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(*labels.shape, config.d_model)))
    losses = cross_entropy(model.head(x, UNSPLIT), labels)
    expected = (losses * weights.astype(losses.dtype)).sum()
    found = model.summed_loss(x, labels, weights, UNSPLIT)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
