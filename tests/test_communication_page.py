"""docs/generated/communication.md has every strategy of every paper, with today's closed forms."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from parallax.models.config import ModelConfig
from parallax.parallel.schedule_plan import plan_of
from parallax.programs.schedule_branches import training_schedule
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.train_communication import train_transfers
from parallax.workload import Workload

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT / "benchmarks"))
MADE, FORMS = (importlib.import_module(n) for n in ("communication", "communication_forms"))
PAGE = (ROOT / "docs" / "generated" / "communication.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", list(MADE.programs()), ids=lambda p: p[0])
def test_the_page_has_todays_closed_forms(program):
    assert MADE.section(*program) in PAGE


def sizes(form, config, workload):
    """What the symbols of a form stand for, in one model and workload."""
    strategy = form.strategy
    sharded = ShardedTransformer(config, strategy, workload)
    schedule, mesh = training_schedule(sharded), strategy.mesh_axes
    weights = [(str(path[0]), w.size) for path, w in nnx.to_flat_state(sharded.shapes)]

    def count(part):
        return sum(size for name, size in weights if name.startswith(part))

    tokens = workload.tokens // workload.microbatches // strategy.split().count("act_batch")
    return FORMS.Sizes(
        n=count(""), n_layers=count("layers"), n_head=count("unembed_DV"),
        d=mesh.get("data", mesh.get("expert", 1)), r=mesh.get("replica", 1),
        t=strategy.split().count("lookup"), m=workload.microbatches,
        ticks=int(plan_of(schedule).ticks.sends.sum()) if schedule else 0,
        tokens=tokens, width=config.d_model, experts=config.num_experts, layers=config.num_layers,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS.FORMS, ids=lambda f: f"{f.title}, {f.what}")
def test_the_symbols_are_the_closed_form(form):
    config = ModelConfig(
        name="small", num_layers=4, d_model=256, num_heads=8, num_kv_heads=4, head_dim=32,
        d_ff=512, vocab_size=1024, mlp="gated", dtype="bfloat16", max_seq_len=128,
        num_experts=8 if form.title == "experts" else 0,
    )  # fmt: skip
    workload = Workload(32, 128, 4)
    sent = sum(
        t.wire_bytes
        for t in train_transfers(config, form.strategy, workload, "layer")
        if t.kind == form.kind and t.role in form.roles
    )
    x = sizes(form, config, workload)
    assert sent > 0
    np.testing.assert_allclose(sent, form.of(x), rtol=1e-12)
    assert f"| {form.title} | {form.what} | {form.kind} | {form.text} |" in PAGE


def test_every_compiled_program_equals_its_closed_form_on_the_page():
    assert PAGE.count("\nEqual to the closed form") == len(list(MADE.programs()))
    assert "NOT equal" not in PAGE
