"""A parsed HLO module: its computations and their instructions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from parallax.hlo.groups import least_devices
from parallax.hlo.platform import Platform
from parallax.hlo.shapes import HloError, Shape
from parallax.hlo.source import Frame, SourceTables, unescaped

# Attributes that name computations.
CALLING = (
    "calls", "body", "condition", "to_apply", "branch_computations", "true_computation",
    "false_computation", "called_computations", "select", "scatter",
)  # fmt: skip
_PRODUCTS = ("dot", "custom-call", "convolution", "ragged-dot", "scaled-dot")
_NAME = re.compile(r"%?([^\s,(){}%]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    `operands` are names of other instructions there, `line` is the line in the text, `parameter`
    is the number of a parameter, -1 for anything else, and `literal` the value of a constant that
    is one integer, None for anything else.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    attributes: Mapping[str, str]
    is_root: bool = False
    line: int = field(default=0, compare=False)
    parameter: int = -1
    literal: int | None = None

    @property
    def op_name(self) -> str:
        """JAX's name stack of the op in the Python program; "" if the text has none."""
        match = _OP_NAME.search(self.attributes.get("metadata", ""))
        return unescaped(match[1]) if match else ""

    @property
    def primitive(self) -> str:
        """The JAX operation it comes from, such as "dot_general"; "" if the text has none."""
        return self.op_name.rpartition("/")[2].partition("[")[0]

    @property
    def is_spmd_generated(self) -> bool:
        """Whether the partitioner made it: no line of the Python program asks for it."""
        return 'is_spmd_generated="true"' in self.attributes.get("frontend_attributes", "")

    def calls(self) -> dict[str, tuple[str, ...]]:
        """Return the called computations by attribute: calls, body, condition, to_apply, ..."""
        names = {}
        for key in CALLING:
            if key in self.attributes:
                names[key] = tuple(_NAME.findall(self.attributes[key]))
        return names


@dataclass(frozen=True)
class Computation:
    """A computation: instructions in text order, which is the schedule of a scheduled module.

    `header` is the text of its parameters and result.
    """

    name: str
    instructions: tuple[Instruction, ...]
    header: str = field(default="", compare=False, repr=False)

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @cached_property
    def dones(self) -> dict[str, list[int]]:
        """The positions of the instructions that wait for a start, by its name."""
        positions: dict[str, list[int]] = {}
        for position, i in enumerate(self.instructions):
            if i.opcode.endswith("-done"):
                for name in i.operands:
                    positions.setdefault(name, []).append(position)
        return positions

    @cached_property
    def holding(self) -> list[int]:
        """The positions of the instructions that may hold matrix products."""
        return [
            position
            for position, i in enumerate(self.instructions)
            if not i.opcode.endswith(("-done", "-update"))
            and (i.opcode.removesuffix("-start") in _PRODUCTS or i.attributes.keys() & set(CALLING))
        ]

    def operand_shapes(self, instruction: Instruction) -> tuple[Shape, ...]:
        """Return the shapes of an instruction's operands.

        Raises:
          HloError: this computation does not define an operand.
        """
        try:
            return tuple(self.by_name[name].shape for name in instruction.operands)
        except KeyError as error:
            raise HloError(
                f"%{instruction.name} in %{self.name}: operand %{error.args[0]} is not defined."
            ) from None


@dataclass(frozen=True)
class Module:
    """A parsed HLO module; `platform` is what it was compiled for, "" if the text does not show."""

    name: str
    attributes: Mapping[str, str]
    computations: Mapping[str, Computation]
    entry: str
    sources: SourceTables = field(default_factory=SourceTables, compare=False, repr=False)
    platform: Platform = ""
    _memo: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_partitioned(self) -> bool:
        """Whether its shapes are one device's: before that, arrays are whole and have shardings."""
        entry = self.computations[self.entry]
        named = self.is_scheduled or self.entry.endswith("_spmd")
        return named or not any("sharding" in i.attributes for i in entry.instructions)

    @property
    def is_scheduled(self) -> bool:
        return self.attributes.get("is_scheduled") == "true"

    @property
    def num_partitions(self) -> int:
        """The number of devices; before optimisation it may follow from the groups alone."""
        if "num_partitions" in self.attributes or self.is_scheduled:
            return int(self.attributes.get("num_partitions", "1"))
        return self._devices_of_groups

    @cached_property
    def _devices_of_groups(self) -> int:
        keys = ("replica_groups", "source_target_pairs", "sharding")
        everything = (i for c in self.computations.values() for i in c.instructions)
        texts = (i.attributes[key] for i in everything for key in keys if key in i.attributes)
        return max(map(least_devices, texts), default=1)

    def frames(self, instruction: Instruction) -> tuple[Frame, ...]:
        """Return the source lines of an instruction, innermost first; () where none are known."""
        return self.sources.frames_of(instruction.attributes.get("metadata", ""))

    def computation(self, name: str) -> Computation:
        """Return the computation of that name; HloError if there is none."""
        if name not in self.computations:
            raise HloError(f"module {self.name}: computation %{name} is called and not defined.")
        return self.computations[name]
