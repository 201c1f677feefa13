"""A model trained for 30 steps, under every format: what must hold whatever the figures are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.compression import parse_format
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.parallel.split import UNSPLIT
from parallax.studies.quality import measuring
from parallax.studies.quality.corpus import cloze, read_corpus
from parallax.studies.quality.fitting import Bench, Curve
from parallax.studies.quality.layer_errors import block_errors, matrix_inputs, trained_errors
from parallax.studies.quality.measuring import Settings, measure, run_race
from parallax.studies.quality.results import load_record
from parallax.studies.quality.storing import (
    compressed,
    masked,
    masks,
    rounding,
    seen_in_training,
    store,
)
from parallax.studies.quality.tables import record_page, record_table
from tests.studies.quality.shown import shown

pytestmark = pytest.mark.slow

SEQ_LEN, STEPS = 32, 30
CONFIG = ModelConfig(
    "tiny", num_layers=2, d_model=128, num_heads=1, num_kv_heads=1, head_dim=128, d_ff=128,
    vocab_size=256, mlp="gated", dtype="float32",
)  # fmt: skip
SPARSE = ("float16+2:4", "float16+2:4")
SMALL = Settings(race_steps=STEPS, race_seeds=2, seq_len=SEQ_LEN)
HOW = SMALL.optimizer(STEPS)  # one program for all that trains


@pytest.fixture(scope="module")
def bench():
    return Bench(CONFIG, read_corpus(None), batch=4, seq_len=SEQ_LEN)


@pytest.fixture(scope="module")
def windows(bench):
    return bench.corpus.windows(SEQ_LEN, 32)


@pytest.fixture(scope="module")
def trained(bench, windows):
    return bench.fit(bench.init(0), STEPS, HOW, look_every=10, windows=windows)


def leaves(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(w)
        for path, w in jax.tree_util.tree_leaves_with_path(params)
    }


def test_it_learns(bench, windows, trained):
    params, curve = trained
    assert curve.steps == (10, 20, 30)
    start = bench.look(bench.init(0), windows).nats.mean()
    assert bench.look(params, windows).nats.mean() < start - 1
    assert curve.nats[-1] == pytest.approx(bench.look(params, windows).nats.mean(), abs=1e-6)


def test_wide_formats_change_nothing_and_narrow_ones_more_and_more(bench, windows, trained):
    params, _ = trained
    base = bench.look(params, windows)
    off = {}
    for form in ("float32", "float16", "int8", "int4", "int4+2:4"):
        looked = bench.look(store(params, [(form, form)] * 2), windows)
        off[form] = np.linalg.norm(looked.logits - base.logits) / np.linalg.norm(base.logits)
        if form.startswith("float"):
            assert np.abs(looked.nats - base.nats).max() < 2e-3
    assert off["float32"] <= off["float16"] < off["int8"] / 2
    assert off["int8"] < off["int4"] / 5 < off["int4"] < off["int4+2:4"]


@pytest.mark.parametrize("formats", [("int8", "int8+2:4"), ("w8a8", "w8a8")])
def test_the_deployed_model_is_the_one_in_the_table(bench, windows, trained, formats):
    """Stored compressed and read back, against arrays rounded in place."""
    params, _ = trained
    state, config = compressed(params, CONFIG, formats)
    found = bench.look(state, windows, config).logits
    rounded = bench.look(store(params, [formats] * 2), windows).logits
    off = np.linalg.norm(found - rounded) / np.linalg.norm(rounded)
    if formats == ("w8a8", "w8a8"):
        assert 1e-3 < off < 5e-2  # activations are rounded too
    else:
        assert off < 1e-6


def test_tuning_keeps_the_masks(bench, trained):
    params, _ = trained
    kept = masks(params, SPARSE)
    tuned, _ = bench.fit(params, STEPS, HOW, formats=SPARSE, seed=1)
    before, after, mask = leaves(params), leaves(tuned), leaves(kept)
    for name in mask:
        np.testing.assert_array_equal(after[name][~mask[name]], 0)
        share = 0.5 if "_DF" in name or "_FD" in name or "attention/" in name else 1.0
        assert mask[name].mean() == share, name
        assert not np.array_equal(after[name][mask[name]], before[name][mask[name]])
    assert leaves(params)["tokens_VD/value"].any()  # what was given stays usable
    stored = leaves(store(tuned, [("float32+2:4", "float32+2:4")] * 2))
    for name in mask:
        if mask[name].mean() < 1:
            np.testing.assert_array_equal(stored[name], after[name])


@pytest.mark.full
def test_rounding_is_seen_and_its_gradient_passes(trained):
    """Values are the stored ones; the slope is one where a weight stays and zero where not."""
    params, _ = trained
    formats = ("int8", "int4+2:4")
    kept = masks(params, formats)
    see = seen_in_training(rounding(formats))
    seen, stored = leaves(see(params, kept)), leaves(store(params, [formats] * 2))
    for name in seen:
        if "layers/attention/" in name or "layers/mlp/" in name:
            np.testing.assert_allclose(seen[name], stored[name], atol=1e-6)
            assert not np.array_equal(seen[name], leaves(params)[name])

    def total(params):
        return sum(jnp.sum(w) for w in jax.tree.leaves(see(params, kept)))

    slope, mask = leaves(jax.grad(total)(params)), leaves(kept)
    for name in slope:
        np.testing.assert_array_equal(slope[name], mask[name].astype(np.float32))
    assert leaves(masked(params, kept)).keys() == seen.keys()


def test_formats_that_train_alike_share_a_program():
    assert rounding(("int8", "int8+2:4")) == rounding(("w8a8", "int8")) == ("int8", "int8")
    assert rounding(SPARSE) is None
    assert rounding(None) is None


@pytest.mark.full
def test_every_matrix_meets_its_own_activations(trained, windows):
    params, _ = trained
    found = {(layer, matrix.name): (w, x) for layer, matrix, w, x in
             matrix_inputs(CONFIG, params, windows[:2])}  # fmt: skip
    assert len(found) == 2 * 7
    (up, x), (gate, same), (_, h) = (found[1, n] for n in ("up", "gate", "down"))
    assert x is same
    np.testing.assert_allclose(h, (x @ up) * jax.nn.silu(x @ gate), atol=1e-5)
    assert found[0, "q"][1] is not found[1, "q"][1]
    assert found[0, "out"][1].shape == (2, SEQ_LEN, 1, 128)


@pytest.mark.full
def test_int8_on_trained_weights_is_within_a_hundredth(trained, windows):
    found = trained_errors(CONFIG, trained[0], windows[:4], ("int8", "int4"))
    int8 = [e.error for e in found if e.format == "int8"]
    assert len(int8) == 14
    assert 1e-4 < max(int8) <= 1e-2
    assert min(e.error for e in found if e.format == "int4") > 1e-2


def test_a_blocks_error_is_that_of_its_stored_weights(trained, windows):
    """Against the block run by hand; the second block is given the dense first one's output."""
    params, pair = trained[0], ("int8", "int4+2:4")
    found = block_errors(CONFIG, params, windows[:2], [("float32", "float32"), pair])
    assert [(b.layer, b.formats) for b in found] == [
        (n, p) for n in range(2) for p in (("float32", "float32"), pair)
    ]
    model = nnx.merge(abstract_transformer(CONFIG)[0], params)
    packed = nnx.merge(abstract_transformer(CONFIG)[0], store(params, [pair] * 2))
    x = model.embed(jnp.asarray(windows[:2]), None, UNSPLIT)
    first = CONFIG.replace(num_layers=1)
    for layer in range(2):
        outputs = []
        for one in (model, packed):
            state = jax.tree.map(lambda w, n=layer: w[n : n + 1], nnx.state(one.layers))
            block = nnx.merge(abstract_transformer(first)[0], nnx.State(
                {**abstract_transformer(first)[1], "layers": state}))  # fmt: skip
            outputs.append(block.blocks(x, None, UNSPLIT, SEQ_LEN)[0])
        dense, off = outputs[0], outputs[1] - outputs[0]
        error = float(jnp.linalg.norm(off) / jnp.linalg.norm(dense))
        assert found[2 * layer].error == 0.0
        assert found[2 * layer + 1].error == pytest.approx(error, rel=1e-3)
        assert error > 1e-3
        x = dense


def test_the_task_is_of_the_held_out_text(bench, trained):
    task = cloze(bench.corpus, 12, SEQ_LEN, 8)
    assert task.candidates.shape == (12, 4, SEQ_LEN)
    assert task.chance == 0.25
    text = bench.corpus.validation.astype(np.uint8).tobytes()
    for item in task.candidates.astype(np.uint8):
        assert item[0].tobytes() in text
        for other in item[1:]:
            np.testing.assert_array_equal(other[:-8], item[0][:-8])
            assert not np.array_equal(other[-8:], item[0][-8:])
            assert other[-8:].tobytes() in text
    right = bench.answer(trained[0], task)
    assert set(right) <= {0.0, 1.0}
    swapped = dataclasses.replace(task, candidates=task.candidates[:, ::-1])
    assert (right * bench.answer(trained[0], swapped)).sum() == 0  # one answer an item


@pytest.mark.full
def test_a_race_ends_where_every_run_arrived(bench, windows, monkeypatch):
    monkeypatch.setattr(measuring, "PAPERS_FORMATS", SPARSE)  # the program that is there already
    race = run_race(bench, windows, SMALL)
    assert len(race.runs) == 2
    for run in race.runs:
        assert run.steps == tuple(range(2, STEPS + 1, 2))
        assert run.dense_nats != run.compressed_nats
        for steps, nats in ((run.dense_steps, run.dense_nats),
                            (run.compressed_steps, run.compressed_nats)):  # fmt: skip
            assert steps is not None
            assert 0 < steps <= STEPS
            assert min(nats) <= race.target_nats
    assert race.ratio.low is not None
    assert race.ratio.low < race.ratio.value


def test_steps_to_a_loss_are_read_between_looks():
    curve = Curve((10, 20, 30), (3.0, 2.0, 1.0))
    assert curve.steps_to(3.0) == 10
    assert curve.steps_to(1.5) == 25
    assert curve.steps_to(0.5) is None


@pytest.mark.full
def test_a_whole_record(monkeypatch, tmp_path):
    # Sparse rows alone train through one program, which is most of the time.
    monkeypatch.setattr(measuring, "ROWS", {"float16": ("float16",) * 2, "paper's": SPARSE})
    monkeypatch.setattr(measuring, "LISTED", ("float16", "int8"))
    monkeypatch.setattr(measuring, "STRONGER", ("int4+1:8",))
    monkeypatch.setattr(measuring, "_ERROR_FORMATS", ("int8",))
    small = Settings(steps=3, tune_steps=1, race_steps=0, seq_len=SEQ_LEN, batch=4, windows=8,
                     items=4, full_size=False, budget_share=0.3)  # fmt: skip
    record = measure(settings=small, config=CONFIG.replace(num_layers=1))
    assert [(s.label, s.tuned) for s in record.scores] == [
        ("float16", False), ("paper's", False), ("float16", True), ("paper's", True)
    ]  # fmt: skip
    for tuned in (False, True):
        assert record.score("float16", tuned).increase.value == 0.0
    assert record.score("paper's").layer_bytes.value < record.score("float16").layer_bytes.value
    assert record.mixes[0].n_bytes <= record.mixes[0].budget_bytes
    assert any("neither confirm nor refute" in line for line in record.says)
    assert [(b.layer, b.formats) for b in record.blocks] == [(0, ("float16",) * 2), (0, SPARSE)]
    (tmp_path / "r.json").write_text(record.to_json())
    assert load_record(tmp_path / "r.json") == record
    text = shown(record_table(record), width=200)
    page = record_page(record).replace("&#39;", "'")
    for word in (
        "perplexity more",
        "float16+2:4 tuned",
        "layer 0 q_DHK",
        "error of a block",
        "the paper's claims",
    ):
        assert word in text
        assert word in page
    assert "src=" not in page  # it needs nothing else
    with pytest.raises(ValueError, match="no row 'int3'"):
        record.score("int3")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"seq_len": 16}, "seq_len must be above 16"),
        ({"budget_share": 0.0}, "budget_share must be above 0"),
        ({"tune_steps": -1}, "tune_steps must be at least 0"),
    ],
)
def test_settings_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        Settings(**changes)


def test_the_models_sizes_divide_for_every_row():
    config = measuring.MODEL
    for formats in measuring.ROWS.values():
        for form in map(parse_format, formats):
            for size in (config.d_model, config.head_dim, config.d_ff):
                form.check(size)
