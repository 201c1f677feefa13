"""The answers and tables of a report as plain rows, which every output format shows.

A cell is (text, tag); a tag of "" is for words.
"""

from dataclasses import dataclass

from parallax.papers.paper import Claim, Paper
from parallax.report.words import READINGS, axes, scaled, seconds, times, tokens_per_s
from parallax.results import Collective, Compilation, StrategyResult, Verification

Cell = tuple[str, str]
NOT_RUN: Cell = ("not run", "")


@dataclass(frozen=True)
class Row:
    """A line of a table: a label and a cell for each column. `status`: ok, bad or plain."""

    label: str
    cells: tuple[Cell, ...]
    status: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """The tags of its cells, in words."""
        return ", ".join(dict.fromkeys(tag for _, tag in self.cells if tag))


def answers(results: tuple[StrategyResult, ...], paper: Paper | None) -> list[Row]:
    """The questions of a report's first screen, a column a strategy."""
    rows = [
        _row("Exact?", results, lambda r: r.verification, _exact, lambda v: v.exact),
        _row("Fits?", results, lambda r: r.compilation, _fits, lambda c: c.memory.fits),
        _row("Moves, a device", results, lambda r: r.compilation, _moves, lambda c: c.ledger_matches),
        _row("Against the minimum", results, lambda r: r.compilation, _ratio, lambda c: None),
        _row("Async beside GEMMs", results, lambda r: r.compilation, _covered, lambda c: None),
        _row("Exposed, at peak rates", results, lambda r: r.prediction, _exposed, lambda p: None),
        _row("Roofline", results, lambda r: r.prediction, _bound, lambda p: None),
        _row("Set by", results, lambda r: r.prediction, _set_by, lambda p: None),
    ]
    if any(r.measurement for r in results):
        rows.append(_row("Step, measured", results, lambda r: r.measurement, _step, lambda m: None))
    if paper is not None:
        for quantity in dict.fromkeys(c.quantity for c in paper.claims):
            cells = tuple(_claimed(paper, r.name, quantity) for r in results)
            if any(cell != ("-", "") for cell in cells):
                rows.append(Row(f"Claimed {quantity}", cells))
    return rows


def _row(label, results, pick, show, judge) -> Row:
    cells, status = [], []
    for result in results:
        value = pick(result)
        cells.append(NOT_RUN if value is None else show(value))
        verdict = None if value is None else judge(value)
        status.append("plain" if verdict is None else "ok" if verdict else "bad")
    return Row(label, tuple(cells), tuple(status))


def _exact(verification: Verification) -> Cell:
    row = verification.rows[0]
    worst = max(row.logits_error, row.gradients_error)
    return (f"{'yes' if verification.exact else 'NO'}, {worst:.1e} in {row.dtype}", "measured")


def _fits(compilation: Compilation) -> Cell:
    memory = compilation.memory
    shown = f"{memory.total_bytes / 1e9:.3g} of {memory.usable_bytes / 1e9:.3g} GB"
    if memory.fits:
        return (f"yes, {shown}", "compiled")
    over = scaled(memory.total_bytes - memory.usable_bytes, "B")
    return (f"NO, {shown}: {over} too much", "compiled")


def _moves(compilation: Compilation) -> Cell:
    shown = scaled(compilation.wire_bytes, "B")
    if not compilation.has_closed_form:
        return (f"{shown} (no closed form)", "compiled")
    return (shown if compilation.ledger_matches else f"{shown}, NOT its closed form", "compiled")


def _ratio(compilation: Compilation) -> Cell:
    if not compilation.has_closed_form:
        return ("no closed form", "")
    if not compilation.minimum_bytes:
        return ("nothing to move", "derived") if not compilation.wire_bytes else ("over 0 B", "derived")
    return (times(compilation.wire_bytes / compilation.minimum_bytes), "derived")


def _covered(compilation: Compilation) -> Cell:
    total = compilation.wire_bytes
    if not total:
        return ("nothing to cover", "")
    covered = sum(c.total_bytes for c in compilation.collectives if c.async_with_compute)
    return (f"{100 * covered / total:.0f} % of bytes", "compiled")


def _bound(prediction) -> Cell:
    return (f"<= {tokens_per_s(prediction.tokens_per_s.value)}", "modelled")


def _exposed(prediction) -> Cell:
    return (seconds(prediction.exposed_s.value), "modelled")


def _set_by(prediction) -> Cell:
    name = max(prediction.terms_s, key=lambda n: prediction.terms_s[n])
    return (f"{name}, {seconds(prediction.terms_s[name])}", "modelled")


def _step(measurement) -> Cell:
    step = measurement.step_s
    return (f"{seconds(step.value)} on {measurement.devices} x {measurement.device}", "measured")


def _claims(paper: Paper, strategy: str, quantity: str) -> list[Claim]:
    return [c for c in paper.claims if c.strategy == strategy and c.quantity == quantity]


def _claimed(paper: Paper, strategy: str, quantity: str) -> Cell:
    found = _claims(paper, strategy, quantity)
    if not found:
        return ("-", "")
    claim = found[0]
    return (claimed_value(claim), "claimed")


def claimed_value(claim: Claim) -> str:
    """A claim as a reader wants it."""
    if claim.unit == "tokens/s":
        return tokens_per_s(claim.value)
    return f"{claim.value:g} {claim.unit}"


def sentences(results: tuple[StrategyResult, ...], paper: Paper | None) -> list[str]:
    """What follows from the figures, in plain words."""
    out = []
    if paper is None:
        return out
    for result in results:
        for claim in _claims(paper, result.name, "TPS"):
            if result.prediction is None:
                continue
            bound = result.prediction.tokens_per_s.value
            name = max(result.prediction.terms_s, key=lambda n: result.prediction.terms_s[n])
            shown = claimed_value(claim)
            where = result.prediction.cluster
            if claim.value > bound:
                out.append(
                    f"{result.name}: the claimed {shown} is {times(claim.value / bound)} what the "
                    f"{name} of {where} allows for this program ({tokens_per_s(bound)})."
                )
            else:
                out.append(
                    f"{result.name}: the claimed {shown} is {100 * claim.value / bound:.0f} % of the "
                    f"roofline of this program on {where}, set by {name}."
                )
    for claim in paper.claims:
        if claim.quantity == "TPOT" and any(r.name == claim.strategy for r in results):
            note = f" {claim.note}." if claim.note else ""
            out.append(f"{claim.strategy}: TPOT is read as {READINGS[claim.reading]}.{note}")
    return out


LEDGER_COLUMNS = ("collective", "axes", "times", "bytes a device", "async", "GEMM FLOPs between")


def ledger_rows(compilation: Compilation) -> list[Row]:
    """One line a collective instruction, largest first (tag of every column: compiled)."""
    ordered = sorted(compilation.collectives, key=lambda c: -c.total_bytes)
    return [Row(c.kind, _ledger_cells(c)) for c in ordered]


def _ledger_cells(c: Collective) -> tuple[Cell, ...]:
    between = scaled(c.flops_between, "FLOP") if c.gemms_between else "none"
    return (
        (axes(c.axes), ""),
        (str(c.count), "compiled"),
        (scaled(c.total_bytes, "B"), "compiled"),
        ("yes" if c.is_async else "no", "compiled"),
        (between, "compiled"),
    )


TRANSFER_COLUMNS = ("purpose", "collective", "axes", "times", "bytes a device", "minimum", "ratio")


def transfer_rows(compilation: Compilation) -> list[Row]:
    """One line a purpose, from the closed form (tag: derived)."""
    out = []
    for t in compilation.transfers:
        ratio = times(t.wire_bytes / t.minimum_bytes) if t.minimum_bytes else "-"
        cells = (
            (t.kind, ""), (axes(t.axes), ""), (str(t.count), "derived"),
            (scaled(t.wire_bytes, "B"), "derived"), (scaled(t.minimum_bytes, "B"), "derived"),
            (ratio, "derived"),
        )  # fmt: skip
        out.append(Row(t.what, cells))
    return out


EXACTNESS_COLUMNS = ("dtype", "logits error", "limit", "gradients error", "limit ", "unsharded's own")


def exactness_rows(verification: Verification) -> list[Row]:
    """Relative L2 errors a dtype (tag: measured)."""
    return [
        Row(
            row.dtype,
            (
                (f"{row.logits_error:.1e}", "measured"), (f"{row.logits_limit:.1e}", ""),
                (f"{row.gradients_error:.1e}", "measured"), (f"{row.gradients_limit:.1e}", ""),
                (f"{row.reference_error:.1e}" if row.dtype != "float64" else "-", "measured"),
            ),
            ("ok" if row.passed else "bad",),
        )
        for row in verification.rows
    ]  # fmt: skip
