"""Facts of time and energy: predicted, bounded by a roofline, or measured."""

from collections.abc import Callable

from parallax.report import words
from parallax.report.facts import Cell
from parallax.results.lens_results import Compilation, Prediction, StrategyResult

# An analytical estimate further from the compiled prediction than this is marked as an error.
_APART = 0.1
_TERMS = (
    "matrix products", "attention", "memory", "host copies", "launches", "exposed communication",
    "up to the roofline",
)  # fmt: skip


def _bound_step(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(f">= {words.in_seconds(r.prediction.bound.step_s.value)}")


def _bound_by(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(r.prediction.bound.set_by)


def _bound_tokens(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(f"<= {words.in_tokens_per_s(r.prediction.bound.tokens_per_s.value)}")


def _of_prediction(fact: Callable[[Prediction], str | None]) -> Callable:
    def cell(r: StrategyResult) -> Cell | None:
        text = None if r.prediction is None else fact(r.prediction)
        return None if text is None else Cell(text)

    return cell


def _headline(p: Prediction, text: str) -> str:
    return f"{text} unvalidated" if p.unvalidated else text


def _step(p: Prediction) -> str:
    return _headline(p, words.in_seconds(p.step_s.value))


def _bar(p: Prediction) -> str:
    low, high = p.step_s.low, p.step_s.high
    if low is None:
        return "none: unpriced work"
    if high is None:
        return f">= {words.in_seconds(low)}"
    return f"{words.in_seconds(low)}-{words.in_seconds(high)}"


def _throughput(p: Prediction) -> str:
    rate = words.in_tokens_per_s(p.tokens_per_s.value).removesuffix(" tokens/s")
    return _headline(p, rate)


def _analytical(p: Prediction) -> str | None:
    if p.estimate_s is None:
        return None
    apart = p.estimate_s.value / p.step_s.value - 1
    said = f"{words.in_seconds(p.estimate_s.value)}, {apart:+.0%}"
    return said if abs(apart) <= _APART else f"{said} (!)"


def _share(name: str) -> Callable:
    def text(p: Prediction) -> str | None:
        seconds = p.terms_s.get(name, 0.0)
        if not seconds:
            return None
        return f"{words.in_seconds(seconds)}, {words.percent(seconds / p.step_s.value)}"

    return _of_prediction(text)


def _energy(p: Prediction) -> str:
    tokens = p.tokens_per_s.value * p.step_s.value
    return f"{words.digits(p.energy_j.value / tokens)} J"


EXPOSED_TIME = (
    ("exposed", "modelled", _of_prediction(lambda p: words.in_seconds(p.exposed_s.value))),
    ("hidden", "modelled", _of_prediction(lambda p: words.in_seconds(p.hidden_s.value))),
    ("exposed per token", "modelled",
     _of_prediction(lambda p: words.in_seconds(p.exposed_per_token_s.value))),
)  # fmt: skip


def _measured(r: StrategyResult) -> Cell | None:
    if r.measurement is None:
        return None
    step = r.measurement.step_s
    text = words.in_seconds(step.value)
    if step.low is not None and step.high is not None:
        text += f" ± {words.in_seconds((step.high - step.low) / 2)}"
    return Cell(text)


def _slowest(r: StrategyResult) -> Cell | None:
    slowest = r.measurement and r.measurement.slowest
    if r.measurement is None or slowest is None:
        return None
    least = min(p.step_s.value for p in r.measurement.processes)
    more = slowest.step_s.value / least - 1
    return Cell(f"{slowest.process} ({slowest.host}), +{words.percent(more)}")


def _measured_energy(r: StrategyResult) -> Cell | None:
    energy = r.measurement and r.measurement.energy_per_token_j
    return Cell(f"{words.digits(energy.value)} J") if energy else None


def _of_compiled(fact: Callable[[Compilation], Cell | None]) -> Callable:
    return lambda r: None if r.compilation is None else fact(r.compilation)


def _read(size: float) -> Cell:
    return Cell(words.in_bytes(size))


def _bubble(c: Compilation) -> Cell | None:
    return Cell(words.percent(c.evenness.bubble)) if c.evenness else None


def _padded(c: Compilation) -> Cell | None:
    if c.evenness is None or not c.evenness.padded_share:
        return None
    return Cell(f"{words.percent(c.evenness.padded_share)} of layers")


SPEED = (
    ("GEMM FLOPs per device", "compiled",
     lambda r: Cell(words.in_flops(r.compilation.gemm_flops)) if r.compilation else None),
    ("busiest device / mean", "compiled",
     _of_compiled(lambda c: Cell(words.ratio(c.flop_imbalance)))),
    ("bubble", "derived", _of_compiled(_bubble)),
    ("weights read per step", "derived",
     _of_compiled(lambda c: _read(c.weight_bytes) if c.reads_cache else None)),
    ("KV cache read per step", "derived",
     _of_compiled(lambda c: _read(c.kv_cache_bytes) if c.reads_cache else None)),
    ("padded with zero layers", "derived", _of_compiled(_padded)),
    ("tokens/s", "modelled", _of_prediction(_throughput)),
    ("step", "modelled", _of_prediction(_step)),
    ("step, 80 % error bar", "modelled", _of_prediction(_bar)),
    *((f"- {name}", "modelled", _share(name)) for name in _TERMS),
    ("MFU", "modelled", _of_prediction(lambda p: words.percent(p.mfu.value) if p.mfu else None)),
    ("energy per token", "modelled", _of_prediction(_energy)),
    ("step, analytical model", "modelled", _of_prediction(_analytical)),
    ("roofline step", "modelled", _bound_step),
    ("set by", "modelled", _bound_by),
    ("roofline throughput", "modelled", _bound_tokens),
    ("step here, 95 % CI", "measured", _measured),
    ("slowest process here", "measured", _slowest),
    ("energy per token here", "measured", _measured_energy),
)  # fmt: skip
