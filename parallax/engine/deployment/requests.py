"""The requests being served, as plain state on the host, which no loss destroys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Finished = Literal["stop", "length"]


@dataclass(frozen=True)
class Event:
    """The event just before one device of the chain runs.

    Attributes:
      number: the number of the new token; 0 comes from the prefill.
      microbatch: the number of the microbatch.
      stage: the device's position in the chain.
    """

    number: int
    microbatch: int
    stage: int


class PassInterrupted(Exception):  # noqa: N818 -- what happened, not what was done wrong
    """The signal that a loss was noticed and recovered, so that the pass has to run again."""


@dataclass
class Microbatch:
    """Sequences that pass the chain together; some rows may be unused.

    Attributes:
      number: the microbatch's number.
      tokens: [B, C] int32, the tokens known so far at their positions, then zeros.
      lengths: [B] int32, the number of tokens known so far, at least 1.
      prefilled: whether devices have keys and values of all positions before the last known.
      requests: the number of each row's prompt; -1 for an unused row.
    """

    number: int
    tokens: np.ndarray
    lengths: np.ndarray
    requests: tuple[int, ...]
    prefilled: bool = False


@dataclass
class Progress:
    """The progress of every request.

    Attributes:
      new: new tokens so far, one list per prompt.
      finished: prompt -> why it ended.
    """

    new: list[list[int]]
    finished: dict[int, Finished] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether no request is running."""
        return len(self.finished) == len(self.new)

    def runs(self, microbatch: Microbatch) -> list[bool]:
        """Return for each row of a microbatch whether its request is running."""
        return [prompt >= 0 and prompt not in self.finished for prompt in microbatch.requests]


def microbatches_of(prompts: Sequence[Sequence[int]], rows: int, slots: int) -> list[Microbatch]:
    """Divide prompts in order into as many microbatches as they need."""
    microbatches = []
    for number, first in enumerate(range(0, len(prompts), rows)):
        mine = range(first, min(first + rows, len(prompts)))
        tokens, lengths = np.zeros((rows, slots), np.int32), np.ones(rows, np.int32)
        for row, prompt in enumerate(mine):
            tokens[row, : len(prompts[prompt])] = prompts[prompt]
            lengths[row] = len(prompts[prompt])
        requests = (*mine, *[-1] * (rows - len(mine)))
        microbatches.append(Microbatch(number, tokens, lengths, requests))
    return microbatches


def add_tokens(
    microbatch: Microbatch, chosen: np.ndarray, progress: Progress, max_new_tokens: int,
    stop_tokens: frozenset[int],
) -> list[tuple[int, int]]:  # fmt: skip
    """Give every running request of a microbatch its next token; end those that are done.

    Args:
      chosen: [B], the most likely next tokens.

    Returns:
      (prompt, token) of each request that got a token.
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
