"""The closed forms of the collectives' bytes and of attention's FLOPs.

A byte counts where it leaves a device. Also how often loops and branches run, where that is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

# Wire bytes follow ring algorithms. S is the full array: the output of an all-gather, the input of
# a reduce-scatter. Data decide how much of a ragged all-to-all's buffer leaves the device: at most
# all of it, since no row goes to two devices.
_WIRE = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "ragged-all-to-all": lambda n: 1.0,
}


def wire_bytes(kind: str, group_size: int, payload_bytes: float) -> float:
    """Return the bytes that leave a device in one collective.

    Args:
      kind: HLO name, e.g. "all-reduce".
      group_size: devices that take part, n.
      payload_bytes: S, the full array.
    """
    return 0.0 if group_size == 1 else _WIRE[kind](group_size) * payload_bytes


# The purpose of a transfer. Code reads the role, reports print `Transfer.what`. A role that a
# forward pass or a decoding step sends also needs a place in `parallax.analytic.places`.
Role = Literal[
    # Outside of the layers: once per tick of a pipeline, or once per microbatch without one.
    "lookup", "stage_handoff", "last_stage", "last_position", "table_rows",
    # Weights sharded over devices with different tokens, in each layer or once.
    "weight_gather", "end_weight_gather", "step_gather",
    # In each layer, around attention and the MLP, whose outputs are partial sums.
    "attention_gather", "attention_sum", "mlp_gather", "mlp_sum", "qk_norm_sum",
    # Inside attention, over whole sequences and against a cache.
    "queries", "keys_values", "outputs", "scores", "ring_hop", "segment_ids",
    "new_slices", "new_tokens", "softmax_merge",
    # Between experts; the node_rows of a relay are the first step of two.
    "expert_choices", "expert_gates", "expert_rows", "node_rows",
    # In training steps only.
    "unembedding_gather", "loss", "balance_loss",
    "attention_gradient", "mlp_gradient", "ring_gradient", "scores_gradient",
    "stage_handoff_gradient", "unembedding_gradient", "gradient_sum",
    "weight_gradient", "end_weight_gradient", "parameter_gather",
]  # fmt: skip


@dataclass(frozen=True)
class Transfer:
    """One kind of communication that a program is expected to make, from a closed form.

    Attributes:
      role: its purpose.
      what: the purpose in words for a report, e.g. "keys and values around the ring".
      kind: HLO name of the collective.
      axes: mesh axes it runs over.
      wire_bytes: bytes leaving a device (one that sends at all) over the whole program.
      count: executions over the whole program.
      minimum_bytes: the least any implementation of this strategy must send for this purpose.
    """

    role: Role
    what: str
    kind: str
    axes: tuple[str, ...]
    wire_bytes: float
    count: int
    minimum_bytes: float


def transfer(
    role: Role,
    what: str,
    kind: str,
    axes: tuple[str, ...],
    group_size: int,
    payload_bytes: float,
    count: int,
    needed: float | None = None,
) -> Transfer:
    """Return a Transfer of `count` equal collectives, of which `needed` are unavoidable.

    Args:
      role, what, kind, axes: as in `Transfer`.
      group_size: devices that take part in one collective.
      payload_bytes: the full array of one collective.
      count: executions over the whole program.
      needed: None is all of them.
    """
    each = wire_bytes(kind, group_size, payload_bytes)
    return Transfer(
        role, what, kind, axes, each * count, count,
        each * (count if needed is None else needed),
    )  # fmt: skip


def totals(transfers: Iterable[Transfer]) -> tuple[float, float]:
    """Return (bytes sent per device, closed-form minimum) summed over all transfers."""
    transfers = tuple(transfers)
    return sum(t.wire_bytes for t in transfers), sum(t.minimum_bytes for t in transfers)


def attention_flops(batch: int, q_len: int, kv_len: int, heads: int, head_dim: int) -> float:
    """Return the FLOPs of Q K^T and P V without a mask: 4 B L M H K."""
    return 4.0 * batch * q_len * kv_len * heads * head_dim


class Taken(NamedTuple):
    """How often one side of a branch is taken in a loop around it.

    Attributes:
      executions: by each device, per iteration.
      iterations: those in which any device takes it. Devices wait for each other in every
        iteration, which then takes as long as the longest side taken in it.
      of: the number of iterations.
    """

    executions: Fraction
    iterations: frozenset[int]
    of: int


# Named scope of a loop or of a side of a branch -> how often it runs.
Trips = Mapping[str, float | Taken]
