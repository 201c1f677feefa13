"""The derivations of papers' figures about bytes sent."""

from parallax.papers.derivations.memory import GB, MB
from parallax.papers.paper import Given


def hidden_state_mb(given: Given) -> float:
    """Count the MB of the whole batch's hidden state, batch x length x width."""
    return given.workload.tokens * given.config.d_model * given.config.item_bytes / MB


def microbatch_state_mb(given: Given) -> float:
    """Count the MB of a microbatch's hidden state, which one all-reduce in a block sums."""
    return hidden_state_mb(given) / given.workload.microbatches


def all_reduced_gb(given: Given) -> float:
    """Count two all-reduces per layer of the batch's hidden state, as arrays, not wire bytes."""
    return 2 * given.config.num_layers * hidden_state_mb(given) * MB / GB


def all_handoffs_mb(given: Given) -> float:
    """Count the hidden state of the batch once between every two stages."""
    from parallax.strategies import build

    return (build(given.claim.strategy).mesh["stage"] - 1) * hidden_state_mb(given)


def layer_transitions(given: Given) -> float:
    return given.config.num_layers - 1.0
