"""What a deployment returns for a batch of requests."""

from dataclasses import dataclass

from parallax.engine.deployment.failover import Recovery
from parallax.engine.deployment.switching import Switch
from parallax.engine.generate import Continuation
from parallax.engine.latency import Latency


@dataclass(frozen=True)
class Served:
    """What `Deployment.generate` returns.

    Attributes:
      continuations: one a prompt, in order.
      latency: times of all requests; a recovery is a long time between two tokens.
      recoveries: of devices lost meanwhile.
      switches: of layers to other formats meanwhile; tokens after one are another function's.
    """

    continuations: tuple[Continuation, ...]
    latency: Latency
    recoveries: tuple[Recovery, ...]
    switches: tuple[Switch, ...]
