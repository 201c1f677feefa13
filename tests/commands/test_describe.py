"""Descriptions of steps of other software, from degrees or from a strategy."""

import json
import math
from pathlib import Path

import pytest

import parallax as px
from parallax.commands.described_layout import degrees_of, layout_of
from parallax.commands.resolve import resolve
from parallax.experiments.describe import Flags, main
from parallax.experiments.flags import read_flags
from parallax.requests.compare import CompareRequest
from parallax.studies.validation.models import model_of

GOLDEN = Path(__file__).parents[1] / "models" / "huggingface" / "golden"
LLAMA = model_of("llama-3.1-8b")
S = px.strategies


def step(split: str | px.Strategy = "data=2,tensor=4,pipeline=2", **more):
    asked = {"batch": 64, "seq_len": 4096, "microbatches": 16, "cluster": "h100_2x8@efa"} | more
    return px.describe(LLAMA, split, **asked)


def test_a_training_step_has_time_memory_and_terms():
    found = step(implementation="nanotron", zero=1)
    seconds = found.figures["step_s"]
    assert sum(found.terms_s["step_s"].values()) == pytest.approx(seconds.value)
    assert sum(found.memory_bytes.values()) == pytest.approx(found.figures["memory_bytes"].value)
    assert found.figures["tokens_per_s"].value == pytest.approx(64 * 4096 / seconds.value)
    assert seconds.low is not None
    assert seconds.low < seconds.value < (seconds.high or 0.0)
    assert found.fits is True
    assert found.unvalidated == ""
    assert "data=2,tensor=4,pipeline=2, 16 x 2 sequences a replica, ZeRO-1" in str(found)


def test_what_no_measurement_stands_behind_is_said():
    assert "unnamed network" in step(cluster="h100_2x8").unvalidated
    assert "bars of torchtitan's steps" in step(implementation="torchtitan").unvalidated
    assert "whole steps on b200" in step(cluster="b200_2x8@roce").unvalidated
    split = "data=2,context=8"
    found = step(split)  # nobody published steps of context parallelism on H100
    assert found.figures["step_s"].low is None
    assert "step_s" in found.unvalidated


def test_a_strategy_stands_for_its_degrees():
    strategy = S.hybrid(S.data_parallel(2), S.tensor_pipeline(4, 2))
    assert step(strategy).figures == step().figures
    sharded = layout_of(S.fsdp(16), 64, 2)
    assert (sharded.data, sharded.zero, sharded.microbatch) == (16, 3, 2)
    assert layout_of(S.shard_optimizer(S.data_parallel(16), "data"), 16, 1).zero == 1
    assert degrees_of(S.expert_parallel(8))["expert"] == 8
    assert degrees_of(S.ring_sequence(16))["context"] == 16
    assert degrees_of("stage=2,seq=4") == degrees_of("pipeline=2,context=4")


def test_serving():
    found = px.describe(
        LLAMA, "tensor=2", phase="serve", implementation="vllm", batch=16, prompt_len=1024,
        cluster="h100_1x8",
    )  # fmt: skip
    times = {name: found.figures[name].value for name in ("ttft_s", "tpot_s")}
    for name, value in times.items():
        assert sum(found.terms_s[name].values()) == pytest.approx(value)
    whole = times["ttft_s"] + 128 * times["tpot_s"]
    assert found.figures["tokens_per_s"].value == pytest.approx(16 * 128 / whole)
    assert found.unvalidated == ""
    weights, cache = found.memory_bytes["parameters"], found.memory_bytes["kv_cache"]
    # A table of two and half of the layers' matrices; keys and values of four heads of 128.
    assert weights == pytest.approx(LLAMA.num_params, rel=1e-3)
    assert cache == 16 * (1024 + 64) * 32 * 2 * 4 * 128 * 2
    assert (found.fits, found.figures["running"].value) == (True, 16)
    assert "8.03B parameters, 131,072 bytes of KV cache per token" in str(found)


def test_serving_says_what_has_no_room():
    def serve(model: str, split: str, batch: int):
        return px.describe(
            model_of(model), split, phase="serve", batch=batch, prompt_len=32_768,
            cluster="h100_2x8",
        )  # fmt: skip

    assert serve("llama-3.1-405b", "tensor=8", 1).fits is False
    across = serve("llama-3.1-405b", "tensor=8,pipeline=2", 1)
    assert across.fits is True
    assert "unnamed network" in across.unvalidated
    waiting = serve("llama-3.1-8b", "tensor=1", 64)
    assert waiting.unvalidated == ""  # one device's requests cross no network
    each = (32_768 + 64) * 131_072
    assert waiting.figures["running"].value == pytest.approx(
        (waiting.memory_bytes["kv_cache"]) / each
    )
    assert 10 < waiting.figures["running"].value < 20


@pytest.mark.parametrize(
    ("split", "more", "said"),
    [
        ("data=2,tensor=4", {}, r"devices \(8\) are those of cluster"),
        ("data=2,width=8", {}, "'width' is not known. Use data"),
        ("stage=2,pipeline=8", {}, "'pipeline' is given twice"),
        ("data=16", {"batch": 24, "microbatches": 1}, "batch 24 is not a multiple of data"),
        ("data=16", {"implementation": "vllm"}, "unknown implementation 'vllm'. Use one of"),
        ("data=16", {"zero": 4, "microbatches": 1}, "zero must be one of"),
        ("data=16", {"seq_len": None}, "seq_len is missing"),
        ("data=16", {"output_len": 7}, "output_len: the phase is train"),
        ("tensor=2", {"phase": "serve", "seq_len": None, "microbatches": 1},
         "prompt_len is missing|unknown serving"),
        (S.two_level(2, 8), {}, "is not one of data, tensor, pipeline and context"),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_refused(split, more, said):
    with pytest.raises(ValueError, match=said):
        step(split, **more)


def test_serving_is_of_one_copy():
    with pytest.raises(ValueError, match="copies serve side by side"):
        px.describe(LLAMA, "data=2", phase="serve", implementation="vllm", batch=1, prompt_len=8)


def test_experts_rank_as_measured_on_eight_h100():
    """A public thread of JAX users: 21.5, 20.7, 18.9 and 17.0 % MFU for FSDP, EP2, EP4 and EP8."""
    config = px.ModelConfig(
        name="moe", num_layers=24, d_model=2048, num_heads=16, num_kv_heads=16, head_dim=128,
        d_ff=1024, vocab_size=128256, mlp="gated", dtype="bfloat16", num_experts=64,
        experts_per_token=4, max_seq_len=4096,
    )  # fmt: skip
    seconds = [
        px.describe(
            config, f"data=8,expert={expert}", implementation="torchtitan", batch=128,
            seq_len=4096, microbatches=2, zero=3, recompute="layer", cluster="h100_1x8",
        ).figures["step_s"].value for expert in (1, 2, 4, 8)
    ]  # fmt: skip
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == 4


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    config = tmp_path / "config.json"
    values = {
        "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1024,
        "vocab_size": 1000, "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
    }  # fmt: skip
    config.write_text(json.dumps(values))
    out = tmp_path / "found.json"
    arguments = ["describe", f"--model={config}", "--split=data=8", "--cluster=h100_1x8",
                 "--batch=8", "--seq_len=1024", f"--json={out}"]  # fmt: skip
    assert main(read_flags(Flags, arguments)) == 0
    assert "megatron on h100_1x8, data=8" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["description_version"] == 1
    assert math.isfinite(written["figures"]["step_s"]["value"])
    assert written["model"].startswith(f"{tmp_path.name}: 2 layers, width 512")
    assert "unpacked" not in written["model"]
    larger = [a.replace("--batch=8", "--batch=80000") for a in arguments]
    assert main(read_flags(Flags, larger)) == 1
    assert "does not fit" in capsys.readouterr().out


def test_quantized_weights_are_named(tmp_path):
    folder = GOLDEN / "gpt_oss"
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"quantization_config": {"quant_method": "mxfp4"}, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    said = "stored in mxfp4 and unpacked here: all bytes and times are of bfloat16"
    found = px.describe(tmp_path, "data=16", batch=16, seq_len=64)
    assert said in found.model
    lines = []
    px.plan(
        tmp_path, batch=1, prompt_len=16, compile_top=0, cluster="h100_1x1",
        on_progress=lines.append,
    )  # fmt: skip
    assert any(said in line for line in lines)
    asked = CompareRequest(model=str(tmp_path), strategies=("data_parallel",), compression="int8")
    assert resolve(asked).notes[0].endswith("all bytes and times are of int8,int8")


def test_sequences_beyond_a_models_positions_are_named():
    folder, said = str(GOLDEN / "llama"), "tokens are longer than the 256 positions"

    def noted(tokens: int):
        asked = CompareRequest(model=folder, strategies=("data_parallel",), seq_len=tokens)
        return resolve(asked).notes

    assert noted(256) == ()
    assert "sequences of 257 " + said in noted(257)[0]
    asked = {"dtype": "bfloat16", "phase": "serve", "batch": 1, "cluster": "h100_1x8"}
    assert said in px.describe(folder, "tensor=1", prompt_len=129, **asked).model
    assert said not in px.describe(folder, "tensor=1", prompt_len=128, **asked).model
    lines = []
    px.plan(folder, batch=1, prompt_len=200, compile_top=0, cluster="h100_1x1",
            on_progress=lines.append)  # fmt: skip
    assert "sequences of 328 " + said in lines[0]
