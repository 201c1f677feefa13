"""What is explained: a program as it was traced and as it was compiled."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from parallax.explanations.buffers import Buffer, peak_buffers
from parallax.explanations.compiled import Program, flops_by_line
from parallax.explanations.equations import Equation, equations, updated_arguments
from parallax.explanations.flat_program import FlatProgram
from parallax.explanations.source_lines import SourceLine


@dataclass(frozen=True)
class Subject:
    """A program as it was traced (whole arrays) and as it was compiled (one device's part)."""

    flat: FlatProgram
    program: Program

    @cached_property
    def equations(self) -> list[Equation]:
        """All equations, with the arguments whose values they take."""
        captured = [frozenset[int]()] * len(self.flat.consts)
        holds = [*captured, *(frozenset({i}) for i in range(len(self.flat.args)))]
        return equations(self.flat.jaxpr, holds)

    @cached_property
    def updates(self) -> dict[int, tuple[int, bool]]:
        """The results that are updated arguments: result -> (argument, written in place)."""
        return updated_arguments(self.flat.jaxpr, self.flat.invars)

    @cached_property
    def state(self) -> frozenset[int]:
        """The arguments that the program returns updated: parameters, optimizer state, caches.

        A residual stream is a sum that starts at an argument, too: what is not written in place
        counts only if most of the arguments' bytes are returned.
        """
        floats = [i for i, x in enumerate(self.flat.args) if _is(x, jnp.floating)]
        total = sum(self.global_bytes(i) for i in floats)
        updated = {i for i, _ in self.updates.values()}
        if 2 * sum(self.global_bytes(i) for i in updated) > total:
            return frozenset(updated)
        return frozenset(i for i, in_place in self.updates.values() if in_place)

    @cached_property
    def axes(self) -> dict[str, int]:
        """The mesh axes of more than one device, with their sizes."""
        return {name: size for name, size in self.flat.mesh.shape.items() if size > 1}

    @cached_property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.axes.values())

    @cached_property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the batch: those of the first split dim of the data."""
        for found in (self._data(jnp.integer), self._data(jnp.floating)):
            for i in found:
                for entry in self.flat.spec(i) or ():
                    if entry:
                        return entry if isinstance(entry, tuple) else (entry,)
        return ()

    @cached_property
    def model_axes(self) -> tuple[str, ...]:
        """The mesh axes that split weights and not the batch."""
        return tuple(a for a in self.axes if a not in self.batch_axes)

    @cached_property
    def weights(self) -> frozenset[int]:
        """The arguments that are factors of products, or tables that rows are taken of."""
        tables = {i for e in self.equations if e.name == "gather" for i in e.holds[0]}
        return self._factors(1) | ((self._factors(0) | tables) & self.state)

    def _factors(self, operand: int) -> frozenset[int]:
        products = (e for e in self.equations if e.name == "dot_general" and len(e.holds) > operand)
        return frozenset(i for e in products for i in e.holds[operand])

    def _data(self, kind: Any) -> list[int]:
        """Return the arguments that are data: no state, never the second factor of a product."""
        factors = self._factors(1)
        weighty = {root_of(self.flat.names[i]) for i in factors}
        return [
            i for i, x in enumerate(self.flat.args)
            if _is(x, kind) and x.shape and i not in self.state
            and (kind is jnp.integer or root_of(self.flat.names[i]) not in weighty)
        ]  # fmt: skip

    def global_bytes(self, argument: int) -> int:
        """Return the bytes of a whole argument."""
        x = self.flat.args[argument]
        return math.prod(x.shape) * getattr(x.dtype, "itemsize", 4)

    def local_bytes(self, argument: int) -> int:
        """Return the bytes of an argument on one device."""
        return self.global_bytes(argument) // math.prod(
            self.axes.get(a, 1) for a in self.used_axes(argument)
        )

    def used_axes(self, argument: int) -> tuple[str, ...]:
        """Return the mesh axes that split an argument."""
        entries = self.flat.spec(argument) or ()
        return tuple(
            a for e in entries for a in (e if isinstance(e, tuple) else (e,)) if a is not None
        )

    def activation_specs(self, shape: tuple[int, ...]) -> list[PartitionSpec]:
        """Return the usual splits of an activation: by batch, by batch and width, by width."""
        batch = math.prod(self.axes[a] for a in self.batch_axes)
        model = math.prod(self.axes[a] for a in self.model_axes)
        first = self.batch_axes if batch > 1 and shape and shape[0] % batch == 0 else None
        last = self.model_axes if model > 1 and len(shape) > 1 and shape[-1] % model == 0 else None
        between = (None,) * (len(shape) - 2)
        found = []
        if first and last:
            found.append(PartitionSpec(_entry(first), *between, _entry(last)))
        if first:
            found.append(PartitionSpec(_entry(first), *(None,) * (len(shape) - 1)))
        if last and not first:
            found.append(PartitionSpec(None, *between, _entry(last)))
        return found

    @cached_property
    def makers(self) -> dict[int, Equation]:
        """The equation that makes each variable, by the variable's id."""
        return {id(v): e for e in self.equations for v in e.eqn.outvars}

    @cached_property
    def takers(self) -> dict[int, list[Equation]]:
        """The equations that take each variable, by the variable's id."""
        found: dict[int, list[Equation]] = {}
        for e in self.equations:
            for v in e.eqn.invars:
                found.setdefault(id(v), []).append(e)
        return found

    def made_by(self, e: Equation) -> list[Equation]:
        """Return the equations that make an equation's operands."""
        return [self.makers[id(v)] for v in e.eqn.invars if id(v) in self.makers]

    @cached_property
    def by_line(self) -> dict[SourceLine, list[Equation]]:
        """The equations of each source line."""
        found: dict[SourceLine, list[Equation]] = {}
        for e in self.equations:
            if e.line is not None:
                found.setdefault(e.line._replace(function=""), []).append(e)
        return found

    def at(self, line: SourceLine | None) -> list[Equation]:
        """Return the equations of a source line."""
        return [] if line is None else self.by_line.get(line._replace(function=""), [])

    @cached_property
    def flops(self) -> dict[SourceLine, float]:
        """The FLOPs of one device by source line."""
        found: dict[SourceLine, float] = {}
        for line, count in flops_by_line(self.program).items():
            key = line._replace(function="")
            found[key] = found.get(key, 0.0) + count
        return found

    @cached_property
    def buffers(self) -> list[Buffer]:
        """The largest arrays at the peak of memory."""
        return peak_buffers(self.program, 20)


def root_of(name: str) -> str:
    """Return the whole argument's name of a leaf's, "params" of "params['w']"."""
    return re.split(r"[\[.]", name, maxsplit=1)[0]


def _is(x: Any, kind: Any) -> bool:
    return jnp.issubdtype(x.dtype, kind)


def _entry(axes: tuple[str, ...]) -> Any:
    return axes[0] if len(axes) == 1 else axes
