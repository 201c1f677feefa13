"""The five papers: what each runs (config, batch, mesh), what it leaves out, what it claims."""

from parallax.papers.cache_layerwise import CACHE_LAYERWISE
from parallax.papers.compressed_layerwise import COMPRESSED_LAYERWISE
from parallax.papers.cross_node_ep import NOT_YET
from parallax.papers.paper import Paper
from parallax.papers.ring_sp import RING_SP
from parallax.papers.two_level import TWO_LEVEL

PAPERS: dict[str, Paper] = {
    p.name: p for p in (RING_SP, TWO_LEVEL, CACHE_LAYERWISE, COMPRESSED_LAYERWISE)
}
PAPER_NAMES = (*PAPERS, "cross_node_ep")


def paper(name: str) -> Paper:
    """A paper by name.

    Raises:
      ValueError: unknown, or one whose model this release cannot build.
    """
    if name == "cross_node_ep":
        raise ValueError(NOT_YET)
    if name not in PAPERS:
        raise ValueError(f"unknown paper {name!r}. Use one of: {', '.join(PAPER_NAMES)}.")
    return PAPERS[name]


__all__ = ["PAPERS", "PAPER_NAMES", "Paper", "paper"]
