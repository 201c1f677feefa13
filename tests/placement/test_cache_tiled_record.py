"""The committed record of cache-tiled programs says what the design notes say it does."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "cpu" / "cache_tiled.json").read_text("utf-8"))
ROWS = {
    (r["paper"], r["phase"], r["strategy"].removesuffix("_tiled"), r["microbatches"], r["round"],
     bool(r["formats"])): r
    for r in RECORD["rows"]
}  # fmt: skip
WIDE, GATED = "cache_layerwise", "compressed_layerwise"


def rest_gb(*key, formats=False):
    """GB of a row beside the KV cache."""
    row = ROWS[(*key, formats)]
    return (row["modelled"]["memory_bytes"] - row["derived"]["kv_bytes_read"]) / 1e9


def step_s(*key):
    return ROWS[(*key, False)]["modelled"]["seconds"]


def test_a_round_reads_weights_once():
    for paper, counts in ((WIDE, (4, 8, 16, 32, 64)), (GATED, (4,))):
        for m in counts:
            ordinary, tiled = (paper, "decode", "data_parallel", m, 0), (
                paper, "decode", "data_parallel", m, m)  # fmt: skip
            assert rest_gb(*tiled) < rest_gb(*ordinary)
            once = ROWS[paper, "decode", "data_parallel", 1, 0, False]["derived"]["weight_bytes"]
            assert ROWS[(*tiled, False)]["derived"]["weight_bytes"] == once


def test_two_microbatches_are_too_few_to_pay_for_the_copy():
    for paper in (WIDE, GATED):
        assert rest_gb(paper, "decode", "data_parallel", 2, 2) > rest_gb(
            paper, "decode", "data_parallel", 2, 0
        )


def test_prefill_is_a_loss():
    for paper, m in ((WIDE, 64), (GATED, 8)):
        assert rest_gb(paper, "prefill", "layerwise", m, 2) > rest_gb(
            paper, "prefill", "layerwise", m, 0
        )


def test_compressed_weights_are_unpacked_once_a_slab():
    for round in (2, 4):
        assert rest_gb(GATED, "decode", "layerwise", 64, round, formats=True) < rest_gb(
            GATED, "decode", "layerwise", 64, 0, formats=True
        )


def test_the_page_has_the_records_figures():
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    section = re.sub(r"\s+", " ", page.split("## Cache-tiled layers")[1].split("\n## ")[0])
    unsplit = [rest_gb(WIDE, "decode", "data_parallel", *k) for k in
               ((8, 0), (8, 8), (64, 0), (64, 64), (1, 0))]  # fmt: skip
    assert "{:.0f} GB become {:.0f} GB at 8 microbatches".format(*unsplit[:2]) in section
    assert "{:.0f} GB become {:.0f} GB at 64".format(*unsplit[2:4]) in section
    assert f"all sequences reads {unsplit[4]:.0f} GB" in section
    packed = [rest_gb(GATED, "decode", "data_parallel", 4, r, formats=True) for r in (0, 4)]
    assert "its formats: {:.0f} GB become {:.0f} GB at 4".format(*packed) in section
    stages = [rest_gb(WIDE, "decode", "layerwise", 64, r) for r in (8, 0)]
    assert "23 passes move {:.0f} GB beside keys instead of {:.0f} GB".format(*stages) in section
    assert ROWS[WIDE, "decode", "layerwise", 64, 8, False]["passes"] == 23
    times = [1e3 * step_s(WIDE, "decode", "data_parallel", 8, r) for r in (8, 0)]
    assert "{:.0f} ms instead of {:.0f} ms".format(*times) in section
    for paper, m, r in ((p, m, r) for p, _, s, m, r, f in ROWS if not f and s == "layerwise" and r):
        if ROWS.get((paper, "decode", "layerwise", m, r, False)):
            assert step_s(paper, "decode", "layerwise", m, r) > step_s(
                paper, "decode", "layerwise", m, 0
            )
