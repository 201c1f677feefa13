"""Latent attention under strategies: in either form, where latents travel and are cached."""

import pytest

from parallax.lenses.text import read_text
from parallax.lenses.verify_decoding import verify_decoding
from parallax.lenses.verifying import verify_transformer
from parallax.models import tiled
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import ring_sequence, tensor_pipeline, two_level
from parallax.workload import Workload
from tests.selection import together
from tests.strategies.cases import LATENT, LATENT_MIXTURE, LATENTS, MIXTURES, workload

pytestmark = pytest.mark.slow

TEXT = read_text(None, 16 * 80)[0]


def check_forward(config, strategies, packed=False):
    cases = [(s, workload(s, packed)) for s in strategies]
    for result in verify_transformer(config, cases, TEXT, "text", ("float64",)):
        assert result.rows[0].passed, result.rows[0]


def decoded(config, strategies):
    cases = [(s, Workload(16, 32)) for s in strategies]
    return verify_decoding(config, cases, TEXT, "text", ("float64",), new_tokens=5)


def check_decoding(config, strategies):
    for result in decoded(config, strategies):
        assert result.same_tokens
        assert result.rows[0].passed, result.rows[0]


@together(LATENTS, "pipeline x ring x tensor")
def test_forward_and_gradients(chosen):
    check_forward(LATENT, chosen, packed=True)


@pytest.mark.full
@together(LATENTS, "tiled ring x tensor")
def test_decoding(chosen):
    check_decoding(LATENT, chosen)


@pytest.mark.exhaustive
def test_dense_first_layers_and_experts():
    check_forward(LATENT_MIXTURE, [MIXTURES["expert x fsdp"]])


@pytest.mark.full
def test_dense_first_layers_and_experts_decode():
    check_decoding(LATENT_MIXTURE, [MIXTURES["pipeline x tensor"]])


def test_another_tile_s_keys_are_seen(monkeypatch):
    """Tiles cut heads, and a cut that repeats the first tile's heads is another model."""
    exact = tiled._tile_of
    monkeypatch.setattr(tiled, "_tile_of", lambda w, n, tile, *rest: exact(w, n, tile * 0, *rest))
    (result,) = decoded(LATENT, [LATENTS["tiled ring x tensor"]])
    assert not result.rows[0].passed


def test_a_token_takes_1152_bytes_of_cache_in_a_layer():
    """At DeepSeek-V3's sizes: on every device that splits heads, or a share of the slots."""
    sizes = LATENT.latent
    assert sizes is not None
    config = LATENT.replace(
        dtype="bfloat16", num_heads=128, num_kv_heads=128, head_dim=192,
        latent=type(sizes)(512, 1536, 64, 128),
    )  # fmt: skip
    for strategy, share in ((tensor_pipeline(8, 1), 1), (ring_sequence(8), 8),
                            (two_level(2, 4), 1)):  # fmt: skip
        decoder = Decoder(ShardedTransformer(config, strategy, Workload(8, 64)), new_tokens=8)
        tokens = 8 * (64 + 8) // share
        assert decoder.kv_bytes() == tokens * config.num_layers * 1152


@pytest.mark.parametrize("reduction", ["exchange", "scores", "gather", "local"])
def test_slices_of_heads_are_refused(reduction):
    with pytest.raises(ValueError, match="latent attention has one key for all heads"):
        ShardedTransformer(LATENT, two_level(2, 2, reduction=reduction), Workload(4, 16))


def test_formats_that_round_activations_are_refused():
    with pytest.raises(ValueError, match="latent attention also multiplies by transposed"):
        LATENT.replace(compression=("w8a8", "int8"))
