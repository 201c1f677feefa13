"""Kernels side by side: rows, errors and the page; on a CPU its times mean nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.experiments.__main__ import main
from parallax.experiments.bench_kernels import line
from parallax.kernels.ring_attention.cases import TIMED, Case, inputs
from parallax.lenses import kernel_timing
from parallax.lenses.kernel_timing import IMPLEMENTATIONS, error_of_rows, time_kernels
from parallax.lenses.kernels_page import NOT_RUN, ROOT, page, records

CASE = Case(64, "bfloat16", 96, 96, heads=2, kv_heads=1)


def fake_timer(function, arguments):
    """Runs it, and says it took a millisecond or two."""
    jax.block_until_ready(function(*arguments))
    return [1e-3, 2e-3, 1e-3]


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernel_timing, "_GEMM", 128)
        cases = (CASE, CASE._replace(is_causal=True))
        return time_kernels(cases=cases, timer=fake_timer, on_progress=lambda line: None)


def test_every_implementation_has_a_row_or_a_reason(record):
    rows = {(row["case"], row["implementation"]): row for row in record["rows"]}
    assert len(rows) == 2 * len(IMPLEMENTATIONS)
    for case in (CASE, CASE._replace(is_causal=True)):
        xla = rows[case.name, "xla"]
        assert xla["error"] < 1e-2
        assert xla["tflops"] == pytest.approx(case.flops / 1e-3 / 1e12)
        assert rows[case.name, "cudnn"]["why_not"]  # this is a CPU
        assert rows[case.name, "mosaic"]["why_not"]
    assert record["ceiling_tflops"] == pytest.approx(2 * 128**3 / 1e-3 / 1e12)
    assert record["versions"]["jax"] == jax.__version__
    json.dumps(record)
    text = [line(row, record["ceiling_tflops"], None) for row in record["rows"]]
    assert any("% of the ceiling" in row for row in text)
    assert any("not run: " in row for row in text)


def test_a_wrong_row_is_seen():
    q, k, v = map(jnp.asarray, inputs(CASE, seed=0)[:3])
    out = np.zeros(q.shape)
    assert error_of_rows(CASE, out, q, k, v) == pytest.approx(1.0)


def test_without_a_gpu_it_says_so_in_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["parallax", "bench_kernels", f"--out={tmp_path}"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "needs an NVIDIA GPU" in error
    assert not list(tmp_path.iterdir())


def test_the_page_is_of_the_records(record):
    text = (ROOT / "docs" / "kernels.md").read_text()
    assert text == page(records())
    if not records():
        assert text.count(NOT_RUN) == len(TIMED) * len(IMPLEMENTATIONS)
    row = dict(record["rows"][-1], case=TIMED[0].name, implementation="xla", tflops=123.0)
    shown = page([record | {"rows": [row], "file": "kernels-x.json"}])
    assert shown.count(NOT_RUN) == len(TIMED) * len(IMPLEMENTATIONS) - 1
    assert "| 123 ± " in shown
