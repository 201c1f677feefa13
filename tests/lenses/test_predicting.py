"""The roofline by hand: its largest term bounds the step; what products do not cover is exposed."""

import pytest

from parallax.hlo.ledger import Collective
from parallax.lenses.predicting import roofline
from parallax.meshes.cluster import cluster
from parallax.results import Compilation, Memory
from parallax.workload import Workload

WHERE = cluster("h100_nvl16")
RATE, LINK = WHERE.gpu.peak_flops("float16"), WHERE.gpu.nvlink_bytes_per_s
PAIRS = tuple((i, (i + 1) % 16) for i in range(16))


def permute(seconds, covered_seconds, count):
    """A ring hop that takes so long on the link, beside products that take so long."""
    size = int(seconds * LINK)
    return Collective(
        "collective-permute", ("seq",), 16, size, size, count, "f16", "", is_async=True,
        gemms_between=1, flops_between=covered_seconds * RATE, pairs=PAIRS,
    )  # fmt: skip


def compilation(*collectives, flops, weights=0.0):
    memory = Memory(0, 0, 0, 0, 0, 1, 0.92)
    return Compilation(
        "h100_nvl16", "seq=16", Workload(4, 100), memory, collectives, (), True, (), flops, 0.0,
        weights, 0.0, "", (), 0.0,
    )  # fmt: skip


def test_the_largest_term_bounds_the_step():
    found = roofline(compilation(permute(2e-3, 0, 3), flops=5e-3 * RATE), WHERE, "float16")
    assert found.terms_s["compute"] == pytest.approx(5e-3)
    assert found.terms_s["NVLink"] == pytest.approx(6e-3, rel=1e-6)
    assert found.terms_s["network"] == 0
    assert found.step_s.value == found.terms_s["NVLink"]
    assert found.tokens_per_s.value == pytest.approx(400 / 6e-3, rel=1e-6)
    heavy = compilation(flops=1.0, weights=WHERE.gpu.hbm_bytes_per_s)
    assert roofline(heavy, WHERE, "float16").step_s.value == pytest.approx(1.0)
