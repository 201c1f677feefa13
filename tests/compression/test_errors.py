"""Errors of products: by hand, within the limit on the paper's shapes, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.compression import parse_format
from parallax.compression.errors import relative_error
from parallax.papers import PAPERS
from parallax.studies.quality.layer_errors import normal_errors


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def test_int8_by_hand():
    w, x = drawn(64, 8), drawn(5, 64, seed=1)
    scale = np.abs(w).max(0) / 127.5  # the largest stands between the last integer and none
    stored = np.clip(np.round(np.asarray(w) / scale), -128, 127) * scale
    off = np.linalg.norm(x @ stored - x @ w) / np.linalg.norm(x @ w)
    assert relative_error(w, parse_format("int8"), x) == pytest.approx(float(off), rel=0.1)
    assert relative_error(w, parse_format("float32"), x) == 0.0


def test_rounded_activations_add_to_it():
    w, x = drawn(128, 16), drawn(20, 128, seed=1)
    one, two = (relative_error(w, parse_format(f), x) for f in ("int8", "w8a8"))
    assert one < two < 3 * one


@pytest.mark.parametrize("inputs", [4096, 16_384])
def test_int8_is_within_a_hundredth_on_normal_weights_of_the_papers_inputs(inputs):
    """A scale an output: other outputs make no difference, so a few of them are enough."""
    error = relative_error(drawn(inputs, 64), parse_format("int8"), drawn(16, inputs, seed=1))
    assert 5e-3 < error <= 1e-2


def test_several_inputs_are_one_sum():
    w, x = drawn(2, 64, 8), drawn(5, 2, 64, seed=1)
    flat = relative_error(w.reshape(128, 8), parse_format("int8"), x.reshape(5, 128))
    assert relative_error(w, parse_format("int8"), x, (0, 1)) == pytest.approx(flat, rel=1e-3)


def test_pieces_of_a_wide_matrix_are_the_matrix(monkeypatch):
    from parallax.studies.quality import layer_errors

    config = PAPERS["compressed_layerwise"].config.small()
    monkeypatch.setattr(layer_errors, "_OUTPUTS_AT_ONCE", 100)
    found = normal_errors(config, ("int8",))
    shapes = {e.shape for e in found}
    assert shapes == {(256, 256), (256, 1024), (1024, 256)}
    assert all(e.weights == "normal" and e.layer is None and 1e-3 < e.error < 1e-2 for e in found)


def test_activations_of_another_weight():
    with pytest.raises(ValueError, match="Give this weight's input activations"):
        relative_error(drawn(64, 8), parse_format("int8"), drawn(5, 32))
    with pytest.raises(ValueError, match="multiples of"):
        relative_error(drawn(60, 8), parse_format("int4"), drawn(5, 60))
