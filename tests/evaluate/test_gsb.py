"""Good, same, bad between two evaluations, and what control was kept; all numbers worked out by hand."""

import pytest

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.evaluate.gsb import OVERALL, compare, retention, verdict, verdicts

AXES = ("VQ", "MQ", "TA")


def item(name: str, *scores: float, prompt: str | None = None, seed: int = 0, **attributes: bool) -> Item:
    return Item(name, prompt or f"prompt {name}", seed, dict(zip(AXES, scores, strict=True)), attributes)


def evaluation(*items: Item) -> Evaluation:
    return Evaluation({}, AXES, items)


PARENT = evaluation(
    item("a", 0.5, 0.5, 0.5), item("b", 0.5, 0.5, 0.5), item("c", 0.5, 0.5, 0.5), item("d", 0.5, 0.5, 0.5)
)
CHILD = evaluation(
    item("a", 0.6, 0.4, 0.5), item("b", 0.9, 0.5, 0.5), item("c", 0.52, 0.4, 0.9), item("d", 0.3, 0.5, 0.5)
)


def test_gsb_is_good_minus_bad_over_all_pairs() -> None:
    found = compare(PARENT, CHILD)
    assert found["VQ"].value == (2 - 1) / 4
    assert found["MQ"].value == (0 - 2) / 4
    assert found["TA"].value == (1 - 0) / 4
    assert {axis: interval.n for axis, interval in found.items()} == {"VQ": 4, "MQ": 4, "TA": 4, OVERALL: 4}


def test_overall_judges_the_mean_of_the_axes() -> None:
    # Mean changes: a 0, b +0.133, c +0.107, d -0.067.
    assert verdicts(PARENT, CHILD)[OVERALL] == [0, 1, 1, -1]


@pytest.mark.parametrize(("change", "expected"), [(0.049, 0), (0.05, 1), (-0.049, 0), (-0.05, -1), (0.0, 0), (0.4, 1)])
@pytest.mark.parametrize("before", [0.1, 0.3, 0.45, 0.6])
def test_a_pair_is_the_same_when_scores_differ_by_less_than_a_twentieth(
    before: float, change: float, expected: int
) -> None:
    assert verdict(before, before + change) == expected


def test_the_comparison_is_antisymmetric() -> None:
    forth, back = compare(PARENT, CHILD), compare(CHILD, PARENT)
    assert all(forth[axis].value == -back[axis].value for axis in forth)


def test_a_model_compared_with_itself_is_the_same_everywhere() -> None:
    assert all((found.value, found.low, found.high) == (0, 0, 0) for found in compare(PARENT, PARENT).values())


def test_the_order_of_the_items_does_not_matter() -> None:
    shuffled = Evaluation({}, AXES, CHILD.items[::-1])
    assert compare(PARENT, shuffled) == compare(PARENT, CHILD)


def test_clips_of_one_prompt_are_resampled_together() -> None:
    names = [f"{prompt}{seed}" for prompt in "abcdef" for seed in range(4)]
    before = evaluation(*(item(name, 0.5, 0.5, 0.5, prompt=name[0]) for name in names))
    after = evaluation(*(item(name, 0.9 if name[0] in "abc" else 0.1, 0.5, 0.5, prompt=name[0]) for name in names))
    apart = evaluation(*(item(name, 0.5, 0.5, 0.5, prompt=name) for name in names))
    apart_after = evaluation(*(item(i.id, *i.scores.values(), prompt=i.id) for i in after.items))
    together, single = compare(before, after)["VQ"], compare(apart, apart_after)["VQ"]
    assert together.high - together.low > 1.5 * (single.high - single.low)


def test_other_seeds_prompts_or_clips_cannot_be_compared() -> None:
    for other in (
        evaluation(*CHILD.items[:3]),
        evaluation(*CHILD.items[:3], item("d", 0.3, 0.5, 0.5, seed=1)),
        evaluation(*CHILD.items[:3], item("d", 0.3, 0.5, 0.5, prompt="a shorter form")),
    ):
        with pytest.raises(ReelignError, match=r"only 3 share id, prompt and seed \(not, for example, 'd'\)"):
            compare(PARENT, other)


def test_other_axes_cannot_be_compared() -> None:
    other = Evaluation({}, ("VQ",), CHILD.items)
    with pytest.raises(ReelignError, match="has the axes VQ, MQ, TA, the other VQ"):
        compare(PARENT, other)


def test_retention_counts_only_what_the_parent_could_do() -> None:
    before = evaluation(
        item("a", 0, 0, 0, colour=True, shape=True, size=False),
        item("b", 0, 0, 0, colour=True, shape=False, size=False),
        item("c", 0, 0, 0, colour=True, shape=True),
        item("d", 0, 0, 0, colour=False, shape=True),
    )
    after = evaluation(
        item("a", 0, 0, 0, colour=True, shape=True, size=True),
        item("b", 0, 0, 0, colour=False, shape=True, size=True),
        item("c", 0, 0, 0, colour=True, shape=True),
        item("d", 0, 0, 0, colour=True, shape=True),
    )
    kept = retention(before, after)
    assert kept["colour"] is not None and (kept["colour"].value, kept["colour"].n) == (2 / 3, 3)
    assert kept["shape"] is not None and (kept["shape"].value, kept["shape"].n) == (1.0, 3)
    assert kept["size"] is None


def test_attributes_checked_on_one_side_only_are_an_error() -> None:
    before, after = evaluation(item("a", 0, 0, 0, colour=True)), evaluation(item("a", 0, 0, 0))
    with pytest.raises(ReelignError, match="'a' was checked for other attributes"):
        retention(before, after)
