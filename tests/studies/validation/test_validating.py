"""A user's table against the shipped predictions, and what the shipped bars come from."""

import json

import pytest

from parallax.analytic.described.regimes import Bar, shipped_bars
from parallax.experiments.flags import read_flags
from parallax.experiments.validate import Flags, main
from parallax.studies.fitting.__main__ import bars_of
from parallax.studies.validation import beside, training
from parallax.studies.validation.models import TABLES, model_of
from parallax.studies.validation.results import Section
from parallax.studies.validation.rows import TrainingRow, read_table
from parallax.studies.validation.scores import Judged
from parallax.studies.validation.validating import validate

HEAD = "model,cluster,network,implementation,data,tensor,pipeline,microbatch,microbatches,seq_len"


def table(tmp_path, *rows):
    file = tmp_path / "steps.csv"
    file.write_text("\n".join([f"{HEAD},zero,seconds,memory_bytes", *rows]) + "\n")
    return file


def own(seconds, layout="2,4,2,1,32"):
    return f"llama-3.1-8b,h100_2x8,efa,nanotron,{layout},4096,1,{seconds},3e10"


def test_a_table_of_ones_own(tmp_path):
    rows = (own(2.7), own(2.4, "4,2,2,1,16"), own(4.5, "2,8,1,1,32"))
    found = validate(table(tmp_path, *rows))
    steps = found.sections[0]
    read = [row for row in read_table(table(tmp_path, *rows)) if isinstance(row, TrainingRow)]
    by_hand = next(training.judge_training(read))
    assert steps.rows[0].modelled == by_hand.modelled
    assert steps.rows[0].measured == 2.7
    bar = shipped_bars()[steps.rows[0].regime].spread
    assert steps.rows[0].low == pytest.approx(by_hand.modelled * bar.low)
    assert [section.title for section in found.sections] == [
        "Time of a training step", "Memory of a training step",
    ]  # fmt: skip
    (_, whole), *_ = steps.scores()
    assert whole.n == 3
    assert whole.tau is not None


def test_a_wrong_unit_is_seen(tmp_path):
    (_, right), *_ = validate(table(tmp_path, own(2.7))).sections[0].scores()
    (_, wrong), *_ = validate(table(tmp_path, own(2700))).sections[0].scores()
    assert right.median < 0.3
    assert wrong.median > 0.99
    assert wrong.coverage == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("gpt-9,h100_2x8,,nanotron,2,4,2,1,32,4096,1,2.7,", "model 'gpt-9' is neither a file nor"),
        ("llama-3.1-8b,h100_2x8,,fast,2,4,2,1,32,4096,1,2.7,", "unknown implementation 'fast'"),
        ("llama-3.1-8b,h100_2x8,,nanotron,2,4,1,1,32,4096,1,2.7,", "are those of cluster"),
        ("llama-3.1-8b,z9,,nanotron,2,4,2,1,32,4096,1,2.7,", "unknown cluster 'z9'"),
    ],
)
def test_a_row_that_cannot_be_described_is_named(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        validate(table(tmp_path, row))


def test_the_command_saves_its_tables_and_plots(tmp_path, capsys):
    flags = read_flags(
        Flags, ["validate", f"--table={table(tmp_path, own(2.7))}", f"--out={tmp_path / 'out'}"]
    )
    assert main(flags) == 0
    assert "Furthest off" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert record["sections"][0]["rows"][0]["measured"] == 2.7
    assert "<svg" in (tmp_path / "out" / "validation.html").read_text()


def test_rates_are_for_a_table():
    with pytest.raises(ValueError, match="rates are for a table of your own"):
        validate(rates="rates.json")


def test_bars_of_few_rows_are_those_of_their_table():
    many = [Judged("t", "step", "row", 1.0, 1.0 + n / 100, "many") for n in range(40)]
    few = [Judged("t", "step", "row", 1.0, 3.0, "few") for _ in range(3)]
    made = bars_of([Section("t", "", (*many, *few))]).regimes
    assert made["few"].rows == 43
    assert isinstance(made["many"], Bar)
    assert made["many"].rows == 40
    assert made["few"].spread.high > made["many"].spread.high


def test_every_shipped_row_can_be_described():
    """Its model is there, its layout legal: all tables without their figures."""
    for row in read_table(TABLES / "train.csv")[::25]:
        assert isinstance(row, TrainingRow)
        assert model_of(row.model).num_params > 1e8
        if not row.excluded:
            assert list(training.judge_training([row]))


def test_the_page_beside_others_is_up_to_date():
    assert beside.PAGE.read_text(encoding="utf-8") == beside.page()
