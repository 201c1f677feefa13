"""The report as one self-contained page, and as a fragment for notebooks."""

import importlib.resources

from parallax.report import plots, rows
from parallax.results import TAGS


def page(report) -> str:
    """A complete HTML document that loads nothing."""
    return _environment().get_template("page.html.j2").render(_context(report))


def fragment(report) -> str:
    """What a notebook shows: answers, sentences and plots, styled inside a scope of their own."""
    return _environment().get_template("fragment.html.j2").render(_context(report))


def _environment():
    import jinja2

    folder = importlib.resources.files("parallax.report") / "templates"
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(report) -> dict:
    import markupsafe

    drawn = {}
    if any(r.compilation for r in report.results):
        drawn["Memory of a device"] = plots.memory(report.results)
        drawn["Bytes leaving a device"] = plots.traffic(report.results)
    details = []
    for result in report.results:
        c, v = result.compilation, result.verification
        details.append(
            {
                "result": result,
                "timeline": markupsafe.Markup(plots.timeline(c)) if c and c.timeline else None,
                "tables": [
                    (title, columns, lines)
                    for title, columns, lines in (
                        ("Closed form (derived)", rows.TRANSFER_COLUMNS,
                         rows.transfer_rows(c) if c else []),
                        ("Ledger of the CUDA program (compiled)", rows.LEDGER_COLUMNS,
                         rows.ledger_rows(c) if c else []),
                        ("Against the unsharded model, relative L2 (measured)",
                         rows.EXACTNESS_COLUMNS, rows.exactness_rows(v) if v else []),
                    )
                    if lines
                ],
            }
        )  # fmt: skip
    return {
        "report": report,
        "answers": rows.answers(report.results, report.paper),
        "plots": {title: markupsafe.Markup(svg) for title, svg in drawn.items()},
        "details": details,
        "tags": TAGS,
    }
