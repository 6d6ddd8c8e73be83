from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.report.svg import MAX_POINTS, bar, line_chart, log_ticks, rgb, strip, swatch, ticks
from tests.report.page import parse

finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


@given(finite, finite)
def test_ticks_are_even_few_and_hold_what_is_between(a, b):
    low, high = min(a, b), max(a, b)
    values = ticks(low, high)
    assert 2 <= len(values) <= 12
    slack = 1e-6 * max(1, abs(low), abs(high))
    assert values[0] <= low + slack
    assert values[-1] >= high - slack
    steps = [y - x for x, y in itertools.pairwise(values)]
    assert max(steps) - min(steps) <= 1e-6 * max(1, abs(low), abs(high))


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(26.3, 33.9) == [26, 28, 30, 32, 34]
    assert len(ticks(3, 3)) > 1
    assert len(ticks(0, 0)) > 1


@given(st.floats(-12, 12), st.floats(-12, 12))
def test_logarithmic_ticks_are_round_few_and_hold_what_is_between(a, b):
    low, high = min(a, b), max(a, b)
    values = log_ticks(low, high)
    assert 2 <= len(values) <= 13
    assert values[0] <= low + 1e-6
    assert values[-1] >= high - 1e-6
    assert values == sorted(values)
    for value in values:
        digits = f"{10**value:.6e}"
        assert digits[0] in "125"
        assert set(digits[2:8]) == {"0"}


def test_logarithmic_ticks_are_finer_over_less():
    def shown(low, high):
        return [float(f"{10**value:.6g}") for value in log_ticks(math.log10(low), math.log10(high))]

    assert shown(0.06, 0.3) == [0.05, 0.1, 0.2, 0.5]
    assert shown(1e-5, 1) == [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]
    assert shown(1e-12, 1) == [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]


def places(markup) -> list[list[tuple[float, float]]]:
    lines = parse(str(markup)).find("polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.attributes["points"].split()] for line in lines]


def test_a_curve_rises_where_its_values_do():
    ((first, second, third),) = places(line_chart([(0, 1), (1, 2), (2, 0)], "t", "x", "y"))
    assert first[0] < second[0] < third[0]
    assert second[1] < first[1] < third[1]  # SVG counts downwards


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis():
    chart = line_chart([(0, 1), (1, 10), (2, 100), (3, 0), (4, 10), (5, 1)], "t", "x", "y", is_log=True)
    first, second = places(chart)
    assert first[0][1] - first[1][1] == pytest.approx(first[1][1] - first[2][1])
    assert [y for _, y in second] == [first[1][1], first[0][1]]
    assert "x 1, y 10" in [title.text for title in parse(str(chart)).find("title")]


def test_a_curve_behind_is_drawn_first_and_counts_for_the_axes():
    chart = line_chart([(0, 1), (2, 2)], "t", "x", "", behind=[(0, 0), (1, 9), (2, 1)])
    lines = parse(str(chart)).find("polyline")
    assert [line.attributes["class"] for line in lines] == ["curve faint", "curve"]
    assert "10" in [text.text for text in parse(str(chart)).find("text")]
    assert [title.text for title in parse(str(chart)).find("title")] == ["x 0: 1", "x 2: 2"]
    assert len(parse(str(chart)).find("text", class_="label")) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(8_000, "8000"), (20_000, "20k"), (200_000, "200k"), (1_500_000, "1.5M"), (3e9, "3e+09")]
)
def test_large_steps_are_short(value, text):
    assert text in [part.text for part in parse(str(line_chart([(0, 1), (value, 2)], "t", "x", "y"))).find("text")]


def test_a_value_that_is_not_finite_interrupts_the_curve():
    points = [(0, 1), (1, 2), (2, math.nan), (3, 1), (4, 2), (5, math.inf), (6, 1)]
    chart = line_chart(points, "t", "x", "y")
    assert [len(line) for line in places(chart)] == [2, 2]
    assert "nan" not in chart
    assert len(parse(str(chart)).find("circle")) == 5


@pytest.mark.parametrize("points", [[], [(math.nan, 1.0)]])
def test_a_curve_without_points_says_so(points):
    assert parse(str(line_chart(points, "t", "x", "y"))).text == "no finite points"


def test_a_single_point_is_drawn():
    assert len(parse(str(line_chart([(3, 4)], "t", "x", "y"))).find("circle")) == 1


def test_a_long_curve_keeps_its_extremes():
    points = [(float(x), math.sin(x / 50)) for x in range(30_000)]
    points[12_345] = (12_345.0, 9.0)
    points[23_456] = (23_456.0, -9.0)
    (line,) = places(line_chart(points, "t", "x", "y"))
    assert len(line) <= MAX_POINTS + 2
    xs = [x for x, _ in line]
    assert xs == sorted(xs)
    short = places(line_chart([points[0], points[12_345], points[23_456], points[-1]], "t", "x", "y"))[0]
    assert {short[1], short[2]} <= set(line)


def test_labels_are_escaped():
    chart = line_chart([(0, 1), (1, 2)], "<b>", "<i>", "</svg>")
    page = parse(str(chart))
    assert page.find("svg")[0].attributes["aria-label"] == "<b>"
    assert "</svg>" in page.text


def test_a_strip_has_one_named_dot_for_each_picture_and_a_mark_at_the_headline():
    page = parse(str(strip([("a<b>", 30.0), ("b", 31.0)], "psnr", 30.5, "t")))
    assert [dot.text for dot in page.find("circle")] == ["a<b>: 30.00", "b: 31.00"]
    left, right = (float(dot.attributes["cx"]) for dot in page.find("circle"))
    (mark,) = page.find("line", class_="mean")
    assert left < float(mark.attributes["x1"]) < right
    assert not parse(str(strip([("a", 1.0), ("b", 2.0)], "psnr", math.nan, "t"))).find("line", class_="mean")


def test_bars_and_swatches_have_the_length_and_colour_they_stand_for():
    assert parse(str(bar(0.25))).find("rect")[1].attributes["width"] == "25"
    assert parse(str(bar(7))).find("rect")[1].attributes["width"] == "100"
    assert parse(str(bar(0.5, "#010203"))).find("rect")[1].attributes["fill"] == "#010203"
    assert rgb((0, 128, 300)) == "#0080ff"
    assert parse(str(swatch((1, 2, 3)))).find("rect")[0].attributes["fill"] == "#010203"
