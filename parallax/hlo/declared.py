"""The declared cost of hand-written kernels, as a program's text carries it."""

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
    """The declared cost of one launch.

    Attributes:
      flops, n_bytes: FLOPs, and bytes read and written, per launch.
      name: name of the kernel; "" if it has none.
      computes: what the FLOPs compute; attention if the program does not say.
    """

    flops: float
    n_bytes: float
    name: str
    computes: Computes


def declared_cost(i: Instruction) -> Declared | None:
    """Read the declared cost of an instruction; None if there is none.

    Raises:
      HloError: the declared cost is not a finite, non-negative number.
    """
    text = i.attributes.get("frontend_attributes", "")
    costs = dict(re.findall(r'(cost_flops|cost_bytes)="?([^",}]*)"?', text))
    if set(costs) != set(_COST):
        return None
    try:
        flops, n_bytes = (float(costs[key]) for key in _COST)
    except ValueError:
        flops = n_bytes = math.nan
    if not (0 <= flops < math.inf and 0 <= n_bytes < math.inf):
        raise HloError(
            f"line {i.line}: %{i.name}: its declared cost {short(str(costs))} is not a "
            "finite, non-negative number."
        )
    name = _NAME.search(text)
    products = _PRODUCTS.search(text) is not None
    return Declared(
        flops, n_bytes, name.group(1) if name else "", "products" if products else "attention"
    )


def declared_kernels(module: Module) -> tuple[str, ...]:
    """List the hand-written kernels of a program by name, in alphabetical order."""
    names = set()
    for computation in module.computations.values():
        for i in computation.instructions:
            declared = declared_cost(i) if i.opcode == "custom-call" else None
            if declared is not None:
                names.add(declared.name or i.name)
    return tuple(sorted(names))
