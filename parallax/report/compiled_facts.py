"""Facts of compiled programs: what fits, what is sent, and beside which matrix products."""

from collections.abc import Callable

from parallax.report import words
from parallax.report.exposure import exposure
from parallax.report.facts import Cell, yes_or_no
from parallax.results.lens_results import Compilation


def _fits(c: Compilation) -> Cell:
    excess = c.memory.total_bytes - c.memory.usable_bytes
    return yes_or_no(c.memory.fits, f"no, {words.in_bytes(excess)} over")


def _usable(c: Compilation) -> Cell:
    usable, capacity = c.memory.usable_bytes, c.memory.capacity_bytes
    return Cell(f"{words.in_bytes(usable).split()[0]} of {words.in_bytes(capacity)}")


def _kv(c: Compilation, sign: str = "") -> Cell:
    return Cell(f"{sign}{words.in_bytes(c.kv_cache_bytes)}")


def _largest_batch(c: Compilation) -> Cell | None:
    """The number of sequences whose cache fits beside everything else that this step holds."""
    if not c.reads_cache:
        return None
    rest = c.memory.total_bytes - c.kv_cache_bytes
    room = (c.memory.usable_bytes - rest) / (c.kv_cache_bytes / c.workload.batch)
    return Cell(f"about {words.digits(max(0, int(room)))}")


def _per_token(link: str) -> Callable[[Compilation], Cell | None]:
    def cell(c: Compilation) -> Cell | None:
        if not c.reads_cache or not c.link_bytes:
            return None
        sent = c.link_bytes[link] / c.tokens
        return Cell(words.in_bytes(sent) if sent else "none")

    return cell


MEMORY = (
    ("fits on a device", "compiled", _fits),
    ("memory per device", "compiled", lambda c: Cell(words.in_bytes(c.memory.total_bytes))),
    ("share of usable", "compiled",
     lambda c: Cell(words.percent(c.memory.total_bytes / c.memory.usable_bytes))),
    ("of which parameters", "compiled", lambda c: Cell(words.in_bytes(c.memory.parameter_bytes))),
)  # fmt: skip

ROOM = (
    ("replication factor", "derived",
     lambda c: Cell(words.times(c.evenness.replication)) if c.evenness else None),
    ("usable memory", "assumed", _usable),
    ("of which KV cache", "derived", lambda c: _kv(c) if c.reads_cache else None),
    ("largest batch, this length", "derived", lambda c: _largest_batch(c)),
    ("KV cache, if kept", "derived",
     lambda c: _kv(c, "+ ") if c.kv_cache_bytes and not c.reads_cache else None),
)  # fmt: skip


def _minimum(c: Compilation) -> Cell:
    return Cell(words.in_bytes(c.minimum_bytes) if c.has_closed_form else "no closed form")


def _ratio(c: Compilation) -> Cell | None:
    if not c.has_closed_form:
        return None
    if not c.minimum_bytes:
        return Cell("nothing to send" if not c.wire_bytes else "minimum is 0")
    return Cell(words.ratio(c.wire_bytes / c.minimum_bytes))


def _matches(c: Compilation) -> Cell | None:
    if not c.has_closed_form:
        return None
    return yes_or_no(c.ledger_matches, f"no, {len(c.differences)} differ")


MOVE = (
    ("sent per device", "compiled", lambda c: Cell(words.in_bytes(c.wire_bytes))),
    ("closed-form minimum", "derived", _minimum),
    ("compiled / derived", "compiled", _ratio),
    ("ledger = closed form", "compiled", _matches),
    ("NVLink, per token", "compiled", _per_token("nvlink")),
    ("network, per token", "compiled", _per_token("nic")),
)


def _class(name: str) -> Callable[[Compilation], Cell]:
    def cell(c: Compilation) -> Cell:
        exposed = exposure(c)
        moved = getattr(exposed, f"{name}_bytes")
        if not moved:
            return Cell("none")
        return Cell(f"{words.in_bytes(moved)}, {words.percent(moved / exposed.total_bytes)}")

    return cell


def _between(c: Compilation) -> Cell | None:
    flops = exposure(c).flops_between
    return Cell(words.in_flops(flops)) if flops else None


EXPOSED = (
    ("async, GEMMs between", "compiled", _class("overlapped")),
    ("async, nothing between", "compiled", _class("idle")),
    ("synchronous", "compiled", _class("sync")),
    ("GEMM FLOPs between", "compiled", _between),
)
