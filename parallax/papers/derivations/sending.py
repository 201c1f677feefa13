"""Bytes that papers say are sent."""

from parallax.papers.derivations.memory import GB, MB
from parallax.papers.paper import Given


def hidden_state_mb(given: Given) -> float:
    """Of the whole batch: batch x length x width."""
    return given.workload.tokens * given.config.d_model * given.config.item_bytes / MB


def microbatch_state_mb(given: Given) -> float:
    """What one all-reduce of a block's half sums: a microbatch's hidden state."""
    return hidden_state_mb(given) / given.workload.microbatches


def all_reduced_gb(given: Given) -> float:
    """Two all-reduces a layer of the batch's hidden state; arrays, not bytes on the wire."""
    return 2 * given.config.num_layers * hidden_state_mb(given) * MB / GB


def all_handoffs_mb(given: Given) -> float:
    """The hidden state of the batch once between every two stages."""
    from parallax.strategies import build

    return (build(given.claim.strategy).mesh["stage"] - 1) * hidden_state_mb(given)


def layer_transitions(given: Given) -> float:
    return given.config.num_layers - 1.0
