"""Gradients inside the one `shard_map`: one microbatch at a time, added up on each device.

Shapes: B sequences on this device, M microbatches, b = B / M.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.varying import vary_over, varying_axes


class LocalParams(NamedTuple):
    """This device's parameters, or their gradients.

    Attributes:
      outer: tables, last norm and unembedding.
      layers: the stacked layers.
    """

    outer: Any
    layers: Any


class TrainFunctions(NamedTuple):
    """The functions of a model that a layer part differentiates, on local shards.

    Attributes:
      embed: (outer, inputs) -> [b, L, D / lookup], this device's share of the width.
      blocks: (layers, x [b, L, D], inputs, chunk) -> y [b, L, D], penalty, statistics. The penalty
        is this device's term of what the layers add to the loss; `chunk` is the virtual stage that
        the layers are, 0 without; statistics have no gradient.
      loss: (outer, y, inputs) -> this device's term of the mean loss, other results.
    """

    embed: Callable[[Any, Any], jax.Array]
    blocks: Callable[[Any, jax.Array, Any, Any], tuple[jax.Array, jax.Array, Any]]
    loss: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]


class Precision(NamedTuple):
    """How gradients are computed and added up.

    Attributes:
      sum_dtype: dtype in which the gradients of microbatches add up.
      loss_scale: factor of all gradients; float16 ones of a mean loss underflow.
    """

    sum_dtype: str = "float32"
    loss_scale: float = 1.0


class Gradients(NamedTuple):
    """What one training step gives on this device, before any sum over devices.

    Attributes:
      loss, penalty: this device's terms, summed over microbatches.
      params: this device's gradients.
      beside: (other results of `loss`, statistics), each leaf with a leading M.
    """

    loss: jax.Array
    penalty: jax.Array
    params: LocalParams
    beside: tuple[Any, Any]


def cut(inputs: Any, microbatches: int) -> Any:
    """Cut the batch of every leaf into microbatches: [M, b, ...]."""
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), inputs)


def typed_as(value: float, x: jax.Array, dtype: str | None = None) -> jax.Array:
    """Return a constant with the shape, dtype and varying axes of `x`, such as its cotangent 1."""
    return vary_over(jnp.full(x.shape, value, dtype or x.dtype), sorted(varying_axes(x)))


def accumulate(
    microbatch: Callable[[LocalParams, Any], tuple[tuple[jax.Array, jax.Array], Any]],
    params: LocalParams,
    inputs: Any,
    microbatches: int,
    precision: Precision,
) -> Gradients:
    """Differentiate one microbatch after another, and add up the gradients.

    Args:
      microbatch: (params, inputs of one) -> (loss, penalty), what lies beside.
      params: this device's, typed as varying over all axes over which gradients are summed later.
      inputs: a pytree whose leaves have the batch first.
      microbatches: M.
      precision: dtype of the sums, and scale of the loss.

    Cost: memory of one microbatch's activations, and with M > 1 of a second set of gradients.
    """

    def one(inputs):
        terms, backward, beside = jax.vjp(
            lambda params: microbatch(params, inputs), params, has_aux=True
        )
        (grads,) = backward(jax.tree.map(functools.partial(typed_as, precision.loss_scale), terms))
        return terms, jax.tree.map(lambda g: g.astype(precision.sum_dtype), grads), beside

    if microbatches == 1:
        (loss, penalty), grads, beside = one(inputs)
        return Gradients(loss, penalty, grads, jax.tree.map(lambda x: x[None], beside))

    def add(sums, inputs):
        terms, grads, beside = one(inputs)
        return jax.tree.map(jnp.add, sums, grads), (terms, beside)

    # Terms are summed afterwards: sums of them here would need their types, so a second trace.
    zeros = jax.tree.map(lambda w: typed_as(0.0, w, precision.sum_dtype), params)
    grads, (terms, beside) = lax.scan(add, zeros, cut(inputs, microbatches))
    loss, penalty = (x.sum(0) for x in terms)
    return Gradients(loss, penalty, grads, beside)
