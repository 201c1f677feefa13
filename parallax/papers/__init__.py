"""The five papers: what each runs (config, batch, mesh), what it leaves out, what it claims."""

from parallax.papers.cache_layerwise import CACHE_LAYERWISE
from parallax.papers.compressed_layerwise import COMPRESSED_LAYERWISE
from parallax.papers.cross_node_ep import CROSS_NODE_EP
from parallax.papers.paper import Assumption, Claim, Paper, Validation
from parallax.papers.ring_sp import RING_SP
from parallax.papers.two_level import TWO_LEVEL

PAPERS: dict[str, Paper] = {
    p.name: p for p in (RING_SP, TWO_LEVEL, CACHE_LAYERWISE, COMPRESSED_LAYERWISE, CROSS_NODE_EP)
}
PAPER_NAMES = tuple(PAPERS)

__all__ = [
    "PAPERS",
    "PAPER_NAMES",
    "Assumption",
    "Claim",
    "Paper",
    "Validation",
    "paper",
]


def paper(name: str) -> Paper:
    """Return the paper of a name.

    Raises:
      ValueError: there is no paper of that name.
    """
    if name not in PAPERS:
        raise ValueError(f"unknown paper {name!r}. Use one of: {', '.join(PAPERS)}.")
    return PAPERS[name]
