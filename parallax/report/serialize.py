"""The report as plain data: every number with its unit and tag (docs/report_schema.md)."""

from parallax.codec import encode, number
from parallax.papers.paper import Paper
from parallax.papers.results import Audited
from parallax.report.claims import claim_sentences
from parallax.report.columns import Column, Json, table
from parallax.report.comparison import Comparison
from parallax.report.exposure import exposure
from parallax.report.ledger_rows import LedgerRow, ledger_rows
from parallax.report.profile_section import profile_to_dict
from parallax.report.recorded import section_to_dict
from parallax.report.request import SCHEMA_VERSION
from parallax.report.sections import sections
from parallax.report.sentences import failure_reasons, not_run
from parallax.report.validation import verdicts
from parallax.results.lens_results import (
    TAGS,
    Compilation,
    Exactness,
    Figure,
    Measurement,
    Prediction,
    StrategyResult,
    TimelineEvent,
    Verification,
)
from parallax.results.sweep_results import PointFigures, Sweep, SweepPoint
from parallax.results.training_facts import TrainingFacts


def report_to_dict(report: Comparison) -> Json:
    """Return everything in the report as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "request": dict(report.request),
        "versions": dict(report.versions),
        "seconds": number(report.seconds, "s", "measured"),
        "answer": report.answer,
        "failed": report.failed,
        "exit_status": report.exit_status,
        "failures": [line for r in report.results for line in failure_reasons(r)]
        + list(report.sweep.failures if report.sweep else ()),
        "tags": TAGS,
        "paper": None if report.paper is None else _paper(report, report.paper),
        "model": encode(report.config),
        "workload": encode(report.workload),
        "cluster": report.cluster,
        "lenses": list(report.lenses),
        "results": [_result(r) for r in report.results],
        "sweep": report.sweep and _sweep(report.sweep),
        "sections": [section_to_dict(s) for s in sections(report)],
        "not_run": list(not_run(report.config, report.results, report.paper, report.lenses)),
    }


def _figure(figure: Figure) -> Json:
    bounds = {"low": figure.low, "high": figure.high, "note": figure.note}
    given = {name: value for name, value in bounds.items() if value not in (None, "")}
    return number(figure.value, figure.unit, figure.tag) | given


def _axes(axes: tuple[str, ...] | None) -> list[str] | None:
    return None if axes is None else list(axes)


def _paper(report: Comparison, paper: Paper) -> Json:
    run = (paper, report.config, report.workload, report.cluster, report.results)
    audited = {a.claim: a for a in report.findings.audited}
    claims = [
        number(s.claim.value, s.claim.unit, "claimed")
        | {"strategy": s.claim.strategy, "quantity": s.claim.quantity}
        | {"reading": s.claim.reading, "reading_in_words": s.reading, "note": s.claim.reason}
        | {"finding": s.finding, "above_modelled_bound": s.contradicted}
        | {"verdict": audited[s.claim].verdict, "lines": ", ".join(map(str, s.claim.lines))}
        | {"derived": _derived(audited[s.claim])}
        for s in claim_sentences(*run)
    ]
    return {
        "name": paper.name,
        "title": paper.title,
        "claims": claims,
        "assumptions": [encode(a) | {"tag": "assumed"} for a in paper.assumptions],
        "validation_points": [encode(v) for v in verdicts(*run, report.findings.scale)],
    }


def _derived(a: Audited) -> Json | None:
    return None if a.derived is None else number(a.derived, a.claim.unit, "derived")


def _sweep(sweep: Sweep) -> Json:
    return {
        "axis": sweep.axis,
        "values": list(sweep.values),
        "constant": sweep.constant,
        "points": [_point(point, sweep) for point in sweep.points],
    }


def _point(point: SweepPoint, sweep: Sweep) -> Json:
    figures = point.found
    return {
        "strategy": point.strategy,
        "value": point.value,
        "cluster": point.cluster,
        "mesh": point.mesh,
        "workload": point.workload and encode(point.workload),
        "why_not": point.why_not,
        "found": figures and _point_figures(figures),
    }


def _point_figures(point: PointFigures) -> Json:
    figures = ("memory", "usable", "wire", "minimum", "ratio", "gemm_flops", "step", "tokens_per_s")
    values = {name: getattr(point, name) for name in figures}
    return {name: figure and _figure(figure) for name, figure in values.items()} | {
        "fits": point.fits,
        "bound": point.bound,
        "ledger_matches": point.ledger_matches,
        "notes": list(point.notes),
        "unvalidated": point.unvalidated,
    }


def _result(result: StrategyResult) -> Json:
    return {
        "name": result.name,
        "strategy": result.strategy,
        "description": result.description,
        "failed": result.failed,
        "verify": result.verification and _verification(result.verification),
        "compile": result.compilation and _compilation(result.compilation),
        "predict": result.prediction and _prediction(result.prediction),
        "measure": result.measurement and _measurement(result.measurement),
        "training": result.training and _training(result.training, result),
        "knob": result.knob,
        "skipped": result.skipped,
        "refused": result.refused,
    }


def _training(t: TrainingFacts, result: StrategyResult) -> Json:
    """Return how a strategy trains, with the parts of its memory."""
    parts = {"parameters": t.parameter_bytes, "optimizer": t.optimizer_bytes}
    memory = {
        name: number(size, "B", "derived")
        for name, size in (parts | {"gradients": t.gradient_bytes}).items()
    }
    if result.compilation is not None:
        rest = t.rest_of(result.compilation.memory.total_bytes)
        memory["rest"] = number(rest, "B", "compiled")
    s = t.schedule
    return {
        "weights": list(t.weights),
        "gather": t.gather,
        "optimizer": list(t.optimizer),
        "remat": t.remat,
        "microbatches": number(t.microbatches, "1", "derived"),
        "schedule": s
        and {
            "name": s.name,
            "stages": number(s.stages, "1", "derived"),
            "virtual_stages": number(s.virtual_stages, "1", "derived"),
            "ticks": number(len(s.rows), "1", "derived"),
            "bubble": number(s.bubble, "1", "derived"),
            "peak_in_flight": number(s.peak_in_flight, "1", "derived"),
            "handoffs": number(s.handoffs, "1", "derived"),
        },
        "memory": memory,
        "knob": result.knob,
    }


_EXACTNESS: tuple[Column, ...] = (
    ("dtype", None, None, lambda x: x.dtype),
    ("logits_error", "1", "measured", lambda x: x.logits_error),
    ("logits_limit", "1", "derived", lambda x: x.logits_limit),
    ("gradients_error", "1", "measured", lambda x: x.gradients_error),
    ("gradients_limit", "1", "derived", lambda x: x.gradients_limit),
    ("reference_error", "1", "measured", lambda x: x.reference_error),
    ("passed", None, None, lambda x: x.passed),
)


def _verification(v: Verification) -> Json:
    rows: tuple[Exactness, ...] = v.rows
    return {
        "exact": v.exact,
        "same_tokens": v.same_tokens,
        "model": v.model,
        "devices": v.devices,
        "platform": v.platform,
        "workload": encode(v.workload),
        "text": v.text,
        "logit_rms": number(v.logit_rms, "1", "measured"),
        "approximation": v.approximation,
        "off_dense": None if v.off_dense is None else number(v.off_dense, "1", "measured"),
        "router": v.router
        and {
            "smallest_margin": number(v.router.smallest_margin, "1", "measured"),
            "load_max_over_mean": number(v.router.load_max_over_mean, "1", "measured"),
            "dropped": number(v.router.dropped, "1", "measured"),
            "flips": {d: number(x, "1", "measured") for d, x in v.router.flips.items()},
        },
        "errors": table(rows, _EXACTNESS),
        "seconds": number(v.seconds, "s", "measured"),
    }


_LEDGER: tuple[Column, ...] = (
    ("kind", None, None, lambda x: x.kind),
    ("axes", None, None, lambda x: _axes(x.axes)),
    ("what", None, None, lambda x: x.what),
    ("count", "1", "compiled", lambda x: x.count),
    ("bytes", "B", "compiled", lambda x: x.moved_bytes),
    ("minimum_bytes", "B", "derived", lambda x: x.minimum_bytes),
    ("async_count", "1", "compiled", lambda x: x.async_count),
    ("gemms_between_count", "1", "compiled", lambda x: x.overlapped_count),
    ("flops_between", "FLOP", "compiled", lambda x: x.flops_between),
)

_COLLECTIVES: tuple[Column, ...] = (
    ("kind", None, None, lambda x: x.kind),
    ("axes", None, None, lambda x: _axes(x.axes)),
    ("group_size", "1", "compiled", lambda x: x.group_size),
    ("dtype", None, None, lambda x: x.dtype),
    ("payload_bytes", "B", "compiled", lambda x: x.payload_bytes),
    ("wire_bytes", "B", "compiled", lambda x: x.wire_bytes),
    ("count", "1", "compiled", lambda x: x.count),
    ("is_async", None, None, lambda x: x.is_async),
    ("gemms_between", "1", "compiled", lambda x: x.gemms_between),
    ("flops_between", "FLOP", "compiled", lambda x: x.flops_between),
    ("op_name", None, None, lambda x: x.op_name),
)

_TRANSFERS: tuple[Column, ...] = (
    ("what", None, None, lambda x: x.what),
    ("kind", None, None, lambda x: x.kind),
    ("axes", None, None, lambda x: _axes(x.axes)),
    ("bytes", "B", "derived", lambda x: x.wire_bytes),
    ("count", "1", "derived", lambda x: x.count),
    ("minimum_bytes", "B", "derived", lambda x: x.minimum_bytes),
)

_DIFFERENCES: tuple[Column, ...] = (
    ("kind", None, None, lambda x: x.kind),
    ("axes", None, None, lambda x: _axes(x.axes)),
    ("expected_bytes", "B", "derived", lambda x: x.expected_bytes),
    ("found_bytes", "B", "compiled", lambda x: x.found_bytes),
    ("witness", None, None, lambda x: x.witness),
)

_TIMELINE: tuple[Column, ...] = (
    ("name", None, None, lambda x: x.name),
    ("lane", None, None, lambda x: x.lane),
    ("start", "s", "modelled", lambda x: x.start_s),
    ("stop", "s", "modelled", lambda x: x.stop_s),
)


def _compilation(c: Compilation) -> Json:
    memory, exposed = c.memory, exposure(c)
    ledger: tuple[LedgerRow, ...] = ledger_rows(c)
    timeline: tuple[TimelineEvent, ...] = c.timeline
    minimum = number(c.minimum_bytes, "B", "derived") if c.has_closed_form else None
    sizes = ("total", "argument", "parameter", "output", "temp", "alias", "capacity")
    return {
        "cluster": c.cluster,
        "mesh": c.mesh,
        "workload": encode(c.workload),
        "phase": c.phase,
        "partitioner": c.partitioner,
        "fits": memory.fits,
        "ledger_matches": c.ledger_matches,
        "memory": {
            size: number(getattr(memory, f"{size}_bytes"), "B", "compiled") for size in sizes
        }
        | {
            "usable": number(memory.usable_bytes, "B", "assumed"),
            "kv_cache": number(c.kv_cache_bytes, "B", "derived"),
        },
        "wire_bytes": number(c.wire_bytes, "B", "compiled"),
        "minimum_bytes": minimum,
        "link_bytes": {link: number(n, "B", "compiled") for link, n in c.link_bytes.items()},
        "exposure": {
            "gemms_between_bytes": number(exposed.overlapped_bytes, "B", "compiled"),
            "nothing_between_bytes": number(exposed.idle_bytes, "B", "compiled"),
            "synchronous_bytes": number(exposed.sync_bytes, "B", "compiled"),
            "flops_between": number(exposed.flops_between, "FLOP", "compiled"),
        },
        "evenness": c.evenness
        and {
            "replication": number(c.evenness.replication, "1", "derived"),
            "bubble": number(c.evenness.bubble, "1", "derived"),
            "padded_share": number(c.evenness.padded_share, "1", "derived"),
        },
        "flop_imbalance": number(c.flop_imbalance, "1", "compiled"),
        "gemm_flops": number(c.gemm_flops, "FLOP", "compiled"),
        "attention_flops": number(c.attention_flops, "FLOP", "compiled"),
        "weight_bytes_read": number(c.weight_bytes, "B", "derived"),
        "ledger": table(ledger, _LEDGER),
        "collectives": table(c.collectives, _COLLECTIVES),
        "closed_form": table(c.transfers, _TRANSFERS),
        "differences": table(c.differences, _DIFFERENCES),
        "timeline": table(timeline, _TIMELINE),
        "notes": list(c.notes),
        "seconds": number(c.seconds, "s", "measured"),
    }


def _prediction(p: Prediction) -> Json:
    return {
        "rates": p.rates,
        "cluster": p.cluster,
        "phase": p.phase,
        "step": _figure(p.step_s),
        "tokens_per_s": _figure(p.tokens_per_s),
        "unvalidated": p.unvalidated,
        "terms": {name: number(value, "s", "modelled") for name, value in p.terms_s.items()},
        "exposed": _figure(p.exposed_s),
        "hidden": _figure(p.hidden_s),
        "exposed_per_token": _figure(p.exposed_per_token_s),
        "energy": _figure(p.energy_j),
        "mfu": p.mfu and _figure(p.mfu),
        "closed_form": p.estimate_s and _figure(p.estimate_s),
        "roofline": {
            "terms": {
                name: number(value, "s", "modelled") for name, value in p.bound.terms_s.items()
            },
            "step": _figure(p.bound.step_s),
            "tokens_per_s": _figure(p.bound.tokens_per_s),
        },
        "notes": list(p.notes),
    }


def _measurement(m: Measurement) -> Json:
    return {
        "device": m.device,
        "devices": m.devices,
        "model": m.model,
        "workload": encode(m.workload),
        "step": _figure(m.step_s),
        "repeats": m.repeats,
        "energy": None if m.energy_j is None else _figure(m.energy_j),
        "notes": list(m.notes),
        "processes": [
            {"process": p.process, "host": p.host, "step": _figure(p.step_s)} for p in m.processes
        ],
        "profile": None if m.profile is None else profile_to_dict(m.profile),
    }
