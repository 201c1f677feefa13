"""What a prefill, a decoding step and a training step are, asked through one protocol."""

import jax
import pytest
from flax import nnx

from parallax.analytic import estimate
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.programs.communication import decode_transfers, forward_transfers
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import make_step
from parallax.programs.train_communication import train_transfers
from parallax.strategies import build, cache_tiled, data_parallel, layerwise
from parallax.workload import Workload

MODEL = ModelConfig(
    "m", num_layers=4, d_model=64, num_heads=8, num_kv_heads=4, head_dim=8, d_ff=128,
    vocab_size=256, mlp="gelu",
)  # fmt: skip
STAGES = build("layerwise", devices=4)
LOAD = Workload(batch=16, seq_len=32, microbatches=2)
PHASES = ("prefill", "decode", "train")


def of(phase, model=MODEL, strategy=STAGES, workload=LOAD):
    return make_step(model, strategy, workload, phase, "layer")


@pytest.mark.parametrize("phase", PHASES)
def test_the_function_takes_its_arguments_and_gives_back_what_is_donated(phase):
    step = of(phase)
    mesh = STAGES.mesh.build(jax.devices()[:4])
    arguments = step.arguments(mesh)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        results = jax.eval_shape(step.function(mesh), *arguments)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert step.phase == phase
    assert step.donated == {"prefill": (), "decode": (1,), "train": (0,)}[phase]
    for position in step.donated:
        assert shapes(arguments[position]) == shapes(results[0])


@pytest.mark.parametrize("phase", PHASES)
def test_the_state_is_the_first_argument(phase):
    step = of(phase)
    mesh = STAGES.mesh.build(jax.devices()[:4])
    laid_out = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), tree)  # noqa: E731
    assert laid_out(step.state(mesh)) == laid_out(step.arguments(mesh)[0])


def test_a_step_runs_its_own_microbatches():
    assert [of(phase).workload.microbatches for phase in PHASES] == [2, 4, 2]
    assert [of(phase).tokens for phase in PHASES] == [512, 16, 512]
    for phase in PHASES:
        step = of(phase).with_microbatches(8)
        assert step.workload == Workload(16, 32, 8)
        with pytest.raises(ValueError, match="3 microbatches do not divide"):
            step.with_microbatches(3)


def test_what_is_sent_is_the_closed_form_of_the_phase():
    sharded = ShardedTransformer(MODEL, STAGES, LOAD)
    expected = {
        "prefill": forward_transfers(MODEL, STAGES, LOAD),
        "decode": decode_transfers(Decoder(sharded, new_tokens=1)),
        "train": train_transfers(MODEL, STAGES, LOAD, "layer"),
    }
    assert {phase: of(phase).transfers() for phase in PHASES} == expected


def test_what_xla_moves_has_no_closed_form_and_says_so():
    for phase in PHASES:
        step = of(phase, MODEL.replace(tie_embeddings=True))
        assert step.transfers() is None
        assert "the token table reaches the unembedding" in step.notes[0]
        assert of(phase).notes == ()


def test_useful_flops_by_hand():
    """Four projections of which two are half as wide, two MLP matrices; 8 heads of 8."""
    layer = 2 * 64 * (8 * 2 * (8 + 4) + 2 * 128)
    head = 2 * 64 * 256
    prefill = 4 * (512 * layer + 4 * 16 * (32 * 33 / 2) * 64) + 16 * head
    assert of("prefill").useful_flops() == prefill
    assert of("decode").useful_flops() == 4 * (16 * layer + 4 * 16 * 33 * 64) + 16 * head
    assert of("train").useful_flops() == 3 * (prefill + (512 - 16) * head)


def test_load_balance_by_hand():
    """Four stages: two microbatches take 5 ticks, as many as stages take 7."""
    assert of("prefill").load_balance().bubble == of("train").load_balance().bubble == 3 / 2
    assert of("decode").load_balance().bubble == 3 / 4
    assert of("decode").load_balance().padded_share == 0
    balance = make_step(MODEL, data_parallel(4), LOAD).load_balance()
    assert (balance.replication, balance.bubble) == (4, 0)


def test_only_a_decoding_step_reads_a_cache():
    keys = 2 * 16 * 32 * 4 * 8 * 4 * MODEL.item_bytes  # all layers', over four devices
    assert of("prefill").kv_cache_bytes() == keys / 4
    assert of("decode").kv_cache_bytes() == keys / 4 * 33 / 32
    assert of("train").kv_cache_bytes() == 0
    assert [of(phase).decoder is None for phase in PHASES] == [True, False, True]


def test_weights_are_read_once_per_tick():
    layer = 64 * (8 * 2 * (8 + 4) + 2 * 128) + 2 * 64
    head, item = 64 * 256 // 4, MODEL.item_bytes
    assert of("prefill").weight_bytes() == item * (5 * layer + head)
    assert of("decode").weight_bytes() == item * (7 * layer + head)


@pytest.mark.parametrize("phase", PHASES)
def test_a_step_without_an_analytical_model_says_why(phase):
    devices = cluster("h100_2x8")
    tiled = of(phase, strategy=cache_tiled(layerwise(4), 1, 2))
    plain = of(phase)
    assert plain.unmodelled == ""
    assert estimate(plain, devices).cost.seconds > 0
    with pytest.raises(ValueError, match="is no analytical model"):
        estimate(tiled, devices)


def test_a_user_module_has_a_prefill_alone():
    def make():
        return nnx.Embed(256, 8, rngs=nnx.Rngs(0))

    step = make_step(make, data_parallel(2), Workload(4, 8))
    mesh = data_parallel(2).mesh.build(jax.devices()[:2])
    out = jax.eval_shape(step.function(mesh), *step.arguments(mesh))
    assert out.shape == (4, 8)
    nothing = step.transfers(), step.weight_bytes(), step.useful_flops(), step.load_balance()
    assert nothing == (None,) * 4
    with pytest.raises(NotImplementedError, match="a training step of a user module"):
        make_step(make, data_parallel(2), Workload(4, 8), "train")
    with pytest.raises(NotImplementedError, match="KV cache of a user module is unknown"):
        make_step(make, data_parallel(2), Workload(4, 8), "decode")
    with pytest.raises(ValueError, match="runs its batch whole"):
        step.with_microbatches(2)


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match=r"phase must be one of .* got .serve."):
        of("serve")
