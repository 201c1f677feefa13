"""What has to be said in words: why a strategy fails, what is assumed, what was not run."""

from collections.abc import Iterable, Mapping

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.report import words
from parallax.results.lens_results import StrategyResult
from parallax.workload import Workload


def failure_reasons(result: StrategyResult) -> tuple[str, ...]:
    """Each reason why this strategy makes the exit status 1."""
    found = [
        f"{result.name} cannot run {', '.join(lenses)}: {words.one_line(why).rstrip('.')}"
        for why, lenses in _by_reason(result.refused).items()
    ]
    verification, compilation = result.verification, result.compilation
    if verification is not None and not verification.exact:
        dtypes = ", ".join(row.dtype for row in verification.rows if not row.passed)
        found.append(f"{result.name} is not exact in {dtypes or 'its greedy tokens'}")
    if compilation is not None and not compilation.memory.fits:
        memory = compilation.memory
        excess = memory.total_bytes - memory.usable_bytes
        found.append(
            f"{result.name} does not fit: {words.in_bytes(memory.total_bytes)} a device, "
            f"{words.in_bytes(excess)} more than the usable {words.in_bytes(memory.usable_bytes)}"
        )
    if compilation is not None:
        found += [
            f"{result.name} moves {words.in_bytes(d.found_bytes)} by {d.kind} over "
            f"{words.axes_name(d.axes) or 'all axes'}, its {d.witness} says "
            f"{words.in_bytes(d.expected_bytes)}"
            for d in compilation.differences
        ]
    return tuple(found)


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the lenses that it keeps from running."""
    found: dict[str, list[str]] = {}
    for lens, why in refused.items():
        found.setdefault(why, []).append(lens)
    return found


def describe_model(config: ModelConfig) -> str:
    """Sizes in one line."""
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f" ({config.num_kv_heads} key/value)"
    stored = ""
    if config.compression is not None:
        attention, mlp = config.compression
        stored = f", compressed: attention {attention}, MLP {mlp}, not the dense model's function"
    return (
        f"{config.name}: {config.num_layers} layers, width {config.d_model:,}, {heads}, "
        f"MLP {config.d_ff:,}, {config.dtype}, {words.digits(config.num_params / 1e9)}B parameters"
        f"{stored}"
    )


def phase_of(results: Iterable[StrategyResult]) -> str:
    """What was compiled; "prefill" if nothing was."""
    return next((r.compilation.phase for r in results if r.compilation is not None), "prefill")


def describe_workload(workload: Workload) -> str:
    """Batch, length and microbatches in one line."""
    packed = ", packed" if workload.packed else ""
    return (
        f"{words.tokens(workload.batch, workload.seq_len)}, "
        f"{workload.microbatches} microbatches{packed}"
    )


def describe_verification(results: tuple[StrategyResult, ...]) -> str:
    """What the exactness figures were measured on; "" if nothing was."""
    found = next((r.verification for r in results if r.verification), None)
    if found is None:
        return ""
    return (
        f"Exactness was measured on {found.model}, {describe_workload(found.workload)}, on "
        f"{found.devices} {found.platform} devices, text: {found.text}; logit RMS "
        f"{words.digits(found.logit_rms, 2)}; relative L2 against the unsharded model in float64."
    )


def describe_measurement(results: tuple[StrategyResult, ...]) -> str:
    """What the measured steps ran on; "" if nothing was measured."""
    found = next((r.measurement for r in results if r.measurement), None)
    if found is None:
        return ""
    text = (
        f"Steps were timed on {found.devices} {found.device} devices: {found.model}, "
        f"{describe_workload(found.workload)}, {found.repeats} repeats."
    )
    if "cpu" in found.device.lower():
        text += " Virtual CPU devices say nothing about which strategy is faster on GPUs."
    return text


def assumption_lines(paper: Paper | None) -> tuple[str, ...]:
    """Each assumption as "name: value"."""
    return () if paper is None else tuple(f"{a.name}: {a.value}" for a in paper.assumptions)


def not_run(
    config: ModelConfig,
    results: tuple[StrategyResult, ...],
    paper: Paper | None,
    lenses: tuple[str, ...],
):
    """What was left out of this run, and why, one line each.

    Returns:
      A tuple of lines.
    """
    found = []
    if paper is not None and paper.compression and config.compression is None:
        formats = ",".join(paper.compression)
        found.append(
            "The paper's method stores its weights compressed, which changes the function: ask "
            f"for it with --compression={formats}."
        )
    left_out = [lens for lens in words.LENSES if lens not in lenses]
    if left_out:
        found.append(f"Lenses not asked for: {', '.join(left_out)} (--lenses).")
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for lens, why in result.skipped.items():
            reasons.setdefault((lens, why), []).append(result.name)
    for (lens, why), names in reasons.items():
        who = "" if len(names) == len(results) else f" for {', '.join(names)}"
        found.append(f"{lens} did not run{who}: {words.one_line(why)}")
    return tuple(found)


def notes(results: tuple[StrategyResult, ...]) -> tuple[str, ...]:
    """What a reader must know beside the compiled figures."""
    return tuple(
        f"{r.name}: {words.one_line(note)}"
        for r in results
        if r.compilation
        for note in r.compilation.notes
    )
