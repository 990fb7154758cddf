import pytest

from reelign.report.pareto import pareto


def row(name: str, nfe: float, score: float) -> dict:
    return {"name": name, "nfe": nfe, "scores": {"text": score, "motion": score}}


def test_what_is_both_dearer_and_worse_is_beaten():
    found = pareto([row("teacher", 40, 0.9), row("student", 4, 0.8), row("poor", 4, 0.5), row("dear", 64, 0.85)])
    assert found is not None
    assert {point.name: point.best for point in found.points} == {
        "teacher": True,
        "student": True,
        "poor": False,
        "dear": False,
    }
    assert len(found.line.split()) == 2
    assert "student: 4 evaluations, mean score 0.800" in found.words


def test_cheaper_is_further_left_and_better_is_further_up():
    found = pareto([row("a", 2, 0.2), row("b", 32, 0.7)])
    assert found is not None
    first, second = found.points
    assert first.left < second.left
    assert first.top > second.top
    assert all(0 <= value <= 100 for point in found.points for value in (point.left, point.top))
    assert [tick.text for tick in found.across] == ["1", "2", "4", "8", "16", "32"]


def test_equal_points_are_both_on_the_line():
    found = pareto([row("a", 4, 0.5), row("b", 4, 0.5)])
    assert found is not None
    assert all(point.best for point in found.points)


@pytest.mark.parametrize("rows", [[], [row("only", 4, 0.5)]])
def test_nothing_and_one_point_can_be_drawn(rows):
    assert (pareto(rows) is None) == (not rows)
