"""report.json: every number as {value, unit, tag}, under a versioned schema (docs/report_schema.md)."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from parallax.results import (
    TAGS,
    Collective,
    Compilation,
    Figure,
    Measurement,
    Prediction,
    StrategyResult,
    Verification,
)

SCHEMA_VERSION = 1


def to_json(report) -> str:
    """The report as JSON text."""
    return json.dumps(to_dict(report), indent=1, allow_nan=False) + "\n"


def to_dict(report) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "title": report.title,
        "tags": TAGS,
        "versions": report.versions,
        "request": report.request,
        "seconds": _number(report.seconds, "s", "measured"),
        "failed": report.failed,
        "model": dataclasses.asdict(report.config) | {"num_params": report.config.num_params},
        "workload": dataclasses.asdict(report.workload),
        "cluster": report.cluster,
        "lenses": list(report.lenses),
        "results": [_result(r) for r in report.results],
        "claims": _claims(report.paper),
        "assumptions": _plain(report.paper.assumptions) if report.paper else [],
        "validations": _plain(report.decisions),
        "sentences": report.sentences,
    }


def load_request(path: str | Path) -> dict[str, Any]:
    """The `request` of a report.json, to run it again.

    Raises:
      ValueError: not there, not JSON, another schema version, or no request in it.
    """
    where = f"--from_report={path}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}. Give the path of a report.json.") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from None
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, got {found!r}. Use a report.json "
            "that this version of Parallax wrote."
        )
    if not isinstance(data.get("request"), dict):
        raise ValueError(f"{where}: it has no 'request' to run again.")
    return data["request"]


def _number(value: float, unit: str, tag: str) -> dict[str, Any]:
    # JSON has no infinity; a comparison that broke down says so in words.
    shown: float | str = value if math.isfinite(value) else "not finite"
    return {"value": shown, "unit": unit, "tag": tag}


def _figure(figure: Figure) -> dict[str, Any]:
    return dataclasses.asdict(figure)


def _plain(values) -> list[dict[str, Any]]:
    return [dataclasses.asdict(v) for v in values]


def _claims(paper) -> list[dict[str, Any]]:
    if paper is None:
        return []
    return [
        {
            "strategy": c.strategy,
            "quantity": c.quantity,
            "figure": _number(c.value, c.unit, "claimed"),
            "reading": c.reading,
            "note": c.note,
        }
        for c in paper.claims
    ]


def _result(result: StrategyResult) -> dict[str, Any]:
    lenses = {
        "verify": (result.verification, _verification),
        "compile": (result.compilation, _compilation),
        "predict": (result.prediction, _prediction),
        "measure": (result.measurement, _measurement),
    }
    return {
        "strategy": result.strategy,
        "description": result.description,
        "failed": result.failed,
        "skipped": result.skipped,
        **{name: None if value is None else show(value) for name, (value, show) in lenses.items()},
    }


def _verification(v: Verification) -> dict[str, Any]:
    return {
        "exact": v.exact,
        "model": v.model,
        "devices": v.devices,
        "platform": v.platform,
        "workload": dataclasses.asdict(v.workload),
        "text": v.text,
        "logit_rms": _number(v.logit_rms, "1", "measured"),
        "comparisons": [
            {
                "dtype": row.dtype,
                "passed": row.passed,
                "logits_error": _number(row.logits_error, "1", "measured"),
                "logits_limit": _number(row.logits_limit, "1", "derived"),
                "gradients_error": _number(row.gradients_error, "1", "measured"),
                "gradients_limit": _number(row.gradients_limit, "1", "derived"),
                "reference_error": _number(row.reference_error, "1", "measured"),
            }
            for row in v.rows
        ],
        "seconds": _number(v.seconds, "s", "measured"),
    }


def _compilation(c: Compilation) -> dict[str, Any]:
    memory = c.memory
    in_bytes = {
        f.name: _number(getattr(memory, f.name), "B", "compiled")
        for f in dataclasses.fields(memory)
        if f.name.endswith("_bytes")
    }
    return {
        "cluster": c.cluster,
        "mesh": c.mesh,
        "workload": dataclasses.asdict(c.workload),
        "partitioner": c.partitioner,
        "memory": in_bytes
        | {
            "total_bytes": _number(memory.total_bytes, "B", "compiled"),
            "usable_fraction": _number(memory.usable_fraction, "1", "assumed"),
            "fits": memory.fits,
        },
        "wire_bytes": _number(c.wire_bytes, "B", "compiled"),
        "minimum_bytes": _number(c.minimum_bytes, "B", "derived") if c.has_closed_form else None,
        "ledger_matches": c.ledger_matches if c.has_closed_form else None,
        "gemm_flops": _number(c.gemm_flops, "FLOP", "compiled"),
        "attention_flops": _number(c.attention_flops, "FLOP", "compiled"),
        "weight_bytes": _number(c.weight_bytes, "B", "derived"),
        "kv_cache_bytes": _number(c.kv_cache_bytes, "B", "derived"),
        "collectives": {"tag": "compiled", "rows": [_collective(x) for x in c.collectives]},
        "transfers": {"tag": "derived", "rows": _plain(c.transfers)},
        "differences": _plain(c.differences),
        "timeline": {"tag": "modelled", "rows": _plain(c.timeline)},
        "seconds": _number(c.seconds, "s", "measured"),
        "notes": list(c.notes),
    }


def _collective(c: Collective) -> dict[str, Any]:
    row = dataclasses.asdict(c)
    row.pop("pairs")
    row.pop("groups")
    return row | {"async_with_compute": c.async_with_compute, "total_bytes": c.total_bytes}


def _prediction(p: Prediction) -> dict[str, Any]:
    return {
        "model": p.model,
        "cluster": p.cluster,
        "terms": {name: _number(s, "s", "modelled") for name, s in p.terms_s.items()},
        "exposed": _figure(p.exposed_s),
        "step": _figure(p.step_s),
        "tokens_per_s": _figure(p.tokens_per_s),
    }


def _measurement(m: Measurement) -> dict[str, Any]:
    return {
        "device": m.device,
        "devices": m.devices,
        "model": m.model,
        "workload": dataclasses.asdict(m.workload),
        "step": _figure(m.step_s),
        "repeats": m.repeats,
    }
