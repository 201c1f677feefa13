"""Audit every figure that the papers print: derive it again and compare it with the hardware.

  parallax claims
  parallax claims --paper=ring_sp
  parallax claims --paper=ring_sp --cluster=h100_nvl16
  parallax claims --rates=out/rates.json
  parallax claims --out=out
  parallax claims --json=claims.json

Verdicts:
  consistent                   agrees to the printed precision, or lies within its bound
  rounding                     off by one unit of the last digit
  arithmetic error             a printed operation gives another result
  beyond the physical bound    more than peak FLOP/s, HBM and links allow, in every reading
  contradicts another claim    other figures, of this paper or another, imply a different one
  modelled, off by             possible, but differs from the cost model by that factor
  not derivable from the text  nothing printed says where it comes from

A TPS is read in two ways: prompt tokens per second of one pass, and new tokens per second, one for
every sequence in each step. A TPOT is read in four: as 1/TPS, as 1/TPS in us printed as ms, as
overhead per token, and as the time per output token of a request.

Hardware: any laptop; nothing is compiled. A few seconds.
Result: one table per paper and counts of verdicts; claims.json, .md and .html in the folder --out.
Exit status: 0 whatever the verdicts are; 2 bad input.
"""

import json
from dataclasses import dataclass

from parallax.experiments.flags import Command
from parallax.experiments.launch import check_file, save_file
from parallax.experiments.output import show
from parallax.meshes.cluster import Cluster, cluster
from parallax.papers import PAPERS, paper
from parallax.papers.audit import Audited, audit
from parallax.papers.modelled import closed_form_on
from parallax.report import check_writable
from parallax.report.files import save_files
from parallax.requests import shared
from parallax.requests.naming import resolve_rates
from parallax.requests.option import option
from parallax.studies.claims_page import audit_json, audit_markdown, audit_page, audit_table

WIDTH = 116
ALL = "all"
DEVICES = 16  # every paper uses this many


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    paper: str | None = option(None, "A paper (`parallax list papers`), or all. Unset: all.")
    cluster: str | None = shared.cluster("each paper's own", "What the figures are compared with")
    rates: str | None = shared.rates()
    out: str = shared.out("Folder for claims.json, .md and .html.")
    json: str | None = shared.json_file()


def main(flags: Flags) -> int:
    """Audit the papers that the flags ask for."""
    name = flags.paper
    chosen = dict(PAPERS) if name in (None, ALL) else {name: paper(name)}
    asked = None if flags.cluster is None else _cluster(flags.cluster)
    check_writable(flags.out)
    check_file(flags.json)
    audits, constants = {}, {}
    for n, p in chosen.items():
        on = asked or cluster(p.cluster)
        rates = resolve_rates(flags.rates, on)
        constants[n] = rates and f"{rates.name} {rates.version}"
        audits[n] = audit(p, closed_form_on(on, rates), on=asked)
    record = json.dumps(_record(audits, asked, constants), indent=1) + "\n"
    files = {"claims.json": record, "claims.md": audit_markdown(audits, chosen),
             "claims.html": audit_page(audits, chosen)}  # fmt: skip
    written = save_files(flags.out, files)
    save_file(flags.json, record)
    show(audit_table(audits, chosen), WIDTH)
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _record(
    audits: dict[str, tuple[Audited, ...]], asked: Cluster | None, rates: dict[str, str | None]
) -> dict:
    return {
        "schema_version": 1,
        "papers": {
            name: {
                "cluster": PAPERS[name].cluster if asked is None else asked.name,
                "rates": rates[name],
                "figures": audit_json(audited),
                "setup_lines": [s.line for s in PAPERS[name].setup],
            }
            for name, audited in audits.items()
        },
    }


def _cluster(name: str) -> Cluster:
    asked = cluster(name)
    if asked.devices != DEVICES:
        raise ValueError(
            f"--cluster={name} has {asked.devices} GPUs; the papers' figures are about {DEVICES}. "
            "Use one of that size, such as h100_nvl16."
        )
    return asked
