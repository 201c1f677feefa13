"""Measured kernels beside their predictions, each by a fit to the folds that it is not in."""

from collections.abc import Iterable

from parallax.codec import encode
from parallax.cost.measurements import fold_of
from parallax.studies.fitting.kernels import HeldOut
from parallax.studies.validation.scores import Judged

_NOT_SAID = {"source", "seconds", "dispatch_s", "combine_s"}


def judge_kernels(terms: Iterable[HeldOut]) -> dict[str, list[Judged]]:
    """Judge kernels by term; a regime is a GPU and a size class."""
    found: dict[str, list[Judged]] = {}
    for term in terms:
        found.setdefault(term.term, []).extend(_judged(term))
    return found


def _judged(term: HeldOut) -> Iterable[Judged]:
    figures = zip(term.rows, term.modelled, term.measured, term.sizes, strict=True)
    for row, modelled, measured, size in figures:
        label = ", ".join(f"{k} {v}" for k, v in encode(row).items() if k not in _NOT_SAID)
        yield Judged(
            term.term, "kernel", label, float(modelled), float(measured), f"{term.gpu}, {size}",
            fold_of(row.key),
        )  # fmt: skip
