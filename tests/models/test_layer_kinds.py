"""Layers of several kinds: their order, their stages, their pairs, and their rotations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.analytic import estimate
from parallax.analytic.train_costs import TrainCosts
from parallax.cost import rates_of
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.models.layer_kinds import LatentAttention, LayerKind, RopeScaling, Router
from parallax.models.layer_scan import scan_by_index, scan_layers
from parallax.models.rope import rotate, rotation
from parallax.parallel.layer_parts import Pipeline
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps.of_transformer import Prefill, Training
from parallax.programs.training import TrainStep
from parallax.strategies import fsdp, ring_sequence
from parallax.workload import Workload

MODEL = ModelConfig(
    name="kinds", num_layers=62, d_model=64, num_heads=8, num_kv_heads=8, head_dim=8, d_ff=128,
    vocab_size=256, pattern=(*(LayerKind(window=1024),) * 5, LayerKind(rope_theta=1e6)),
)  # fmt: skip


@pytest.mark.parametrize(("depth", "period"), [(5, 1), (6, 3), (8, 3), (2, 3), (3, 3)])
def test_layers_run_in_order_each_of_its_kind(depth, period):
    kinds = tuple(LayerKind(window=n + 1) for n in range(period))

    def layer(x, row, kind):
        return x * 3 + row + kind.window, (x, row * 10)

    numbers = jnp.arange(depth, dtype=jnp.int32)
    found = scan_layers(layer, jnp.int32(1), numbers, kinds)
    x, (before, rows) = found
    by_index = scan_by_index(layer, jnp.int32(1), depth, kinds)
    jax.tree.map(np.testing.assert_array_equal, found, by_index)
    expected, seen = 1, []
    for n in range(depth):
        seen.append(expected)
        expected = expected * 3 + n + n % period + 1
    assert int(x) == expected
    np.testing.assert_array_equal(before, seen)
    np.testing.assert_array_equal(rows, 10 * np.arange(depth))


@pytest.mark.parametrize(
    ("layers", "stages", "period", "groups"),
    [(62, 2, 6, (30, 32)), (62, 4, 6, (18, 12, 18, 14)), (24, 4, 2, (6, 6, 6, 6)),
     (7, 2, 1, (4, 3)), (7, 3, 3, (3, 3, 1))],
)  # fmt: skip
def test_stages_start_with_a_pattern(layers, stages, period, groups):
    assert Pipeline("stage").groups(layers, stages, period) == groups


def test_stages_that_cannot_are_refused():
    with pytest.raises(ValueError, match="7 layers in patterns of 3 are fewer than 4 stages"):
        Pipeline("stage").groups(7, 4, 3)
    with pytest.raises(ValueError, match="every stage but the last needs a multiple of 3 layers"):
        Pipeline("stage", layers=(4, 3)).groups(7, 2, 3)
    with pytest.raises(ValueError, match="a multiple of 12 layers in patterns of 3"):
        Pipeline("stage", schedule="interleaved", virtual_stages=2).groups(8, 2, 3)


@pytest.mark.parametrize(("known", "seq_len", "window"), [(0, 9, 4), (3, 9, 5), (7, 1, 4),
                                                          (2, 3, 40), (9, 4, 2)])  # fmt: skip
def test_flops_count_the_pairs_inside_windows(known, seq_len, window):
    one = MODEL.replace(num_layers=1, pattern=(LayerKind(window=window),))
    whole = model_flops(one.replace(pattern=()), 2, seq_len, known_tokens=known)
    found = whole - model_flops(one, 2, seq_len, known_tokens=known)
    hidden = sum(max(0, known + i + 1 - window) for i in range(seq_len))
    assert found == 4 * 2 * hidden * 8 * 8


def test_an_estimate_is_the_mean_over_the_kinds_of_layers():
    gpus, strategy = cluster("h100_2x8"), ring_sequence(16, order="natural")

    def seconds(pattern):
        config = MODEL.replace(num_layers=6, pattern=pattern)
        step = Prefill(ShardedTransformer(config, strategy, Workload(1, 65_536)))
        return estimate(step, gpus).cost.seconds

    near, far = MODEL.pattern[0], MODEL.pattern[-1]
    windows, full = seconds((near,)), seconds((far,))
    assert windows < full / 4
    assert seconds(MODEL.pattern) == pytest.approx((5 * windows + full) / 6, rel=1e-9)


@pytest.mark.parametrize("changes", [{}, {"num_experts": 8, "dense_layers": 2, "dense_d_ff": 512}])
def test_the_parts_of_a_training_step_are_of_all_kinds_of_layers(changes):
    gpus, strategy = cluster("h100_2x8"), fsdp(16)
    config = MODEL.replace(num_layers=6, pattern=(MODEL.pattern[0], MODEL.pattern[-1]), **changes)
    sharded = ShardedTransformer(config, strategy, Workload(16, 32_768))
    step = Training(TrainStep(sharded, remat="layer"))
    costs = TrainCosts.of(step, gpus, rates_of(gpus.gpu.name))
    whole, _ = costs.whole(step, costs.parts["update"])
    assert whole.seconds == pytest.approx(estimate(step, gpus).cost.seconds, rel=1e-3)


def turned(x, positions, theta, scaling=None, rotary_dim=None):
    """The textbook's rotation of one head [L, K] of adjacent pairs, element by element."""
    width = rotary_dim or x.shape[1]
    out = x.copy()
    for i in range(width // 2):
        frequency, factor = theta ** (-2 * i / width), 1.0
        if scaling is not None:
            factor = scaling.attention_factor
            low, high = (
                width * math.log(scaling.original_max_seq_len / (b * 2 * math.pi))
                / (2 * math.log(theta)) for b in (scaling.beta_fast, scaling.beta_slow)
            )  # fmt: skip
            low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
            slow = min(max((i - low) / (high - low), 0), 1)
            frequency *= slow / scaling.factor + 1 - slow
        cos, sin = np.cos(positions * frequency) * factor, np.sin(positions * frequency) * factor
        a, b = x[:, 2 * i], x[:, 2 * i + 1]
        out[:, 2 * i], out[:, 2 * i + 1] = a * cos - b * sin, b * cos + a * sin
    return out


@pytest.mark.parametrize("rotary_dim", [None, 16])
@pytest.mark.parametrize(
    "scaling", [None, RopeScaling("yarn", 8.0, original_max_seq_len=64, attention_factor=1.2)]
)
def test_rotations_are_the_textbooks(scaling, rotary_dim):
    x, positions = np.random.default_rng(0).normal(size=(7, 32)), np.arange(0, 700, 100)
    angles = rotation(
        jnp.asarray(positions, jnp.int32)[None], 32, 150.0, "float64", scaling=scaling,
        rotary_dim=rotary_dim,
    )  # fmt: skip
    found = rotate(jnp.asarray(x)[None, :, None], angles)[0, :, 0]
    np.testing.assert_allclose(found, turned(x, positions, 150.0, scaling, rotary_dim), atol=1e-12)


WRONG = {
    "windows need causal": {"causal": False},
    "latent attention has num_kv_heads": {
        "pattern": (), "num_kv_heads": 4, "latent": LatentAttention(16, None, 4, 8)},
    "none of sinks, bias": {"pattern": (), "sinks": True, "latent": LatentAttention(8, 8, 4, 8)},
    "rope_dim is less than head_dim": {"pattern": (), "latent": LatentAttention(8, 8, 8, 8)},
    "rotary_dim is at most head_dim": {"rotary_dim": 16},
    "rotary_dim is at least 2": {"rotary_dim": 0},
    "score_cap, logit_cap, .* are above 0": {"score_cap": 0.0},
    "need num_experts": {"router": Router("sigmoid")},
    "groups of experts are equal": {"num_experts": 6, "router": Router(groups=4)},
    "dense_d_ff needs dense_layers": {"num_experts": 4, "dense_d_ff": 8},
    "norm_offset needs norm='rmsnorm'": {"norm": "layernorm", "norm_offset": True},
    "gate needs mlp='gated'": {"gate": "clamped"},
    "gate must be one of": {"mlp": "gated", "gate": "relu"},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_choices_that_contradict_are_refused(message):
    with pytest.raises(ValueError, match=message):
        MODEL.replace(**WRONG[message])


def test_a_config_of_kinds_survives_its_file():
    config = MODEL.replace(sinks=True, rope_scaling=RopeScaling("yarn", 4.0, truncate=False))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "sinks" not in MODEL.to_dict()
    small = MODEL.small()
    assert [kind.window for kind in small.kinds] == [16] * 5 + [None]
