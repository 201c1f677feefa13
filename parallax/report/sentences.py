"""The sentences of a report: why a strategy fails, what is assumed, what was not run."""

from collections.abc import Iterable, Mapping

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.report import words
from parallax.results.lens_results import ProcessTime, StrategyResult, Verification
from parallax.workload import Workload


def failure_reasons(result: StrategyResult) -> tuple[str, ...]:
    """Return each reason for which this strategy makes the exit status 1."""
    reasons = [
        f"{result.name} cannot run {', '.join(lenses)}: {words.one_line(why).rstrip('.')}"
        for why, lenses in _by_reason(result.refused).items()
    ]
    verification, compilation = result.verification, result.compilation
    if verification is not None and not verification.exact:
        dtypes = ", ".join(row.dtype for row in verification.rows if not row.passed)
        reasons.append(f"{result.name} is not exact in {dtypes or 'its greedy tokens'}")
    if compilation is not None and not compilation.memory.fits:
        memory = compilation.memory
        excess = memory.total_bytes - memory.usable_bytes
        reasons.append(
            f"{result.name} does not fit: {words.in_bytes(memory.total_bytes)} per device, "
            f"{words.in_bytes(excess)} more than the usable {words.in_bytes(memory.usable_bytes)}"
            + (f"; {result.knob}" if result.knob else "")
        )
    if compilation is not None:
        reasons += [
            f"{result.name} moves {words.in_bytes(d.found_bytes)} by {d.kind} over "
            f"{words.axes_name(d.axes) or 'all axes'}, its {d.witness} says "
            f"{words.in_bytes(d.expected_bytes)}"
            for d in compilation.differences
        ]
    return tuple(reasons)


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each reason with the lenses that it keeps from running."""
    lenses: dict[str, list[str]] = {}
    for lens, why in refused.items():
        lenses.setdefault(why, []).append(lens)
    return lenses


def describe_model(config: ModelConfig) -> str:
    """Return a model's sizes in one line."""
    heads = f"{words.counted(config.num_heads, 'head')} of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads} key/value)"
    if config.latent is not None:
        heads += f", from latents of {config.latent.cached}"
    stored = ""
    if config.compression is not None:
        attention, mlp = config.compression
        stored = f", compressed: attention {attention}, MLP {mlp}, not the dense model's function"
    number = config.num_params
    of_model = f"{words.digits(number / 1e9)}B" if number >= 1e7 else words.digits(number)
    return (
        f"{config.name}: {words.counted(config.num_layers, 'layer')}, "
        f"width {config.d_model:,}, {heads}, MLP {config.d_ff:,}, {config.dtype}, "
        f"{of_model} parameters"
        f"{stored}"
    )


def phase_of(results: Iterable[StrategyResult]) -> str:
    """Return the phase that was compiled; "prefill" if nothing was."""
    return next((r.compilation.phase for r in results if r.compilation is not None), "prefill")


def describe_workload(workload: Workload) -> str:
    """Return batch, length and microbatches in one line."""
    packed = ", packed" if workload.packed else ""
    return (
        f"{words.tokens(workload.batch, workload.seq_len)}, "
        f"{words.counted(workload.microbatches, 'microbatch', 'microbatches')}{packed}"
    )


def describe_verification(results: tuple[StrategyResult, ...], config: ModelConfig) -> str:
    """Return what the exactness figures were measured on; "" if nothing was verified."""
    v = next((r.verification for r in results if r.verification), None)
    if v is None:
        return ""
    return (
        f"Exactness was measured on {v.model}, {describe_workload(v.workload)}, on "
        f"{words.counted(v.devices, f'{v.platform} device')}, text: {v.text}; logit RMS "
        f"{words.digits(v.logit_rms, 2)}; relative L2 against the unsharded model in float64"
        f"{_replayed(v, config)}."
    )


def _replayed(v: Verification, config: ModelConfig) -> str:
    lower = [row.dtype for row in v.rows if row.dtype != "float64"]
    if not (config.num_experts and lower):
        return ""
    return f"; in {' and '.join(lower)} tokens go to the experts chosen in float64"


def describe_measurement(results: tuple[StrategyResult, ...]) -> str:
    """Return what the measured steps ran on; "" if nothing was measured."""
    m = next((r.measurement for r in results if r.measurement), None)
    if m is None:
        return ""
    text = (
        f"Steps were timed on {words.counted(m.devices, f'{m.device} device')}: {m.model}, "
        f"{describe_workload(m.workload)}, {words.counted(m.repeats, 'repeat')}."
    )
    if "cpu" in m.device.lower():
        text += " Virtual CPU devices say nothing about which strategy is faster on GPUs."
    if m.processes:
        text += " A step is over when all processes are done; by their own clocks: "
        slowest = (
            f"{r.name}, {slowest_process(r.measurement.processes)}"
            for r in results
            if r.measurement
        )
        text += "; ".join(slowest) + "."
    said = (
        f" {r.name}: {words.one_line(note).rstrip('.')}."
        for r in results
        if r.measurement
        for note in r.measurement.notes
    )
    return text + "".join(said)


def slowest_process(times: tuple[ProcessTime, ...]) -> str:
    """Return the process with the longest mean time, beside the least; "" for one process."""
    if not times:
        return ""
    slowest = max(times, key=lambda time: time.step_s.value)
    least = min(times, key=lambda time: time.step_s.value)
    low, high = slowest.step_s.low, least.step_s.high
    alike = low is None or high is None or low <= high
    return (
        f"slowest of {len(times)}: process {slowest.process} ({slowest.host}), "
        f"{words.in_seconds(slowest.step_s.value)} (least: {words.in_seconds(least.step_s.value)}"
        f"{'; the intervals overlap' if alike else ''})"
    )


def assumption_lines(paper: Paper | None) -> tuple[str, ...]:
    """Return each assumption of a paper as "name: value"."""
    return () if paper is None else tuple(f"{a.name}: {a.value}" for a in paper.assumptions)


def not_run(
    config: ModelConfig,
    results: tuple[StrategyResult, ...],
    paper: Paper | None,
    lenses: tuple[str, ...],
):
    """Return what was left out of this run, and why, one line each."""
    lines = []
    if paper is not None and paper.compression and config.compression is None:
        formats = ",".join(paper.compression)
        lines.append(
            "The paper's method stores its weights compressed, which changes the function: ask "
            f"for it with --compression={formats}."
        )
    left_out = [lens for lens in words.LENSES if lens not in lenses]
    if left_out:
        lines.append(f"Lenses not asked for: {', '.join(left_out)} (--lenses).")
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for lens, why in result.skipped.items():
            reasons.setdefault((lens, why), []).append(result.name)
    for (lens, why), names in reasons.items():
        who = "" if len(names) == len(results) else f" for {', '.join(names)}"
        lines.append(f"{lens} did not run{who}: {words.one_line(why)}")
    return tuple(lines)


def notes(results: tuple[StrategyResult, ...]) -> tuple[str, ...]:
    """Return what a reader must know beside the compiled figures."""
    return tuple(
        f"{r.name}: {words.one_line(note)}"
        for r in results
        if r.compilation
        for note in r.compilation.notes
    )
