"""Whole sequences on every device: nothing to communicate once the batch reaches the devices."""

from parallax.meshes.mesh import MeshSpec
from parallax.rules import Rules
from parallax.strategy import Strategy


def data_parallel(devices: int = 16) -> Strategy:
    """The batch over `data`, weights replicated.

    Args:
      devices: they divide the batch.

    Cost: no communication forward. The baseline that any other split has to beat when weights fit
      a device and the batch is at least the devices.
    """
    return Strategy("data_parallel", MeshSpec({"data": devices}), Rules(act_batch="data"))
