"""An explanation as one self-contained HTML page: no network, no script, light and dark."""

from typing import Any

from parallax.explanations.facts import Facts
from parallax.report import words
from parallax.report.explanation_plots import mesh_plot, schedule_plot
from parallax.report.explanation_words import (
    answer,
    copies_of,
    decided_by,
    dims_of,
    headline,
    needed_words,
    nothing_found,
    place,
    saving_lines,
    split_of,
)
from parallax.report.plots import MOST_EVENTS
from parallax.report.templates import render, render_page


def explanation_page(facts: Facts) -> str:
    """Render an explanation as a whole HTML document."""
    return render_page("explanation.html.j2", **_shown(facts))


def explanation_piece(facts: Facts) -> str:
    """Render an explanation with its own style, for a notebook."""
    return render("explanation.html.j2", **_shown(facts))


def _shown(facts: Facts) -> dict[str, Any]:
    count = len(facts.timeline)
    return dict(
        title=f"Explained: {facts.name}",
        answer=answer(facts),
        headline=headline(facts),
        nothing=nothing_found(facts),
        facts=facts,
        findings=[(f, place(f.line, f.argument), saving_lines(f, facts)) for f in facts.findings],
        needed=[(f, place(f.line, f.argument), needed_words(f)) for f in facts.needed],
        buffers=[(b, place(b.line)) for b in facts.buffers],
        flops=[(row, place(row.line)) for row in facts.flops],
        splits=[
            (name, [(s, dims_of(s), split_of(s), copies_of(s, facts), decided_by(s))
                    for s in sorted(splits, key=lambda s: -s.n_bytes)])
            for name, splits in (("Arguments", facts.arguments), ("Results", facts.results))
        ],
        schedule=schedule_plot(facts),
        drawn=f"; the {MOST_EVENTS} longest of {count:,} operations" if count > MOST_EVENTS else "",
        mesh=mesh_plot(facts),
        words=words,
    )  # fmt: skip
