"""Latencies of generated tokens as MLPerf Inference defines them: TTFT, TPOT, ITL."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median


@dataclass(frozen=True)
class Latency:
    """Latencies of one batch (tag: measured), compilation excluded.

    Attributes:
      prompt_tokens, new_tokens: counts over all sequences, padding excluded.
      ttft_s: time to first token: from the request to every sequence's first token.
      itl_s: inter-token latencies: between one step's tokens and the next's.
      total_s: from the request to the last token.
      compile_s: time before the request, for compiling prefill and step.
    """

    prompt_tokens: int
    new_tokens: int
    ttft_s: float
    itl_s: tuple[float, ...]
    total_s: float
    compile_s: float

    @property
    def tpot_s(self) -> float | None:
        """The longest sequence's (latency - TTFT) / (tokens - 1); None for a single token."""
        return mean(self.itl_s) if self.itl_s else None

    @property
    def tokens_per_s(self) -> float:
        """The new tokens of all sequences over the total time."""
        return self.new_tokens / self.total_s

    def lines(self) -> list[str]:
        """Return the latencies as a few lines of text."""
        lines = [
            f"{self.new_tokens} new tokens after {self.prompt_tokens} of the prompts in "
            f"{self.total_s:.3g} s: {self.tokens_per_s:.3g} tokens/s (measured)",
            f"TTFT {1e3 * self.ttft_s:.3g} ms",
        ]
        if self.itl_s:
            assert self.tpot_s is not None
            slow = percentile(self.itl_s, 0.99)
            lines[1] += (
                f", TPOT {1e3 * self.tpot_s:.3g} ms, ITL median {1e3 * median(self.itl_s):.3g} ms, "
                f"p99 {1e3 * slow:.3g} ms (n = {len(self.itl_s)})"
            )
        return [*lines, f"compiled before that in {self.compile_s:.3g} s"]


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of the samples does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the maximum."""
    return {
        "p50": percentile(samples, 0.5), "p90": percentile(samples, 0.9),
        "p99": percentile(samples, 0.99), "max": max(samples),
    }  # fmt: skip
