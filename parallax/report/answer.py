"""The answer of a report in a few sentences: what to take, and what would change that."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallax.report import words
from parallax.results.lens_results import Figure, StrategyResult
from parallax.results.sweep_results import Sweep, SweepPoint

_NAMED = 2  # others whose error bars overlap are named up to so many, then counted
_ALIKE = 1.005  # a ratio that prints as 1.00
_SLOWER = 2.0  # the factor on exposed communication that the choice is tried at


@dataclass(frozen=True)
class Choice:
    """Something that could be taken, and what taking it costs.

    Attributes:
      name: what it is called.
      cost: what is compared, less is better; with an error bar where there is one.
      said: its figure as printed: "515k tokens/s".
      exposed: the part of the cost that is communication which nothing hides.
      unvalidated: the parts that no published measurement validates; "" if none.
    """

    name: str
    cost: Figure
    said: str
    exposed: float = 0.0
    unvalidated: str = ""

    def at(self, factor: float) -> float:
        """Return the cost with `factor` times the exposed communication."""
        return self.cost.value + (factor - 1) * self.exposed

    def overlaps(self, other: "Choice") -> bool:
        """Return whether the error bars of both overlap."""
        mine, others = self.cost.low, other.cost.high
        return mine is not None and others is not None and mine <= others


def best_of(choices: Sequence[Choice]) -> Choice:
    """Return the choice that costs least, of equal ones the first."""
    return min(choices, key=lambda choice: choice.cost.value)


def recommend(choices: Sequence[Choice]) -> str:
    """Return the sentences that recommend the best of several choices.

    Raises:
      ValueError: there are none.
    """
    best = best_of(choices)
    said = f"Take {best.name}: {best.said} ({best.cost.tag})"
    others = sorted((c for c in choices if c is not best), key=lambda c: c.cost.value)
    if not others:
        return f"{said}, the only one to choose." + _unvalidated([best])
    ratio = others[0].cost.value / best.cost.value
    lead = "as good as" if ratio < _ALIKE else f"{words.digits(ratio)} times as good as"
    if best.cost.unit == "s":
        lead = lead.replace("good", "fast")
    return (
        f"{said}, {lead} {others[0].name}."
        + _doubt(best, others)
        + _unvalidated([best, *others[:1]])
        + _network(best, choices)
    )


def _doubt(best: Choice, others: Sequence[Choice]) -> str:
    close = [c.name for c in others if c.overlaps(best)]
    if not close:
        return ""
    those = "that" if len(close) == 1 else "those"
    return (
        f" In doubt: its error bar and {those} of {_listed(close)} overlap; measure, or take the "
        "simplest."
    )


def _unvalidated(choices: Sequence[Choice]) -> str:
    behind = {c.unvalidated: c.name for c in reversed(choices) if c.unvalidated}
    said = [f"the {what} of {name}" for what, name in reversed(behind.items())]
    return f" No published measurement validates {' or '.join(said)}." if said else ""


def _network(best: Choice, choices: Sequence[Choice]) -> str:
    """Say whether another network would change the choice."""
    hidden = min(choices, key=lambda c: c.at(0.0))
    slower = min(choices, key=lambda c: c.at(_SLOWER))
    if not any(c.exposed for c in choices):
        return ""
    if hidden.at(0.0) >= best.at(0.0) and slower.at(_SLOWER) >= best.at(_SLOWER):
        waits = "" if best.exposed else f" {best.name} waits for no communication:"
        said = "the choice stands with all communication hidden, and with twice as much exposed"
        return f"{waits} {said if waits else said[0].upper() + said[1:]}."
    text = ""
    if hidden.at(0.0) < best.at(0.0):
        text += f" With all communication hidden {hidden.name} would lead."
    if slower.at(_SLOWER) < best.at(_SLOWER):
        text += f" With twice as much exposed communication {slower.name} would lead."
    return text


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(names)


def answer_comparison(results: Sequence[StrategyResult]) -> str:
    """Return the answer of a comparison: one line of text.

    A strategy that failed a check is never recommended, and what was not checked is said.
    """
    able = [r for r in results if r.prediction is not None and not r.failed]
    if not able:
        return " ".join(_none(results))
    choices = [_choice(r) for r in able]
    best = best_of(choices)
    taken = next(r for r in able if r.name == best.name)
    return " ".join((recommend(choices), *_caveats(taken), *_excluded(results, best)))


def _choice(result: StrategyResult) -> Choice:
    predicted = result.prediction
    assert predicted is not None, "only what was predicted can be recommended"
    said = words.in_tokens_per_s(predicted.tokens_per_s.value)
    return Choice(
        result.name, predicted.step_s, said, predicted.exposed_s.value, predicted.unvalidated
    )


def _caveats(taken: StrategyResult) -> Iterator[str]:
    verified = taken.verification
    if verified is None:
        yield f"Whether {taken.name} is exact was not checked."
    elif verified.approximation:
        yield f"{taken.name} is approximate: {verified.approximation.rstrip('.')}."
    if taken.compilation is None:
        yield f"Whether {taken.name} fits was not checked."


def _excluded(results: Sequence[StrategyResult], best: Choice) -> Iterator[str]:
    for r in results:
        if not r.failed:
            continue
        faster = r.prediction is not None and r.prediction.step_s.value < best.cost.value
        yield f"{r.name} {'would be faster but ' if faster else ''}{_fault(r)}."


def _fault(result: StrategyResult) -> str:
    """Return the first reason for which a strategy cannot be taken."""
    compiled, verified = result.compilation, result.verification
    if result.refused:
        return f"cannot run {', '.join(result.refused)}"
    if verified is not None and not verified.exact and not verified.approximation:
        return "is not exact"
    if compiled is not None and not compiled.memory.fits:
        memory = compiled.memory
        return (
            f"does not fit: {words.in_bytes(memory.total_bytes)} of "
            f"{words.in_bytes(memory.usable_bytes)} usable"
            + (f"; {result.knob}" if result.knob else "")
        )
    return "sends other bytes than its closed form"


def _none(results: Sequence[StrategyResult]) -> Iterator[str]:
    """Yield why no strategy can be recommended."""
    failed = [r for r in results if r.failed]
    if len(failed) == len(results):
        yield "Take none of these: each fails a check."
    else:
        whys = dict.fromkeys(
            words.one_line(r.skipped.get("predict", "predict was not asked for")).rstrip(".")
            for r in results
            if not r.failed
        )
        yield f"No answer which is fastest: {'; '.join(whys)}."
    for r in failed:
        yield f"{r.name} {_fault(r)}."


def answer_sweep(sweep: Sweep) -> str:
    """Return the answer of a sweep: which strategy leads at which values."""
    leaders: list[tuple[str, list[int]]] = []
    doubtful = []
    for value in sweep.values:
        choices = [_swept(p) for p in sweep.points if p.value == value and _is_able(p)]
        if not choices:
            name = ""
        else:
            best = best_of(choices)
            name = best.name
            if any(c is not best and c.overlaps(best) for c in choices):
                doubtful.append(value)
        if leaders and leaders[-1][0] == name:
            leaders[-1][1].append(value)
        else:
            leaders.append((name, [value]))
    taken = [f"{name} {_from_to(sweep.axis, values)}" for name, values in leaders if name]
    none = [_from_to(sweep.axis, values) for name, values in leaders if not name]
    text = f"Take {', '.join(taken)}." if taken else ""
    if none:
        text += f" Nothing that is compiled fits {' and '.join(none)}."
    if doubtful:
        at = ", ".join(f"{value:,}" for value in doubtful)
        text += f" In doubt: at {sweep.axis} {at} other error bars overlap the first's."
    return text.strip()


def _is_able(point: SweepPoint) -> bool:
    return point.found is not None and point.found.fits and point.found.ledger_matches


def _swept(point: SweepPoint) -> Choice:
    assert point.found is not None, "only points that were compiled are compared"
    said = words.in_tokens_per_s(point.found.tokens_per_s.value)
    return Choice(point.strategy, point.found.step, said)


def _from_to(axis: str, values: Sequence[int]) -> str:
    if len(values) == 1:
        return f"at {axis} {values[0]:,}"
    return f"from {axis} {values[0]:,} to {values[-1]:,}"
