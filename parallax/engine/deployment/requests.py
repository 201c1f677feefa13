"""Requests that are being served, as plain state on the host: what a loss cannot take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Finished = Literal["stop", "length"]


@dataclass(frozen=True)
class Moment:
    """Just before one device of the chain runs.

    Attributes:
      number: of the new token; 0 comes from the prefill.
      microbatch: sequences that pass the chain together.
      stage: position in the chain.
    """

    number: int
    microbatch: int
    stage: int


class PassInterrupted(Exception):  # noqa: N818 -- what happened, not what was done wrong
    """A loss came to light and was made up for: the pass is to be run again."""


@dataclass
class Microbatch:
    """Sequences that pass the chain together; some rows may be nobody's.

    Attributes:
      number: of the microbatch.
      tokens: [B, C] int32, those known so far at their positions, zeros behind.
      lengths: [B] int32, tokens known so far, at least 1.
      prefilled: keys and values of all positions before the last known are on the devices.
      requests: of each row, the number of its prompt; -1 for nobody's.
    """

    number: int
    tokens: np.ndarray
    lengths: np.ndarray
    requests: tuple[int, ...]
    prefilled: bool = False


@dataclass
class Progress:
    """What every request has come to.

    Attributes:
      new: tokens so far, one list a prompt.
      finished: prompt -> why it ended.
    """

    new: list[list[int]]
    finished: dict[int, Finished] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """No request is running."""
        return len(self.finished) == len(self.new)

    def runs(self, microbatch: Microbatch) -> list[bool]:
        """For each row of a microbatch, whether its request is running."""
        return [prompt >= 0 and prompt not in self.finished for prompt in microbatch.requests]


def microbatches_of(prompts: Sequence[Sequence[int]], rows: int, slots: int) -> list[Microbatch]:
    """Prompts dealt out to as many microbatches as they need, in order."""
    found = []
    for number, first in enumerate(range(0, len(prompts), rows)):
        mine = range(first, min(first + rows, len(prompts)))
        tokens, lengths = np.zeros((rows, slots), np.int32), np.ones(rows, np.int32)
        for row, prompt in enumerate(mine):
            tokens[row, : len(prompts[prompt])] = prompts[prompt]
            lengths[row] = len(prompts[prompt])
        requests = (*mine, *[-1] * (rows - len(mine)))
        found.append(Microbatch(number, tokens, lengths, requests))
    return found


def add_tokens(
    microbatch: Microbatch, chosen: np.ndarray, progress: Progress, max_new_tokens: int,
    stop_tokens: frozenset[int],
) -> list[tuple[int, int]]:  # fmt: skip
    """Gives every running request of a microbatch its next token; ends those that are done.

    Args:
      chosen: [B], the likeliest next tokens.

    Returns:
      (prompt, token) of those that got one.
    """
    given = []
    runs = progress.runs(microbatch)
    for row, prompt in enumerate(microbatch.requests):
        if not runs[row]:
            continue
        token = int(chosen[row])
        if token in stop_tokens:
            progress.finished[prompt] = "stop"
            continue
        progress.new[prompt].append(token)
        given.append((prompt, token))
        if len(progress.new[prompt]) == max_new_tokens:
            progress.finished[prompt] = "length"
            continue
        microbatch.tokens[row, microbatch.lengths[row]] = token
        microbatch.lengths[row] += 1
    return given
