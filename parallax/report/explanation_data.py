"""An explanation as plain data: every number with its unit and tag."""

from typing import Any

from parallax.codec import number
from parallax.explanations.facts import ArraySplit, Facts
from parallax.explanations.findings import Finding
from parallax.explanations.source_lines import SourceLine

EXPLANATION_VERSION = 1


def explanation_data(facts: Facts) -> dict[str, Any]:
    """Return the facts as `explanation.json` holds them; docs/report_schema.md explains them."""
    return {
        "explanation_version": EXPLANATION_VERSION,
        "module": facts.name, "devices": facts.devices, "cluster": facts.cluster.name,
        "mesh": dict(facts.axes), "rates": facts.rates,
        "step": number(facts.step_s, "s", "modelled") | {"low": facts.low_s, "high": facts.high_s},
        "exposed": number(facts.exposed_s, "s", "modelled"), "unvalidated": facts.unvalidated,
        "memory": number(facts.memory_bytes, "B", "compiled") if facts.memory_bytes else None,
        "sent": number(facts.sent_bytes, "B", "compiled"),
        "findings": [_finding(f) for f in facts.findings],
        "needed": [_finding(f) for f in facts.needed],
        "buffers": [
            {"where": _line(b.line), "what": b.what, "dtype": b.dtype,
             "bytes": number(b.n_bytes, "B", "compiled")}
            for b in facts.buffers
        ],
        "flops": [
            {"where": _line(row.line), "executed": number(row.flops, "FLOP", "compiled"),
             "needed": None if row.needed is None else number(row.needed, "FLOP", "derived")}
            for row in facts.flops
        ],
        "arguments": [_split(s) for s in facts.arguments],
        "results": [_split(s) for s in facts.results],
        "timeline_of": facts.timeline_of,
        "timeline": [
            {"name": e.name, "lane": e.lane, "where": _line(e.line),
             "start": number(e.start_s, "s", "modelled"), "stop": number(e.stop_s, "s", "modelled")}
            for e in facts.timeline
        ],
        "notes": list(facts.notes), "untried": facts.untried,
    }  # fmt: skip


def _line(line: SourceLine | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {"file": line.file, "line": line.line, "function": line.function, "code": line.code}


def _finding(f: Finding) -> dict[str, Any]:
    saving = f.saving
    return {
        "kind": f.kind, "what": f.what, "fix": f.fix, "where": _line(f.line),
        "argument": f.argument, "needed": f.needed, "axes": list(f.axes),
        "count": number(f.count, "1", "compiled"),
        "sent": number(f.sent_bytes, "B", "compiled"),
        "seconds": number(f.seconds, "s", "modelled"),
        "exposed": number(f.exposed_s, "s", "modelled"),
        "memory": number(f.memory_bytes, "B", "compiled"),
        "saving": saving and {
            "seconds": number(saving.seconds, "s", "modelled"),
            "sent": number(saving.sent_bytes, "B", saving.tag),
            "memory": number(saving.memory_bytes, "B", saving.tag),
        },
    }  # fmt: skip


def _split(s: ArraySplit) -> dict[str, Any]:
    return {
        "name": s.name, "dtype": s.dtype, "dims": list(s.dims), "local_dims": list(s.local),
        "axes": [list(names) for names in s.axes], "chosen_by": s.chosen_by,
        "donated": s.donated, "bytes": number(s.n_bytes, "B", "compiled"),
    }  # fmt: skip
