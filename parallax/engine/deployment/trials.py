"""Trials for a record: devices lost at random times, and layers switched repeatedly."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.engine.deployment.deployment import Deployment
from parallax.engine.deployment.failover import Recovery
from parallax.engine.deployment.requests import Event
from parallax.engine.deployment.switching import Switch
from parallax.engine.generate import Continuation

# The number of first trials: one at the very beginning of a run and the others in a prefill.
_IN_PREFILL = 4


@dataclass(frozen=True)
class Trial:
    """The loss of one device in one run.

    Attributes:
      event: the event before which the device was lost.
      device: the number of the lost device.
      lost_requests: the number of prompts without all their tokens.
      changed_tokens: the number of prompts whose tokens are not the expected ones.
      recovery: the recovery from the loss.
    """

    event: Event
    device: int
    lost_requests: int
    changed_tokens: int
    recovery: Recovery


def lose_at_random(
    deployment: Deployment, prompts: Sequence[Sequence[int]], expected: Sequence[Continuation],
    max_new_tokens: int, count: int, *, seed: int = 0, devices: Sequence[int] | None = None,
    prepare: bool = False,
) -> list[Trial]:  # fmt: skip
    """Run the prompts once per trial, lose a device meanwhile, and repair it afterwards.

    The first loss is before the prefill, the next three are in it, the others anywhere.

    Args:
      deployment: the deployment; with a spare, its layout is restored after each trial.
      expected: the tokens without a loss.
      count: the number of trials.
      seed: the seed of times and devices.
      devices: devices to lose, in turn; None draws one of the chain each time.
      prepare: whether to compile the next layouts ahead, before each trial.
    """
    draw, trials = random.Random(seed), []
    microbatches = -(-len(prompts) // deployment.chain.rows)
    for number in range(count):
        if prepare:
            deployment.prepare()
        chain = deployment.layout.devices
        device = draw.choice(chain) if devices is None else devices[number % len(devices)]
        last = 0 if number < _IN_PREFILL else max_new_tokens - 1
        event = Event(
            draw.randint(min(1, last), last),
            draw.randrange(microbatches),
            draw.randrange(len(chain)),
        )
        event = Event(0, 0, 0) if number == 0 else event
        trials.append(_trial(deployment, prompts, expected, max_new_tokens, event, device))
        deployment.repair(device)
    return trials


def _trial(
    deployment: Deployment, prompts, expected, max_new_tokens: int, event: Event, device: int
) -> Trial:
    gone = False

    def on_event(now: Event) -> None:
        nonlocal gone
        if not gone and now == event:
            gone = True
            deployment.lose(device)

    before = len(deployment.recoveries)
    served = deployment.generate(prompts, max_new_tokens=max_new_tokens, on_event=on_event)
    if not gone:
        raise ValueError(f"{event} never came: the requests ended before it.")
    # A device that is lost after its last use is noticed in the next call.
    deployment.settle()
    pairs = list(zip(served.continuations, expected, strict=True))
    return Trial(
        event, device,
        sum(len(got.tokens) < len(right.tokens) for got, right in pairs),
        sum(got.tokens[: len(right.tokens)] != right.tokens for got, right in pairs),
        deployment.recoveries[before],
    )  # fmt: skip


def switch_while_serving(
    deployment: Deployment, prompts: Sequence[Sequence[int]], max_new_tokens: int,
    layers: Sequence[int], count: int,
) -> list[Switch]:  # fmt: skip
    """Switch prepared layers there and back in turn, one switch before each step of requests.

    Args:
      layers: the layers to switch.
      count: the number of switches; an even number leaves every layer as it was.

    Raises:
      ValueError: there are fewer than two new tokens, or no layers.
    """
    if max_new_tokens < 2:
        raise ValueError(
            f"switches happen between tokens: max_new_tokens must be at least 2, got "
            f"{max_new_tokens}."
        )
    if not layers:
        raise ValueError("no layers to switch. Prepare some.")
    switches: list[Switch] = []

    def on_event(now: Event) -> None:
        if len(switches) < count and (now.microbatch, now.stage) == (0, 0) and now.number:
            layer = layers[len(switches) // 2 % len(layers)]
            switches.append(deployment.switch(layer, "one of many", now.number))

    while len(switches) < count:
        deployment.generate(prompts, max_new_tokens=max_new_tokens, on_event=on_event)
    return switches
