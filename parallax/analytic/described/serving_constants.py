"""What serving software adds to the arithmetic: how it schedules, and what its host takes."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parallax.codec import FileFormat

_SHIPPED = Path(__file__).parent / "shipped_serving.json"


@dataclass(frozen=True)
class ServingConstants:
    """The constants of a piece of serving software.

    Attributes:
      name: "vllm", "sglang", "trtllm" or another.
      mixes: prompts share a step with decoding requests; otherwise prompts go first, alone.
      step_tokens: prompt tokens of a step at most.
      memory_share: share of a device's memory for weights and KV cache.
      step_s: seconds per step in which the GPU waits for the host.
      sequence_s: further such seconds per sequence of the step.
      request_s: seconds from a request's arrival to its first step.
      in_waves: share of requests that start together with all others in flight. Those in which a
        load begins, and all of them where prompts that go first keep requests in step.
      arriving: prompts that otherwise start together.
      late_slots: requests, on average, that wait until the next one of those running ends.
      stream_token_s, stream_request_s: least seconds of the process in front of the engine per
        token that it passes on, and per request; the larger of both limits the throughput.
      stream_first: share of the time lost to that limit which passes before the first token.
      sources: constant -> where it is from.
    """

    name: str
    mixes: bool
    step_tokens: int
    memory_share: float
    step_s: float
    sequence_s: float
    request_s: float
    in_waves: float
    arriving: float
    late_slots: float
    stream_token_s: float
    stream_request_s: float
    stream_first: float
    sources: Mapping[str, str]

    def __post_init__(self):
        for name in ("memory_share", "in_waves", "stream_first"):
            value = getattr(self, name)
            least = 0 if name in ("in_waves", "stream_first") else 0.01
            if not least <= value <= 1:
                raise ValueError(
                    f"ServingConstants {self.name!r}: {name} is {value}, expected a share of at "
                    f"least {least} and at most 1."
                )
        if self.step_tokens < 1 or self.arriving < 1:
            raise ValueError(
                f"ServingConstants {self.name!r}: step_tokens ({self.step_tokens}) and arriving "
                f"({self.arriving}) are at least 1."
            )
        for name in ("step_s", "sequence_s", "request_s", "late_slots", "stream_token_s",
                     "stream_request_s"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"ServingConstants {self.name!r}: {name} is negative.")


@dataclass(frozen=True)
class ServingSoftware:
    """The constants of all known serving software, by name."""

    software: Mapping[str, ServingConstants]


FILE = FileFormat(
    ServingSoftware, "serving constants", "serving_version", 1,
    "Make it with `python -m parallax.studies.fitting`.",
)  # fmt: skip


@functools.cache
def serving_software() -> Mapping[str, ServingConstants]:
    """Return the shipped constants by name (see docs/generated/accuracy.md)."""
    return FILE.load(_SHIPPED).software


def server_named(name: str) -> ServingConstants:
    """Return the shipped constants of a piece of software; ValueError if there are none."""
    known = serving_software()
    if name not in known:
        raise ValueError(
            f"unknown serving software {name!r}. Use one of: {', '.join(known)}; or phase=train "
            "for software that trains."
        )
    return known[name]
