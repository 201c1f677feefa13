"""Plots with places in percent: ticks are round, bars and error bars are where they belong."""

import re
import xml.etree.ElementTree as ET

import pytest

from parallax.report.bars import Bar, Segment, bars, lanes
from parallax.report.svg import new_figure, to_svg


def drawn(text):
    return ET.fromstring(text)


def places(svg, tag, kind, name):
    return [float(e.get(name)[:-1]) for e in svg.iter(tag) if e.get("class") == kind]


def test_bars_whiskers_and_marks_share_one_axis():
    rows = [Bar("a", "80", (Segment(0, 80, 1, "eighty"),), 60, 100, mark=90),
            Bar("b <", "40", (Segment(0, 40, 4, "forty & more"),), detail="beside")]  # fmt: skip
    text = bars(rows, "what", "{:g}".format, [(50, "limit")])
    svg = drawn(text)
    (wide,), (narrow,) = (places(svg, "rect", kind, "width") for kind in ("s1", "s4"))
    assert wide == pytest.approx(2 * narrow, rel=1e-3)
    low, *_ = places(svg, "line", "whisker", "x1")
    assert low == pytest.approx(0.75 * wide, rel=1e-3)
    assert places(svg, "line", "mark", "x1") == pytest.approx([1.125 * wide], rel=1e-3)
    assert places(svg, "line", "limit", "x1") == pytest.approx([0.625 * wide] * 2, rel=1e-3)
    assert all(0 <= float(x) <= 100 for x in re.findall(r'"([\d.]+)%"', text))
    said = "".join(svg.itertext())
    assert "b <" in said
    assert "forty & more" in said
    ticks = [t.text for t in svg.iter("text") if t.get("class") == "muted"]
    assert ticks == ["0", "50", "100", "limit", "beside"]


def test_schedules_of_two_lengths_share_the_time_axis():
    def row(name, end):
        return name, "", [("compute", [Segment(0, end, 1, name)])]

    svg = drawn(lanes([row("long", 4e-3), row("short", 1e-3)], "two", "{:g}".format))
    long, short = places(svg, "rect", "s1", "width")
    assert long == pytest.approx(4 * short, rel=1e-3)


def test_artists_of_a_figure_show_their_values_too():
    figure, (ax,) = new_figure(4, 3)
    for n in range(2):
        ax.scatter([n], [n], gid=f"p{n}")
    svg = to_svg(figure, "plot", "two points", {"p0": "first & <least>", "p1": "second"})
    assert '<g id="plot-p0"><title>first &amp; &lt;least&gt;</title>' in svg
    assert svg.count("<title>") == 2
