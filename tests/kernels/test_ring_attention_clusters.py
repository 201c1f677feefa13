"""Blocks of threads that load together what streams past both, interpreted as a GPU does it."""

import jax
import pytest

from parallax.kernels.errors import relative_error
from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import backward_cases, cases, mosaic
from parallax.kernels.ring_attention.backward_tiles import PASSES
from tests.kernels.multicast import multicasting


@pytest.mark.parametrize(
    ("step", "leader"),
    [
        (cases.Case(256, "bfloat16", 200, 100), 0),
        (cases.Case(256, "bfloat16", 200, 100), 1),
        (cases.Case(512, "float16", 130, 130, is_causal=True), 0),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_none_overwrites_what_the_other_still_reads(step, leader):
    """Races are seen across blocks; a block's own release alone is one."""
    case = backward_cases.Case(*step)
    assert any(cut.cluster == 2 for cut in PASSES[step.head_dim])
    arrays = backward_cases.inputs(case, seed=1)
    with interpreted(), multicasting(leader) as copies:
        found = jax.block_until_ready(jax.jit(backward_cases.program(case, "mosaic"))(*arrays))
    assert copies[0] == copies[1] > 0
    for mine, right in zip(found, backward_cases.exact(case, *arrays), strict=True):
        assert relative_error(mine, right) < 5e-3


@pytest.mark.parametrize(
    ("case", "leader"),
    [
        (cases.Case(64, "bfloat16", 200, 500, tile="ahead, turns, cluster"), 0),
        (cases.Case(64, "bfloat16", 200, 500, tile="ahead, turns, cluster"), 1),
        (cases.Case(64, "bfloat16", 200, 600, tile="64 rows"), 0),
        (cases.Case(64, "bfloat16", 200, 600, tile="64 rows"), 1),
        (cases.Case(512, "float16", 130, 130, is_causal=True, tile="cluster"), 0),
        (cases.Case(512, "float16", 130, 130, is_causal=True, tile="ahead, cluster"), 1),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_nor_forward(case, leader):
    arrays = cases.inputs(case, seed=1)
    with interpreted(), multicasting(leader) as copies:
        found = jax.block_until_ready(jax.jit(cases.program(case, "mosaic"))(*arrays))
    assert copies[0] == copies[1] > 0
    for mine, right in zip(found, cases.exact(case, *arrays), strict=True):
        assert relative_error(mine, right) < 5e-3


@pytest.mark.parametrize("leader", [0, 1])
def test_nor_a_persistent_block_what_the_other_reads_for_its_last_tile(leader, monkeypatch):
    monkeypatch.setattr(mosaic, "MULTIPROCESSORS", 2)
    case = cases.Case(512, "float16", 300, 300, is_causal=True, first=True, last=True,
                      tile="ahead, cluster, persistent")  # fmt: skip
    test_nor_forward(case, leader)
