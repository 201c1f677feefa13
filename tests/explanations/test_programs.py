"""The programs that `px.explain` is judged on: a fault costs what it should, the rest is needed."""

import pytest

import parallax as px
from parallax.bounds import wire_bytes
from parallax.results.lens_results import Compilation
from tests.explanations.case import Case, compile_case
from tests.explanations.clean import CLEAN
from tests.explanations.faulty import FAULTY

pytestmark = pytest.mark.slow

LAYER = 12  # weights of a layer with hidden units of four times its width D, in D^2


def gather(devices, n_bytes):
    """Return the bytes that a device sends in an all-gather, reduce-scatter or all-to-all."""
    return wire_bytes("all-gather", devices, n_bytes)


def reduce(devices, n_bytes):
    """Return the bytes that a device sends in an all-reduce."""
    return wire_bytes("all-reduce", devices, n_bytes)


# Two bytes an element; what only grows with the batch's tokens or with norms is left out (< 1 %).
NEEDED = {
    "data_parallel": reduce(8, 2 * (4 * LAYER * 512**2 + 2 * 8192 * 512)),
    # Layers are gathered twice and their gradients scattered once; the embedded tokens travel.
    "fsdp": 3 * gather(16, 2 * 4 * LAYER * 2048**2)
    + 2 * gather(16, 2 * 32_768 * 2048)
    + 2 * gather(16, 2 * 2 * 2048 * 2048),
    "zero": 2 * gather(8, 2 * 4 * LAYER * 2048**2),
    # Four sums a layer, one of the embedded tokens and one of the logits' gradient.
    "data_and_tensor": 18 * reduce(8, 2 * 4 * 2048 * 4096)
    + reduce(2, 2 * (4 * LAYER * 4096**2 + 2 * 32_768 * 4096) / 8),
    "fsdp_and_tensor": 18 * reduce(8, 2 * 8 * 2048 * 4096)
    + gather(2, 2 * (3 * 4 * LAYER * 4096**2 + 4 * 32_768 * 4096) / 8),
    "nnx_train_step": reduce(4, 2 * 8192 * 8192) + reduce(2, 2 * 2 * 8192 * 32_768 / 4),
    "linen_logical_axes": reduce(4, 2 * 8192 * 8192) + reduce(2, 2 * 2 * 8192 * 32_768 / 4),
    "accumulation": reduce(8, 2 * 4 * 2 * 1024 * 4096),
    "tied_embedding": 2 * reduce(8, 2 * 4 * 2048 * 4096),
    "one_device": 0,
    "optimizer_step": 0,
    "tensor_parallel": 8 * 2 * reduce(8, 2 * 4 * 4096 * 4096),
    "sequence_parallel": 8 * 4 * gather(8, 2 * 4 * 4096 * 4096),
    "ring_attention": 7 * 2 * 2 * 4096 * 2048,  # keys and values
    "ulysses": 4 * gather(8, 2 * 2 * 1024 * 2048),  # q, k, v and the result
    "experts": 2 * gather(8, 2 * 8 * 1280 * 4096),
    "ragged_experts": 0,
    "pipeline": 39 * 2 * 1024 * 4096,
    "explicit_axes": 8 * reduce(8, 2 * 8 * 2048 * 4096),
    "decode": 16 * 2 * reduce(8, 2 * 32 * 4096),
    "batch_statistics": 8 * reduce(16, 4 * 2 * 2048),
}


def figures(case: Case) -> dict[str, float]:
    """Compile a case; return its modelled seconds, bytes of memory and bytes sent, per device."""
    found = compile_case(case)
    time, memory, sent = px.predict(found).step_s.value, found.memory.total_bytes, found.wire_bytes
    print(f"{case.name:34} {time * 1e3:8.2f} ms {memory / 1e9:7.2f} GB {sent / 1e6:9.1f} MB sent")
    assert found.memory.fits
    return {"time": time, "memory": memory, "sent bytes": sent}


def test_each_kind_of_fault_has_one_program_and_one_place():
    assert len({case.name for case in FAULTY}) == len({case.kind for case in FAULTY}) == 12
    assert all((case.line is None) != (case.argument == "") for case in FAULTY)
    assert {case.name for case in CLEAN} == set(NEEDED)
    assert not any(case.line or case.argument or case.fixed for case in CLEAN)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.name)
def test_a_program_without_its_fault_has_less_of_what_it_saves(case, aot):
    faulty, fixed = figures(case), figures(case.mended)
    assert fixed[case.saves] <= 0.95 * faulty[case.saves]
    # What a fault costs is seen in time or memory, not only in bytes.
    assert any(fixed[name] <= 0.95 * faulty[name] for name in ("time", "memory"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CLEAN, ids=lambda case: case.name)
def test_a_clean_program_sends_what_is_needed(case, aot):
    found: Compilation = compile_case(case)
    assert found.memory.fits
    assert NEEDED[case.name] <= found.wire_bytes <= 1.01 * NEEDED[case.name]
