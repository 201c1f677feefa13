"""The explorer's table: the analytical model at its points, close to it between them."""

import json
import math

import numpy as np
import pytest

from parallax.experiments.flags import read_flags
from parallax.experiments.regimes import Flags
from parallax.studies.regimes.explored import (
    Axes,
    Place,
    exact,
    interpolate,
    look_up,
    tabulate,
    weights,
)
from parallax.studies.regimes.explorer import (
    cases_at,
    hardware,
    measure,
    packed,
    page,
    places_off,
    sliders,
)

pytestmark = pytest.mark.slow

SMALL = Axes(
    lengths=(2048, 4096, 8192), sizes=(1, 8), widths=(2048, 6144), bandwidths=(25.0, 50.0),
    devices=(16,), heads=(32,), experts=(0,),
)  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    return tabulate(SMALL, processes=1)


@pytest.fixture(scope="module")
def off(cases):
    return measure(SMALL, cases, count=12)


@pytest.mark.parametrize("is_smooth", [True, False])
def test_weights_are_those_of_a_line_in_the_logarithm(is_smooth):
    axis = (1.0, 4.0, 16.0, 128.0)
    for x in (1.0, 3.0, 7.0, 16.0, 100.0, 128.0):
        found = weights(axis, x, is_smooth)
        assert sum(found) == pytest.approx(1)
        logs = [math.log(node) for node in axis]
        assert sum(w * v for w, v in zip(found, logs, strict=True)) == pytest.approx(math.log(x))
    assert weights(axis, 999.0, is_smooth) == weights(axis, 128.0, is_smooth)


def test_parabolas_follow_what_bends():
    axis = (1.0, 2.0, 4.0, 8.0)
    bent = [math.log(x) ** 2 for x in axis]
    smooth, line = (sum(w * v for w, v in zip(weights(axis, 3.0, is_smooth), bent, strict=True))
                    for is_smooth in (True, False))  # fmt: skip
    assert smooth == pytest.approx(math.log(3.0) ** 2)
    assert abs(line - smooth) > 0.05
    assert interpolate(np.array(bent), [axis], [3.0]) == pytest.approx(smooth)


def test_a_point_of_the_table_is_the_model_itself(cases):
    place = Place(4096, 8, 6144, 50.0, 16, 32, 0)
    for case in cases_at(cases, place):
        found = look_up(SMALL, case, place, math.inf)
        seconds, held = exact(found, place)
        if found.size in SMALL.sizes:
            # A pipeline's ticks are of one batch, here another, and its memory is of that batch.
            loose = 0.1 if case.stages > 1 else 1e-3
            assert found.seconds == pytest.approx(seconds, rel=loose), case.strategy
            assert found.held_bytes == pytest.approx(held, rel=0.1 if case.stages > 1 else 0.02)


def test_between_points_it_is_as_close_as_the_page_says(cases, off):
    other = measure(SMALL, cases, count=12).seconds
    again = sorted(
        abs(found.seconds / exact(found, place)[0] - 1)
        for place in places_off(SMALL, 12, seed=7)
        for found in (look_up(SMALL, c, place, hardware(16, 50.0).usable_bytes)
                      for c in cases_at(cases, place))
    )  # fmt: skip
    assert other == off.seconds
    assert again[len(again) // 2] <= off.seconds[int(0.9 * len(off.seconds))]
    assert 0 < off.seconds[-1] < 0.5
    assert "at the median" in off.said()


def test_strategies_that_cannot_run_say_why():
    axes = Axes(lengths=(2048,), sizes=(1,), widths=(2048,), bandwidths=(50.0,), devices=(64,),
                heads=(32,), experts=(16,))  # fmt: skip
    why = {c.strategy: c.why_not for c in tabulate(axes, processes=1)}
    assert "does not divide 32 query heads" in why["ulysses"]
    assert why["expert_parallel"]
    assert not why["tensor_pipeline"]


def test_the_page_holds_the_table_and_its_error(cases, off):
    data = packed(SMALL, cases, off)
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(packed(SMALL, cases, off)))
    text = page(SMALL, cases, off)
    assert off.said() in text.replace("&#39;", "'")
    for name, *_ in sliders(SMALL):
        assert f'<label for="{name}">' in text


def test_exploring_takes_no_other_grid():
    read_flags(Flags, ["regimes", "--explore", "--out=x"])
    with pytest.raises(ValueError, match="--explore has a grid of its own"):
        read_flags(Flags, ["regimes", "--explore", "--widths=1024"])
