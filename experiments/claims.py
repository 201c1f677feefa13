"""Audit the papers' claims: every figure they print, what it comes to, and what the machine allows.

  parallax claims
  parallax claims --paper=ring_sp
  parallax claims --paper=ring_sp --cluster=h100_nvl16
  parallax claims --out=out
  parallax claims --json=claims.json

Verdicts:
  consistent                   derived to the printed precision, or within its bound
  rounding                     one unit of the last digit off
  arithmetic error             a printed operation gives another result
  beyond the physical bound    more than peak FLOP/s, HBM and links allow, however it is read
  contradicts another claim    the paper's other figures, or another paper's, imply something else
  modelled, off by             possible, but not what the cost model says
  not derivable from the text  nothing printed says where it comes from

A TPS is read as prompt tokens over one pass, and as one new token of every sequence over a step; a
TPOT as 1/TPS, as 1/TPS in us printed as ms, as overhead a token, and as the time per output token
of a request.

Hardware: any laptop; nothing is compiled. A few seconds.
Result: a table a paper and counts of verdicts; DIR/claims.json and DIR/claims.md under --out.
Exit status: 0 whatever the verdicts are; 2 bad input.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import check_file
from parallax.meshes.cluster import Cluster, cluster
from parallax.papers import PAPERS, paper
from parallax.papers.audit import Audited, audit
from parallax.papers.modelled import closed_form_on
from parallax.report import check_writable
from parallax.report.audit_text import audit_json, audit_markdown, audit_table
from parallax.report.files import save_files

WIDTH = 116
ALL = "all"
DEVICES = 16  # of every paper
FLAGS = (flags.PAPER, flags.CLUSTER, flags.OUT, flags.JSON)


def main() -> int:
    """Audits what the flags ask for."""
    name = flags.PAPER.value
    chosen = dict(PAPERS) if name in (None, ALL) else {name: paper(name)}
    where = None if flags.CLUSTER.value is None else _cluster(flags.CLUSTER.value)
    check_writable(flags.OUT.value)
    if flags.JSON.value is not None:
        check_file(flags.JSON.value)
    audits = {
        n: audit(p, closed_form_on(where or cluster(p.cluster)), on=where)
        for n, p in chosen.items()
    }
    Console(width=None if sys.stdout.isatty() else WIDTH).print(audit_table(audits, chosen))
    record = json.dumps(_record(audits, where), indent=1) + "\n"
    files = {"claims.json": record, "claims.md": audit_markdown(audits, chosen)}
    written = save_files(flags.OUT.value, files)
    if flags.JSON.value is not None:
        Path(flags.JSON.value).write_text(record, encoding="utf-8")
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _record(audits: dict[str, tuple[Audited, ...]], where: Cluster | None) -> dict:
    return {
        "schema_version": 1,
        "papers": {
            name: {
                "cluster": PAPERS[name].cluster if where is None else where.name,
                "figures": audit_json(audited),
                "setup_lines": [s.line for s in PAPERS[name].setup],
            }
            for name, audited in audits.items()
        },
    }


def _cluster(name: str) -> Cluster:
    found = cluster(name)
    if found.devices != DEVICES:
        raise ValueError(
            f"--cluster={name} has {found.devices} GPUs; the papers' figures are about {DEVICES}. "
            "Use one of that size, such as h100_nvl16."
        )
    return found
