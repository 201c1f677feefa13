"""What a user's program asks for and does not get, read from its jaxpr."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.lax import DotAlgorithm, DotAlgorithmPreset


def lost_donation(jaxpr: Any) -> list[str]:
    """Say that a jitted function inside donates, which JAX ignores inside of another program."""
    for e in jaxpr.eqns:
        if any(e.params.get("donated_invars", ())):
            name = e.params.get("name", "a jitted function")
            return [
                f"the function calls {name}, which donates arguments: inside another program that "
                "does nothing. Give the jitted function itself, or donate= here"
            ]
    return []


def lost_algorithms(jaxpr: Any) -> list[str]:
    """Say which algorithms of products the partitioner drops; `precision="highest"` is kept.

    This XLA keeps one only in products whose batch dim is split, not in the others.
    """
    asked = sorted({name for e in _equations(jaxpr) if (name := _algorithm(e))})
    return [
        f"products ask for the algorithm {name}: of a partitioned program XLA drops it in most, "
        "which then multiply float32 as TF32; the figures are of the program as compiled"
        for name in asked
    ]


def _algorithm(e: Any) -> str:
    """Return the algorithm that a product of float32 asks for, by name; "" if it asks for none."""
    if e.primitive.name != "dot_general" or all(x.aval.dtype != "float32" for x in e.invars):
        return ""
    asked = e.params.get("precision")
    if isinstance(asked, DotAlgorithmPreset):
        return "" if asked is DotAlgorithmPreset.DEFAULT else asked.name
    return str(asked) if isinstance(asked, DotAlgorithm) else ""


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of all that it calls."""
    for e in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield e
        for inner in jax.tree.leaves(list(e.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _equations(inner)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")
