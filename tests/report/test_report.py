"""Exit status, failure reasons, and files that are written whole or not at all."""

import math
import os

import pytest

import parallax as px
from parallax.report import check_writable
from parallax.report.sentences import describe_verification, failure_reasons
from tests.report import examples


def failing(name):
    return {
        "not exact": examples.ring_result(
            verification=examples.verification(examples.exact_rows(1e-10))
        ),
        "not finite": examples.ring_result(
            verification=examples.verification(examples.exact_rows(math.inf))
        ),
        "does not fit": examples.ring_result(
            compilation=examples.compilation(memory=examples.too_big())
        ),
        "other bytes": examples.ring_result(
            compilation=examples.compilation(differences=(examples.difference(),))
        ),
    }[name]


@pytest.mark.parametrize("name", ["not exact", "not finite", "does not fit", "other bytes"])
def test_each_reason_makes_the_exit_status_one(name):
    result = failing(name)
    report = examples.report(results=(examples.tensor_result(), result))
    assert report.failed
    assert report.exit_status == 1
    assert len(failure_reasons(result)) == 1


def test_a_mixtures_choices_of_experts_are_those_of_float64():
    results, said = (
        (examples.ring_result(),),
        "in float16 tokens go to the experts chosen in float64",
    )
    assert said in describe_verification(results, px.PAPERS["cross_node_ep"].config)
    assert said not in describe_verification(results, px.PAPERS["ring_sp"].config)


def test_a_good_report_exits_with_zero():
    report = examples.report()
    assert report.exit_status == 0
    assert not [r for result in report.results for r in failure_reasons(result)]


def test_what_was_not_run_and_failed_points_do_not_count():
    """A contradicted claim and a failed validation point are the paper's, not the run's."""
    skipped = examples.data_result(
        verification=None, compilation=None, skipped={"compile": "needs the aot extra"}
    )
    assert examples.report(results=(skipped,)).exit_status == 0
    ring = examples.ring_result(prediction=examples.prediction(3.3e5))
    assert examples.report(results=(examples.tensor_result(), ring)).exit_status == 0


def test_save_writes_both_files_and_nothing_else(tmp_path):
    folder = tmp_path / "a" / "b"
    paths = examples.report().save(folder)
    assert [p.name for p in paths] == ["report.json", "report.html"]
    assert sorted(os.listdir(folder)) == ["report.html", "report.json"]
    examples.report(seconds=1.0).save(folder)  # Over the earlier ones.
    assert '"value": 1.0' in paths[0].read_text(encoding="utf-8")
    assert paths[0].stat().st_mode & 0o400


def test_a_file_in_the_way_is_one_clear_line(tmp_path):
    taken = tmp_path / "out"
    taken.write_text("")
    for call in (check_writable, examples.report().save):
        with pytest.raises(ValueError, match=f"--out={taken}: .*Give a folder") as caught:
            call(taken)
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match=r"--out=.*Give a folder"):
            call(taken / "below" / "it")
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ValueError, match="Nothing was written"):
        examples.report().save(tmp_path)
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    before = examples.report()
    path, _ = before.save(tmp_path)
    text = path.read_text(encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.chmod", full)
    with pytest.raises(ValueError, match="No space left on device"):
        examples.report(seconds=5.0).save(tmp_path)
    assert path.read_text(encoding="utf-8") == text
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json"]


def test_check_writable_makes_nothing(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"Permission denied\. Give a folder"):
        check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_compilation_reads_as_text_and_says_where_the_modules_is():
    lines = examples.compilation().as_text().splitlines()
    assert lines[1] == "memory per device: 9.8 GB of 78.15 GB, fits"
    assert "collective-permute over seq: 7,680 x 163,840,000 B of f16" in lines[4]
    assert "--xla_dump_to=FOLDER" in lines[-1]
    of_no_axis = examples.compilation(
        collectives=(examples.collective("all-reduce", None, 8e6, 1),)
    )
    assert "all-reduce over groups of 16: " in of_no_axis.as_text()
