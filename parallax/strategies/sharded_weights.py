"""The fully sharded strategies, and sharded weights or optimizer state for any strategy."""

from collections.abc import Sequence
from typing import Any

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.sharded_weights import Gather
from parallax.rules import Rules
from parallax.strategy import Strategy


def fsdp(devices: int = 16, *, gather: Gather = "layer") -> Strategy:
    """Split the batch over `data`, and shard every weight and its optimizer state over it too.

    Args:
      devices: devices in all; they divide the batch and the model width.
      gather: "layer": each layer gathers its weights where it uses them, once per microbatch, and
        again where the backward pass recomputes the layer (remat other than "none"); "step": all
        weights are gathered once a step, in the model's dtype.

    Cost: with N parameters of p bytes in the model's dtype and d devices, per microbatch an
      all-gather of (d - 1) / d N p (two if layers are recomputed) and as large a reduce-scatter;
      with gather="step" one all-gather, and one reduce-scatter of float32, a step.
    Reference: Rajbhandari et al., "ZeRO", 2020 (stage 3); Zhao et al., "PyTorch FSDP", 2023.
    """
    return Strategy(
        "fsdp", MeshSpec({"data": devices}), Rules(act_batch="data", embed="data"), gather=gather
    )


def hsdp(replicas: int = 2, shards: int = 8, *, gather: Gather = "layer") -> Strategy:
    """Shard weights inside groups of devices (`data`), and replicate the groups (`replica`).

    Args:
      replicas: groups, usually nodes. Replicas times shards divide the batch.
      shards: devices in a group; they divide the model width.
      gather: as for `fsdp`.

    Cost: `fsdp` over `shards` devices, and one all-reduce of a shard's gradients a step, in
      float32, over `replicas`.
    """
    return Strategy(
        "hsdp",
        MeshSpec({"replica": replicas, "data": shards}),
        Rules(act_batch=("replica", "data"), embed="data"),
        gather=gather,
    )


def shard_weights(
    strategy: Strategy, axes: str | Sequence[str], *, gather: Gather = "layer"
) -> Strategy:
    """Return a strategy whose weights, and their optimizer state, are sharded over `axes`.

    Args:
      strategy: any strategy.
      axes: mesh axes that split its tokens, such as "data", "seq" or ("data", "seq"). An axis that
        already splits a weight is left out of that weight.
      gather: as for `fsdp`.

    Raises:
      ValueError: a mesh axis that does not split tokens.
    """
    rules = strategy.rules.replace(embed=_axes(axes))
    return strategy.replace(rules=rules, gather=gather)


def shard_optimizer(strategy: Strategy, axes: str | Sequence[str]) -> Strategy:
    """Return a strategy whose optimizer state is sharded over `axes` too (ZeRO-1).

    Args:
      strategy: any strategy.
      axes: mesh axes that split its tokens.

    Cost: gradients are reduce-scattered instead of all-reduced, once a step, and new parameters
      are all-gathered once a step.

    Raises:
      ValueError: a mesh axis that does not split tokens.
    """
    held = strategy.rules.table()["embed"]
    further = tuple(a for a in _axes(axes) if a not in held)
    pairs: Any = {"embed": (*held, *further)} if further else ()
    return strategy.replace(rules=strategy.rules.replace(optimizer=pairs))


def _axes(axes: str | Sequence[str]) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)
