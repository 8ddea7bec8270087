"""The pictures of a run: what is drawn of rows with figures, and of those without."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from fusedformer.benchmarks.report import plots
from fusedformer.benchmarks.report.rows import Row

RIGHT = Row(
    kind="error",
    subject="softmax",
    case="M=1",
    dtype="float32",
    world="reference",
    direction="forward + backward",
    contender="ours",
    error_ratio=0.4,
)


@pytest.fixture
def axes() -> Axes:
    return plt.subplots()[1]


def test_what_is_wrong_or_failed_is_a_red_mark_at_the_edge(axes: Axes) -> None:
    wrong = replace(RIGHT, case="M=2", status="wrong", error_ratio=1e9)
    failed = replace(RIGHT, case="M=3", status="failed", error_ratio=None)
    plots.draw_errors(axes, [RIGHT, wrong, failed])
    marks = {line.get_label(): line for line in axes.lines}
    edge = axes.get_xlim()[1]
    assert edge < 2
    for place, status in enumerate(("wrong", "failed"), 1):
        assert np.array_equal(marks[status].get_xydata(), [[edge, place]])
        assert marks[status].get_color() == "red"
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"softmax M={n} float32" for n in (1, 2, 3)]


def test_a_run_of_nothing_but_failures_is_drawn_too(axes: Axes, tmp_path: Path) -> None:
    failed = replace(RIGHT, status="failed", error_ratio=None)
    skipped = replace(RIGHT, status="skipped", error_ratio=None)
    assert [path.name for path in plots.draw([failed, skipped], tmp_path)] == ["errors.png"]
    assert plots.draw([skipped], tmp_path) == []


@pytest.mark.parametrize("interval", [(0.9, 1.1), (0.7, 1.4), (0.5, 1.6), (0.4, 1.7), (0.1, 4.0), (0.01, 30.0)])
def test_numbers_of_ratios_have_room(axes: Axes, interval: tuple[float, float]) -> None:
    low, high = interval
    row = replace(RIGHT, kind="time", contender="theirs", ratio=1.0, ratio_low=low, ratio_high=high)
    plots.draw_ratios(axes, [row])
    figure = plt.gcf()
    figure.set_size_inches(plots.WIDTH, 2)
    figure.canvas.draw()
    first, last = axes.get_xlim()
    labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    boxes = [
        label.get_window_extent() for label in labels if label.get_text() and first <= label.get_position()[0] <= last
    ]
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_ratios_lie_on_a_log_axis(axes: Axes) -> None:
    row = replace(RIGHT, kind="time", contender="theirs", ratio=2.0, ratio_low=1.5, ratio_high=2.5)
    plots.draw_ratios(axes, [row])
    assert axes.get_xscale() == "log"
