"""The result of a batch of requests to a deployment."""

from dataclasses import dataclass

from parallax.engine.deployment.failover import Recovery
from parallax.engine.deployment.switching import Switch
from parallax.engine.generate import Continuation
from parallax.engine.latency import Latency


@dataclass(frozen=True)
class Served:
    """The tokens, times and events that `Deployment.generate` returns.

    Attributes:
      continuations: one per prompt, in order.
      latency: times of all requests; a recovery is a long time between two tokens.
      recoveries: the recoveries from devices lost meanwhile.
      switches: the switches of layers meanwhile; tokens after one come from another function.
    """

    continuations: tuple[Continuation, ...]
    latency: Latency
    recoveries: tuple[Recovery, ...]
    switches: tuple[Switch, ...]
