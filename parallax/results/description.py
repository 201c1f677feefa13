"""The result of describing a step: time, memory and terms of software that is not ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parallax.results.lens_results import Figure


@dataclass(frozen=True)
class Description:
    """A step as a piece of software runs it on a cluster (tag: modelled).

    Attributes:
      implementation, cluster, split: software, cluster and degrees, in words.
      phase: "train" or "serve".
      figures: name -> figure with its 80 % bar: step_s, tokens_per_s, memory_bytes of a training
        step; ttft_s, tpot_s, tokens_per_s of serving, and running: requests that run at a time,
        the others waiting for room in memory.
      terms_s: name of a time -> its parts in seconds, which add up to it.
      memory_bytes: bytes by purpose on the fullest device; of serving, weights and the KV cache of
        the requests that run.
      fits: whether the memory is what a program may take of a GPU; in serving, whether weights and
        one request do.
      unvalidated: what no measurement stands behind, in words; "" if there is nothing.
      model: the model and its sizes, in words.
    """

    implementation: str
    cluster: str
    split: str
    phase: str
    figures: Mapping[str, Figure]
    terms_s: Mapping[str, Mapping[str, float]]
    memory_bytes: Mapping[str, float]
    fits: bool | None
    unvalidated: str = ""
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for a JSON file."""
        return {"description_version": 1, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.implementation} on {self.cluster}, {self.split} ({self.phase}, modelled)"]
        if self.model:
            lines.append(f"  {self.model}")
        for name, figure in self.figures.items():
            lines.append(f"  {name:<14}{_with_bar(figure)}")
        for name, terms in self.terms_s.items():
            parts = ", ".join(f"{term} {_in_words(s, 's')}" for term, s in terms.items() if s)
            lines.append(f"  {name} is {parts}")
        if self.memory_bytes:
            parts = (f"{what} {b / 1e9:.1f}" for what, b in self.memory_bytes.items() if b)
            lines.append(f"  memory, GB: {', '.join(parts)}")
        if self.fits is False:
            lines.append("  does not fit")
        if self.unvalidated:
            lines.append(f"  no measurement stands behind {self.unvalidated}")
        return "\n".join(lines)


def _with_bar(figure: Figure) -> str:
    text = _in_words(figure.value, figure.unit)
    if figure.low is None or figure.high is None:
        return f"{text}  (no error bar)"
    ends = (_in_words(x, figure.unit) for x in (figure.low, figure.high))
    return f"{text}  (80 %: {' to '.join(ends)})"


def _in_words(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    return f"{value / 1e9:.1f} GB" if unit == "B" else f"{value:,.0f} {unit}"
