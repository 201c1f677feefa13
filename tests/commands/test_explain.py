"""parallax explain: dumps by source line, and programs of our own strategies."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallax as px
from parallax.commands.explain import explain_text
from parallax.commands.inspect import inspect_text
from parallax.cost import rates_of
from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.launch import launch
from tests.hlo.test_versions import TEXTS
from tests.lenses.test_timeline import TEXT

LINED = TEXT.replace(
    'metadata={op_name="ring"}',
    'metadata={op_name="jit(f)/ppermute" source_file="/there/ring.py" source_line=12}',
).replace(
    "lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    "lhs_contracting_dims={1}, rhs_contracting_dims={0}, "
    'metadata={op_name="jit(f)/dot_general" source_file="/there/ring.py" source_line=13}',
)


def test_a_dump_is_explained_by_source_line():
    found = explain_text(LINED)
    assert found.findings == ()
    (needed,) = found.needed
    assert str(needed.line) == "ring.py:12"
    assert needed.needed == "written in the program"
    assert needed.count == 3
    (row,) = found.facts.flops
    assert str(row.line) == "ring.py:13"
    assert (row.flops, row.needed) == (3 * 2 * 1024**3, None)
    assert found.facts.timeline_of == "one of 3 iterations of the busiest loop"
    assert [str(e.line) for e in found.facts.timeline[:2]] == ["ring.py:12", "ring.py:13"]
    assert "no change was tried" in found.notes[0]
    assert found.facts.memory_bytes == 0
    assert found.facts.buffers[0].n_bytes == 4 * 2**20


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("", {}, "expected 'HloModule"),
        (TEXT.replace(", is_scheduled=true", ""), {}, "explain: this module is a dump from before"),
        (TEXT, {"cluster": "h100_4x8"}, "runs on 16 devices, cluster h100_4x8 has 32"),
        (TEXT, {"mesh": "data=4"}, "compiled for 16 partitions"),
    ],
)
def test_what_cannot_be_explained_is_refused(text, changes, says):
    with pytest.raises(ValueError, match=says):
        explain_text(text, **changes)


@pytest.mark.parametrize(("version", "program"), TEXTS)
def test_texts_of_every_version_are_explained_or_refused_in_one_line(version, program):
    text = TEXTS[version, program]
    if version.endswith("cuda") and not program.endswith(" before"):
        found = explain_text(text)
        sent = sum(f.count for f in found.findings + found.needed)
        assert sent == sum(c.count for c in inspect_text(text).ledger)
        assert all(f.line for f in found.needed)
        assert str(found)
    else:
        with pytest.raises(ValueError, match=r"^explain: this module (is a dump|was compiled for)"):
            explain_text(text)


def test_the_command_explains_a_dump(tmp_path, capsys):
    (tmp_path / "ring.hlo").write_text(LINED)
    arguments = [str(tmp_path / "ring.hlo"), f"--out={tmp_path}", f"--json={tmp_path / 'a.json'}"]
    assert launch("explain", arguments, tuple(EXPERIMENTS)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("m: 16 devices (h100_2x8, devices=16)")
    assert "ring.py:12" in printed
    assert "written:" in printed
    saved = json.loads((tmp_path / "explanation.json").read_text())
    assert saved == json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to explain. Write parallax explain FILE.hlo"),
        (["none.hlo"], "none.hlo: No such file or directory"),
        (["--paper=ring_sp"], "one program is explained, and 4 strategies are named"),
        (["--paper=ring_sp", "--remat=layer"], "remat: phase prefill has no backward pass"),
        (["a.hlo", "--phase=train"], "phase: a text is explained"),
    ],
)
def test_bad_input_is_one_line(arguments, says, capsys):
    assert launch("explain", arguments, tuple(EXPERIMENTS)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.slow
def test_a_program_of_ours_is_explained_in_a_child_process(aot):
    program = px.Program(px.PAPERS["ring_sp"].config.small(), px.strategies.ring_sequence(16))
    found = program.explain("h100_2x8", batch=16, seq_len=80, budget_s=0)
    assert found.facts.axes == {"seq": 16}
    assert found.facts.memory_bytes > 0
    files = {row.line.file.rpartition("/")[2] for row in found.facts.flops}
    assert {"products.py", "transformer.py"} <= files  # whose lines are known
    assert all(row.flops == pytest.approx(row.needed, rel=0.02) for row in found.facts.flops)
    assert {f.needed for f in found.needed} == {"written in the program"}
    assert any(s.name.startswith("state") or s.name for s in found.facts.arguments)
    assert all(s.axes for s in found.facts.arguments if s.dims)


def test_what_is_tried_keeps_arrays_in_the_hosts_memory(aot):
    """A weight that is copied from the host in every step, whatever its split."""
    on_host = NamedSharding(AbstractMesh((8,), ("data",)), P("data"), memory_kind="pinned_host")
    w, x = (jax.ShapeDtypeStruct((n, 4096), jnp.bfloat16) for n in (4096, 2048))

    def step(w, x):
        return x @ jax.device_put(w, jax.memory.Space.Device)

    why = px.explain("h100_1x8", step, w, x, mesh={"data": 8}, in_specs=(on_host, P()))
    copied_s = 4096 * 4096 * 2 / 8 / rates_of("h100").host_bytes_per_s
    assert [f.argument for f in why.findings] == ["w"]
    saving = why.findings[0].saving
    assert saving is not None
    assert 0 < saving.seconds < why.facts.step_s - copied_s


def test_what_the_figures_leave_open_is_said(aot):
    def step(x, n):
        x = jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x.T), x)
        return jax.lax.cond(n > 3, lambda: jnp.linalg.cholesky(x), lambda: x @ x)

    x, n = jax.ShapeDtypeStruct((256, 256), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    why = px.explain("h100_1x8", step, x, n, mesh={"data": 8}, in_specs=P(), budget_s=0)
    said = " ".join(why.facts.notes)
    assert "of unknown trip count" in said
    assert "a branch depends on data" in said
    assert "unpriced: cusolver_potrf_ffi" in said
