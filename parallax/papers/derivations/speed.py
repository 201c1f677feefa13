"""The derivations of papers' speeds, improvements, TPOT, energy and scaling."""

from parallax.models.config import ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.papers.paper import Given


def _baseline(given: Given) -> str:
    return given.paper.strategies[0]


def _change(given: Given, quantity: str) -> tuple[float, float]:
    """Return the claimed figures of the baseline and of this strategy."""
    return given.claimed(quantity, _baseline(given)), given.claimed(quantity)


def tps_gain_percent(given: Given) -> float:
    before, after = _change(given, "TPS")
    return 100 * (after / before - 1)


def tps_gain(given: Given) -> float:
    before, after = _change(given, "TPS")
    return after - before


def tps_ratio(given: Given) -> float:
    before, after = _change(given, "TPS")
    return after / before


def tpot_cut_percent(given: Given) -> float:
    before, after = _change(given, "TPOT")
    return 100 * (1 - after / before)


def tpot_cut(given: Given) -> float:
    before, after = _change(given, "TPOT")
    return before - after


def tpot_ratio(given: Given) -> float:
    before, after = _change(given, "TPOT")
    return before / after


def inverse_tps_ms(given: Given) -> float:
    """Return 1/TPS in milliseconds."""
    return 1e3 / given.claimed("TPS")


def most_overhead_ms(given: Given) -> float:
    """Work out the most overhead per token: each device has one second per second for it."""
    return 1e3 * given.cluster.devices / given.claimed("TPS")


def active_matrix_params(config: ModelConfig) -> float:
    """Count the parameters of the matrices that one token passes in all layers, without tables."""
    return config.num_layers * sum(m.flops_per_token for m in layer_matrices(config)) // 2


def prompt_flops_a_token(config: ModelConfig, seq_len: int) -> float:
    """Count the FLOPs per prompt token, masked pairs of a causal model left out."""
    seen = (seq_len + 1) / 2 if config.causal else seq_len
    attention = 4.0 * seen * config.num_heads * config.head_dim * config.num_layers
    return 2.0 * active_matrix_params(config) + attention


def compute_utilisation_percent(given: Given) -> float:
    """Work out the share of peak FLOP/s that the claimed TPS needs, read as prompt tokens."""
    needed = prompt_flops_a_token(given.config, given.workload.seq_len) * given.claimed("TPS")
    peak = given.cluster.devices * given.cluster.gpu.peak_flops(given.config.dtype)
    return 100 * needed / peak


def _of_other_paper(given: Given, name: str) -> float:
    """Work out another paper's TPS of the same strategy, at equal FLOP/s on this paper's model."""
    from parallax.papers import paper

    other = paper(name)
    theirs = prompt_flops_a_token(other.config, other.workload.seq_len)
    mine = prompt_flops_a_token(given.config, given.workload.seq_len)
    return other.claim(given.claim.strategy, "TPS").value * theirs / mine


def tps_as_ring_sp(given: Given) -> float:
    return _of_other_paper(given, "ring_sp")


def tps_as_two_level(given: Given) -> float:
    return _of_other_paper(given, "two_level")


def tps_as_cache_layerwise(given: Given) -> float:
    return _of_other_paper(given, "cache_layerwise")


def tps_as_compressed_layerwise(given: Given) -> float:
    return _of_other_paper(given, "compressed_layerwise")


def tps_of_equal_stages(given: Given) -> float:
    """Return the same TPS: at one layer per device a stage takes as long at any depth."""
    return given.claimed("TPS")


def unchanged(given: Given) -> float:
    return 1.0


def power_kw(given: Given) -> float:
    return given.claimed("power a GPU") * given.cluster.devices / 1e3


def power_limit_w(given: Given) -> float:
    return given.cluster.gpu.tdp_w


def tokens_per_joule(given: Given) -> float:
    return given.claimed("TPS") / (1e3 * given.claimed("power"))


def energy_gain_percent(given: Given) -> float:
    base = _baseline(given)
    before = given.claimed("TPS", base) / given.claimed("power", base)
    return 100 * (given.claimed("TPS") / given.claimed("power") / before - 1)


def lost_after_placing_again_percent(given: Given) -> float:
    """Work out the loss without a spare: every step waits for the device that holds two layers."""
    return 50.0
