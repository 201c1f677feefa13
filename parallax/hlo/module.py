"""A parsed HLO module: computations of instructions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from parallax.hlo.shapes import HloError, Shape

# Attributes that name computations.
CALLING = (
    "calls", "body", "condition", "to_apply", "branch_computations", "true_computation",
    "false_computation", "called_computations", "select", "scatter",
)  # fmt: skip
_PRODUCTS = ("dot", "custom-call", "convolution", "ragged-dot", "scaled-dot")
_NAME = re.compile(r"%([^\s,(){}]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction. `operands` name others of its computation; `line` is where it stands.
    `parameter` is the number of a parameter, -1 of anything else."""

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    attributes: Mapping[str, str]
    is_root: bool = False
    line: int = field(default=0, compare=False)
    parameter: int = -1

    @property
    def op_name(self) -> str:
        """Where in the Python program it came from, as JAX's name stack; "" if unsaid."""
        match = re.search(r'op_name="([^"]*)"', self.attributes.get("metadata", ""))
        return match.group(1) if match else ""

    def calls(self) -> dict[str, tuple[str, ...]]:
        """Called computations by attribute: calls, body, condition, branches, to_apply."""
        found = {}
        for key in CALLING:
            if key in self.attributes:
                found[key] = tuple(_NAME.findall(self.attributes[key]))
        return found


@dataclass(frozen=True)
class Computation:
    """Instructions in text order: the schedule, if the module is scheduled. `header` is what the
    text says of its parameters and result."""

    name: str
    instructions: tuple[Instruction, ...]
    header: str = field(default="", compare=False, repr=False)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @cached_property
    def dones(self) -> dict[str, list[int]]:
        """Start -> positions of the instructions that wait for it."""
        found: dict[str, list[int]] = {}
        for position, i in enumerate(self.instructions):
            if i.opcode.endswith("-done"):
                for name in i.operands:
                    found.setdefault(name, []).append(position)
        return found

    @cached_property
    def holding(self) -> list[int]:
        """Positions of the instructions that may hold matrix products."""
        return [
            position
            for position, i in enumerate(self.instructions)
            if not i.opcode.endswith(("-done", "-update"))
            and (i.opcode.removesuffix("-start") in _PRODUCTS or i.attributes.keys() & set(CALLING))
        ]

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """Shapes of an instruction's operands.

        Raises:
          HloError: an operand that this computation does not define.
        """
        try:
            return tuple(self.by_name[name].shape for name in instruction.operands)
        except KeyError as error:
            raise HloError(
                f"%{instruction.name} in %{self.name}: operand %{error.args[0]} is not defined."
            ) from None


@dataclass(frozen=True)
class Module:
    """A parsed module."""

    name: str
    attributes: Mapping[str, str]
    computations: Mapping[str, Computation]
    entry: str
    _memo: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_scheduled(self) -> bool:
        return self.attributes.get("is_scheduled") == "true"

    @property
    def num_partitions(self) -> int:
        return int(self.attributes.get("num_partitions", "1"))

    def computation(self, name: str) -> Computation:
        """Raises HloError where there is none of that name."""
        if name not in self.computations:
            raise HloError(f"module {self.name}: computation %{name} is called and not defined.")
        return self.computations[name]
