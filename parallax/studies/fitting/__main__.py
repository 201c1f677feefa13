"""Fit every constant that is shipped, and write it with its errors.

  python -m parallax.studies.fitting

Fits kernels and links (parallax/cost/shipped), described software and the error bars of its steps
(parallax/analytic/described), each to all published rows, and writes docs/generated/accuracy.md:
the errors on rows held out. Run it after adding measurements. Hardware: any; a few minutes.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from parallax.analytic.described import implementation, regimes, serving_constants
from parallax.cost import networks, rates
from parallax.cost.rates import Spread
from parallax.studies.fitting.described import fit_software
from parallax.studies.fitting.kernels import held_out_terms
from parallax.studies.fitting.links import fit_links
from parallax.studies.fitting.rates import fitted_rates
from parallax.studies.fitting.serving import fit, loads_of
from parallax.studies.validation.bars import LEAST_ROWS, interval
from parallax.studies.validation.models import TABLES
from parallax.studies.validation.page import accuracy_page
from parallax.studies.validation.results import Section, Validation
from parallax.studies.validation.rows import ServingRow, TrainingRow, read_table
from parallax.studies.validation.validating import kernel_sections, link_sections, step_sections

PACKAGE = Path(__file__).parents[2]
SHIPPED = PACKAGE / "cost" / "shipped"
DESCRIBED = PACKAGE / "analytic" / "described"
# The tables whose residuals are the bars of described steps: whole steps of H100.
BARRED = ("nanotron_grid", "Time per output token", "Time to the first token")


def main() -> None:
    """Fit, write the constants, and write the page."""
    print("links and kernels", flush=True)
    links, kernels = fit_links(), list(held_out_terms())
    for name, made in fitted_rates(links, kernels).items():
        made.save(SHIPPED / f"{name}.json")
    for name, network in links.networks.items():
        networks.FILE.save(network, SHIPPED / "networks" / f"{name}.json")
    rates.rates_of.cache_clear()
    networks.network_rates.cache_clear()
    print("described software", flush=True)
    _write_software()
    steps = step_sections(print)
    regimes.FILE.save(
        bars_of(s for s in steps if s.title.endswith(BARRED)), DESCRIBED / "bars.json"
    )
    found = Validation((*kernel_sections(kernels), *link_sections(links), *steps))
    page = PACKAGE.parent / "docs" / "generated" / "accuracy.md"
    page.write_text(accuracy_page(found), encoding="utf-8")


def _write_software() -> None:
    steps = [r for r in read_table(TABLES / "train.csv") if isinstance(r, TrainingRow)]
    made = implementation.Shipped(tuple(fit_software(steps).values()))
    implementation.FILE.save(made, DESCRIBED / "shipped.json")
    loads = [r for r in read_table(TABLES / "serve.csv") if isinstance(r, ServingRow)]
    servers = fit(loads_of(row for row in loads if not row.excluded))
    serving_constants.FILE.save(
        serving_constants.ServingSoftware(servers), DESCRIBED / "shipped_serving.json"
    )
    implementation.implementations.cache_clear()
    serving_constants.serving_software.cache_clear()


def bars_of(sections: Iterable[Section]) -> regimes.Bars:
    """Return the bars of all regimes; one with few rows has those of its whole section."""
    found = {}
    for section in sections:
        for regime in dict.fromkeys(row.regime for row in section.rows):
            mine = [row for row in section.rows if row.regime == regime]
            used = mine if len(mine) >= LEAST_ROWS else section.rows
            low, high = interval(np.array([-row.log_ratio for row in used]))
            found[regime] = regimes.Bar(Spread(round(low, 3), round(high, 3)), len(used))
    return regimes.Bars(found)


if __name__ == "__main__":
    main()
