"""What the author of a hand-written kernel says it costs, carried by the program's text."""

import math
import re
from typing import Literal, NamedTuple

from parallax.hlo.limits import short
from parallax.hlo.module import Instruction, Module
from parallax.hlo.shapes import HloError

Computes = Literal["attention", "products"]
_COST = ("cost_flops", "cost_bytes")
_PRODUCTS = re.compile(r'cost_of="?products"?')
_NAME = re.compile(r'kernel_name="?([A-Za-z0-9_.-]{1,100})')


class Declared(NamedTuple):
    """What one launch costs.

    Attributes:
      flops, n_bytes: of one launch.
      name: the kernel's; "" if it has none.
      computes: what the FLOPs are; attention where a program does not say.
    """

    flops: float
    n_bytes: float
    name: str
    computes: Computes


def declared_cost(i: Instruction) -> Declared | None:
    """What is attached to an instruction; None if nothing is.

    Raises:
      HloError: something is, and it is no number from 0.
    """
    text = i.attributes.get("frontend_attributes", "")
    found = dict(re.findall(r'(cost_flops|cost_bytes)="?([^",}]*)"?', text))
    if set(found) != set(_COST):
        return None
    try:
        flops, n_bytes = (float(found[key]) for key in _COST)
    except ValueError:
        flops = n_bytes = math.nan
    if not (0 <= flops < math.inf and 0 <= n_bytes < math.inf):
        raise HloError(
            f"line {i.line}: %{i.name}: its declared cost {short(str(found))} is no number from 0."
        )
    name = _NAME.search(text)
    products = _PRODUCTS.search(text) is not None
    return Declared(
        flops, n_bytes, name.group(1) if name else "", "products" if products else "attention"
    )


def declared_kernels(module: Module) -> tuple[str, ...]:
    """Names of the hand-written kernels that give one, in order of the alphabet."""
    found = set()
    for computation in module.computations.values():
        for i in computation.instructions:
            declared = declared_cost(i) if i.opcode == "custom-call" else None
            if declared is not None:
                found.add(declared.name or i.name)
    return tuple(sorted(found))
