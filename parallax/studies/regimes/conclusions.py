"""The conclusions of a study of regimes, as sentences built from its places."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from parallax.studies.regimes.places import (
    BASELINE,
    LAYERWISE,
    NAMES,
    NO_COMMUNICATION,
    STORED,
    Place,
    wins,
)

_SAID = {LAYERWISE: "layer-wise", BASELINE: "TP x PP", NO_COMMUNICATION: "data parallelism"}
_PHASES = ("prefill", "decode")


def conclusions(places: Sequence[Place]) -> tuple[str, ...]:
    """Return the conclusions as plain sentences, each computed from the places.

    Args:
      places: places of one study, at least one.
    """
    if not places:
        raise ValueError("conclusions: expected at least one place, got none.")
    lines = [
        _overall(places), _where_it_wins(places), *_against(places, BASELINE),
        *_against(places, NO_COMMUNICATION), _kept_full(places), _attention(places),
        *_packing(places), _as_the_paper_compares(places), _cache(places), _interconnect(places),
    ]  # fmt: skip
    return tuple(line for line in lines if line)


def _overall(places: Sequence[Place]) -> str:
    n, won = len(places), len(wins(places, LAYERWISE))
    start = f"Layer-wise is the fastest in {_of(won, n)} places"
    others = [f"{_SAID[name]} in {len(wins(places, name)):,}" for name in NAMES[1:]]
    nothing = sum(not p.winner for p in places)
    rest = f"; nothing fits in {nothing:,}" if nothing else ""
    return f"{start}, {', '.join(others)}{rest}."


def _where_it_wins(places: Sequence[Place]) -> str:
    won = wins(places, LAYERWISE)
    if not won:
        return "There is no place in this study where layer-wise is the choice."
    parts = [f"phase {_values(won, 'phase')}", f"batch {_values(won, 'batch')}",
             f"width {_values(won, 'width')}", f"{_values(won, 'depth')} layers",
             _values(won, "attention"), f"weights in {_values(won, 'stored')}"]  # fmt: skip
    out = sum(NO_COMMUNICATION not in p.seconds for p in won)
    leads = [x for p in won if (x := p.lead_over(*NAMES[1:])) is not None]
    by = f" It leads by {_range(leads)} times." if leads else ""
    return (
        f"It wins at: {'; '.join(parts)}.{by} In {_of(out, len(won))} of these places a whole "
        "model does not fit one device, so data parallelism is out."
    )


def _against(places: Sequence[Place], rival: str) -> Iterable[str]:
    for phase in _PHASES:
        of_phase = [p for p in places if p.phase == phase]
        leads = _leads(of_phase, rival)
        if not leads:
            continue
        ahead = [p for p, lead in leads if lead > 1]
        middle = statistics.median(lead for _, lead in leads)
        best, lead = max(leads, key=lambda pair: pair[1])
        said = f"{phase.capitalize()} against {_SAID[rival]}: ahead in "
        said += f"{_of(len(ahead), len(leads))} places that both run; at a median of "
        said += f"{middle:.2f} times its speed, at best at {lead:.2f} ({_place(best)}). "
        yield said + _from_batch(leads)


def _from_batch(leads: Sequence[tuple[Place, float]]) -> str:
    """Say from which batch on layer-wise is ahead in most places."""
    batches = sorted({p.batch for p, _ in leads})
    most = {}
    for b in batches:
        ahead = [lead > 1 for p, lead in leads if p.batch == b]
        most[b] = sum(ahead) * 2 > len(ahead)
    if not any(most.values()):
        return "At no batch is it ahead in most places."
    if all(most.values()):
        return "At every batch it is ahead in most places."
    first = next(b for b in batches if all(most[x] for x in batches if x >= b) or b == batches[-1])
    if most[first]:
        return f"From batch {first:,} on it is ahead in most places, below it is not."
    some = ", ".join(f"{b:,}" for b in batches if most[b])
    return f"It is ahead in most places only at batch {some}."


def _kept_full(places: Sequence[Place]) -> str:
    """Say what would change if other requests filled the pipelines' bubbles."""
    said = []
    for phase in _PHASES:
        full = [dataclasses.replace(p, seconds=p.steady_s) for p in places if p.phase == phase]
        leads = [lead for _, lead in _leads(full, BASELINE)]
        if leads:
            ahead = sum(x > 1 for x in leads)
            said.append(
                f"{phase} would be ahead of TP x PP in {_of(ahead, len(leads))} places (at a "
                f"median of {statistics.median(leads):.2f} times its speed)"
            )
    if not said:
        return ""
    return (
        "If other requests kept both pipelines full, which no program here does, layer-wise "
        f"{'; '.join(said)}."
    )


def _attention(places: Sequence[Place]) -> str:
    by_name = {}
    for name in ("MHA", "GQA"):
        leads = [lead for _, lead in _leads([p for p in places if p.attention == name], BASELINE)]
        if leads:
            by_name[name] = sum(x > 1 for x in leads), len(leads), statistics.median(leads)
    if len(by_name) < 2:
        return ""
    said = [f"{name} {_of(ahead, n)} (at a median of {middle:.2f} times its speed)"
            for name, (ahead, n, middle) in by_name.items()]  # fmt: skip
    return f"Ahead of TP x PP by attention: {'; '.join(said)}."


def _packing(places: Sequence[Place]) -> Iterable[str]:
    dense = {_key(p): p for p in places if not p.unpacking}
    for phase in _PHASES:
        parts = []
        for stored in STORED:
            for unpacking in ("xla", "kernel"):
                ratios = [
                    p.seconds[LAYERWISE] / dense[_key(p)].seconds[LAYERWISE]
                    for p in places
                    if (p.phase, p.stored, p.unpacking) == (phase, stored, unpacking)
                    and _key(p) in dense
                    and LAYERWISE in p.seconds
                    and LAYERWISE in dense[_key(p)].seconds
                ]
                if ratios:
                    how = "unpacked by XLA" if unpacking == "xla" else "by a kernel (assumed)"
                    parts.append(f"{stored} {how} {statistics.median(ratios):.2f}")
        if parts:
            yield (
                f"Layer-wise {phase} with packed weights takes, against dense ones, median: "
                f"{'; '.join(parts)} times as long."
            )


def _as_the_paper_compares(places: Sequence[Place]) -> str:
    """Compare packed layer-wise with the baseline in the model's own dtype."""
    dense = {_key(p): p for p in places if not p.unpacking}
    said = []
    for unpacking, how in (("xla", "unpacked by XLA"), ("kernel", "by a kernel (assumed)")):
        leads = [
            dense[_key(p)].seconds[BASELINE] / p.seconds[LAYERWISE]
            for p in places
            if p.unpacking == unpacking and p.stored == "int8, MLP int8+2:4" and _key(p) in dense
            and BASELINE in dense[_key(p)].seconds and LAYERWISE in p.seconds
        ]  # fmt: skip
        if leads:
            ahead = sum(x > 1 for x in leads)
            said.append(f"{how} it is ahead in {_of(ahead, len(leads))} places (at a median of "
                        f"{statistics.median(leads):.2f} times its speed)")  # fmt: skip
    if not said:
        return ""
    return (
        "Compared as the compressed_layerwise paper does, INT8 and 2:4 layer-wise against FP16 "
        f"TP x PP: {'; '.join(said)}."
    )


def _cache(places: Sequence[Place]) -> str:
    kept = [p for p in places if p.hit_rate > 0.5]
    if not kept:
        return "In no place does the L2 cache keep a layer's weights until the next microbatch."
    won = len(wins(kept, LAYERWISE))
    return (
        f"In {_of(len(kept), len(places))} places the L2 cache keeps most of a layer's weights "
        f"(width {_values(kept, 'width')}, {_values(kept, 'depth')} layers); layer-wise is the "
        f"fastest in {won or 'none'} of them."
    )


def _interconnect(places: Sequence[Place]) -> str:
    names = list(dict.fromkeys(p.cluster for p in places))
    said = []
    for name in names:
        leads = [lead for _, lead in _leads([p for p in places if p.cluster == name], BASELINE)]
        if leads:
            ahead = sum(x > 1 for x in leads)
            said.append(f"{name} {_of(ahead, len(leads))}")
    return f"Ahead of TP x PP by interconnect: {'; '.join(said)}." if len(said) > 1 else ""


def _leads(places: Iterable[Place], rival: str) -> list[tuple[Place, float]]:
    return [(p, lead) for p in places if (lead := p.lead_over(rival)) is not None]


def _key(p: Place) -> tuple:
    return p.cluster, p.phase, p.attention, p.depth, p.batch, p.width


def _values(places: Sequence[Place], name: str) -> str:
    seen = sorted({getattr(p, name) for p in places})
    if isinstance(seen[0], int):
        low, high = seen[0], seen[-1]
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return ", ".join(map(str, seen))


def _place(p: Place) -> str:
    how = {"": "", "xla": " unpacked by XLA", "kernel": " by a kernel"}[p.unpacking]
    return (
        f"batch {p.batch:,}, width {p.width:,}, {p.depth} layers, {p.attention}, {p.stored}{how}, "
        f"{p.cluster}"
    )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _of(part: int, whole: int) -> str:
    return f"none of {whole:,}" if not part else f"{part:,} of {whole:,}"
