"""The figure of differences against the intervals that it shows."""

import itertools

import pytest

from cal_cli.reporting import figures as differences
from cal_cli.reporting.figures import describe_intervals, draw_differences


def make_row(metric, condition, objective, value=None, interval=None):
    found = None if value is None else {"value": value, "ci95": interval}
    return {"metric": metric, "condition": condition, "objective": objective, "settings": {}, "difference": found}


def test_each_line_has_its_interval_and_is_filled_if_it_excludes_zero(monkeypatch):
    figures = []
    monkeypatch.setattr(differences, "encode_figure", lambda figure, dpi: figures.append(figure) or b"")
    rows = [
        make_row("reading", "0", "ce"),
        make_row("reading", "0", "cal", -0.2, [-0.3, -0.1]),
        make_row("reading", "0.5", "ce"),
        make_row("reading", "0.5", "cal", 0.3, [0.1, 0.5]),
        make_row("reading", "0.5", "ratio", 0.2, [-0.1, 0.5]),
        make_row("charts", "0.5", "ratio", 0.4),
    ]
    draw_differences(rows, "ce")
    reading, charts = figures[0].axes
    labels = [label.get_text() for label in reading.get_yticklabels()]
    assert labels == ["noise 0", "cal", "noise 0.5", "cal", "ratio"]
    drawn = [(list(line.get_xdata()), int(line.get_ydata()[0])) for line in reading.lines[1::2]]
    assert drawn == [([-0.3, -0.1], 1), ([0.1, 0.5], 3), ([-0.1, 0.5], 4)]
    filled = [point.get_markerfacecolor() != "white" for point in reading.lines[2::2]]
    assert filled == [True, True, False]
    assert list(charts.lines[1].get_xdata()) == [0.4, 0.4]
    assert int(charts.lines[1].get_ydata()[0]) == 4 and charts.lines[2].get_markerfacecolor() == "white"


def test_the_title_says_that_one_seed_has_no_interval():
    alone, among = make_row("reading", "0", "cal", 0.1), make_row("reading", "0", "ratio", 0.1, [0.0, 0.2])
    assert "no interval" in describe_intervals([alone])
    assert "95 % intervals" in describe_intervals([alone, among])


def test_there_is_no_figure_without_a_difference():
    assert draw_differences([make_row("reading", "0", "ce")], "ce") is None
    assert draw_differences([make_row("reading", "0", "cal", 0.1, [0.0, 0.2])], "ce").startswith(b"\x89PNG")


def test_points_at_a_single_ratio_are_side_by_side():
    figures = []
    rows = [
        {"condition": "0.5", "settings": {}, "noise_kind": "swap", "noise_ratio": 0.5, "objective": name}
        | {"metric": "scene_accuracy", "seeds": [0], "mean": {"value": 0.5, "ci95": [0.4, 0.6]}}
        for name in ("ce", "cal", "posterior")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "encode_figure", lambda figure, **_: figures.append(figure) or b"")
        differences.draw_noise_figure(rows)
    panel = figures[0].axes[0]
    places = [container[0].get_xdata()[0] for container in panel.containers]
    low, high = panel.get_xlim()
    assert len(set(places)) == 3 and min(abs(a - b) for a, b in itertools.pairwise(places)) > 0.1 * (high - low)
    assert list(panel.get_xticks()) == [0.5]
