"""The committed record of the memory ablation is valid, and still what the compiler gives."""

import json
from pathlib import Path

import pytest

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.papers.memory_record import MemoryRecord, read_memory_record
from parallax.studies import memory_ablation as terms
from parallax.studies.memory_ablation import fused_kernels

pytestmark = pytest.mark.slow

RECORD = Path(__file__).parents[2] / "benchmarks" / "cpu" / "memory_terms.json"
ROWS = read_memory_record(RECORD).rows


def test_the_record_has_every_term_of_both_papers():
    found = {(r.paper, r.strategy, r.program, r.term) for r in ROWS}
    assert len(ROWS) == 2 * 2 * 7
    assert {(p, t) for p, _, _, t in found} == {
        (paper, term)
        for paper in ("cache_layerwise", "compressed_layerwise")
        for term in ("rematerialisation", "donation", "fusion")
    }
    assert {r.claimed_percent for r in ROWS} == {75.0, 20.0, 80.0}


def test_a_record_goes_out_and_in(tmp_path):
    record = read_memory_record(RECORD)
    assert isinstance(record, MemoryRecord)
    (tmp_path / "r.json").write_text(json.dumps(record.to_dict()))
    assert read_memory_record(tmp_path / "r.json") == record


BAD = {
    "a share that its bytes do not give": (lambda d: d["rows"][0].update(saved_percent=75.0),
                                           "its bytes give"),
    "no bytes before": (lambda d: d["rows"][0].update(before_bytes=0), "before above 0"),
    "bytes that are no number": (lambda d: d["rows"][0].update(after_bytes="1"),
                                   "rows.0.after_bytes: expected int, got '1'"),
    "a term nobody knows": (lambda d: d["rows"][0].update(term="luck"), "'luck'"),
    "a field too many": (lambda d: d.update(extra=1), "'extra'"),
    "a field too few": (lambda d: d["rows"][2].pop("claim"), "rows.2: .*'claim'"),
    "another version": (lambda d: d.update(record_version=2), "record_version is 2, .* reads 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused(name, tmp_path):
    change, message = BAD[name]
    data = json.loads(RECORD.read_text())
    change(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_memory_record(tmp_path / "bad.json")


def test_kernels_of_several_operations_are_counted():
    fusion = "%fused_a (p: f32[4]) -> f32[4] {\n  %p = f32[4] parameter(0)\n"
    one = "  ROOT %a = f32[4] add(%p, %p)\n}\n"
    two = "  %m = f32[4] multiply(%p, %p)\n  ROOT %a = f32[4] add(%m, %p)\n}\n"
    assert fused_kernels(fusion + one) == 0
    assert fused_kernels(fusion + two + fusion + one + fusion + two) == 2


def compile_again(cases, *, on_progress):
    return [terms._compile("compressed_layerwise", "layerwise", case) for case in cases]


@pytest.mark.full
def test_the_record_is_what_the_compiler_says(aot):
    """The quick ones, compiled again: fusion and donation of a decoding step."""
    cases = [terms._Case("decode", donate=False), terms._Case("decode", fuse=False),
             terms._Case("decode")]  # fmt: skip
    copied, apart, found = run_in_child(compile_again, cases, environment=compile_environment())
    rows = {r.term: r for r in ROWS if (r.paper, r.strategy, r.program)
            == ("compressed_layerwise", "layerwise", "decoding step")}  # fmt: skip
    donated, fused = rows["donation"], rows["fusion"]
    assert (donated.before_bytes, donated.after_bytes) == (copied.all, found.all)
    assert (fused.before_bytes, fused.after_bytes) == (apart.temp, found.temp)
    assert apart.together == 0 < found.together
