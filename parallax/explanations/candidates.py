"""Changes that may help, from what was compiled: each is tried by compiling it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import PartitionSpec

from parallax.explanations.dataflow import operand_origins
from parallax.explanations.edits import Edit, inner_jaxprs
from parallax.explanations.equations import Equation, scan_counts
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.subject import Subject
from parallax.hlo.collectives import Collective

# Shares of a program's time and memory below which nothing is tried.
LEAST_TIME, LEAST_MEMORY = 0.02, 0.02
_WIDE = ("f32", "f64")


@dataclass(frozen=True)
class Candidate:
    """A change that may make a program faster or smaller.

    Attributes:
      kind: what is wrong, in two or three words.
      what: what the compiler did, in a sentence.
      fix: what to write, in a sentence.
      line: the user's line at fault; None where an argument is.
      argument: the argument at fault, by the user's name; "" where a line is.
      share: the part of the program's time or memory at stake, for the order of trying.
      edits: changes of equations.
      specs, results: other specs of arguments and results, by position.
      donated: positions of arguments to donate.
      group: of candidates with the same group the best alone is reported.
    """

    kind: str
    what: str
    fix: str
    line: SourceLine | None = None
    argument: str = ""
    share: float = 0.0
    edits: tuple[Edit, ...] = ()
    specs: Mapping[int, PartitionSpec] = field(default_factory=dict)
    results: Mapping[int, PartitionSpec] = field(default_factory=dict)
    donated: tuple[int, ...] = ()
    group: str = ""


def candidates(subject: Subject) -> list[Candidate]:
    """Return the changes worth a try, those with most at stake first."""
    found = [
        *_donations(subject),
        *_replicated_arguments(subject),
        *_early_casts(subject),
        *_invariant_gathers(subject),
        *_narrow_sums(subject),
        *_constraints(subject),
        *_argument_orders(subject),
        *_activations(subject),
    ]
    return sorted(found, key=lambda c: -c.share)


def _donations(s: Subject) -> Iterator[Candidate]:
    """State that is returned and whose old copy is kept."""
    kept = sorted(i for i in s.state if not s.flat.donated[i])
    size = sum(s.local_bytes(i) for i in kept)
    if not kept or size < LEAST_MEMORY * s.program.memory_bytes:
        return
    names = _roots(s, kept)
    yield Candidate(
        "not donated",
        f"{names}: returned updated, and the old values are kept beside the new ones",
        f"donate {names}: donate_argnums= of jax.jit, or donate= here",
        argument=names, share=size / s.program.memory_bytes, donated=tuple(kept), group="donate",
    )  # fmt: skip


def _replicated_arguments(s: Subject) -> Iterator[Candidate]:
    """Arguments whole on devices that split others of their kind."""
    groups: dict[tuple[str, str], dict[int, PartitionSpec]] = {}
    for i, x in enumerate(s.flat.args):
        if s.local_bytes(i) < 0.002 * s.program.memory_bytes or len(x.shape) < 2:
            continue
        peers = _peers(s, i)
        for variant, spec in _specs_like(s, i, peers):
            groups.setdefault((_root(s, i), variant), {})[i] = spec
    for (root, variant), specs in groups.items():
        size = sum(s.local_bytes(i) for i in specs)
        share = size / s.program.memory_bytes
        if share < LEAST_MEMORY:
            continue
        largest = max(specs, key=s.local_bytes)
        name = s.flat.names[largest]
        results = {
            r: specs[i] for r, (i, _) in s.updates.items()
            if i in specs and s.flat.out_shardings[r] is not None
        }  # fmt: skip
        more = f" and {len(specs) - 1} more" if len(specs) > 1 else ""
        yield Candidate(
            "replicated argument",
            f"{name}{more}: whole on every device of mesh axes that split its like",
            f"shard {name} by {_text(specs[largest])}{' and the others alike' if more else ''}",
            argument=name if not more else root, share=share, specs=specs, results=results,
            group=f"replicated {root}",
        )  # fmt: skip
        del variant


def _peers(s: Subject, i: int) -> list[int]:
    """Return the arguments that an argument could be split like: state, or weights beside it."""
    if i in s.state:
        return [j for j in s.state if j != i and len(s.flat.args[j].shape) > 1]
    root = _root(s, i)
    if root == s.flat.names[i]:  # an array alone: other arrays that are no data
        weights = {
            j for e in s.equations if e.name == "dot_general" and len(e.holds) > 1
            for j in e.holds[1]
        }  # fmt: skip
        return [j for j in weights if j != i and i in weights and j not in s.state]
    return [j for j in range(len(s.flat.args)) if j != i and _root(s, j) == root]


def _specs_like(s: Subject, i: int, peers: list[int]) -> Iterator[tuple[str, PartitionSpec]]:
    """Yield splits of an argument over the axes that split its peers and not itself."""
    shape, own = s.flat.args[i].shape, s.flat.spec(i) or (None,) * len(s.flat.args[i].shape)
    for j in peers:  # an optimizer's moment is split as its parameter is
        if s.flat.args[j].shape == shape and len(s.used_axes(j)) > len(s.used_axes(i)):
            yield "like", PartitionSpec(*(s.flat.spec(j) or ()))
            return
    idle = [
        a for a in s.axes if a not in s.used_axes(i) and any(a in s.used_axes(j) for j in peers)
    ]
    for axis in idle:
        for dim in range(len(shape) - 1, -1, -1):
            if own[dim] is None and shape[dim] % s.axes[axis] == 0:
                entries = list(own)
                entries[dim] = axis
                yield f"{axis} {dim - len(shape)}", PartitionSpec(*entries)


def _early_casts(s: Subject) -> Iterator[Candidate]:
    """Weights gathered wide and cast afterwards."""
    for c, i in _gathers_of_arguments(s):
        if c.dtype not in _WIDE:
            continue
        casts = [
            e for e in s.equations
            if e.name == "convert_element_type" and e.holds[0] == {i} and e.dtype == "bfloat16"
        ]  # fmt: skip
        edits = tuple(
            Edit(e.path, "constrain", PartitionSpec(*(s.flat.spec(i) or ())[-len(e.shape):]))
            for e in casts if e.shape
        )  # fmt: skip
        if edits:
            name = s.flat.names[i]
            yield Candidate(
                "gathered before a cast",
                f"{name} is gathered in {c.dtype} and cast to bfloat16 afterwards",
                f"cast {name} first, and constrain the cast to its own spec",
                line=casts[0].line, share=_share(s, [c]) / 2, edits=edits, group=f"cast {name}",
            )  # fmt: skip


def _gathers_of_arguments(s: Subject) -> Iterator[tuple[Collective, int]]:
    kept = sorted(s.flat.kept)
    for c in s.program.ledger:
        if c.kind != "all-gather" or s.program.is_written(c):
            continue
        computation, i = s.program.homes[c.name]
        for found in operand_origins(s.program.module, computation, i):
            if found.parameter < len(kept):
                yield c, kept[found.parameter]


def _invariant_gathers(s: Subject) -> Iterator[Candidate]:
    """Gathers inside a loop of what no iteration changes."""
    kept = sorted(s.flat.kept)
    for c in s.program.ledger:
        computation, i = s.program.homes[c.name]
        if c.kind != "all-gather" or c.count < 2 or s.program.is_written(c):
            continue
        for found in operand_origins(s.program.module, computation, i):
            if not found.invariant or found.parameter >= len(kept):
                continue
            argument = kept[found.parameter]
            for e in s.equations:
                if e.name != "scan" or len(e.path) > 1:
                    continue
                for position in range(scan_counts(e.eqn.params)[0]):
                    if e.holds[position] != {argument}:
                        continue
                    spec = _without(s.flat.spec(argument) or (), c.axes or ())
                    name = s.flat.names[argument]
                    yield Candidate(
                        "gathered in a loop",
                        f"{name} is gathered in each of {c.count:,.0f} iterations, and none "
                        "changes it",
                        f"gather {name} once before the loop: constrain it to {_text(spec)} there",
                        line=s.program.line_of(c), share=_share(s, [c]),
                        edits=(Edit(e.path, "constrain operand", spec, position),),
                        group=f"invariant {name}",
                    )  # fmt: skip


def _narrow_sums(s: Subject) -> Iterator[Candidate]:
    """Sums over devices in float32 of what was computed in bfloat16."""
    lines: dict[SourceLine, list[Collective]] = {}
    for c in s.program.ledger:
        line = s.program.line_of(c)
        if c.dtype == "f32" and c.kind in ("all-reduce", "reduce-scatter") and line is not None:
            lines.setdefault(line, []).append(c)
    for line, found in lines.items():
        share = _share(s, found) / 2
        if share < LEAST_TIME:
            continue
        edits = tuple(Edit(e.path, "narrow") for e in s.at(line) if _widens(s, e))
        if edits:
            yield Candidate(
                "sum in float32",
                "what was computed in bfloat16 is summed over devices in float32",
                "sum in bfloat16 and cast afterwards, if the last bits do not matter",
                line=line, share=share, edits=edits, group=f"narrow {line}",
            )  # fmt: skip


def _widens(s: Subject, e: Equation) -> bool:
    """Return whether an equation makes or sums float32 values of bfloat16 ones."""
    if e.name == "dot_general":
        kinds = {str(v.aval.dtype) for v in e.eqn.invars}
        return e.dtype == "float32" and kinds == {"bfloat16"}
    if not e.name.startswith(("psum", "reduce_scatter", "unreduced")):
        return False
    made = _makers(s, e)
    return any(
        m.name == "convert_element_type" and str(m.eqn.invars[0].aval.dtype) == "bfloat16"
        for m in made
    )  # fmt: skip


def _makers(s: Subject, e: Equation) -> list[Equation]:
    operands = {id(v) for v in e.eqn.invars}
    return [x for x in s.equations if any(id(v) in operands for v in x.eqn.outvars)]


def _constraints(s: Subject) -> Iterator[Candidate]:
    """Constraints of the user's that cost more than they help: dropped, or split another way."""
    for e in s.equations:
        if e.name not in _CONSTRAINTS or e.line is None:
            continue
        sharding = e.eqn.params.get("sharding") or e.eqn.params.get("dst_sharding")
        spec = getattr(sharding, "spec", None)
        if spec is None or "shard_map" in map(str, e.path):
            continue
        share = max(_share(s, _sent_around(s, e)), _memory_share(s, e))
        if share < LEAST_TIME:
            continue
        twins = [x for x in s.at(e.line) if x.name == e.name]
        written = _text(spec)
        yield Candidate(
            "costly constraint",
            f"{written} makes the partitioner move the array",
            f"leave the constraint {written} away",
            line=e.line, share=share, edits=tuple(Edit(x.path, "drop") for x in twins),
            group=f"line {e.line}",
        )  # fmt: skip
        options = [*_swapped(spec, e.shape, s), *s.activation_specs(e.shape)]
        for other in options:
            if _padded(other, len(e.shape)) != _padded(spec, len(e.shape)):
                edits = tuple(
                    Edit(x.path, "drop", other) for x in twins if len(x.shape) == len(e.shape)
                )
                yield Candidate(
                    "constraint of another order",
                    f"{written} makes the partitioner move the array or keep it whole",
                    f"write {_text(other)} instead of {written}",
                    line=e.line, share=share, edits=edits, group=f"line {e.line}",
                )  # fmt: skip


def _sent_around(s: Subject, e: Equation) -> list[Collective]:
    """Return the collectives of a line, and of the lines that make and take its values."""
    lines = {e.line and e.line._replace(function="")}
    operands, results = {id(v) for v in e.eqn.invars}, {id(v) for v in e.eqn.outvars}
    for x in s.equations:
        if any(id(v) in operands for v in x.eqn.outvars) or any(
            id(v) in results for v in x.eqn.invars
        ):
            lines.add(x.line and x.line._replace(function=""))
    return [
        c for c in s.program.ledger
        if not s.program.is_written(c)
        and (line := s.program.line_of(c)) is not None
        and line._replace(function="") in lines
    ]  # fmt: skip


def _memory_share(s: Subject, e: Equation) -> float:
    """Return the share of memory of the arrays that a line has at the peak, if not fully split."""
    whole = math.prod(e.shape)
    return sum(
        b.n_bytes for b in s.buffers
        if b.line and e.line and b.line[:2] == e.line[:2] and b.elements * s.devices > whole
    ) / max(1, s.program.memory_bytes)  # fmt: skip


def _argument_orders(s: Subject) -> Iterator[Candidate]:
    """Arguments split over the right axes in the wrong order or dim."""
    for i, x in enumerate(s.flat.args):
        spec = s.flat.spec(i)
        if spec is None or not any(spec) or len(x.shape) < 2 or i in s.state:
            continue
        sent = _sent_for(s, i)
        share = _share(s, sent)
        if share < LEAST_TIME:
            continue
        name = s.flat.names[i]
        for other in _swapped(PartitionSpec(*spec), x.shape, s):
            yield Candidate(
                "argument split another way",
                f"{name} is split by {_text(spec)}, and the products want it otherwise",
                f"split {name} by {_text(other)}",
                argument=name, share=share, specs={i: other},
                results={r: other for r, (a, _) in s.updates.items()
                         if a == i and s.flat.out_shardings[r] is not None},
                group=f"order {name}",
            )  # fmt: skip


def _sent_for(s: Subject, argument: int) -> list[Collective]:
    """Return the partitioner's collectives at lines that take an argument."""
    lines = {
        e.line._replace(function="") for e in s.equations
        if e.line is not None and any(argument in h for h in e.holds)
    }  # fmt: skip
    return [
        c for c in s.program.ledger
        if not s.program.is_written(c)
        and (line := s.program.line_of(c)) is not None
        and line._replace(function="") in lines
    ]  # fmt: skip


def _activations(s: Subject) -> Iterator[Candidate]:
    """Lines whose results are moved, computed twice or kept whole, with no constraint there."""
    stakes: dict[SourceLine, float] = {}

    def add(line: SourceLine | None, share: float) -> None:
        if line is not None:
            key = line._replace(function="")
            stakes[key] = stakes.get(key, 0.0) + share

    for c in s.program.ledger:
        if not s.program.is_written(c) and not _is_partial_sum(s, c):
            add(s.program.line_of(c), _share(s, [c]))
    total = sum(s.flops.values())
    for line, count in s.flops.items():
        needed = sum(e.flops * e.times for e in s.at(line)) / s.devices
        if needed and count > 1.5 * needed and total:
            add(line, (count - needed) / total)
    for b in s.buffers:
        whole = max((math.prod(e.shape) for e in s.at(b.line)), default=0)
        if whole and b.elements * s.devices >= 2 * whole:
            add(b.line, b.n_bytes / max(1, s.program.memory_bytes))
    first = _first_activation(s)
    if stakes and first is not None:
        # Where a split is lost at the start, the lines after it are moved too.
        key = first._replace(function="")
        stakes[key] = max(stakes.values()) + stakes.get(key, 0.0)
    for line, share in stakes.items():
        here = [e for e in s.at(line) if len(e.shape) > 1 and e.dtype in _FLOATS]
        if share < LEAST_TIME or not here or any("shard_map" in map(str, e.path) for e in here):
            continue
        if any(e.name in _CONSTRAINTS for e in here):
            continue  # the constraint is what to change
        largest = max(here, key=lambda e: math.prod(e.shape))
        alike = [e for e in here if e.shape == largest.shape]
        for spec in s.activation_specs(largest.shape):
            yield Candidate(
                "no constraint",
                "the partitioner moves the result, computes it twice or keeps it whole",
                f"constrain the result: jax.lax.with_sharding_constraint(..., {_text(spec)})",
                line=line, share=share, edits=tuple(Edit(e.path, "constrain", spec) for e in alike),
                group="activations",
            )  # fmt: skip


def _first_activation(s: Subject) -> SourceLine | None:
    """Return the line of the first large value that is no argument, such as embedded tokens."""
    batch = math.prod(s.axes[a] for a in s.batch_axes)
    for e in s.equations:
        if any(e.holds) and e.name != "dot_general" and e.name != "gather":
            continue
        if e.dtype in _FLOATS and len(e.shape) > 1 and e.shape[0] % max(2, batch) == 0:
            if e.line is not None and math.prod(e.shape) > 1 << 20 and not inner_jaxprs(e.eqn):
                return e.line
    return None


_CONSTRAINTS = ("sharding_constraint", "reshard")
_FLOATS = ("float32", "bfloat16", "float16", "float64")


def _is_partial_sum(s: Subject, c: Collective) -> bool:
    """Return whether a collective sums what a product split over its contracted dim leaves."""
    return c.kind in ("all-reduce", "reduce-scatter")


def _share(s: Subject, collectives: list[Collective]) -> float:
    return sum(s.program.collective_s(c) for c in collectives) / s.program.seconds


def _swapped(spec: PartitionSpec, shape: tuple[int, ...], s: Subject) -> list[PartitionSpec]:
    """Return a spec with each two of its entries exchanged, as far as the shape divides."""
    entries = [*spec, *(None,) * (len(shape) - len(spec))]
    found = []
    for a in range(len(entries)):
        for b in range(a + 1, len(entries)):
            other = list(entries)
            other[a], other[b] = other[b], other[a]
            if other != entries and _divides(other, shape, s):
                found.append(PartitionSpec(*other))
    return found


def _divides(entries: list[Any], shape: tuple[int, ...], s: Subject) -> bool:
    for entry, size in zip(entries, shape, strict=True):
        axes = entry if isinstance(entry, tuple) else (entry,)
        if size % math.prod(s.axes.get(a, 1) for a in axes if a is not None):
            return False
    return True


def _without(spec: tuple[Any, ...], axes: tuple[str, ...]) -> PartitionSpec:
    def rest(entry: Any) -> Any:
        kept = tuple(a for a in (entry if isinstance(entry, tuple) else (entry,)) if a not in axes)
        return kept[0] if len(kept) == 1 else (kept or None)

    return PartitionSpec(*(None if e is None else rest(e) for e in spec))


def _padded(spec: Any, dims: int) -> tuple[Any, ...]:
    return (*spec, *(None,) * (dims - len(spec)))


def _text(spec: Any) -> str:
    return f"P({', '.join(map(repr, spec))})"


def _root(s: Subject, i: int) -> str:
    """Return the name of the whole argument that a leaf is of, such as "params"."""
    name = s.flat.names[i]
    for position, char in enumerate(name):
        if char in "[.":
            return name[:position]
    return name


def _roots(s: Subject, found: list[int]) -> str:
    return ", ".join(dict.fromkeys(_root(s, i) for i in found))
