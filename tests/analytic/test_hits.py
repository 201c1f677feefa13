"""Weight reads from the L2 cache: by hand on made-up work, and where the papers' sizes stand."""

import pytest

from parallax.analytic import PackedWeights, estimate, weight_reads
from parallax.cost import estimate_cost, rates_of
from parallax.hlo.execution_trace import ExecutionTrace, Kernel, Loop
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.programs.steps import make_step
from parallax.strategies import build
from parallax.workload import Workload

WHERE = cluster("h100_nvl16")
RATES = rates_of("h100")
ROOM = RATES.l2_share * WHERE.gpu.l2_bytes
SMALL = PAPERS["compressed_layerwise"].config.replace(
    name="small", d_model=1024, d_ff=4096, num_heads=8, num_kv_heads=8
)


def made_up(weight, beside, layers=1):
    """A tick of layers, each of which reads its weight and writes something beside."""
    kernels = (
        Kernel("a", (("a.w", weight),), 1.0, weights=("a.w",)),
        Kernel("b", (("a", 1.0),), beside),
    )
    steps = {
        "entry": (Loop("ticks", 4, "tick", "test"),),
        "tick": (Loop("layers", layers, "layer", "test"),), "layer": kernels, "test": (),
    }  # fmt: skip
    return ExecutionTrace("entry", steps, 1)


@pytest.mark.parametrize(
    ("weight", "beside", "layers", "rate"),
    [
        (0.5, 0.4, 1, 1.0), (0.5, 0.6, 1, 0.0), (1.1, 0.1, 1, 0.0), (0.5, 1.5, 1, 0.0),
        (0.3, 0.1, 2, 1.0), (0.3, 0.1, 4, 0.0),
        (0.3, 0.2, 3, 0.0),  # room for the weights, not for what is written beside them
    ],
)  # fmt: skip
def test_by_hand(weight, beside, layers, rate):
    found = weight_reads(made_up(weight * ROOM, beside * ROOM, layers), WHERE, RATES)
    assert found.read_bytes == pytest.approx(weight * ROOM * layers)
    assert found.hit_rate == rate
    assert bool(found.resident) == (rate == 1.0)


def decode(config, name, batch, seq_len, **more):
    strategy, workload = build(name, node_size=16), Workload(batch, seq_len, 1)
    return estimate(make_step(config, strategy, workload, "decode"), WHERE, **more)


def test_no_weight_of_a_paper_s_layer_stays():
    config = PAPERS["compressed_layerwise"].config
    for name in ("layerwise", "tensor_pipeline"):
        found = decode(config, name, 128, 10_000)
        assert weight_reads(found.work, WHERE, RATES).hit_rate == 0.0
        assert found.cost == decode(config, name, 128, 10_000, resident=True).cost


def test_what_stays_is_read_faster():
    work = made_up(0.5 * ROOM, 0.1 * ROOM)
    kept = weight_reads(work, WHERE, RATES).resident
    assert kept == {"a.w": 0.5 * ROOM}
    cold, warm = (estimate_cost(work, WHERE, RATES, resident=r).seconds for r in (None, kept))
    apart = 0.5 * ROOM * (1 / RATES.memory_bytes_per_s - 1 / RATES.l2_bytes_per_s)
    assert cold - warm == pytest.approx(4 * apart)


def test_a_small_packed_layer_stays():
    packed = PackedWeights(("int4", "int4+2:4"), "kernel")
    found = decode(SMALL, "layerwise", 16, 64, weights=packed)
    assert weight_reads(found.work, WHERE, RATES).hit_rate == 1.0
    kept = decode(SMALL, "layerwise", 16, 64, weights=packed, resident=True)
    assert kept.cost.memory_bytes < found.cost.memory_bytes
    # Its products are so small that they hardly wait for their bytes.
    assert 0.99 * found.cost.seconds < kept.cost.seconds < found.cost.seconds
    # All sixteen layers on one device do not stay.
    whole = decode(SMALL, "data_parallel", 16, 64)
    assert weight_reads(whole.work, WHERE, RATES).hit_rate == 0.0


def test_a_long_cache_pushes_weights_out():
    packed = PackedWeights(("int4", "int4+2:4"), "kernel")
    found = decode(SMALL, "layerwise", 512, 4096, weights=packed)
    assert weight_reads(found.work, WHERE, RATES).hit_rate == 0.0
