"""Decoding steps compiled for H100s with no GPU read every weight where it is stored."""

import pytest

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LatentAttention, LayerKind
from parallax.strategies import tensor_pipeline
from parallax.workload import Workload

GATED = ModelConfig(
    name="small", num_layers=3, d_model=512, num_heads=8, num_kv_heads=4, head_dim=64, d_ff=1024,
    vocab_size=512, causal=True, dtype="bfloat16", mlp="gated", norm="rmsnorm", positions="rope",
    qk_norm=True,
)  # fmt: skip
KINDS = GATED.replace(
    num_layers=5,
    pattern=(LayerKind(window=128), LayerKind(rope_theta=1e6)),
    norms="both",
    sinks=True,
)
LATENT = GATED.replace(
    num_kv_heads=8, qk_norm=False, head_dim=192, latent=LatentAttention(512, 256, 64, 128)
)
EXPERTS = GATED.replace(num_experts=8, experts_per_token=2)
# (model, sequences): queries, keys and values; gate and up; biases and activations; one row.
CASES = {
    "gated": (GATED, 8),
    "biases": (GATED.replace(mlp="gelu", bias=True, qk_norm=False), 8),
    "one sequence": (GATED, 1),
    "two kinds of layers": (KINDS, 8),
    "latents": (LATENT, 8),
    "experts": (EXPERTS, 8),
    "a few of many experts": (EXPERTS.replace(num_experts=32), 2),
}
pytestmark = pytest.mark.full
LAYERS, MATRIX_BYTES = 3, 512 * 512 * 2  # gate or up on one of two devices; q, k and v together


def compile_both(*, on_progress):
    """The notes of each case as it runs, and without what keeps its weights in place."""
    import parallax.programs.decoding as decoding
    from parallax.lenses.compiling_steps import compile_program
    from parallax.meshes.cluster import cluster
    from parallax.parallel.split import Split

    def notes(name):
        config, batch = CASES[name]
        made = compile_program(
            config, tensor_pipeline(2, 1), Workload(batch, 256), cluster("h100_1x2"), "decode",
            on_progress=on_progress,
        )  # fmt: skip
        return made.notes

    found = {name: notes(name) for name in CASES}
    decoding.STEP_OPTIONS = {}
    found["merged"] = notes("gated")
    Split.apart = lambda self, y: y
    found["fused"] = notes("biases")
    return found


@pytest.fixture(scope="module")
def notes(aot):
    return run_in_child(compile_both, environment=compile_environment())


def copied(notes):
    """Bytes that a note says are copied; 0 without one."""
    said = [note.split(":")[1].split()[0] for note in notes if "weights copied" in note]
    return sum(float(bytes_.replace(",", "")) for bytes_ in said)


@pytest.mark.parametrize("name", CASES)
def test_no_weight_is_copied(notes, name):
    assert copied(notes[name]) == 0
    assert any("dot_merger_threshold_mb=0" in note for note in notes[name])


def test_without_the_option_weights_are_laid_side_by_side(notes):
    assert copied(notes["merged"]) == LAYERS * 3 * MATRIX_BYTES


def test_with_a_fused_bias_a_weight_is_copied_out_of_its_stack(notes):
    assert copied(notes["fused"]) >= LAYERS * MATRIX_BYTES
