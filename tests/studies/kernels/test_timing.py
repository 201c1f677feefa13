"""Kernels side by side: rows and errors; on a CPU its times mean nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.experiments.__main__ import main
from parallax.experiments.bench_kernels import compiled_line, timed_line
from parallax.kernels.operations import OPERATIONS
from parallax.kernels.ring_attention import baselines
from parallax.kernels.ring_attention.cases import Case
from parallax.studies.kernels import timing as kernel_timing
from parallax.studies.kernels.page import compiled_record
from parallax.studies.kernels.timing import time_kernels

CASE = Case(64, "bfloat16", 96, 96, heads=2, kv_heads=1)
CASES = (CASE, CASE._replace(is_causal=True))


def fake_timer(function, arguments):
    """Runs it, and says it took a millisecond or two."""
    jax.block_until_ready(function(*arguments))
    return [1e-3, 2e-3, 1e-3]


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernel_timing, "_GEMM", 128)
        patched.setattr(kernel_timing, "_COPY_BYTES", 1 << 20)
        return time_kernels(
            ["ring_attention"], timer=fake_timer, on_progress=lambda line: None,
            cases={"ring_attention": CASES},
        )  # fmt: skip


def test_every_baseline_has_a_row_or_a_reason(record):
    rows = {(row["case"], row["implementation"]): row for row in record["rows"]}
    assert len(rows) == sum(len(baselines.baselines(case)) for case in CASES)
    assert record["ceilings"] == {
        "tflops": pytest.approx(2 * 128**3 / 1e-3 / 1e12),
        "gb_per_s": pytest.approx(2 * 2**20 / 1e-3 / 1e9),
    }
    for case in CASES:
        xla = rows[case.name, "xla"]
        assert xla["error"] < 1e-2
        assert xla["tflops"] == pytest.approx(case.flops / 1e-3 / 1e12)
        assert xla["gb_per_s"] == pytest.approx(case.bytes_accessed / 1e-3 / 1e9)
        assert xla["bound_by"] == "flops"
        assert xla["share_of_floor"] == pytest.approx(case.flops / (2 * 128**3))
        assert rows[case.name, "cudnn"]["why_not"]  # this is a CPU
        assert rows[case.name, "mosaic"]["why_not"]
    assert record["versions"]["jax"] == jax.__version__
    json.dumps(record)
    text = [timed_line(row, 5e-4) for row in record["rows"]]
    assert any("% of the floor, 0.50 of the best peer" in row for row in text)
    assert any("not run: " in row for row in text)


def test_a_wrong_row_is_seen():
    q, k, v = map(jnp.asarray, baselines.draw(CASE, seed=0))
    assert baselines.error(CASE, np.zeros(q.shape), q, k, v) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_what_is_wrong_has_no_time(monkeypatch, wrong):
    monkeypatch.setattr(
        baselines, "baselines", lambda case: {"mosaic": lambda q, k, v: wrong * q, "xla": "no"}
    )
    ceilings = {"tflops": 1.0, "gb_per_s": 1.0}
    ours, _ = kernel_timing._time("ring_attention", CASE, ceilings, fake_timer)
    assert ours.median_s is None
    assert (ours.why_not or "").startswith("wrong: its relative error against float64 is ")


def test_without_a_gpu_it_says_so_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["parallax", "bench_kernels", f"--out={tmp_path}"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "needs an NVIDIA GPU" in error
    assert not list(tmp_path.iterdir())


def test_an_unknown_operation_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["parallax", "bench_kernels", f"--out={tmp_path}", "--operations=softmax"])
    assert left.value.code == 2
    assert "expected some of ring_attention" in capsys.readouterr().err


def test_what_was_compiled_is_what_ships():
    """The record names the cases of today; tests/kernels compile them and see that none spills.

    Where it does not: `parallax bench_kernels --compile_only --out=benchmarks/compiled`.
    """
    rows = compiled_record()["rows"]
    expected = [(name, case.name) for name, op in OPERATIONS.items() for case in op.SHIPPED]
    assert list(dict.fromkeys((row["operation"], row["case"]) for row in rows)) == expected
    assert all("spills 0 B" in compiled_line(row) for row in rows)
