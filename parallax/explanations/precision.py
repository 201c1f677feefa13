"""Changes of precision: what is sent in float32 and could travel narrower."""

from collections.abc import Iterator

from jax.sharding import PartitionSpec

from parallax.explanations.candidate import LEAST_TIME, Candidate, share_of
from parallax.explanations.dataflow import operand_origins
from parallax.explanations.edits import Edit
from parallax.explanations.equations import Equation
from parallax.explanations.source_lines import SourceLine
from parallax.explanations.subject import Subject
from parallax.hlo.collectives import Collective

WIDE = ("f32", "f64")


def early_casts(s: Subject) -> Iterator[Candidate]:
    """Weights gathered wide and cast afterwards."""
    for c, i in _gathers_of_arguments(s):
        if c.dtype not in WIDE:
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
                line=casts[0].line, share=share_of(s, [c]) / 2, edits=edits, group=f"cast {name}",
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


def narrow_sums(s: Subject) -> Iterator[Candidate]:
    """Sums over devices in float32 of what was computed in bfloat16."""
    lines: dict[SourceLine, list[Collective]] = {}
    for c in s.program.ledger:
        line = s.program.line_of(c)
        if c.dtype == "f32" and c.kind in ("all-reduce", "reduce-scatter") and line is not None:
            lines.setdefault(line, []).append(c)
    for line, found in lines.items():
        share = share_of(s, found) / 2
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
    return any(
        m.name == "convert_element_type" and str(m.eqn.invars[0].aval.dtype) == "bfloat16"
        for m in s.made_by(e)
    )  # fmt: skip
