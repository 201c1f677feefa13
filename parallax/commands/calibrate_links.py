"""The fit of the links' constants, inside nodes and between them, with held-out errors."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from parallax.cost.collectives import kind_seconds
from parallax.cost.fitting import fit_link, fit_network, predicted_collective, spread
from parallax.cost.measurements import KINDS, MeasuredCollective
from parallax.cost.rates import BETWEEN_NODES, LinkRates, Rates
from parallax.lenses.benchmarking import Measured

type HeldOut = dict[str, tuple[int, float, float]]

# Fewer rows than this determine neither a start nor a rate.
_LEAST_ROWS = 3
_NOT_MEASURED = "not measured here, shipped: "


def fit_links(rates: Rates, measured: Measured, held_out: HeldOut) -> Rates:
    """Fit the rates of every kind of collective that was measured; the others keep theirs.

    Rows over several devices of several nodes are fitted by nothing: they test how the model puts
    the parts inside and between nodes together.

    Args:
      rates: the constants so far.
      measured: the measurements.
      held_out: gets the errors: by kind inside nodes and between them on held-out sizes, and by
        kind over all devices.

    Returns:
      The rates, with the 80 % interval of all these rows as that of communication. `sources` says
      which kinds were measured.
    """
    rows = measured.collectives
    inside = [r for r in rows if r.nodes == 1]
    between = [r for r in rows if 1 < r.nodes == r.devices]
    whole = [r for r in rows if 1 < r.nodes < r.devices]
    rates, fitted_inside = _fit_inside(rates, inside, held_out)
    rates, fitted_between = _fit_between(rates, between, held_out)
    for kind in KINDS:
        if mine := [r for r in whole if r.kind == kind]:
            held_out[f"{kind} over all devices, not fitted"] = _errors(rates, mine)
    sources = _said(rates.sources, "communication", fitted_inside, f"on {measured.device}")
    crossing = f"on {measured.device}, between {measured.nodes} nodes"
    sources = _said(sources, "network", fitted_between, crossing)
    known = [*fitted_inside, *fitted_between, *(whole if fitted_between else ())]
    spreads = dict(rates.spreads)
    if known:
        modelled = [predicted_collective(rates, r) for r in known]
        spreads["communication"] = spread(modelled, [r.seconds for r in known])
    return dataclasses.replace(rates, sources=sources, spreads=spreads)


def relative_errors(modelled: list[float], rows: list) -> tuple[int, float, float]:
    """Return the number of rows, and the median and 90th percentile of the relative errors."""
    if not rows:
        return 0, 0.0, 0.0
    apart = np.abs(np.asarray(modelled) / np.asarray([r.seconds for r in rows]) - 1)
    return len(rows), float(np.median(apart)), float(np.quantile(apart, 0.9))


def _errors(rates: Rates, rows: list[MeasuredCollective]) -> tuple[int, float, float]:
    return relative_errors([predicted_collective(rates, r) for r in rows], rows)


def _split(
    rows: list[MeasuredCollective],
) -> tuple[list[MeasuredCollective], list[MeasuredCollective]]:
    """Return rows to fit and rows held out: every third size, neither the least nor the largest.

    A hash of the shape, as for published rows, would leave some numbers of nodes without a fit.
    """
    ordered = sorted(rows, key=lambda row: row.bytes)
    held = ordered[1:-1:3]
    return [row for row in ordered if row not in held], held


def _fit_inside(
    rates: Rates, measured: list[MeasuredCollective], held_out: HeldOut
) -> tuple[Rates, list[MeasuredCollective]]:
    """Return the rates with those inside nodes, and the rows that were fitted."""
    fitted: list[MeasuredCollective] = []
    for kind in KINDS:
        rows, rest = _split([r for r in measured if r.kind == kind])
        if len(rows) < _LEAST_ROWS:
            continue
        link = fit_link(rows, _seconds_inside)
        rates = dataclasses.replace(rates, links={**rates.links, kind: link})
        held_out[f"{kind} inside nodes"] = _errors(rates, rest)
        fitted += rows
    return rates, fitted


def _seconds_inside(link: LinkRates, row: MeasuredCollective) -> float:
    """Estimate a row inside a node, as `predicted_collective` does: a message is between two."""
    devices = 2 if row.kind == "p2p" else row.devices
    return kind_seconds(link, row.kind, row.bytes, devices)


def _fit_between(
    rates: Rates, measured: list[MeasuredCollective], held_out: HeldOut
) -> tuple[Rates, list[MeasuredCollective]]:
    """Return the rates with those between nodes, and the rows that were fitted."""
    fitted: list[MeasuredCollective] = []
    for kind in ("p2p", *BETWEEN_NODES):
        rows, rest = _split([r for r in measured if r.kind == kind])
        if len(rows) < _LEAST_ROWS:
            continue
        name = BETWEEN_NODES.get(kind, "network")
        links = {**rates.links, name: fit_network(rows, rates)}
        rates = dataclasses.replace(rates, links=links)
        held_out[f"{kind} between nodes"] = _errors(rates, rest)
        fitted += rows
    return rates, fitted


def _said(
    sources: Mapping[str, str], term: str, fitted: list[MeasuredCollective], where: str
) -> dict[str, str]:
    """Return the sources with that of a term: which kinds were measured, and what the rest is."""
    shipped = sources[term].removeprefix(_NOT_MEASURED)
    if not fitted:
        return {**sources, term: f"{_NOT_MEASURED}{shipped}"}
    kinds = dict.fromkeys(r.kind for r in fitted)
    devices = max(r.devices for r in fitted)
    said = f"measured {where}, {devices} devices per group: {', '.join(kinds)}"
    if left := [kind for kind in KINDS if kind not in kinds]:
        said += f"; {', '.join(left)} {_NOT_MEASURED}{shipped}"
    return {**sources, term: said}
