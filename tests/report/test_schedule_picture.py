"""Pictures of schedules say what the table says."""

import pytest

from parallax.parallel.schedules import make_schedule
from parallax.report.schedule_picture import schedule_caption, schedule_svg, schedule_text


def test_text_has_one_row_per_stage():
    assert schedule_text(make_schedule("1f1b", 3, 3)) == (
        "1f1b: 3 stages, 3 microbatches, 10 ticks; bubble 66.7 %, at most 3 in flight, "
        "6 handoffs each way\n"
        "stage 0  F0 F1 F2 .  .  B0 .  B1 .  B2\n"
        "stage 1  .  F0 F1 .  B0 F2 B1 .  B2 .\n"
        "stage 2  .  .  F0 B0 F1 B1 F2 B2 .  ."
    )


def test_chunks_are_letters_and_long_tables_are_cut():
    text = schedule_text(make_schedule("interleaved", 2, 8, 2), most=6)
    assert text.splitlines()[1:] == [
        "stage 0  F0a F1a F0b F1b F2a B0b ...",
        "stage 1  .   F0a F1a F0b B0b F1b ...",
    ]


@pytest.mark.parametrize(("name", "chunks"), [("zb-h1", 1), ("interleaved", 2)])
def test_the_figure_names_its_figures_and_numbers_its_microbatches(name, chunks):
    assert schedule_caption(make_schedule(name, 4, 4, chunks)).startswith(f"{name}: 4 stages")
    section = schedule_svg(make_schedule(name, 4, 4, chunks))
    assert section.count("stage 3") == 1
    assert ("weights (W)" in section) == (name == "zb-h1")
    long = schedule_svg(make_schedule("1f1b", 4, 64), "long")
    assert len(long) < 100_000
