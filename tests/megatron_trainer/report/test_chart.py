"""The SVG charts, parsed as XML."""

import math
from xml.etree import ElementTree

import pytest

from megatron_trainer.report import chart
from megatron_trainer.report.chart import Bar, Series, axis, bar_chart, line_chart, readable


def drawn(points, **changes):
    series = [Series(name="training", css_class="first", points=points)]
    return ElementTree.fromstring(line_chart(series, x_label="iteration", y_label="loss", **changes))


def polyline(svg):
    [line] = svg.iter("polyline")
    return [tuple(map(float, place.split(","))) for place in line.get("points").split()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2.25, 4.04, ("2.0", "2.5", "3.0", "3.5", "4.0", "4.5")),
        (0, 1e-3, ("0", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010")),
        (0, 1.2e-5, ("0", "2.5e-6", "5e-6", "7.5e-6", "1e-5", "1.25e-5")),
        (0, 285_000, ("0", "100,000", "200,000", "300,000")),
        (-1, 1, ("-1.0", "-0.5", "0", "0.5", "1.0")),
        (3, 3, ("2.6", "2.8", "3.0", "3.2", "3.4")),
        (0, 0, ("-1.0", "-0.5", "0", "0.5", "1.0")),
    ],
)
def test_ticks_are_round_numbers_that_span_the_values(low, high, ticks):
    found = axis(low, high)
    assert found.labels == ticks
    assert found.low <= low <= high <= found.high


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 25, (5, 10, 15, 20, 25)), (1, 3, (1, 2, 3)), (1, 1, (0, 1, 2)), (0, 206, (0, 50, 100, 150, 200))],
)
def test_iterations_have_whole_ticks_and_no_margin(low, high, ticks):
    assert axis(low, high, whole=True).ticks == ticks


def test_points_lie_where_the_axes_say():
    places = polyline(drawn([(0, 0.0), (10, 1.0)]))
    bottom, top = chart.HEIGHT - chart.BOTTOM, chart.TOP
    assert places == [(chart.LEFT, bottom), (chart.WIDTH - chart.RIGHT, top)]


def test_an_axis_from_zero_shows_zero():
    labels = [text.text for text in drawn([(1, 220.0), (2, 285.0)], from_zero=True).iter("text")]
    assert "0" in labels
    assert "300" in labels


def test_the_pointer_reads_all_values_of_an_iteration():
    series = [
        Series(name="training", css_class="first", points=[(1, 4.04), (5, 2.5)]),
        Series(name="validation", css_class="second", points=[(5, 3.27351)]),
    ]
    svg = ElementTree.fromstring(line_chart(series, x_label="iteration", y_label="loss"))
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["iteration 1\ntraining: 4.04", "iteration 5\ntraining: 2.5\nvalidation: 3.274"]


def test_gaps_are_passed_over_and_nothing_draws_nothing():
    svg = drawn([(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)])
    assert len(polyline(svg)) == 2
    nothing = Series(name="training", css_class="first", points=[(1, math.nan)])
    assert line_chart([nothing], x_label="iteration", y_label="loss") == ""


def test_a_single_point_is_drawn_as_a_dot():
    assert len(list(drawn([(1, 2.0)]).iter("circle"))) == 1


def test_long_runs_are_averaged_to_what_a_screen_shows():
    svg = drawn([(i, float(i % 2)) for i in range(1, 100_001)])
    places = polyline(svg)
    assert len(places) == 300
    assert {y for _, y in places} == {places[0][1]}  # each group averages as many zeros as ones


def test_names_are_escaped():
    series = [Series(name="<b>&", css_class="first", points=[(1, 1.0)])]
    svg = ElementTree.fromstring(line_chart(series, x_label="<i>", y_label='"loss"'))
    assert [title.text for title in svg.iter("title")] == ["<i> 1\n<b>&: 1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.45612, "2.456"), (1234.4, "1234"), (12345.6, "12,346"), (4.85e-6, "4.850e-6"), (3e12, "3.000e12")],
)
def test_numbers_read_well(value, text):
    assert readable(value) == text


def test_bars_stand_on_zero_and_are_as_high_as_their_counts():
    counts = {"1-16": 5, "17-32": 10, "33-64": 0}
    bars = [Bar(name=name, tick=name[-2:], count=count) for name, count in counts.items()]
    svg = ElementTree.fromstring(bar_chart(bars, x_label="tokens", y_label="rows"))
    heights = [float(bar.get("height")) for bar in svg.iter("rect")]
    assert heights == [(chart.HEIGHT - chart.TOP - chart.BOTTOM) / 2, chart.HEIGHT - chart.TOP - chart.BOTTOM, 0]
    assert [title.text for title in svg.iter("title")] == ["1-16: 5", "17-32: 10", "33-64: 0"]
    assert bar_chart([], x_label="tokens", y_label="rows") == ""
