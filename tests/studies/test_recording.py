"""Reports state of long runs exactly what the committed records contain."""

import json
import shutil
from pathlib import Path

import pytest

from parallax.papers import PAPERS
from parallax.report.recorded import section_from_dict, section_to_dict
from parallax.studies import recording

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "cpu"
TOLD = ROOT / "parallax" / "report" / "recorded.json"


@pytest.fixture(scope="module")
def found():
    return recording.recorded_sections(RECORDS)


def test_the_file_is_what_the_records_say(found, tmp_path):
    recording.main(str(RECORDS), str(tmp_path / "recorded.json"))
    assert (tmp_path / "recorded.json").read_text(encoding="utf-8") == TOLD.read_text(
        encoding="utf-8"
    ), "run python -m parallax.studies.recording benchmarks/cpu parallax/report/recorded.json"
    assert set(found) <= set(PAPERS)


def test_each_says_its_date_and_command(found):
    for sections in found.values():
        for section in sections:
            assert any(line.startswith("Recorded on 20") for line in section.said), section.title


def test_a_section_comes_back(found):
    for sections in found.values():
        for section in sections:
            assert section_to_dict(section_from_dict(section_to_dict(section))) == section_to_dict(
                section
            )


def test_sentences_follow_the_data(tmp_path):
    """A lost request and a faster tiled program would be told."""
    folder = tmp_path / "records"
    shutil.copytree(RECORDS, folder)
    path = folder / "deployment.json"
    data = json.loads(path.read_text())
    next(iter(data["cases"].values()))["losses"]["trials"][3]["lost_requests"] = 2
    path.write_text(json.dumps(data))
    path = folder / "cache_tiled.json"
    data = json.loads(path.read_text())
    tiled = next(r for r in data["rows"] if r["paper"] == "cache_layerwise" and r["round"])
    tiled["modelled"] |= {"seconds": 1e-6, "memory_bytes": 1.0}
    path.write_text(json.dumps(data))
    found = recording.recorded_sections(folder)
    said = {s.title: " ".join(s.said) for s in found["compressed_layerwise"]}
    assert (
        "2 requests lost, 0 with changed tokens" in said["Deployment: failure and cache pressure"]
    )
    tiles = next(s for s in found["cache_layerwise"] if s.title == "Cache-tiled layers")
    assert "is faster in 1 (modelled)" in " ".join(tiles.said)


@pytest.mark.parametrize("name", ["deployment", "cache_tiled", "regimes", "memory_terms"])
def test_a_record_that_is_none_is_one_clear_error(tmp_path, name):
    folder = tmp_path / "records"
    shutil.copytree(RECORDS, folder)
    (folder / f"{name}.json").write_text("{}")
    with pytest.raises(ValueError, match="Make it again|missing or unknown|Run parallax"):
        recording.recorded_sections(folder)
    (folder / f"{name}.json").unlink()
    with pytest.raises(ValueError, match=name):
        recording.recorded_sections(folder)
