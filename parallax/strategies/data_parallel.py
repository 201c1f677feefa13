"""The data-parallel strategy: whole sequences per device, no communication in a forward pass."""

from parallax.meshes.mesh import MeshSpec
from parallax.rules import Rules
from parallax.strategy import Strategy


def data_parallel(devices: int = 16) -> Strategy:
    """Split the batch over `data` and replicate the weights.

    Args:
      devices: devices in all; they divide the batch.

    Cost: no communication in a forward pass. This is the baseline that any other split has to beat
      when the weights fit on a device and every device has at least one sequence.
    """
    return Strategy("data_parallel", MeshSpec({"data": devices}), Rules(act_batch="data"))
