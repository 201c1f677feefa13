"""The report as one self-contained HTML page: no network, no script, light and dark."""

from typing import Any

from parallax.report import words
from parallax.report.answers import QUESTIONS, answers
from parallax.report.audit import HEADS as AUDIT_HEADS
from parallax.report.audit import audit_rows, counts_line
from parallax.report.claims import claim_sentences, other_than_the_papers, tpot_reading
from parallax.report.comparison import Comparison
from parallax.report.fact_rows import fact_rows
from parallax.report.grid import grid_html
from parallax.report.ledger_rows import ledger_rows
from parallax.report.plots import (
    LANES,
    MEMORY_PARTS,
    bytes_plot,
    memory_plot,
    schedules_plot,
    throughput_plot,
)
from parallax.report.profile_section import profile_grid, profile_plot, profiles
from parallax.report.schedule_picture import schedule_caption, schedule_svg
from parallax.report.sections import sections
from parallax.report.sentences import (
    describe_measurement,
    describe_model,
    describe_verification,
    describe_workload,
    failure_reasons,
    not_run,
    notes,
    phase_of,
)
from parallax.report.sweep import HEADS, sweep_legend, sweep_rows
from parallax.report.sweep_plot import sweep_plots
from parallax.report.table import passed_line
from parallax.report.templates import render, render_page
from parallax.report.validation import verdicts


def report_page(report: Comparison) -> str:
    """Render the report as a whole HTML document."""
    return render_page("report.html.j2", **_context(report))


def report_html(report: Comparison) -> str:
    """Render the body of the report with its own style, for a notebook."""
    # Plots are our own SVG, their text escaped.
    return render("report.html.j2", **_context(report))


def _context(report: Comparison) -> dict[str, Any]:
    paper, results = report.paper, report.results
    run = (report.config, report.workload, report.cluster, results)
    audited = report.findings.audited
    same = paper is not None and not other_than_the_papers(paper, *run[:2], results)
    return {
        "title": paper.title if paper else "Strategies compared",
        "paper": paper,
        "answer": report.answer,
        "failures": [line for r in results for line in failure_reasons(r)]
        + list(report.sweep.failures if report.sweep else ()),
        "passed": passed_line(results, report.sweep),
        "sweep": report.sweep,
        "sweep_heads": HEADS,
        "sweep_legend": sweep_legend(report.sweep) if report.sweep else (),
        "sweep_rows": sweep_rows(report.sweep) if report.sweep else (),
        "sweep_plots": sweep_plots(report.sweep) if report.sweep else (),
        "model": describe_model(report.config),
        "workload": describe_workload(report.workload),
        "phase": words.PHASES[phase_of(results)],
        "cluster": report.cluster,
        "questions": QUESTIONS,
        "answers": [(r, answers(r, paper, same, report.cluster)) for r in results],
        "claims": claim_sentences(paper, *run) if paper else (),
        "audit": audit_rows(audited),
        "audit_heads": AUDIT_HEADS,
        "audit_counts": counts_line(audited),
        "tpot_reading": tpot_reading(paper) if paper else "",
        "verdicts": verdicts(paper, *run, report.findings.scale) if paper else (),
        "assumptions": paper.assumptions if paper else (),
        "memory_plot": memory_plot(results),
        "bytes_plot": bytes_plot(results),
        "memory_parts": MEMORY_PARTS,
        "lanes": LANES,
        "throughput_plot": throughput_plot(results),
        "schedules_plot": schedules_plot(results),
        "schedules": _schedules(report),
        "facts": fact_rows(results, paper),
        "ledgers": [(r.name, r.compilation, ledger_rows(r.compilation))
                    for r in results if r.compilation],
        "conditions": (
            describe_verification(results, report.config), describe_measurement(results)
        ),
        "notes": notes(results),
        "profiles": [
            (profile_plot(p, f"profile{i}"), grid_html(profile_grid(name, p)))
            for i, (name, p) in enumerate(profiles(results))
        ],
        "sections": [(s, [grid_html(grid) for grid in s.grids]) for s in sections(report)],
        "not_run": not_run(report.config, results, paper, report.lenses),
        "versions": report.versions,
        "seconds": report.seconds,
        "request": report.request,
        "words": words,
    }  # fmt: skip


def _schedules(report: Comparison) -> list[tuple[str, str]]:
    return [
        (f"{result.name}: {schedule_caption(result.training.schedule)}",
         schedule_svg(result.training.schedule, f"schedule{i}"))
        for i, result in enumerate(report.results)
        if result.training is not None and result.training.schedule is not None
    ]  # fmt: skip
