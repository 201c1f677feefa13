"""Layer-wise serving on a chain of devices: placement, per-layer formats, failover, pressure."""

from parallax.engine.deployment.deployment import Deployment, Served
from parallax.engine.deployment.failover import Recovery
from parallax.engine.deployment.layout import Layout
from parallax.engine.deployment.memory import DeviceLost
from parallax.engine.deployment.pressure import Pressure
from parallax.engine.deployment.requests import Event
from parallax.engine.deployment.switching import Switch

__all__ = [
    "Deployment",
    "DeviceLost",
    "Event",
    "Layout",
    "Pressure",
    "Recovery",
    "Served",
    "Switch",
]
