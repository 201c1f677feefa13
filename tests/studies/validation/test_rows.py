"""The reading of tables of measured steps."""

import pytest

from parallax.studies.validation.rows import ServingRow, TrainingRow, read_table

TRAINING = (
    "model,cluster,implementation,data,tensor,pipeline,microbatch,microbatches,seq_len,seconds"
)
SERVING = "model,cluster,implementation,tensor,batch,prompt_len,output_len,ttft_s,tpot_s"
STEP = "m,h100_2x8,megatron,2,4,2,1,8,4096,1.5"


def read(tmp_path, *lines):
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(lines) + "\n")
    return read_table(file)


def test_the_columns_say_what_was_measured(tmp_path):
    (step,) = read(tmp_path, "# ours", TRAINING, STEP)
    assert isinstance(step, TrainingRow)
    assert (step.data, step.tensor, step.seconds, step.zero) == (2, 4, 1.5, 0)
    (whole,) = read(tmp_path, TRAINING, STEP.replace("1.5", "2"))
    assert isinstance(whole, TrainingRow)
    assert whole.seconds == 2.0
    (load,) = read(tmp_path, SERVING, "m,h100_1x8,vllm,8,16,1024,128,,0.008")
    assert isinstance(load, ServingRow)
    assert (load.ttft_s, load.tpot_s) == (None, 0.008)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "it is empty"),
        ((TRAINING + ",colour", STEP + ",red"), r"unknown columns \['colour'\]"),
        ((TRAINING.replace("tensor,", ""), STEP), r"missing columns \['tensor'\]"),
        ((TRAINING + ",data", STEP + ",2"), "named twice"),
        ((TRAINING, STEP + ",7"), "line 2: 11 cells under 10 columns"),
        (("# ours", TRAINING, "", STEP, STEP.replace("1.5", "fast")), "line 5: seconds is 'fast'"),
        ((TRAINING, STEP.replace("1.5", "-1.5")), "line 2: .*seconds is -1.5, expected a positive"),
        ((TRAINING, STEP.replace(",2,4,", ",2.5,4,")), "line 2: data: expected int"),
        ((TRAINING + ",zero", STEP + ",4"), "line 2: zero: expected one of 0, 1, 2, 3"),
        ((TRAINING + ",recompute", STEP + ",some"), "recompute: expected one of none"),
    ],
)
def test_errors_name_the_line_and_what_was_expected(tmp_path, lines, said):
    with pytest.raises(ValueError, match=said):
        read(tmp_path, *lines)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_table(tmp_path / "none.csv")
