"""The sequence split over all devices, traded for heads inside attention."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.ulysses import Ulysses
from parallax.rules import Rules
from parallax.strategy import Strategy


def ulysses(devices: int = 16) -> Strategy:
    """Everything is split over the sequence; all-to-alls give attention whole sequences.

    Args:
      devices: they divide the sequence length and the number of query heads.

    Cost: per layer and microbatch all-to-alls of a device's q, k, v and output; with fewer
      key/value heads than devices each device receives the ones it needs.
    Reference: Jacobs et al., "DeepSpeed Ulysses", 2023.
    """
    return Strategy(
        "ulysses",
        MeshSpec({"seq": devices}),
        Rules(act_seq="seq", decode=(("act_seq", None),)),
        attention=Ulysses("seq"),
    )
