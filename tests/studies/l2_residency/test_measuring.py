"""L2 residency: the arithmetic, table, plot and page, on made-up times."""

import json
import re

import jax
import numpy as np
import pytest

from parallax.experiments.__main__ import main
from parallax.kernels import streaming_read
from parallax.kernels.cache_tiled_mlp.cases import Case
from parallax.kernels.interpreting import interpreted
from parallax.kernels.streaming_read import CHUNK_BYTES
from parallax.studies.kernels import timing as kernel_timing
from parallax.studies.l2_residency import measuring as lens
from parallax.studies.l2_residency.measuring import (
    Reading,
    measure_residency,
    read,
    resident_shares,
    working_sets,
)
from parallax.studies.l2_residency.page import NOT_RUN, ROOT, page, plot, records, tables, write

L2 = 40 << 20
FAR, NEAR, LAUNCH_S = 4e12, 8e12, 1e-6  # bytes a second from memory and cache


def reading(working, between=0, resident=0.0, launch_s=LAUNCH_S):
    """Times of a cache that keeps the given share."""
    cold, hot = working / FAR, working / NEAR
    hot = hot if working <= L2 / 2 else cold
    again = launch_s + cold * (1 - resident) + working / NEAR * resident
    return Reading(working, between, launch_s + cold, again, launch_s + hot, again, again)


def test_shares_are_those_that_the_times_were_made_of():
    kept = {1 << 20: 1.0, 5 << 20: 0.5, 20 << 20: 0.75, 30 << 20: 0.4, 80 << 20: 0.0}
    readings = [reading(n, resident=share, launch_s=0.0) for n, share in kept.items()]
    assert resident_shares(readings, L2) == pytest.approx(list(kept.values()))


def test_noise_is_not_cut_off_and_too_little_to_tell_is_said():
    worse = reading(20 << 20, resident=-0.1, launch_s=0.0)
    assert resident_shares([worse], L2) == pytest.approx([-0.1])
    small = reading(1 << 16, resident=1.0)  # the launch takes sixty times as long
    assert resident_shares([small], L2) == [None]
    # One smaller set does not tell a launch from a byte.
    assert resident_shares([reading(20 << 20, resident=1), reading(80 << 20)], L2)[1] is None


def test_working_sets_go_from_a_megabyte_to_four_caches_in_whole_chunks():
    sets = working_sets(50 << 20)
    assert sets[0] == 1 << 20
    assert sets[-1] == 4 * (50 << 20)
    assert sets == sorted(set(sets))
    assert all(n % CHUNK_BYTES == 0 for n in sets)
    assert sum(0.5 <= n / (50 << 20) <= 1.5 for n in sets) >= 6


def names_of(function, arguments):
    """Of the program's kernels, in order."""
    return re.findall(r"\bname=(read_\w+)", str(jax.make_jaxpr(function)(*arguments)))


def made_up(function, arguments):
    """Times of a cache of L2 bytes that keeps what was not pushed out, and nothing of what does
    not fit."""
    mine, others, _ = (4 * x.size for x in arguments)
    kept = float(np.clip((L2 - others) / mine, 0, 1)) if mine <= L2 else 0.0
    times = reading(mine, others, kept)
    each = {"read_cold": times.cold_s, "read_again": times.again_s, "read_hot": times.hot_s}
    names = ["fill", *names_of(function, arguments)]  # XLA's own kernels are passed over
    call = [(f"{name}_mosaic_gpu_kernel", each.get(name, 1e-3)) for name in names]
    return [call, call, call]


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lens, "_buffer", lambda key, n: jax.ShapeDtypeStruct((n // 512, 128), "i4"))
        return measure_residency(
            l2_bytes=L2, sequence_timer=made_up, timer=lambda function, arguments: [1e-5, 3e-5],
            on_progress=lambda line: None, sets=[4 << 20, 20 << 20, 30 << 20, 80 << 20],
            mlps=[Case(4, 64, 128, layers=1), Case(8, 64, 128, layers=1)],
        )  # fmt: skip


def test_a_record_has_every_working_set_with_all_that_is_read_between(record):
    shares = {
        (r["working_bytes"] >> 20, r["between_bytes"] / L2): r["resident_share"]
        for r in record["readings"]
    }
    assert len(shares) == 4 * 5
    assert shares[4, 0] == pytest.approx(1, abs=1e-3)
    assert shares[20, 0] == shares[20, 0.5] == pytest.approx(1, abs=1e-3)
    assert shares[30, 0.5] == pytest.approx(2 / 3, abs=1e-3)
    assert shares[30, 1] == shares[20, 2] == pytest.approx(0, abs=1e-3)
    assert shares[80, 0] == pytest.approx(0, abs=1e-3)
    assert record["tag"] == "measured"
    assert [s["microbatches"] for s in record["mlp_steps"]] == [1, 2]
    assert record["mlp_steps"][0]["median_s"] == pytest.approx(2e-5)
    json.dumps(record)


def test_tables_plot_and_page_are_of_the_record(record, tmp_path):
    shares, steps = tables(record)
    assert [len(grid.rows) for grid in (shares, steps)] == [4, 2]
    assert shares.rows[0][3].text == f"{record['readings'][0]['resident_share']:.2f}"
    assert steps.rows[0][3].text == f"{2 * 2 * 64 * 128 / 2e-5 / 1e9:.0f}"
    assert plot(record).count("<path") > 20
    assert NOT_RUN in page([])
    folder = tmp_path / "benchmarks" / "h100"
    folder.mkdir(parents=True)
    (tmp_path / "docs" / "generated").mkdir(parents=True)
    (folder / "l2_residency-2030-01-01.json").write_text(json.dumps(record))
    write(tmp_path)
    text = (tmp_path / "docs" / "generated" / "l2_residency.md").read_text()
    assert NOT_RUN not in text
    assert "| after 0.25 of L2" in text
    assert (
        (tmp_path / "docs" / "generated" / "l2_residency-2030-01-01.svg")
        .read_text()
        .startswith("<svg")
    )


def test_the_page_is_of_the_records():
    assert (ROOT / "docs" / "generated" / "l2_residency.md").read_text() == page(records())


def test_a_program_reads_in_order_what_it_says(monkeypatch):
    """Interpreted, on chunks of 16 KB; the last sums are the working set's."""
    monkeypatch.setattr(streaming_read, "BLOCKS", 2)
    runs = []

    def timer(function, arguments):
        with interpreted():
            sums = function(*arguments)
        mine, others, _ = arguments
        total = np.asarray(sums).sum(axis=0, dtype=np.int32)
        np.testing.assert_array_equal(total, np.asarray(mine).sum(axis=0, dtype=np.int32))
        runs.append((mine.nbytes, others.nbytes))
        return [[(name, 1.0) for name in names_of(function, arguments)]]

    assert read(2 * CHUNK_BYTES, CHUNK_BYTES, 1, timer).between_bytes == CHUNK_BYTES
    assert runs == [(2 * CHUNK_BYTES, CHUNK_BYTES)]


def test_kernels_that_are_not_the_programs_are_refused(monkeypatch):
    monkeypatch.setattr(lens, "_buffer", lambda key, n: jax.ShapeDtypeStruct((n // 512, 128), "i4"))

    def timer(function, arguments):
        return [[("read_cold", 1.0), ("read_hot", 1.0)]]

    with pytest.raises(ValueError, match=r"read_flush, read_cold, read_again.*saw read_cold, read"):
        read(CHUNK_BYTES, 0, CHUNK_BYTES, timer)


def test_the_mlps_are_a_quarter_of_the_cache_all_of_it_and_a_full_layer():
    cases = lens.mlp_cases(50 << 20)
    assert [c.tokens for c in cases[:7]] == [4, 8, 16, 32, 64, 128, 256]
    weights = [2 * c.weights / (50 << 20) for c in cases[::7]]
    assert weights == [pytest.approx(0.25, rel=0.03), pytest.approx(1, rel=0.03), 20.48]


def test_the_command_prints_and_writes_what_was_measured(monkeypatch, tmp_path, capsys):
    buffer = jax.ShapeDtypeStruct
    monkeypatch.setattr(lens, "_buffer", lambda key, n: buffer((n // 512, 128), "i4"))
    monkeypatch.setattr(lens, "gpu_at_hand", lambda: (L2, made_up))
    monkeypatch.setattr(kernel_timing, "gpu_timer", lambda: lambda function, arguments: [1e-5])
    monkeypatch.setattr(lens, "working_sets", lambda l2_bytes: [4 << 20, 20 << 20])
    monkeypatch.setattr(lens, "mlp_cases", lambda l2_bytes: [Case(4, 64, 128, layers=1)])
    with pytest.raises(SystemExit) as left:
        main(["parallax", "l2_residency", f"--out={tmp_path}"])
    assert left.value.code == 0
    assert "Share of the working set" in capsys.readouterr().out
    record = json.loads((tmp_path / "l2_residency.json").read_text())
    assert len(record["readings"]) == 10
    assert (tmp_path / "l2_residency.svg").read_text().startswith("<svg")


def test_without_a_gpu_it_says_so_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["parallax", "l2_residency", f"--out={tmp_path}"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "needs an NVIDIA Hopper GPU" in error
    assert not list(tmp_path.iterdir())
