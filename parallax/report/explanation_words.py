"""The words of an explanation: places, savings, splits and the line that starts it."""

import math

from parallax.explanations.facts import ArraySplit, Facts
from parallax.explanations.findings import Finding
from parallax.explanations.source_lines import SourceLine
from parallax.report import words

_NAMED = 0.0005  # shares of the step or memory below this are not named


def nothing_found(facts: Facts) -> str:
    """Return what is said where there are no findings."""
    if facts.untried is None:
        return "nothing found in the text, of which no change can be tried"
    if facts.untried:
        return f"nothing found that helps; {facts.untried} changes were not tried"
    return "nothing found that helps; what is sent is needed"


def answer(facts: Facts) -> str:
    """Return what loses the most and how to mend it, or that nothing was found, in a sentence."""
    if not facts.findings:
        said = nothing_found(facts)
        return f"{said[0].upper()}{said[1:]}."
    first = facts.findings[0]
    count = len(facts.findings)
    start = "One finding" if count == 1 else f"{count} findings; most is lost by the first"
    where, _ = place(first.line, first.argument)
    saves = [line if line.startswith("costs") else f"saves {line}"
             for line in saving_lines(first, facts)[:-1]]  # fmt: skip
    known = f" ({'; '.join(saves)})" if saves else ""
    return f"{start}: {first.kind}, {where}: {first.fix or first.what}{known}."


def headline(facts: Facts) -> str:
    """Return the program, its modelled step, memory and bytes, each with its tag, in one line."""
    mesh = ",".join(f"{name}={size}" for name, size in facts.axes.items()) or "one device"
    usable = facts.cluster.usable_bytes
    over = f": more than the {words.in_bytes(usable)} usable"
    memory = f"memory {words.in_bytes(facts.memory_bytes)} per device (compiled)"
    memory += over if facts.memory_bytes > usable else ""
    if not facts.memory_bytes:
        memory = "memory is not in the text"
    return (
        f"{facts.name}: {words.counted(facts.devices, 'device')} ({facts.cluster.name}, {mesh}); "
        f"step {words.in_seconds(facts.step_s)}{' unvalidated' if facts.unvalidated else ''} "
        "(modelled, "
        f"{error_bar(facts)}); {memory}; sends {words.in_bytes(facts.sent_bytes)} per device "
        "(compiled)"
    )


def error_bar(facts: Facts) -> str:
    """Return the 80 % interval of the step."""
    if facts.low_s is None:
        return "no error bar"
    low = words.in_seconds(facts.low_s)
    if facts.high_s is None:
        return f"80 % error bar from {low}"
    return f"80 % error bar {low} to {words.in_seconds(facts.high_s)}"


def place(line: SourceLine | None, argument: str = "") -> tuple[str, str]:
    """Return where something is, and the code of that line; the argument where no line is."""
    if line is None:
        return (f"argument {argument}", "") if argument else ("no line known", "")
    return str(line), line.code


def saving_lines(finding: Finding, facts: Facts) -> list[str]:
    """Return what a fix saves, one line per quantity, and how that is known."""
    saving = finding.saving
    if saving is None:
        return ["not tried"]
    lines = []
    for amount, whole, unit, what in (
        (saving.seconds, facts.step_s, words.in_seconds, "of the step"),
        (saving.memory_bytes, facts.memory_bytes, words.in_bytes, "of memory"),
        (saving.sent_bytes, facts.sent_bytes, words.in_bytes, "of what is sent"),
    ):
        share = abs(amount) / whole if whole else 0.0
        if share >= _NAMED:
            sign = "" if amount > 0 else "costs "
            lines.append(f"{sign}{unit(abs(amount))}, {words.percent(share)} {what}")
    known = "compiled; seconds modelled" if saving.tag == "compiled" else "modelled"
    return [*(lines or ["nothing"]), f"({known})"]


def needed_words(finding: Finding) -> str:
    """Return a collective that is needed, with its reason and closed form."""
    return f"{finding.what}: {finding.needed}"


def dims_of(split: ArraySplit) -> str:
    """Return the dtype and dims of an array: f32[2048, 8192]; of a device's part if alone known."""
    dims = split.dims if split.axes else split.local
    return f"{split.dtype}[{', '.join(map(str, dims))}]"


def split_of(split: ArraySplit) -> str:
    """Return how an array is split, as a PartitionSpec is written."""
    if not split.axes:
        return "scalar" if not split.local else "one device's part"
    if not any(split.axes):
        return "replicated"
    entries = [
        "None" if not names else repr(names[0]) if len(names) == 1 else repr(names)
        for names in split.axes
    ]
    while entries and entries[-1] == "None":
        entries.pop()
    return f"P({', '.join(entries)})"


def copies_of(split: ArraySplit, facts: Facts) -> str:
    """Return how many devices hold the same part; "" where it is not known."""
    if not split.axes:
        return ""
    parts = math.prod(
        -(-whole // part) for whole, part in zip(split.dims, split.local, strict=True) if part
    )
    return words.times(facts.devices / max(1, parts))


def decided_by(split: ArraySplit) -> str:
    """Return who chose the split, and whether the memory may be reused."""
    by = f"by {split.chosen_by}" if split.chosen_by else ""
    return ", ".join(filter(None, (by, "donated" if split.donated else "")))
