"""The layout of a described step: from degrees in words, or from one of our strategies."""

import math
from typing import Literal

from parallax.analytic.described.layout import Layout, Recompute
from parallax.meshes.mesh import MeshSpec
from parallax.strategy import Strategy

DEGREES = ("data", "tensor", "pipeline", "context", "expert")
_ALSO = {"stage": "pipeline", "seq": "context"}


def degrees_of(split: str | Strategy) -> dict[str, int]:
    """Return the degrees of a split, by the names in DEGREES; those not named are 1.

    Args:
      split: degrees such as "data=2,tensor=4,pipeline=2", or a strategy.

    Raises:
      ValueError: an unknown or repeated degree, or a strategy that splits what no degree says.
    """
    if isinstance(split, Strategy):
        return _of_strategy(split)
    found: dict[str, int] = dict.fromkeys(DEGREES, 1)
    named: set[str] = set()
    for name, size in MeshSpec.parse(split).axes:
        degree = _ALSO.get(name, name)
        if degree not in found or degree in named:
            said = "is given twice" if degree in named else "is not known"
            raise ValueError(
                f"split {split!r}: {name!r} {said}. Use {', '.join(DEGREES)}, each once."
            )
        named.add(degree)
        found[degree] = size
    return found


def _of_strategy(strategy: Strategy) -> dict[str, int]:
    table, sizes = strategy.rules.table("train"), strategy.mesh_axes

    def over(*names: str) -> int:
        axes = dict.fromkeys(axis for name in names for axis in table[name])
        return math.prod(sizes[axis] for axis in axes)

    found = {
        "data": over("act_batch"), "tensor": over("mlp"), "pipeline": over("layers"),
        "context": over("act_seq"), "expert": over("expert"),
    }  # fmt: skip
    devices = math.prod(size for name, size in found.items() if name != "expert")
    if devices != strategy.mesh.size or table["head_dim"] or table["heads"] != table["mlp"]:
        raise ValueError(
            f"Strategy '{strategy.name}' on mesh {strategy.mesh}: its split is not one of data, "
            "tensor, pipeline and context, which is all that described software does. Use `plan` "
            "or `compare`, which estimate Parallax's own programs."
        )
    return found


def layout_of(
    split: str | Strategy,
    batch: int,
    microbatches: int,
    zero: int = 0,
    recompute: Recompute = "none",
) -> Layout:
    """Return the layout of a training step.

    Args:
      split: degrees or a strategy, see `degrees_of`.
      batch: sequences over all devices.
      microbatches: microbatches per step and replica.
      zero, recompute: see `Layout`; a strategy with sharded weights or state has its own `zero`.

    Raises:
      ValueError: the batch is not a whole number of microbatches, or degrees contradict each other.
    """
    degrees = degrees_of(split)
    each = degrees["data"] * microbatches
    if batch % each:
        raise ValueError(
            f"batch {batch} is not a multiple of data ({degrees['data']}) x microbatches "
            f"({microbatches}) = {each}. Use a multiple."
        )
    own = _zero_of(split) if isinstance(split, Strategy) else 0
    return Layout(
        data=degrees["data"], tensor=degrees["tensor"], pipeline=degrees["pipeline"],
        context=degrees["context"], expert=degrees["expert"], microbatch=batch // each,
        microbatches=microbatches, zero=max(zero, own), recompute=recompute,
    )  # fmt: skip


def _zero_of(strategy: Strategy) -> Literal[0, 1, 3]:
    if strategy.shards_weights:
        return 3
    return 1 if strategy.rules.table("optimizer")["embed"] else 0
