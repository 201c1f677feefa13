"""The ranking of candidates: all by the analytical model, the best again as compiled programs."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from parallax.analytic import Estimate, estimate, estimate_bytes
from parallax.cost import Rates, error_bar, joules, rates_for
from parallax.cost.totals import unvalidated
from parallax.lenses.child import Progress
from parallax.lenses.children import each_in_children
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import predict
from parallax.meshes.cluster import Cluster
from parallax.parallel.stage_layers import padded_layers
from parallax.programs.cache import batch_multiple, prompt_multiple
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Decoding, Prefill
from parallax.results.lens_results import Compilation, Figure
from parallax.search.candidates import ALL_UP_TO, candidates
from parallax.search.fitting import fitting_knob
from parallax.search.reasons import short, why_not
from parallax.search.results import Candidate, Search, SearchRequest, Timing
from parallax.strategy import Strategy
from parallax.workload import Workload


def rank(
    request: SearchRequest,
    cluster: Cluster,
    *,
    rates: Rates | None = None,
    compile_top: int = 5,
    on_progress: Progress = lambda line: None,
) -> Search:
    """Rank all candidates, best first.

    Args:
      request: the model and workload served, and the objective.
      cluster: the cluster that the request names.
      rates: cost model constants; None uses those shipped for the GPU.
      compile_top: number of the best candidates to compile and rank again; 0 compiles none.
      on_progress: called with lines about long work.

    Raises:
      ValueError: no strategy can split this model and workload over the cluster.
    """
    rates = rates_for(cluster, rates)
    start = time.perf_counter()
    ranked, refused = _all_estimated(request, cluster, rates, on_progress)
    if not ranked:
        reasons = "; ".join(f"{n}x {why}" for why, n in refused.most_common(3))
        raise ValueError(
            f"no strategy splits {request.batch} x {request.prompt_len} tokens of "
            f"'{request.model.name}' over {cluster.devices} devices: {reasons or 'none was made'}."
        )
    ranked.sort(key=lambda c: _key(request, c))
    seconds = {"ranking": time.perf_counter() - start}
    top = [c for c in ranked[:compile_top] if c.fits]
    if top:
        start = time.perf_counter()
        again = _compiled(request, top, cluster, rates, on_progress)
        seconds["compiling"] = time.perf_counter() - start
        # Compiled candidates come before the others: the two kinds of times are never compared.
        ranked = sorted(again, key=lambda c: _key(request, c)) + ranked[len(top) :]
        ranked.sort(key=lambda c: not c.fits or _too_slow(request, c))
    first = ranked[0]
    ranked = [replace(c, why=why_not(request, cluster, c, first)) for c in ranked]
    if not first.fits:
        ranked[0] = _with_knob(request, first, ranked[0].why, cluster)
    notes = ()
    if first.strategy.mesh.size > ALL_UP_TO:
        notes = (f"Over {ALL_UP_TO} devices two_level is tried only beyond the key/value heads.",)
    return Search(request, tuple(ranked), len(ranked), dict(refused), seconds, notes)


def _all_estimated(
    request: SearchRequest, cluster: Cluster, rates: Rates, on_progress: Progress
) -> tuple[list[Candidate], Counter[str]]:
    """Estimate each strategy at its best number of microbatches; count why others cannot run."""
    estimated: list[Candidate] = []
    refused: Counter[str] = Counter()
    every = (
        (request.stored(formats), strategy.replace(kernels=request.kernels))
        for formats in request.compressions
        for strategy in candidates(request.model, cluster, request.batch)
    )
    for number, (asked, strategy) in enumerate(every):
        if number and not number % 200:
            on_progress(f"{number} candidates estimated")
        best: Candidate | None = None
        try:
            for one in _estimated(asked, strategy, cluster, rates):
                better = best is None or _key(request, one) < _key(request, best)
                best = one if better else best
        except (ValueError, NotImplementedError) as error:
            # An earlier estimate, with fewer microbatches, stays valid.
            if best is None:
                refused[short(str(error))] += 1
        if best is not None:
            estimated.append(best)
    return estimated, refused


def _with_knob(request: SearchRequest, nearest: Candidate, why: str, cluster: Cluster) -> Candidate:
    """Say of the first of candidates that do not fit what would make it fit."""
    model = request.stored(nearest.compression).model
    workload = Workload(*nearest.runs, nearest.microbatches)
    knob = fitting_knob(model, nearest.strategy, workload, cluster, "decode")
    return replace(nearest, why=f"{why}; {knob}")


def _key(request: SearchRequest, c: Candidate) -> tuple:
    return not c.fits, _too_slow(request, c), c.timing.score(request.objective)


def _too_slow(request: SearchRequest, c: Candidate) -> bool:
    tpot = c.timing.tpot_s
    return request.max_tpot_s is not None and tpot is not None and tpot.value > request.max_tpot_s


def _workload(request: SearchRequest, strategy: Strategy, microbatches: int) -> Workload:
    """Return the workload, with prompts and batch padded to multiples that the strategy splits."""
    length = -(-request.prompt_len // prompt_multiple(strategy)) * prompt_multiple(strategy)
    batch = -(-request.batch // batch_multiple(strategy)) * batch_multiple(strategy)
    return Workload(batch, length, microbatches)


def _estimated(
    request: SearchRequest, strategy: Strategy, cluster: Cluster, rates: Rates
) -> Iterator[Candidate]:
    """Yield a strategy with each number of microbatches worth trying."""
    base = _workload(request, strategy, 1)
    split = strategy.split()
    local = base.batch // split.count("act_batch")
    stages = split.count("layers")
    choices = [m for m in _doubling(local) if local % m == 0]
    decoder, step = None, None
    for microbatches in choices:
        if stages > 1 and microbatches < min(stages, local):
            continue  # fewer only leave stages idle
        workload = replace(base, microbatches=microbatches)
        sharded = ShardedTransformer(request.model, strategy, workload)
        if decoder is None and request.output_len > 1:
            decoder = Decoder(sharded, new_tokens=request.output_len)
            step = estimate(Decoding(decoder), cluster, rates=rates)
        prefill = estimate(Prefill(sharded), cluster, rates=rates)
        memory = estimate_bytes(sharded, decoder)
        timing = _timing(request, workload, prefill, step, memory, cluster, rates)
        ticks = strategy.layers.ticks(microbatches, stages)
        groups = sharded.groups
        one = Candidate(
            strategy, microbatches, timing, memory <= cluster.usable_bytes,
            bubble=ticks / strategy.layers.microbatch_groups(microbatches, stages) - 1,
            padded=padded_layers(groups) / (len(groups) * max(groups)),
            runs=(base.batch, base.seq_len),
            compression=request.model.compression,
        )  # fmt: skip
        yield one
        if stages == 1 and one.fits:
            return  # more microbatches only save memory


def _doubling(limit: int) -> Iterator[int]:
    m = 1
    while m <= limit:
        yield m
        m *= 2


def _timing(
    request: SearchRequest,
    workload: Workload,
    prefill: Estimate,
    step: Estimate | None,
    memory: float,
    cluster: Cluster,
    rates: Rates,
) -> Timing:
    def seconds(estimated: Estimate) -> Figure:
        low, high = error_bar(estimated.cost, rates)
        return Figure(estimated.cost.seconds, "s", "modelled", low, high)

    ttft, tpot = seconds(prefill), step and seconds(step)
    terms = dict(prefill.cost.terms)
    energy = joules(prefill.cost, rates) * cluster.devices
    if step is not None:
        times = request.output_len - 1
        for name, value in step.cost.terms.items():
            terms[name] = terms.get(name, 0.0) + value * times
        energy += joules(step.cost, rates) * cluster.devices * times
    between = prefill.cost.network_s + (step.cost.network_s if step else 0.0) > 0
    between &= not rates.measured_between_nodes
    works = [prefill.work] if step is None else [prefill.work, step.work]
    parts = unvalidated(*works, crosses_nodes=between)
    return _combine(request, ttft, tpot, energy, memory, "derived", terms, parts)


def _combine(
    request: SearchRequest, ttft: Figure, tpot: Figure | None, energy: float, memory: float, tag,
    terms: dict[str, float], unvalidated: str,
) -> Timing:  # fmt: skip
    """Combine the figures of a whole request: a prefill, and a step for every further token."""
    tokens = request.batch * request.output_len

    def whole(ttft_s: float, tpot_s: float) -> float:
        return ttft_s + (request.output_len - 1) * tpot_s

    def rate_at(ttft_s: float | None, tpot_s: float | None) -> float | None:
        return None if ttft_s is None or tpot_s is None else tokens / whole(ttft_s, tpot_s)

    step = tpot or Figure(0.0, "s", "modelled", 0.0, 0.0)
    rate = Figure(
        tokens / whole(ttft.value, step.value), "tokens/s", "modelled",
        rate_at(ttft.high, step.high), rate_at(ttft.low, step.low),
    )  # fmt: skip
    return Timing(
        ttft, tpot, rate, Figure(energy / tokens, "J", "modelled"), Figure(memory, "B", tag), terms,
        unvalidated,
    )  # fmt: skip


def _compiled(
    request: SearchRequest,
    top: Sequence[Candidate],
    cluster: Cluster,
    rates: Rates,
    on_progress: Progress,
) -> list[Candidate]:
    """Compile the best candidates in child processes, and time their programs by the model."""
    cases = [
        (request.stored(c.compression), c.strategy, _workload(request, c.strategy, c.microbatches))
        for c in top
    ]
    programs = each_in_children(
        compile_case, cases, cluster,
        environment=compile_environment(), on_progress=lambda line: on_progress(f"compile {line}"),
    )  # fmt: skip
    timed = []
    for candidate, (prefill, step) in zip(top, programs, strict=True):
        dtype = request.model.dtype
        first = predict(prefill, cluster, dtype, rates)
        later = None if step is None else predict(step, cluster, dtype, rates)
        model = request.stored(candidate.compression).model
        sharded = ShardedTransformer(model, candidate.strategy, prefill.workload)
        memory = _memory(request, sharded, prefill, step)
        terms = dict(first.terms_s)
        energy = first.energy_j.value
        if later is not None:
            times = request.output_len - 1
            for name, value in later.terms_s.items():
                terms[name] = terms.get(name, 0.0) + value * times
            energy += later.energy_j.value * times
        timing = _combine(
            request, first.step_s, later and later.step_s, energy, memory, "compiled", terms,
            first.unvalidated or (later.unvalidated if later else ""),
        )  # fmt: skip
        timed.append(replace(candidate, compiled=timing, fits=memory <= cluster.usable_bytes))
    return timed


def _memory(
    request: SearchRequest,
    sharded: ShardedTransformer,
    prefill: Compilation,
    step: Compilation | None,
) -> float:
    """Return the bytes of the larger program; a prefill keeps the whole cache beside it."""
    if step is None:
        return prefill.memory.total_bytes
    cache = Decoder(sharded, new_tokens=request.output_len).kv_bytes()
    return max(prefill.memory.total_bytes + cache, step.memory.total_bytes)


def compile_case(
    case: tuple[SearchRequest, Strategy, Workload], cluster: Cluster, *, on_progress: Progress
) -> tuple[Compilation, Compilation | None]:
    """Compile the prefill and the decoding step of a case, in this process."""
    request, strategy, workload = case
    on_progress(f"{strategy.name} {strategy.mesh}")
    args = request.model, strategy, workload, cluster
    prefill = compile_program(*args, "prefill", on_progress=lambda line: None)
    step = None
    if request.output_len > 1:
        step = compile_program(*args, "decode", on_progress=lambda line: None)
    return prefill, step
