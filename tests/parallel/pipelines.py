"""A toy model under pipeline schedules: sums over `tensor`, tables split over stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from parallax.lenses.verifying import relative_error
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.cross_entropy import cross_entropy
from parallax.parallel.gradients import LocalParams, Precision, TrainFunctions
from parallax.parallel.pipeline_gradients import run_schedule
from parallax.parallel.remat import Remat
from parallax.parallel.split import UNSPLIT, Split
from parallax.parallel.varying import vary_over

WIDTH, HIDDEN, VOCAB, LENGTH = 8, 16, 24, 5
MESH = {"data": 2, "stage": 2, "tensor": 2}


def draw(shape, seed, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def parameters(layers):
    """Whole parameters: a table, an unembedding, and stacked layers."""
    return LocalParams(
        {"table": draw((VOCAB, WIDTH), 0), "head": draw((WIDTH, VOCAB), 1, 0.4)},
        {"up": draw((layers, WIDTH, HIDDEN), 2, 0.4), "down": draw((layers, HIDDEN, WIDTH), 3, 0.4),
         "gate": draw((layers, WIDTH), 4, 0.4)},
    )  # fmt: skip


def functions(split, tokens, ring=()):
    """The model's functions; the penalty of a layer is a small square of its gate's products.

    Over the mesh axis in `ring`, layers pass an activation around and back, which changes nothing.
    """

    def embed(outer, inputs):
        return jnp.take(outer["table"], inputs["tokens"], axis=0)

    def layer(carry, w):
        x, penalty = carry
        for axis in ring:
            hops = [(0, 1), (1, 0)]
            x = lax.ppermute(lax.ppermute(x, axis, hops), axis, hops)
        hidden = jnp.tanh(split.enter(x, "mlp") @ w["up"])
        gate = jnp.einsum("bld,d->bl", x, w["gate"])
        y = x + split.sum(hidden @ w["down"], "mlp") * jnp.tanh(gate)[..., None]
        return (y, penalty + 0.1 * (gate**2).sum() / tokens), None

    def blocks(layers, x, inputs, chunk):
        start = vary_over(jnp.zeros((), x.dtype), split.over("act_batch", "layers"))
        body = layer if split.remat in (None, "none") else jax.checkpoint(layer)
        return *lax.scan(body, (x, start), layers)[0], ()

    def loss(outer, y, inputs):
        logits = split.enter(y, "vocab") @ outer["head"]
        return cross_entropy(logits, inputs["labels"], split.over("vocab")).sum() / tokens, ()

    return TrainFunctions(embed, blocks, loss)


def batch(sequences):
    tokens = np.random.default_rng(7).integers(0, VOCAB, (sequences, LENGTH))
    return {"tokens": jnp.asarray(tokens, jnp.int32),
            "labels": jnp.asarray(np.roll(tokens, -1, 1), jnp.int32)}  # fmt: skip


@functools.cache
def reference(layers, sequences):
    """Loss and gradients on one device."""
    parts, inputs = functions(UNSPLIT, sequences * LENGTH), batch(sequences)

    def whole(params):
        y, penalty, _ = parts.blocks(params.layers, parts.embed(params.outer, inputs), inputs, 0)
        return parts.loss(params.outer, y, inputs)[0] + penalty

    return jax.jit(jax.value_and_grad(whole))(parameters(layers))


def rows_of(layers, stages, chunks):
    """The layer in each row of storage: of each stage, its chunks in order."""
    each = layers // (stages * chunks)
    return np.concatenate(
        [np.arange(each) + (c * stages + s) * each for s in range(stages) for c in range(chunks)]
    )


def pipelined(
    schedule, layers, sequences, remat: Remat = "none", mesh=MESH, lookup=("stage", "tensor"),
    ring=(),
):  # fmt: skip
    """Loss and gradients by a schedule, in the order of the layers."""
    vocab = tuple(a for a in ("stage", "tensor") if a in mesh)
    data = tuple(a for a in ("data",) if a in mesh)
    mlp = tuple(a for a in ("tensor",) if a in mesh)
    lookup = tuple(a for a in lookup if a in mesh)
    split = Split(
        {"layers": ("stage",), "mlp": mlp, "lookup": lookup, "vocab": vocab, "act_batch": data},
        mesh, remat=remat,
    )  # fmt: skip
    specs = LocalParams(
        {"table": P(None, lookup), "head": P(None, vocab)},
        {"up": P("stage", None, mlp), "down": P("stage", mlp), "gate": P("stage")},
    )
    parts = functions(split, sequences * LENGTH, ring)
    different = LocalParams(
        {"table": (*data, "stage"), "head": data},
        {"up": (*data, *mlp), "down": (*data, *mlp), "gate": data},
    )
    is_axes = lambda x: isinstance(x, tuple) and all(isinstance(a, str) for a in x)  # noqa: E731

    def body(params, inputs):
        local = jax.tree.map(
            lambda axes, w: vary_over(w, axes), different, params,
            is_leaf=lambda x: is_axes(x) and not isinstance(x, LocalParams),
        )  # fmt: skip
        precision = Precision("float64")
        found = run_schedule(schedule, parts, local, inputs, split, "stage", precision)

        def summed(spec, g):
            named = {a for d in spec if d for a in ((d,) if isinstance(d, str) else d)}
            over = tuple(a for a in jax.typeof(g).manual_axis_type.varying if a not in named)
            return lax.psum(g, over) if over else g

        grads = jax.tree.map(summed, specs, found.params, is_leaf=lambda x: isinstance(x, P))
        loss = lax.psum(found.penalty, ("stage", *data)) + (
            lax.psum(found.loss, data) if data else found.loss
        )
        return loss, grads

    mapped = jax.shard_map(
        body, mesh=MeshSpec(mesh).build(jax.devices()[: int(np.prod(list(mesh.values())))]),
        in_specs=(specs, P(data)), out_specs=(P(), specs), check_vma=True,
    )  # fmt: skip
    order = rows_of(layers, schedule.stages, schedule.virtual_stages)

    def run(params, inputs):
        stored = params._replace(layers=jax.tree.map(lambda w: w[order], params.layers))
        loss, grads = mapped(stored, inputs)
        back = np.argsort(order)
        return loss, grads._replace(layers=jax.tree.map(lambda w: w[back], grads.layers))

    return jax.jit(run), (parameters(layers), batch(sequences))


def error(found, expected):
    """The largest relative L2 error of the loss and of each gradient."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(relative_error(np.asarray(a), np.asarray(b)) for a, b in pairs)
