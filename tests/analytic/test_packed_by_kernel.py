"""A decoding step's products by our kernel in the closed form: bytes by hand, and where it runs."""

import pytest

from parallax.analytic import PackedWeights, estimate
from parallax.compression import parse_format
from parallax.hlo.execution_trace import Kernel
from parallax.kernels.packed_matmul.limits import splits
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.programs.steps import Phase, make_step
from parallax.strategies import build
from parallax.workload import Workload

PAPER = PAPERS["compressed_layerwise"].config
D, F = PAPER.d_model, PAPER.d_ff
PACKED = ("int8", "int8+2:4")


def found(
    formats=PACKED, kernels: str | None = "mosaic", phase: Phase = "decode", batch=16,
    where="h100_2x8",
):  # fmt: skip
    strategy = build("layerwise").replace(kernels=kernels)
    step = make_step(PAPER, strategy, Workload(batch, 1024, 1), phase)
    return estimate(step, cluster(where), weights=PackedWeights(formats))


def kernels_of(estimated):
    return {k.name: k for k in estimated.work.steps["layer"] if isinstance(k, Kernel)}


def test_the_kernel_reads_packed_bytes_and_nothing_else():
    kernels = kernels_of(found())
    assert not [name for name in kernels if name.endswith(".dense")]
    for name, inputs, outputs, form in (
        ("q", D, D, "int8"), ("out", D, D, "int8"), ("up", D, F, "int8+2:4"),
        ("down", F, D, "int8+2:4"),
    ):  # fmt: skip
        kernel, stored = kernels[f"{name}.sums"], parse_format(form)
        (_, rows), (weight, size) = kernel.reads
        assert (weight, size) == (f"{name}.w", stored.n_bytes(inputs, outputs))
        assert rows == 8 * inputs * 2  # one token, padded to eight
        parts = splits(1, inputs, outputs, inputs, stored.bits_per_weight)
        assert kernel.written_bytes == parts * 8 * outputs * 4
        assert kernel.flops == 2 * 8 * inputs * outputs
        assert kernel.computes == "products"
    # Rows in the order of the positions are made once for both first matrices.
    assert [n for n in kernels if n.endswith(".turned")] == ["up.turned", "down.turned"]
    assert kernels["gate.sums"].reads[0][0] == "up.turned"


def test_packed_weights_make_a_decoding_step_faster_and_not_slower():
    """Unpacked by XLA they make it slower."""
    dense, packed = found(None), found()
    assert packed.cost.seconds < dense.cost.seconds < found(kernels=None).cost.seconds
    assert kernels_of(found(None)).keys() == kernels_of(found(("float16", "float16"))).keys()


@pytest.mark.parametrize(
    "other",
    [{"phase": "prefill"}, {"kernels": None}, {"where": "b200_2x8"}, {"batch": 72 * 16},
     {"formats": ("int8/32", "int8+4:8")}],
    ids=str,
)  # fmt: skip
def test_elsewhere_xla_unpacks(other):
    kernels = kernels_of(found(**other))
    assert {"q.dense", "up.dense"} <= kernels.keys()
    assert not [name for name in kernels if name.endswith(".sums")]


def test_integer_products_stay_with_the_library():
    assert {"q.s8", "up.s8"} <= kernels_of(found(("w8a8", "w8a8"))).keys()
