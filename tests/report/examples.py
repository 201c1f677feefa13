"""Made-up reports of the real shape: the closed forms are true, times and errors are invented."""

from dataclasses import replace

from parallax.bounds import Transfer
from parallax.explanations.facts import ArraySplit, Facts, LineFlops, PeakBuffer, TimedOperation
from parallax.explanations.findings import Finding, Saving
from parallax.explanations.source_lines import SourceLine
from parallax.hlo.ledger import Collective
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.papers.findings import findings
from parallax.report import Report
from parallax.report.recorded import recorded_sections
from parallax.results.lens_results import (
    Bound,
    Compilation,
    Difference,
    Exactness,
    Figure,
    Measurement,
    Memory,
    Prediction,
    ProcessTime,
    StrategyResult,
    TimelineEvent,
    Verification,
)
from parallax.workload import Workload

RING_SP = paper("ring_sp")
CAPACITY_BYTES = 84_942_979_072
GB = 10**9


def exact_rows(worst: float = 3.1e-16) -> tuple[Exactness, ...]:
    return (
        Exactness("float64", worst, 2 * worst, 1e-11, 1e-11, 0.0),
        Exactness("float16", 8.1e-4, 2.3e-3, 1.9e-3, 5.6e-3, 7.0e-4),
    )


def verification(rows: tuple[Exactness, ...] | None = None) -> Verification:
    return Verification(
        model="ring_sp.small", devices=16, platform="cpu", workload=RING_SP.small_workload,
        text="Python standard library sources", logit_rms=0.98,
        rows=exact_rows() if rows is None else rows, seconds=7.5,
    )  # fmt: skip


def memory(total_bytes: float = 9.8e9, parameter_bytes: float = 0.98e9) -> Memory:
    return Memory(
        argument_bytes=int(parameter_bytes + 0.1e9), output_bytes=int(0.1e9),
        temp_bytes=int(total_bytes - parameter_bytes - 0.2e9), alias_bytes=0,
        parameter_bytes=int(parameter_bytes), capacity_bytes=CAPACITY_BYTES, usable_fraction=0.92,
    )  # fmt: skip


def collective(
    kind: str, axes: tuple[str, ...] | None, total_bytes: float, count: int, **more
) -> Collective:
    each = total_bytes / count
    return Collective(kind, axes, 16, int(each), each, count, "f16", f"jit(run)/{kind}", **more)


TENSOR_TRANSFERS = (
    Transfer("lookup", "widen embeddings and handoffs", "all-gather", ("tensor",),
             149_094_400_000.0, 65, 146_800_640_000.0),
    Transfer("attention_sum", "sum of attention", "all-reduce", ("tensor",),
             596_377_600_000.0, 130, 587_202_560_000.0),
    Transfer("mlp_sum", "sum of MLP", "all-reduce", ("tensor",),
             596_377_600_000.0, 130, 587_202_560_000.0),
    Transfer("stage_handoff", "stage handoff", "collective-permute", ("stage",),
             21_299_200_000.0, 65, 20_971_520_000.0),
    Transfer("last_stage", "last stage's result", "all-reduce", ("stage",),
             16_777_216.0, 1, 16_777_216.0),
)  # fmt: skip
RING_TRANSFERS = (
    Transfer("ring_hop", "keys and values around the ring", "collective-permute", ("seq",),
             1_258_291_200_000.0, 7680, 1_258_291_200_000.0),
    Transfer("last_position", "last position", "all-reduce", ("seq",),
             31_457_280.0, 64, 31_457_280.0),
)  # fmt: skip


def timeline(events: int = 12) -> tuple[TimelineEvent, ...]:
    found = []
    for i in range(events):
        lane = "communication" if i % 4 == 3 else "compute"
        name = f"collective-permute-start.{i}" if i % 4 == 3 else f"GEMM fusion.{i}"
        found.append(TimelineEvent(name, lane, i * 1e-4, (i + (2.5 if i % 4 == 3 else 0.9)) * 1e-4))
    return tuple(found)


def compilation(**changes) -> Compilation:
    fields = {
        "cluster": "h100_2x8",
        "mesh": "seq=16",
        "workload": RING_SP.workload,
        "memory": memory(),
        "collectives": (
            collective("collective-permute", ("seq",), 1_258_291_200_000.0, 7680, is_async=True,
                       gemms_between=4, flops_between=3.2e9),
            collective("all-reduce", ("seq",), 31_457_280.0, 64),
        ),
        "transfers": RING_TRANSFERS,
        "has_closed_form": True,
        "differences": (),
        "gemm_flops": 5.4e15,
        "attention_flops": 0.9e15,
        "weight_bytes": 413e9,
        "kv_cache_bytes": 83_886_080_000.0,
        "partitioner": "one shard_map around the model",
        "timeline": timeline(),
        "seconds": 6.1,
    }  # fmt: skip
    return Compilation(**(fields | changes))


def prediction(tokens_per_s: float = 3.3e5, bound: str = "network") -> Prediction:
    step = 10_240_000 / tokens_per_s
    terms = {
        "compute": step / 5,
        "weights from HBM": step / 50,
        "NVLink": step / 9,
        "network": step / 8,
    }
    terms[bound] = step
    roofline = Bound(
        "h100_2x8", terms, Figure(step, "s", "modelled", low=step, note="lower bound"),
        Figure(tokens_per_s, "tokens/s", "modelled", high=tokens_per_s, note="upper bound"),
    )  # fmt: skip
    modelled = 1.6 * step
    exposed = modelled - terms["compute"] if bound != "compute" else 0.1 * step
    return Prediction(
        rates="h100 of an example", cluster="h100_2x8", phase="prefill",
        step_s=Figure(modelled, "s", "modelled", 1.3 * step, 2.0 * step),
        tokens_per_s=Figure(tokens_per_s / 1.6, "tokens/s", "modelled", tokens_per_s / 2.0,
                            tokens_per_s / 1.3),
        terms_s={"matrix products": modelled - exposed, "exposed communication": exposed},
        exposed_s=Figure(exposed, "s", "modelled"),
        hidden_s=Figure(0.2 * step, "s", "modelled"),
        exposed_per_token_s=Figure(exposed / 10_240_000, "s", "modelled"),
        energy_j=Figure(modelled * 9_000, "J", "modelled"),
        bound=roofline, mfu=Figure(0.4, "1", "modelled"),
        unvalidated="time between nodes" if bound == "network" else "",
    )  # fmt: skip


def measurement(step_s: float = 0.8, half_width_s: float = 0.02) -> Measurement:
    figure = Figure(step_s, "s", "measured", step_s - half_width_s, step_s + half_width_s)
    return Measurement("cpu", 16, "ring_sp.small", RING_SP.small_workload, figure, 10)


def measurement_of_two(second_s: float = 0.9, half_width_s: float = 0.02) -> Measurement:
    """Two processes measured, of which the second is slower."""
    processes = tuple(
        ProcessTime(i, f"host{i}", Figure(s, "s", "measured", s - half_width_s, s + half_width_s))
        for i, s in enumerate((0.8, second_s))
    )
    notes = ("mesh over 2 nodes: 'stage' crosses them, 'tensor' stays inside",)
    step = processes[1].step_s
    return replace(measurement(), step_s=step, processes=processes, notes=notes)


def tensor_result(**changes) -> StrategyResult:
    collectives = tuple(
        collective(t.kind, t.axes, t.wire_bytes, t.count, is_async=t.count > 1)
        for t in TENSOR_TRANSFERS
    )
    fields = {
        "strategy": {"name": "tensor_pipeline", "mesh": "stage=2,tensor=8"},
        "description": "Megatron columns and rows over tensor, GPipe over stage",
        "verification": verification(),
        "compilation": compilation(
            mesh="stage=2,tensor=8", collectives=collectives, transfers=TENSOR_TRANSFERS,
            memory=memory(9.81e9, 0.55e9),
        ),
        "prediction": prediction(1.93e6, "compute"),
        "measurement": measurement(),
    }  # fmt: skip
    return StrategyResult(**(fields | changes))


def ring_result(**changes) -> StrategyResult:
    fields = {
        "strategy": {"name": "ring_sequence", "mesh": "seq=16"},
        "description": "everything on the sequence, keys and values rotate",
        "verification": verification(),
        "compilation": compilation(memory=memory(17.2e9, 7.49e9)),
        "prediction": prediction(),
        "measurement": measurement(0.9),
    }
    return StrategyResult(**(fields | changes))


def data_result(**changes) -> StrategyResult:
    fields = {
        "strategy": {"name": "data_parallel", "mesh": "data=16"},
        "description": "whole sequences on every device",
        "verification": verification(),
        "compilation": compilation(mesh="data=16", collectives=(), transfers=(),
                                   memory=memory(19.9e9, 7.49e9)),
        "prediction": prediction(1.96e6, "compute"),
        "measurement": measurement(1.1),
    }  # fmt: skip
    return StrategyResult(**(fields | changes))


def too_big() -> Memory:
    return memory(91e9)


def difference() -> Difference:
    return Difference("all-reduce", ("tensor",), 1e9, 2e9, "closed form")


def report(**changes) -> Report:
    fields = {
        "paper": RING_SP,
        "config": RING_SP.config,
        "workload": RING_SP.workload,
        "cluster": "h100_2x8",
        "lenses": ("verify", "compile", "predict", "measure"),
        "request": {"paper": "ring_sp", "cluster": "h100_2x8", "lenses": ["verify", "compile"]},
        "results": (tensor_result(), ring_result(), data_result()),
        "versions": {"parallax": "0.1.0", "jax": "0.12.0", "python": "3.12.4"},
        "seconds": 71.0,
    }
    fields |= changes
    of, results, budget = fields["paper"], fields["results"], fields["request"].get("budget")
    run = of, fields["config"], fields["workload"], fields["cluster"], results, budget
    recorded = recorded_sections(of.name) if of else ()
    return Report(**({"findings": findings(*run), "recorded": recorded} | fields))


def explained(source) -> Facts:
    """An explanation of a program whose two lines are in the file `source`."""
    first, second = SourceLine(str(source), 1, "loss"), SourceLine(str(source), 2, "loss")
    return Facts(
        "jit_step", cluster("h100_2x8"), {"data": 2, "model": 8}, "h100 1", 0.010, 0.009, 0.012,
        0.002, "time between nodes", 10**9, 4e8,
        findings=(
            Finding("replicated argument", "state.mu: whole on every device",
                    "shard state.mu by P(None, 'model')", argument="state",
                    saving=Saving(-0.0002, 0.0, 250_000_000, "compiled")),
            Finding("sum in each iteration", "summed in each of 8", "sum once", line=first,
                    saving=Saving(0.002, 3.5e8, 0, "modelled")),
            Finding("full rematerialization", "made whole on every device", line=second),
        ),
        needed=(Finding("all-reduce", "all-reduce over model", needed="2 (n - 1)/n of their bytes",
                        line=second, sent_bytes=117_440_512, count=3, seconds=0.004,
                        exposed_s=0.001, axes=("model",)),),
        notes=("2 further changes were not tried: 40 s are up",),
        buffers=(PeakBuffer("dot_general", "f32", 71_303_168, first),
                 PeakBuffer("", "f16", 4096, None)),
        flops=(LineFlops(first, 8e12, 1e12), LineFlops(second, 1e12, 1e12),
               LineFlops(SourceLine("gone.py", 7), 1e9, None)),
        arguments=(
            ArraySplit("w", "f32", (2048, 8192), (2048, 1024), ((), ("model",)), "you", 8_388_608),
            ArraySplit("state.mu", "f32", (2048, 8192), (2048, 8192), ((), ()), "you", 67_108_864,
                       donated=True),
            ArraySplit("odd", "f32", (6,), (3,), (("?",),), "XLA", 12),
        ),
        results=(ArraySplit("result 0", "f32", (), (1024,), (), "", 4096),),
        timeline=(TimedOperation("GEMM dot", "compute", 0.0, 4e-3, first),
                  TimedOperation("send", "communication", 1e-3, 6e-3, second),
                  TimedOperation("fusion", "compute", 6e-3, 7e-3, None)),
        timeline_of="the whole program",
    )  # fmt: skip


def small_workload_of(batch: int) -> Workload:
    return Workload(batch, 80, 1)
