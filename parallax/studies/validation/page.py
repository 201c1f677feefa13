"""The accuracy page, docs/generated/accuracy.md: a validation, what it leaves open, and sources."""

import tomllib

from parallax.cost.measurements import sources
from parallax.studies.validation.models import TABLES
from parallax.studies.validation.results import Validation

_HEAD = """
Made by `python -m parallax.studies.fitting`; `parallax validate` prints the same tables and plots.
Nothing on this page was measured by this project: no GPU was at hand.
[validation.md](../validation.md) says how to hold the predictions against your own measurements.
"""
_OPEN = (
    "A whole step of Parallax's own programs: nobody has run them on these GPUs. What is tested is "
    "their kernels and collectives, and whole steps of other software.",
    "Passes over memory, launches and the share of the L2 cache that holds what was just written: "
    "constants of other people's figures, error bars assumed (0.8 to 1.25).",
    "INT8, float32 and float64 products, TensorFloat-32 on other GPUs than H100: by peaks.",
    "A backward pass of attention on H100, H200 and A100; heads of 512 on A100.",
    "Messages inside nodes of H200, A100 and B200: H100's, scaled by NVLink's rate.",
    "Kinds of collectives that were not measured on a network: they follow from those that were. "
    "The same cards give bus bandwidths that differ by 5x: a network is not known from its cards, "
    "and time between nodes of an unnamed network says *unvalidated*.",
    "Energy: split by assumption; no power was measured.",
)


def accuracy_page(found: Validation) -> str:
    """Render the page of a validation of everything that is shipped."""
    title, _, rest = found.markdown().partition("\n")
    lines = [title, _HEAD, rest.strip(), "", "## Not validated", "", *(f"- {x}" for x in _OPEN), "",
             "## Sources", ""]  # fmt: skip
    steps = tomllib.loads((TABLES / "sources.toml").read_text(encoding="utf-8"))
    for name, source in {**sources(), **steps}.items():
        lines.append(f"- `{name}`: {source['title']}. {source['licence']}. <{source['url']}>")
    return "\n".join(lines) + "\n"
