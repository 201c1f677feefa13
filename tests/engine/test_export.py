"""A run's weights in Hugging Face's layout: loaded again, they say the same."""

from pathlib import Path

import pytest

import parallax as px
from parallax.engine.export import export

LLAMA = Path(__file__).parents[1] / "models" / "huggingface" / "golden" / "llama"


def text(folder):
    return px.generate(folder, "the quick", max_new_tokens=6, stop_tokens=()).texts


@pytest.mark.slow
def test_a_run_of_a_run_is_exported_with_its_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    start, last = LLAMA, tmp_path / "two"
    for workdir in (tmp_path / "one", last):
        px.train(start, [tmp_path / "a.txt"], workdir, steps=1, batch=2, seq_len=16)
        start = workdir
    folder = export(last, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert (
        px.huggingface.read_config(folder).num_params
        == px.huggingface.read_config(LLAMA).num_params
    )
    assert text(folder) == text(last)
    with pytest.raises(ValueError, match="exists already"):
        export(last, folder)


def test_what_has_no_weights_or_no_family_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="export: no dense weights, got model 'ring_sp'"):
        export("ring_sp", tmp_path / "out")
    with pytest.raises(ValueError, match="gpt2"):
        export(LLAMA, tmp_path / "out", family="gpt2")
    with pytest.raises(ValueError, match="the folder /proc/a: "):
        export(LLAMA, "/proc/a")
    assert list(tmp_path.iterdir()) == []
