"""The committed records of long runs, as sections of the layer-wise papers' reports.

  python -m parallax.studies.recording benchmarks/cpu parallax/report/recorded.json

Reports read that file; a test compares it with the records.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallax.codec import read_json
from parallax.papers.memory_record import MemoryTerm, read_memory_record
from parallax.report import words
from parallax.report.facts import Cell
from parallax.report.grid import DataTable, Heads
from parallax.report.recorded import Section, section_to_dict
from parallax.studies.quality.results import load_record
from parallax.studies.quality.tables import described, tables
from parallax.studies.regimes.conclusions import conclusions
from parallax.studies.regimes.page import TITLE as REGIMES_TITLE
from parallax.studies.regimes.record import from_record

PAPERS = ("cache_layerwise", "compressed_layerwise")
_SENTENCES = 7  # about regimes: what wins, against what, and what would change it


def recorded_sections(folder: Path) -> dict[str, list[Section]]:
    """Return the sections of each paper, from the records in a folder.

    Raises:
      ValueError: a record that is missing or broken.
    """
    try:
        quality = _quality(folder / "compress_quality.json")
        deployment = _deployment(_load(folder / "deployment.json"))
        regimes = _regimes(_load(folder / "regimes.json"))
        tiles = _load(folder / "cache_tiled.json")
        return {
            name: [quality, _memory(folder / "memory_terms.json", name), _tiles(tiles, name),
                   deployment, regimes]
            for name in PAPERS
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: a record has other fields than this version reads ({error!r}). Make it "
            "again."
        ) from None


def _load(path: Path) -> dict[str, Any]:
    return read_json(path, f"record {path}", "Make it again.")


def _made(record: Mapping[str, Any]) -> str:
    return f"Recorded on {record['date']}: {record['command']}."


def _quality(path: Path) -> Section:
    record = load_record(path)
    made = f"Recorded on {record.date}: {record.command}, {record.seconds / 60:.0f} minutes."
    said = (described(record), *record.says, made)
    title = "Quality of compressed weights, measured on a small model"
    return Section(title, said, tables(record))


_MEMORY_HEADS: Heads = (
    ("term", None), ("program", None), ("strategy", None), ("before, after", None),
    ("before", "compiled"), ("after", "compiled"), ("saved", "compiled"), ("printed", "claimed"),
)  # fmt: skip


def _memory(path: Path, paper: str) -> Section:
    record = read_memory_record(path)
    rows = [r for r in record.rows if r.paper == paper]
    said = []
    for term in dict.fromkeys(r.term for r in rows):
        of_term = [r for r in rows if r.term == term]
        low, high = (f(r.saved_percent for r in of_term) for f in (min, max))
        said.append(
            f"{term} saves {low:.0f} to {high:.0f} % of {_counted(of_term)} in {len(of_term)} "
            f"full-size programs (compiled); the compressed_layerwise paper prints "
            f"{of_term[0].claimed_percent:g} %, of {of_term[0].claim}."
        )
    grid = DataTable("What each saves of a device's bytes", _MEMORY_HEADS,
                tuple(_memory_row(r) for r in rows))  # fmt: skip
    said.append(_made({"date": record.date, "command": record.command}))
    return Section("Memory terms, compiled", tuple(said), (grid,))


def _counted(rows: list[MemoryTerm]) -> str:
    counted = {"temp": "temporary buffers", "all": "all bytes of a device"}
    return " and ".join(dict.fromkeys(counted[r.counted] for r in rows))


def _memory_row(r: MemoryTerm) -> tuple[Cell, ...]:
    return (
        Cell(r.term), Cell(r.program), Cell(r.strategy), Cell(f"{r.before}; {r.after}"),
        Cell(words.in_bytes(r.before_bytes)), Cell(words.in_bytes(r.after_bytes)),
        Cell(f"{r.saved_percent:.1f} %"), Cell(f"{r.claimed_percent:g} %"),
    )  # fmt: skip


_TILE_HEADS: Heads = (
    ("program", None), ("strategy", None), ("microbatches", None), ("of a round", None),
    ("tiles", None), ("weights read", "derived"), ("memory traffic", "modelled"),
    ("step", "modelled"),
)  # fmt: skip


def _tiles(record: Mapping[str, Any], paper: str) -> Section:
    rows = [r for r in record["rows"] if r["paper"] == paper]
    said = [
        "A weight tile that fits the budget serves all microbatches of a group before the next "
        f"tile; budget {record['budget']['bytes']:,} bytes, {record['budget']['is']}. The result "
        "is the same. Without the kernel that keeps a tile on the chip (kernels='mosaic') each "
        "microbatch and tile is a product of XLA's.",
        *_tile_sentences(rows),
        _made(record),
    ]
    grid = DataTable("Weights once a round instead of once a microbatch", _TILE_HEADS,
                tuple(_tile_row(r) for r in rows))  # fmt: skip
    return Section("Cache-tiled layers", tuple(said), (grid,))


def _tile_sentences(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    plain = {(r["phase"], r["strategy"], r["microbatches"]): r for r in rows if not r["round"]}
    tiled = [r for r in rows if r["round"]]
    pairs = [
        (r, plain[key])
        for r in tiled
        if (key := (r["phase"], r["strategy"].removesuffix("_tiled"), r["microbatches"])) in plain
    ]
    less = [(r, p) for r, p in pairs if _traffic(r) < _traffic(p)]
    sooner = [(r, p) for r, p in pairs if r["modelled"]["seconds"] < p["modelled"]["seconds"]]
    yield (
        f"Tiling moves fewer bytes in {len(less)} of {len(pairs)} programs and is faster in "
        f"{len(sooner)} (modelled)."
    )
    if less:
        r, p = min(less, key=lambda pair: _traffic(pair[0]) / _traffic(pair[1]))
        yield (
            f"At its best, {r['phase']} under {p['strategy']} in {r['microbatches']} microbatches, "
            f"{words.in_bytes(_traffic(p))} become {words.in_bytes(_traffic(r))}; the step goes "
            f"from {words.in_seconds(p['modelled']['seconds'])} to "
            f"{words.in_seconds(r['modelled']['seconds'])}."
        )


def _traffic(row: Mapping[str, Any]) -> float:
    return row["modelled"]["memory_bytes"]


def _tile_row(r: Mapping[str, Any]) -> tuple[Cell, ...]:
    attention, mlp = r["tiles"]
    return (
        Cell(r["phase"]), Cell(r["strategy"]), Cell(f"{r['microbatches']}"),
        Cell(f"{r['round']}" if r["round"] else "-"),
        Cell(f"{attention} + {mlp}" if r["round"] else "-"),
        Cell(words.in_bytes(r["derived"]["weight_bytes"])), Cell(words.in_bytes(_traffic(r))),
        Cell(words.in_seconds(r["modelled"]["seconds"])),
    )  # fmt: skip


_LOSS_HEADS: Heads = (
    ("devices", None), ("of a recovery", None), ("p50", "measured"), ("p90", "measured"),
    ("max", "measured"), ("p50 on H100", "modelled"), ("max on H100", "modelled"),
)  # fmt: skip
_SWITCH_HEADS: Heads = (
    ("prepared on", None), ("switches", None), ("p50", "measured"), ("p99", "measured"),
    ("max", "measured"), ("full size, H100", "modelled"), ("printed", "claimed"),
)  # fmt: skip
_STEPS = ("detect_s", "place_s", "move_s", "compile_s", "recompute_s", "resume_s")


def _deployment(record: Mapping[str, Any]) -> Section:
    said, losses, switches = [], [], []
    for name, case in record["cases"].items():
        trials = case["losses"]["trials"]
        lost, changed = (sum(t[k] for t in trials) for k in ("lost_requests", "changed_tokens"))
        times, modelled = case["losses"]["times"], case["modelled"]["losses"]
        claim = case["claimed"]
        printed = f"< {claim['below']:g} {claim['unit']}"
        again = modelled["recompute_s"]["p50"] / modelled["resume_s"]["p50"]
        said.append(
            f"{name}: a device lost (simulated) at {len(trials)} random moments: {lost} requests "
            f"lost, {changed} with changed tokens in {case['setup']['model']['dtype']} (measured); "
            f"resumed after {_s(times['resume_s']['p50'])} (p50, measured on CPUs), "
            f"{_s(modelled['resume_s']['p50'])} at full size on H100 (modelled), {again:.0%} of "
            "that keys and values computed again."
        )
        for step in _STEPS:
            there = modelled.get(step)
            losses.append((
                Cell(name), Cell(step.removesuffix("_s")),
                *(Cell(_s(times[step][q])) for q in ("p50", "p90", "max")),
                *(Cell(_s(there[q]) if there else "-") for q in ("p50", "max")),
            ))  # fmt: skip
        full = case["modelled"]["switch"]
        for source, switched in (case.get("switches") or {}).items():
            switches.append((
                Cell(source), Cell(f"{switched['count']}"),
                *(Cell(_s(switched["seconds"][q])) for q in ("p50", "p99", "max")),
                Cell(_s(full["there"][f"from_{source}_s"])), Cell(printed),
            ))  # fmt: skip
            said.append(
                f"Cache pressure: a layer goes to {_formats(full['formats'])} and back, prepared "
                f"on the {source}, in at most {_s(switched['seconds']['max'])} of "
                f"{switched['count']} switches (measured on CPUs), "
                f"{_s(full['there'][f'from_{source}_s'])} at full size on H100 "
                f"(modelled); the paper prints {printed} (claimed)."
            )
    assumed = next(iter(record["cases"].values()))["modelled"]["assumed"]
    said += [f"Assumed of the H100: {'; '.join(assumed)}.", _made(record)]
    grids = (
        DataTable("Time to resume after a loss", _LOSS_HEADS, tuple(losses)),
        DataTable("A layer to a stronger compression under cache pressure, and back", _SWITCH_HEADS,
             tuple(switches)),
    )  # fmt: skip
    return Section("Deployment: failure and cache pressure", tuple(said), grids)


def _formats(pairs: list[list[str]]) -> str:
    return ", ".join(dict.fromkeys(pairs[-1]))


def _s(seconds: float) -> str:
    return words.in_seconds(seconds)


def _regimes(record: Mapping[str, Any]) -> Section:
    _, places = from_record(record)
    said = (
        *conclusions(places)[:_SENTENCES],
        f"{_made(record)} The rest, tables and maps: docs/generated/regimes.md.",
    )
    return Section(REGIMES_TITLE, said, ())


def main(folder: str, target: str) -> None:
    """Write the file that reports read."""
    sections = {
        name: [section_to_dict(s) for s in of_paper]
        for name, of_paper in recorded_sections(Path(folder)).items()
    }
    Path(target).write_text(json.dumps(sections, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
