"""What of a modelled time no published measurement stands behind, in words."""

from parallax.cost.pricing import HAND_WRITTEN_SHARE
from parallax.hlo.execution_trace import ExecutionTrace


def unvalidated(*works: ExecutionTrace, crosses_nodes: bool) -> str:
    """ "" if nothing; for sentences like "no measurement stands behind the ..."."""
    found = []
    if crosses_nodes:
        found.append("time between nodes")
    if any(work.hand_written for work in works):
        found.append(
            f"time of kernels written by hand ({HAND_WRITTEN_SHARE:.0%} of the rate of products, "
            "assumed)"
        )
    return " and ".join(found)
