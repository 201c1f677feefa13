"""The ranking of ways to train: all by the analytical model, the best again as programs."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from parallax.cost import Rates, error_bar, joules, rates_for
from parallax.cost.totals import unvalidated
from parallax.lenses.child import Progress
from parallax.lenses.children import each_in_children
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import predict
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.programs.steps import make_step
from parallax.results.lens_results import Compilation, Figure
from parallax.search.candidates import candidates
from parallax.search.reasons import short, why_not_train
from parallax.search.train_choices import Choice, LayoutChoices
from parallax.search.train_layouts import layouts
from parallax.search.train_results import (
    TrainCandidate,
    TrainSearch,
    TrainSearchRequest,
    TrainTiming,
)
from parallax.strategy import Strategy
from parallax.workload import Workload

# Strategies are left out if a lower bound of their score is over so many times the best.
_WORTH = 1.2
# How many times the best are compiled, the next ones if no program of the first ones fits.
_TRIES = 3


def rank_training(
    request: TrainSearchRequest,
    cluster: Cluster,
    *,
    rates: Rates | None = None,
    compile_top: int = 1,
    on_progress: Progress = lambda line: None,
) -> TrainSearch:
    """Rank the ways to train, best first: one candidate per strategy and way to shard its weights.

    Args:
      request: the model, its batch and the objective.
      cluster: the cluster that the request names.
      rates: cost model constants; None uses those shipped for the GPU.
      compile_top: number of the best candidates to compile and rank again; 0 compiles none.
      on_progress: called with lines about long work.

    Raises:
      ValueError: no strategy can split this model and batch over the cluster.
    """
    rates = rates_for(cluster, rates)
    start = time.perf_counter()
    usable = min(request.max_bytes or cluster.usable_bytes, cluster.usable_bytes)
    choices = LayoutChoices(request, cluster, rates, usable)
    ranked, refused = _all_estimated(choices, on_progress)
    if not ranked:
        raise ValueError(_none_splits(request, cluster, refused))
    ranked.sort(key=lambda c: _key(request, c))
    seconds = {"ranking": time.perf_counter() - start}
    start = time.perf_counter()
    again: list[TrainCandidate] = []
    for _ in range(_TRIES):
        top = [c for c in ranked[len(again) :][:compile_top] if c.fits]
        again += _compiled(request, top, cluster, rates, usable, on_progress) if top else ()
        if not top or any(c.fits for c in again):
            break
    if again:
        seconds["compiling"] = time.perf_counter() - start
        # Compiled candidates come before the others: the two kinds of times are never compared.
        ranked = sorted(again, key=lambda c: _key(request, c)) + ranked[len(again) :]
        ranked.sort(key=lambda c: not c.fits)
    first = ranked[0]
    ranked = [replace(c, why=why_not_train(request, usable, c, first)) for c in ranked]
    return TrainSearch(
        request, tuple(ranked), choices.considered, choices.estimated, dict(refused), seconds
    )


def _all_estimated(
    choices: LayoutChoices, on_progress: Progress
) -> tuple[list[TrainCandidate], Counter[str]]:
    """Return the best candidate of each layout, most promising strategies first.

    Also count why others cannot run, and those that a lower bound rules out.
    """
    request, found = choices.request, []
    refused: Counter[str] = Counter()
    bounded: list[tuple[float, Strategy]] = []
    on_progress("lower bounds")
    for strategy in candidates(request.model, choices.cluster, request.batch):
        able = strategy.replace(kernels=request.kernels)
        try:
            bounded.append((choices.bound(able), able))
        except (ValueError, NotImplementedError) as error:
            refused[short(str(error))] += 1
    bounded.sort(key=lambda pair: pair[0])
    first = math.inf
    for number, (bound, strategy) in enumerate(bounded):
        if bound > _WORTH * first:
            refused[f"more than {_WORTH:g} times the first by a lower bound"] = (
                len(bounded) - number
            )
            break
        if number and not number % 20:
            on_progress(f"{number} of at most {len(bounded)} strategies estimated")
        for layout in layouts(strategy, choices.cluster):
            try:
                best = min(choices.of(layout), key=lambda c: _choice_key(choices, c))
            except (ValueError, NotImplementedError) as error:
                refused[short(str(error))] += 1
                continue
            found.append(_candidate(choices, best))
            if best.cost is not None:
                first = min(first, choices.score(best.cost))
    return found, refused


def _choice_key(choices: LayoutChoices, choice: Choice) -> tuple[bool, float]:
    if choice.cost is None:
        return True, choice.memory.total
    return False, choices.score(choice.cost)


def _key(request: TrainSearchRequest, c: TrainCandidate) -> tuple:
    if not c.fits:
        return True, c.timing.memory_bytes.value
    return False, c.timing.score(request.objective)


def _candidate(choices: LayoutChoices, choice: Choice) -> TrainCandidate:
    step = choice.step
    if choice.cost is None:
        choice = choices.priced(choice)
    cost, parts = choice.cost, choice.parts
    assert cost is not None
    assert parts is not None
    low, high = error_bar(cost, choices.rates)
    between = cost.network_s > 0 and not choices.rates.measured_between_nodes
    timing = _timing(
        choices.request, choices.cluster, step.useful_flops(),
        Figure(cost.seconds, "s", "modelled", low, high),
        joules(cost, choices.rates) * choices.cluster.devices,
        Figure(choice.memory.total, "B", "derived"), cost.terms,
        unvalidated(parts.work, crosses_nodes=between),
    )  # fmt: skip
    return TrainCandidate(
        step.strategy, step.workload.microbatches, step.program.remat, timing,
        choice.memory.total <= choices.usable, choice.memory._asdict(), choice.bubble, choice.kept,
    )  # fmt: skip


def _timing(
    request: TrainSearchRequest, cluster: Cluster, useful_flops: float | None, step_s: Figure,
    energy: float, memory: Figure, terms, unvalidated: str,
) -> TrainTiming:  # fmt: skip
    tokens = request.batch * request.seq_len
    peak = cluster.gpu.peak_flops(request.model.dtype) * cluster.devices
    rate = Figure(
        tokens / step_s.value, "tokens/s", "modelled",
        step_s.high and tokens / step_s.high, step_s.low and tokens / step_s.low,
    )  # fmt: skip
    return TrainTiming(
        step_s, rate, Figure(energy / tokens, "J", "modelled"),
        Figure((useful_flops or 0.0) / (step_s.value * peak), "1", "modelled"), memory, dict(terms),
        unvalidated,
    )  # fmt: skip


def _compiled(
    request: TrainSearchRequest,
    top: Sequence[TrainCandidate],
    cluster: Cluster,
    rates: Rates,
    usable: float,
    on_progress: Progress,
) -> Iterator[TrainCandidate]:
    """Compile the best candidates in child processes, and time their programs by the model."""
    cases = [
        (c.strategy, Workload(request.batch, request.seq_len, c.microbatches), c.remat) for c in top
    ]
    programs = each_in_children(
        compile_training, cases, request.model, cluster,
        environment=compile_environment(), on_progress=lambda line: on_progress(f"compile {line}"),
    )  # fmt: skip
    for candidate, (strategy, workload, _), program in zip(top, cases, programs, strict=True):
        step = make_step(request.model, strategy, workload, "train", candidate.remat)
        found = predict(program, cluster, request.model.dtype, rates)
        memory = program.memory.total_bytes
        timing = _timing(
            request, cluster, step.useful_flops(), found.step_s, found.energy_j.value,
            Figure(memory, "B", "compiled"), found.terms_s, found.unvalidated,
        )  # fmt: skip
        yield replace(candidate, compiled=timing, fits=memory <= usable)


def compile_training(
    case: tuple[Strategy, Workload, Remat], model: ModelConfig, cluster: Cluster, *,
    on_progress: Progress,
) -> Compilation:  # fmt: skip
    """Compile the training step of a case, in this process."""
    strategy, workload, remat = case
    on_progress(f"{strategy.name} {strategy.mesh}")
    return compile_program(
        model, strategy, workload, cluster, "train", remat, on_progress=lambda line: None
    )


def _none_splits(
    request: TrainSearchRequest, cluster: Cluster, refused: Counter[str]
) -> str:  # fmt: skip
    reasons = "; ".join(f"{n}x {why}" for why, n in refused.most_common(3))
    return (
        f"no strategy splits --batch={request.batch} sequences of --seq_len={request.seq_len} "
        f"tokens of '{request.model.name}' over {cluster.devices} devices of "
        f"--cluster={cluster.name}: {reasons or 'none was made'}. Use a batch, or sequences, that "
        "a power of two close to the number of devices divides, or another cluster."
    )
