"""A decoding step's products by our kernel in the closed form: bytes by hand, and where it runs."""

import math

import jax
import jax.numpy as jnp
import pytest

from parallax.analytic import PackedWeights, estimate
from parallax.compression import parse_format
from parallax.hlo.execution_trace import Kernel
from parallax.kernels.interpreting import interpreted
from parallax.kernels.packed_matmul.limits import splits
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.parallel import products
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


def test_integer_products_read_rounded_rows_and_integers():
    kernels, library = (
        kernels_of(found(("w8a8", "w8a8"), kernels)) for kernels in ("mosaic", None)
    )
    assert kernels["q.sums"].reads == (("q.s8", 8 * D * 2), ("q.w", D * D + 4 * D))
    assert not kernels["q.sums"].gemms
    assert "q.sums" not in library
    assert library["q"].gemms[0].dtype == "s8"


EXPERTS = PAPER.replace(
    num_layers=2, d_model=1024, num_heads=16, num_kv_heads=16, head_dim=64, d_ff=2048,
    num_experts=32, experts_per_token=2,
)  # fmt: skip
DENSE = EXPERTS.replace(num_experts=0, mlp="gated")


@pytest.mark.parametrize(
    ("config", "strategy", "batch", "formats", "count"),
    [
        (DENSE, "tensor_pipeline", 16, ("w8a8", "int8+2:4"), 7),
        (DENSE.replace(dtype="float32"), "tensor_pipeline", 16, ("w8a8", "int8"), 4),
        (DENSE, "tensor_pipeline", 160, ("int8", "int8"), 0),
        (EXPERTS, "data_parallel", 96, ("int8", "int4+2:4"), 7),  # all experts
        (EXPERTS, "data_parallel", 16, ("int8", "int4"), 7),  # those that a token chooses
        (EXPERTS, "data_parallel", 16, ("int8", "int4/64"), 4),
        (EXPERTS, "expert_parallel", 64, ("int8", "int8"), 7),
        (EXPERTS, "expert_parallel", 128, ("int8", "int8"), 4),  # more rows than the kernel takes
    ],
)
def test_the_model_reads_packed_what_the_closed_form_does(
    config, strategy, batch, formats, count, monkeypatch
):
    """The kernel's calls in a traced decoding step: their FLOPs and stored bytes."""
    calls = []

    def noted(x, matrix):
        rows = -(-x.shape[-2] // 8) * 8
        stored = sum(a.size * a.dtype.itemsize for a in matrix if a is not None)
        is_integer = x.dtype == "int8"
        scales = 4 * matrix.experts * matrix.shape[1] if is_integer else 0
        calls.append((2 * matrix.experts * rows * math.prod(matrix.shape), stored + scales))
        shape = (*x.shape[:-1], matrix.shape[1])
        return jnp.zeros(shape, "int32" if is_integer else "float32")

    monkeypatch.setattr(products, "packed_matmul", noted)
    split = build(strategy).replace(kernels="mosaic")
    config = config.replace(compression=formats)
    step = make_step(config, split, Workload(batch, 128, 1), "decode")
    mesh = split.mesh.build(jax.devices()[: split.mesh.size])
    with interpreted():
        jax.jit(step.function(mesh)).trace(*step.arguments(mesh))
    kernels = kernels_of(estimate(step, cluster("h100_2x8")))
    by_kernel = [k for name, k in kernels.items() if name.endswith(".sums")]
    assert sorted(calls) == sorted((k.flops, k.reads[1][1]) for k in by_kernel)
    assert len(calls) == count
