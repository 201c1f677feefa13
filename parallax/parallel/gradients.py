"""The functions and parameters of which a layer part computes gradients, one microbatch at a time.

Shapes: b sequences of a microbatch on this device, L tokens, D model width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class TrainFunctions(NamedTuple):
    """The functions of a model that a training step runs on local shards.

    Attributes:
      embed: (outer, inputs) -> [b, L, D / lookup], this device's share of the width.
      blocks: (layers, x, inputs, chunk) -> [b, L, D] and a scalar that is added to the loss.
      loss: (outer, y, inputs) -> this device's share of the loss of one microbatch.
    """

    embed: Callable[[Any, Any], jax.Array]
    blocks: Callable[[Any, jax.Array, Any, Any], tuple[jax.Array, Any]]
    loss: Callable[[Any, jax.Array, Any], jax.Array]


class LocalParams(NamedTuple):
    """This device's parameters, or their gradients: those of the layers, and all others."""

    outer: Any
    layers: Any
