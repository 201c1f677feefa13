"""What the author of a hand-written kernel says it costs, carried by the program's text."""

import math
import re

from parallax.hlo.limits import short
from parallax.hlo.module import Instruction, Module
from parallax.hlo.shapes import HloError

_COST = ("cost_flops", "cost_bytes")
_NAME = re.compile(r'kernel_name="?([A-Za-z0-9_.-]{1,100})')


def declared_cost(i: Instruction) -> tuple[float, float] | None:
    """(FLOPs, bytes) attached to an instruction; None if nothing is.

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
    return flops, n_bytes


def declared_kernels(module: Module) -> tuple[str, ...]:
    """Names of the hand-written kernels that give one, in order of the alphabet."""
    found = set()
    for computation in module.computations.values():
        for i in computation.instructions:
            if i.opcode == "custom-call" and declared_cost(i) is not None:
                name = _NAME.search(i.attributes.get("frontend_attributes", ""))
                found.add(name.group(1) if name else i.name)
    return tuple(sorted(found))
