"""Made-up traces with known times: attributed, counted once, listed, and modelled."""

from pathlib import Path

import pytest

from parallax.cost import estimate_cost, rates_of
from parallax.cost.collectives import collective_seconds
from parallax.cost.per_operation import operation_costs
from parallax.hlo.ledger import read_ledger
from parallax.hlo.parse import parse_module
from parallax.hlo.read_trace import read_trace
from parallax.lenses.profile_events import read_events
from parallax.lenses.profile_join import OperationNames, join
from parallax.meshes.cluster import cluster
from tests.lenses.xspaces import event, save

# A loop of 3: send, multiply meanwhile, wait, add what came; then two kernels run as one graph.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=2

%add (a: f32[1024,1024], b: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0} parameter(0)
  %b = f32[1024,1024]{1,0} parameter(1)
  ROOT %sum = f32[1024,1024]{1,0} add(%a, %b)
}

%double (c: f32[1024,1024]) -> f32[1024,1024] {
  %c = f32[1024,1024]{1,0} parameter(0)
  ROOT %twice = f32[1024,1024]{1,0} add(%c, %c)
}

%body (p: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %p = (s32[], f32[1024,1024]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[1024,1024]{1,0} get-tuple-element(%p), index=1
  %send.1 = (f32[1024,1024]{1,0}, f32[1024,1024]{1,0}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}, metadata={op_name="ring"}
  %gemm.1 = f32[1024,1024]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/mlp/dot_general" source_file="model.py" source_line=12}
  %come.1 = f32[1024,1024]{1,0} collective-permute-done(%send.1)
  %out = f32[1024,1024]{1,0} fusion(%come.1, %gemm.1), kind=kLoop, calls=%add
  ROOT %t = (s32[], f32[1024,1024]{1,0}) tuple(%i, %out)
}

%condition (q: (s32[], f32[1024,1024])) -> pred[] {
  %q = (s32[], f32[1024,1024]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%graph (g: f32[1024,1024]) -> f32[1024,1024] {
  %g = f32[1024,1024]{1,0} parameter(0)
  %first.7 = f32[1024,1024]{1,0} fusion(%g), kind=kLoop, calls=%double
  ROOT %second.8 = f32[1024,1024]{1,0} dot(%first.7, %first.7), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x.1: (s32[], f32[1024,1024])) -> f32[1024,1024] {
  %x.1 = (s32[], f32[1024,1024]{1,0}) parameter(0)
  %w = (s32[], f32[1024,1024]{1,0}) while(%x.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[1024,1024]{1,0} get-tuple-element(%w), index=1
  ROOT %call.5 = f32[1024,1024]{1,0} call(%y), to_apply=%graph
}
"""  # noqa: E501
MODULE = parse_module(TEXT)
DATA = Path(__file__).resolve().parent.parent / "hlo" / "data"
H100 = cluster("h100_1x2")
STEPS = 2


def on_gpu(name, start, duration, operation="", module="jit_step"):
    stats = {"hlo_op": operation, "hlo_module": module} if operation else {}
    return event(name, start, duration, **stats)


def streams(shift=0.0):
    """Two steps of 97.5 us on one GPU: products of 10 us, sends of 20 us beside them, and more."""
    compute, sends = [], []
    for step in range(STEPS):
        at = shift + 200.0 * step
        for turn in range(3):
            start = at + 25.0 * turn
            compute.append(on_gpu("sm90_xmma_gemm", start, 10, "gemm.1"))
            sends.append(on_gpu("ncclDevKernel_SendRecv", start, 20, "send.1"))
            compute.append(on_gpu("loop_add_fusion", start + 20, 4, "out.clone"))
        # One launch of the graph: its kernels name the call, and one has its instruction's name.
        compute.append(on_gpu("first_7", at + 80, 2, "call.5"))
        compute.append(on_gpu("cutlass_gemm", at + 82, 9, "call.5"))
        compute.append(on_gpu("MemcpyD2D", at + 92, 3))
        compute.append(on_gpu("fusion", at + 96, 1, "out", "jit_other"))
        compute.append(on_gpu("unknown_kernel", at + 97, 0.5, "fusion.77"))
    # What a viewer adds; counting it would count everything twice.
    derived = [on_gpu("gemm.1", shift, 90, "gemm.1")]
    return {"Stream #7(Compute)": compute, "Stream #20(Nccl)": sends, "XLA Ops": derived}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    planes = {
        "/device:GPU:0": streams(), "/device:GPU:1": streams(5.0),
        "/host:CPU": {"main": [event("gemm.1", 0, 500, hlo_op="gemm.1", device_ordinal=0)]},
    }  # fmt: skip
    return read_events(save(planes, tmp_path_factory.mktemp("trace")), "gpu")


def costs():
    work = read_trace(MODULE, read_ledger(MODULE, {"seq": 2}))
    return operation_costs(work, H100, rates_of("h100"))


def test_every_microsecond_is_where_it_belongs(trace):
    joined = join(MODULE, trace, STEPS)
    found = {o.name: (round(o.measured_s * 1e6, 6), o.launches, o.executions)
             for o in joined.operations}  # fmt: skip
    assert found == {
        "gemm.1": (30.0, 3.0, 3.0), "send.1": (60.0, 3.0, 3.0), "out": (12.0, 3.0, 3.0),
        "first.7": (2.0, 1.0, 1.0), "call.5": (9.0, 1.0, 1.0),
    }  # fmt: skip
    assert {n: round(s * 1e6, 6) for n, s in joined.unattributed.items()} == {
        "MemcpyD2D": 3.0, "out of module jit_other": 1.0, "fusion.77": 0.5,
    }  # fmt: skip
    assert list(joined.unattributed) == ["MemcpyD2D", "out of module jit_other", "fusion.77"]
    assert [o.name for o in joined.operations][:2] == ["send.1", "gemm.1"]  # largest time first
    (gemm,) = (o for o in joined.operations if o.name == "gemm.1")
    assert (gemm.source, gemm.op_name) == ("model.py:12", "jit(step)/mlp/dot_general")
    assert gemm.modelled_s is None
    assert gemm.error_s is None


def test_streams_that_overlap_are_busy_once(trace):
    assert trace.devices == (0, 1)
    # Per step and device: 3 sends of 20 us hide the products, then 3 x 4, 2, 9, 3, 1 and 0.5.
    assert trace.busy_ns() / 1e3 == pytest.approx(STEPS * 2 * 87.5)
    assert trace.span_ns() / 1e3 == pytest.approx(2 * 297.5)


def test_modelled_times_are_those_of_the_cost_model(trace):
    modelled, rates = costs(), rates_of("h100")
    (send,) = read_ledger(MODULE, {"seq": 2})
    assert modelled["send.1"].executions == 3
    assert modelled["send.1"].seconds == pytest.approx(
        3 * collective_seconds(send, H100, rates)
    )  # fmt: skip
    rows = {o.name: o for o in join(MODULE, trace, STEPS, modelled).operations}
    for name in ("gemm.1", "send.1", "out", "first.7"):
        assert rows[name].modelled_s == pytest.approx(modelled[name].seconds)
        assert rows[name].error_s == pytest.approx(modelled[name].seconds - rows[name].measured_s)
    # The graph's other kernel has no name of its own: its model is compared with the call's time.
    assert rows["call.5"].modelled_s == pytest.approx(modelled["second.8"].seconds)
    assert "second.8" not in rows
    errors = [abs(o.error_s or 0.0) for o in rows.values()]
    assert errors == sorted(errors, reverse=True)


def test_operations_add_up_to_the_program_where_nothing_overlaps():
    text = TEXT.replace("collective-permute-start", "collective-permute").replace(
        "(f32[1024,1024]{1,0}, f32[1024,1024]{1,0}) coll", "f32[1024,1024]{1,0} coll"
    )
    text = text.replace("collective-permute-done(%send.1)", "bitcast(%send.1)")
    module = parse_module(text)
    work = read_trace(module, read_ledger(module, {"seq": 2}))
    found = operation_costs(work, H100, rates_of("h100"))
    whole = estimate_cost(work, H100, rates_of("h100"))
    assert sum(c.seconds for c in found.values()) == pytest.approx(whole.seconds, rel=1e-12)
    assert set(found) == {"send.1", "gemm.1", "out", "first.7", "second.8"}


@pytest.mark.parametrize("name", ["tensor", "decode", "experts", "dump"])
def test_a_real_cuda_program_joins_with_a_made_up_trace(name, tmp_path):
    """Compiled for H100s: every operation takes twice as long as modelled."""
    module = parse_module((DATA / f"{name}.hlo").read_text(encoding="utf-8"))
    devices = module.num_partitions
    work = read_trace(module, read_ledger(module, {"x": devices}))
    modelled = operation_costs(work, cluster(f"h100_{devices // 8}x8"), rates_of("h100"))
    at, events = 0.0, []
    for operation, cost in modelled.items():
        events.append(on_gpu("kernel", at, 2e6 * cost.seconds, operation, module.name))
        at += 2e6 * cost.seconds
    trace = read_events(save({"/device:GPU:0": {"Stream #7(Compute)": events}}, tmp_path), "gpu")
    joined = join(module, trace, 1, modelled)
    assert joined.unattributed == {}
    assert joined.unplaced == {}
    assert len(joined.operations) >= 5
    for row in joined.operations:
        assert row.measured_s == pytest.approx(2 * (row.modelled_s or 0), rel=1e-3, abs=1e-12)
        assert row.error_s == pytest.approx(-(row.modelled_s or 0), rel=2e-3, abs=1e-12)
    whole = sum(c.seconds for c in modelled.values())
    assert sum(r.measured_s for r in joined.operations) == pytest.approx(2 * whole, rel=1e-3)


def test_what_was_modelled_and_never_ran_is_a_row(tmp_path):
    planes = {"/device:GPU:0": {"Stream #7": [on_gpu("k", 0, 10, "gemm.1")]}}
    trace = read_events(save(planes, tmp_path), "gpu")
    rows = {o.name: o for o in join(MODULE, trace, 1, costs()).operations}
    assert (rows["out"].measured_s, rows["out"].launches) == (0.0, 0.0)
    assert (rows["out"].modelled_s or 0) > 0


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("gemm.1", "gemm.1"),
        ("%gemm.1", "gemm.1"),
        ("gemm.1.clone.2", "gemm.1"),
        ("gemm.1.remat", "gemm.1"),
        ("come.1", "send.1"),  # the wait for a transfer
        ("sum", "out"),  # inside of a fusion
        ("twice", "first.7"),
        ("gemm", None),
        ("gemm.12", None),
        ("", None),
    ],
)
def test_names_of_a_trace(name, owner):
    assert OperationNames(MODULE).find(name) == owner


def test_a_name_of_two_operations_is_no_operations():
    text = TEXT.replace("calls=%double", "calls=%add").replace("fusion(%g)", "fusion(%g, %g)")
    assert OperationNames(parse_module(text)).find("sum") is None


def test_an_operation_around_others_has_its_own_time_alone(tmp_path):
    """As on a CPU: a loop's event holds its body's, XLA's executor is between both."""
    cpu = {"hlo_module": "jit_step", "device_ordinal": 0}
    planes = {
        "/host:CPU": {
            "python": [event("step", 0, 1000)],
            "worker": [
                event("ThunkExecutor::Execute", 0, 100),
                event("w", 10, 80, hlo_op="w", **cpu),
                event("ThunkExecutor::Execute", 12, 70),
                event("gemm.1", 20, 30, hlo_op="gemm.1", **cpu),
                event("end: gemm.1", 45, 2),
                event("out", 60, 10, hlo_op="out", **cpu),
                event("ThunkExecutor::Execute (wait for completion)", 200, 50),
            ],
        }
    }
    trace = read_events(save(planes, tmp_path), "cpu")
    joined = join(MODULE, trace, 1)
    found = {o.name: o.measured_s * 1e6 for o in joined.operations}
    assert found == pytest.approx({"w": 40.0, "gemm.1": 30.0, "out": 10.0})
    assert dict(trace.runtime_ns) == pytest.approx({
        "ThunkExecutor::Execute (wait for completion)": 50e3, "ThunkExecutor::Execute": 20e3,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "planes", "message"),
    [
        ("gpu", {"/host:CPU": {"main": [event("f", 0, 1)]}},
         "no device events; expected planes /device:GPU:n, got planes: /host:CPU.*CUPTI"),
        ("cpu", {"/host:CPU": {"main": [event("f", 0, 1)]}},
         "no device events; expected operations on the threads of /host:CPU"),
    ],
)  # fmt: skip
def test_a_trace_without_device_events_is_refused(tmp_path, platform, planes, message):
    path = save(planes, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_events(path, platform)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    path = tmp_path / "host.xplane.pb"
    path.write_bytes(b"not a trace")
    with pytest.raises(ValueError, match="expected an XSpace file"):
        read_events(path, "cpu")
    with pytest.raises(ValueError, match="expected an XSpace file"):
        read_events(tmp_path / "none", "cpu")
