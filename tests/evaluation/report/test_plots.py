"""Axes carry plain numbers, as many as one can read."""

import pytest

from gsqtok.evaluation.report.plots import COLOURS, legend, line, logarithmic_y, panels, powers_of_two, style

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.28, 1.1], ["0.5", "1"]),
        ([0.3, 0.45], ["0.25", "0.5"]),  # none between, so the axis reaches out to two
        ([0.5], ["0.5"]),
        ([0.01, 0.06], ["1/64", "1/32"]),
        ([0.09, 1.5], ["0.125", "0.25", "0.5", "1"]),
        ([8192, 262_144], ["8k", "16k", "32k", "64k", "128k", "256k"]),
        ([2**10, 2**22], ["1k", "4k", "16k", "64k", "256k", "1M", "4M"]),
        ([1, 2**60], ["1", "512", "256k", "128M", "65536M", "3.35544e+07M", "1.71799e+10M"]),
        ([1e-6, 1e100], None),
    ],
)
def test_powers_of_two(values, ticks):
    with style():
        figure, (axis,) = panels(1)
        powers_of_two(axis, values)
        figure.draw_without_rendering()
        shown = [label.get_text() for label in axis.get_xticklabels()]
        low, high = axis.get_xlim()
    assert low < min(values) <= max(values) < high
    assert len(shown) <= 8
    if ticks is not None:
        assert shown == ticks
        assert all(low < tick < high for tick in axis.get_xticks())


@pytest.mark.parametrize("y", [[2.1, 3.9], [1, 60], [1e-9, 0.05], [0.31, 0.36]])
def test_a_logarithmic_axis_has_plain_numbers(y):
    with style():
        figure, (axis,) = panels(1)
        line(axis, 0, "a", [1, 2], y)
        logarithmic_y(axis)
        figure.draw_without_rendering()
        low, high = axis.get_ylim()
        shown = [
            t.get_text() for t, at in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True) if low < at < high
        ]
    assert 3 <= len(shown) <= 9
    assert all(len(text) <= 6 for text in shown)


def test_lines_differ_and_the_legend_names_each_once():
    with style():
        figure, axes = panels(2)
        for axis in axes:
            for number in range(9):
                line(axis, number, f"line {number}", [1, 2], [number, 1], spread=[0.1, 0.1] if number == 3 else None)
        line(axes[0], 9, "jpeg", [1, 2], [3, 4], yardstick=True)
        legend(figure, axes)
        drawn = [drawn for drawn in axes[1].get_lines() if drawn.get_linestyle() != "None"]  # the rest are error bars
        assert len({(d.get_color(), d.get_linestyle(), d.get_marker()) for d in drawn}) == 9
        assert axes[0].get_lines()[-1].get_color() == COLOURS[-1]
        names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == sorted([*(f"line {number}" for number in range(9)), "jpeg"])
