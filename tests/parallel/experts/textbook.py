"""A mixture of experts as in a textbook: every expert on every token, masked; and small inputs."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from parallax.parallel.experts import ExpertWeights, route
from parallax.parallel.split import UNSPLIT
from parallax.parallel.varying import varying_axes

LIMIT = 0.5  # of the clamped gate


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def expert_weights(experts, width, hidden, gated, seed=7, kind="silu", biases=False):
    up, down, gate = (
        draw(experts, *shape, seed=seed + i) / shape[0] ** 0.5
        for i, shape in enumerate(((width, hidden), (hidden, width), (width, hidden)))
    )
    limit = LIMIT if kind == "clamped" else 0.0
    if not biases:
        return ExpertWeights(up, down, gate if gated else None, kind=kind, limit=limit)
    up_bias, down_bias, gate_bias = (
        draw(experts, size, seed=seed + 3 + i) for i, size in enumerate((hidden, width, hidden))
    )
    return ExpertWeights(
        up, down, gate if gated else None, up_bias, down_bias, gate_bias if gated else None,
        kind, limit,
    )  # fmt: skip


def every_expert(x, weights):
    """[E, R, D]: every expert's MLP on every row."""

    def plus(y, bias):
        return y if bias is None else y + bias[:, None, :]

    hidden = plus(jnp.einsum("rd,edf->erf", x, weights.up_eDF), weights.up_bias_eF)
    if weights.gate_eDF is None:
        hidden = jax.nn.gelu(hidden)
    else:
        gate = plus(jnp.einsum("rd,edf->erf", x, weights.gate_eDF), weights.gate_bias_eF)
        if weights.kind == "silu":
            hidden = hidden * gate / (1 + jnp.exp(-gate))
        elif weights.kind == "gelu":
            cubic = gate + 0.044715 * gate**3
            hidden = hidden * gate * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * cubic)) / 2
        else:
            gate = jnp.where(gate > LIMIT, LIMIT, gate)
            hidden = jnp.where(jnp.abs(hidden) > LIMIT, LIMIT * jnp.sign(hidden), hidden)
            hidden = (hidden + 1) * gate / (1 + jnp.exp(-1.702 * gate))
    return plus(jnp.einsum("erf,efd->erd", hidden, weights.down_eFD), weights.down_bias_eD)


def mixture(x, logits, weights, top_k, ids=None):
    """[T, D]: sum over experts of gate times MLP, with a gate of 0 where not chosen."""
    p = jax.nn.softmax(logits, axis=-1)
    if ids is None:
        ids = jnp.argsort(-p, axis=-1)[:, :top_k]
    chosen = (ids[:, :, None] == jnp.arange(p.shape[1], dtype=ids.dtype)[None, None]).any(axis=1)
    gates = jnp.where(chosen, p, 0)
    if top_k > 1:
        gates = gates / gates.sum(axis=1, keepdims=True)
    return jnp.einsum("etd,te->td", every_expert(x, weights), gates)


def mesh_of(axes):
    sizes = tuple(axes.values())
    return Mesh(np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes), tuple(axes))


def sharded(
    part, axes, *, top_k, experts, gated, tokens=None, over=None, mlp=None, kind="silu",
    biases=False, decodes=False,
) -> Any:  # fmt: skip
    """(x, logits, weights, fixed_ids ids or None) -> ([T, D], dropped), by a part on a mesh.

    Args:
      axes: mesh axis -> size.
      tokens: mesh axes that split the tokens; None is all of `over`.
      over: mesh axes that split the experts.
      mlp: mesh axis that splits F.
    """
    over = part.exchange_axes if over is None else over
    tokens = over if tokens is None else tokens

    def local(x, logits, weights, ids):
        routing = route(logits, top_k, ids)
        if biases:
            once = UNSPLIT.once(weights.down_bias_eD, (mlp,) if mlp else ())
            weights = dataclasses.replace(weights, down_bias_eD=once)
        y, dropped = part.run(
            x, routing, weights, num_experts=experts, expert_axes=over, platform="cpu",
            decodes=decodes,
        )  # fmt: skip
        partial = tuple(a for a in axes if a in varying_axes(y) and a not in tokens)
        dropped = lax.psum(dropped, tokens) if tokens else dropped
        return lax.psum(y, partial) if partial else y, dropped

    matrices: Any = P(over or None, None, mlp), P(over or None, mlp, None)
    wide: Any = P(over or None, mlp)
    down_bias: Any = P(over or None, None)
    specs = ExpertWeights(
        matrices[0], matrices[1], matrices[0] if gated else None,
        wide if biases else None, down_bias if biases else None,
        wide if biases and gated else None, kind, LIMIT if kind == "clamped" else 0.0,
    )  # fmt: skip
    rows = P(tokens or None)
    return jax.shard_map(
        local, mesh=mesh_of(axes), in_specs=(rows, rows, specs, rows), out_specs=(rows, P()),
        check_vma=True,
    )  # fmt: skip


def with_gradients(f, d_out):
    """(y, gradients of x, logits and weights) of f(x, logits, weights)."""

    def run(*args):
        y, vjp = jax.vjp(f, *args)
        return y, vjp(d_out)

    return jax.jit(run)


def distance(found, expected):
    """Relative L2 error of each array; absolute where all that is expected is 0."""
    found, expected = (jax.tree.leaves(jax.device_get(x)) for x in (found, expected))
    assert len(found) == len(expected)
    return [
        float(np.linalg.norm((a - b).astype(float)) / (np.linalg.norm(b.astype(float)) or 1.0))
        for a, b in zip(found, expected, strict=True)
    ]
