"""Generator of docs/generated/assumptions.md: run this module with the file's name."""

import re
import sys
from pathlib import Path

from parallax.papers import PAPERS
from parallax.papers.common import MICROBATCHES, common_assumptions
from parallax.papers.paper import Assumption, Paper
from parallax.report.words import markdown_row

_HEAD = """# Assumptions

What the papers leave out and Parallax chose: the numbers tagged `assumed`. Written from the data in
`parallax/papers/` by
`python -m parallax.studies.assumptions_page docs/generated/assumptions.md`; a test holds them
equal. What the papers claim is in [claims.md](claims.md).
"""


def assumptions_markdown() -> str:
    """Render the whole page: the assumptions that all papers share, then each paper's own."""
    shared = common_assumptions(microbatches=MICROBATCHES)
    parts = [_HEAD, "## In all papers, where a paper does not say otherwise\n", _table(shared)]
    for paper in PAPERS.values():
        parts.append(f"\n## `{paper.name}`\n")
        parts.append(f"{paper.title}.\n")
        parts.append(_setting(paper))
        own = tuple(a for a in paper.assumptions if a not in shared)
        left_out = tuple(a.name for a in shared if a not in paper.assumptions)
        if left_out:
            parts.append(f"Given by the paper, so not assumed: {', '.join(left_out)}.\n")
        if own:
            parts.append(_table(own))
    page = "\n".join(parts).rstrip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", page)


def _setting(paper: Paper) -> str:
    config, work = paper.config, paper.workload
    experts = f"{config.num_experts} experts of " if config.num_experts else ""
    line = (
        f"{config.num_layers} layers, width {config.d_model}, {config.num_heads} heads of "
        f"{config.head_dim}, {experts}MLP {config.d_ff} ({config.mlp}), "
        f"{config.dtype}; batch {work.batch} "
        f"x {work.seq_len} tokens in {work.microbatches} microbatches; {config.num_params:,} "
        "parameters.\n"
    )
    return line


def _table(rows: tuple[Assumption, ...]) -> str:
    lines = ["| what | chosen | why |", "|---|---|---|"]
    lines += [markdown_row(a.name, a.value, a.reason) for a in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(assumptions_markdown(), encoding="utf-8")
