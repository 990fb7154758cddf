"""Drawings are placed where the numbers say."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelign.report.plots import MOST_POINTS, counts, panel, place, ticks


@pytest.mark.parametrize(("value", "expected"), [(-1, 0), (0, 50), (0.5, 75), (1, 100), (-3, 0), (7, 100)])
def test_values_are_placed_in_percent_and_kept_inside(value: float, expected: float) -> None:
    assert place(value, -1, 1) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0.12, 0.31, [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]), (0, 400, [0, 100, 200, 300, 400])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_values_with_a_handful_of_steps(low: float, span: float) -> None:
    found = ticks(low, low + span)
    step = found[1] - found[0]
    slack = 1e-6 * step + 1e-9
    assert found[0] <= low + slack and found[-1] >= low + span - slack
    assert 2 <= len(found) <= 7


def test_equal_values_have_a_scale_too() -> None:
    for value in (0.0, 0.3, -2.0):
        found = ticks(value, value)
        assert found[0] <= value <= found[-1] and found[0] < found[-1]


def test_a_curve_goes_through_its_points() -> None:
    drawn = panel("Loss", {"loss": [(0, 4.0), (50, 2.0), (100, 0.0)]})
    assert drawn.lines[0].points == "0,0 50,50 100,100"
    assert [(tick.at, tick.text) for tick in drawn.up] == [(100, "0"), (75, "1"), (50, "2"), (25, "3"), (0, "4")]
    assert drawn.words == "Loss: loss from 4 to 0 over 100 steps"


def test_curves_of_one_panel_share_their_scale() -> None:
    drawn = panel("Scores", {"low": [(0, 0.0), (10, 0.0)], "high": [(0, 1.0), (10, 1.0)]})
    assert drawn.lines[0].points == "0,100 100,100"
    assert drawn.lines[1].points == "0,0 100,0"


def test_a_restless_curve_is_smoothed_over_the_faint_original_and_a_calm_one_is_not() -> None:
    noisy = panel("Loss", {"loss": [(step, float(step % 2)) for step in range(100)]}).lines[0]
    middle = [float(pair.split(",")[1]) for pair in noisy.points.split()][20:80]
    assert noisy.raw and all(abs(y - 50) < 10 for y in middle)
    calm = panel("Rate", {"lr": [(step, 1.0 / (1 + step)) for step in range(100)]}).lines[0]
    assert not calm.raw


def test_a_long_run_does_not_make_a_long_page() -> None:
    line = panel("Loss", {"loss": [(step, 1.0 / (1 + step)) for step in range(20_000)]}).lines[0]
    assert len(line.points.split()) == MOST_POINTS


def test_few_lengths_have_a_row_each() -> None:
    assert counts([2, 2, 3], [3, 5]) == [("2", 2, 0), ("3", 1, 1), ("4", 0, 0), ("5", 0, 1)]
    assert counts([7], [7, 7]) == [("7", 1, 2)]


def test_many_lengths_share_rows_of_equal_width() -> None:
    assert counts([1, 2, 3, 24], [2, 12, 13]) == [
        *(("1–2", 2, 1), ("3–4", 1, 0), ("5–6", 0, 0), ("7–8", 0, 0), ("9–10", 0, 0), ("11–12", 0, 1)),
        *(("13–14", 0, 1), ("15–16", 0, 0), ("17–18", 0, 0), ("19–20", 0, 0), ("21–22", 0, 0), ("23–24", 1, 0)),
    ]


@given(st.lists(st.integers(0, 5000), min_size=1), st.lists(st.integers(0, 5000), min_size=1))
def test_every_length_is_counted_once_in_a_dozen_rows_at_most(first: list[int], second: list[int]) -> None:
    found = counts(first, second)
    assert 1 <= len(found) <= 12
    assert (sum(row[1] for row in found), sum(row[2] for row in found)) == (len(first), len(second))
    ends = [[int(end) for end in label.split("–")] for label, _, _ in found]
    assert all(before[-1] + 1 == after[0] for before, after in pairwise(ends))
    assert ends[0][0] == min(first + second)
    assert ends[-1][0] <= max(first + second) <= ends[-1][-1]
    assert sum(found[0][1:]) > 0 and sum(found[-1][1:]) > 0
