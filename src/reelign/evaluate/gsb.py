"""Pairwise comparison of two models at equal prompts and seeds: Good / Same / Bad, and what control was kept.

    GSB = (G - B) / (G + S + B)        in [-1, 1]                                   (arXiv 2604.25427, section 4)

A pair is "same" on an axis when its scores differ by less than `SAME`. The axes are those of the evaluation (text
alignment, visual quality, motion quality on the miniature), and "overall" is the mean of them.
"""

from __future__ import annotations

from collections import Counter

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.evaluate.statistics import Interval, bootstrap_mean

SAME = 0.05
OVERALL = "overall"
ROUNDING = 1e-9
"""Scores that differ by exactly `SAME` are different, also where binary fractions put them a hair below."""


def compare(parent: Evaluation, child: Evaluation) -> dict[str, Interval]:
    """GSB of the child against the parent for each axis and overall, bootstrapped over prompts.

    Raises:
        ReelignError: the two did not run the same battery.
    """
    prompts = [before.prompt for before, _ in _pairs(parent, child)]
    return {axis: bootstrap_mean(found, prompts) for axis, found in verdicts(parent, child).items()}


def verdicts(parent: Evaluation, child: Evaluation) -> dict[str, list[int]]:
    """For each axis and overall, the verdict on each pair in the parent's order: +1 good, 0 same, -1 bad.

    Raises:
        ReelignError: the two did not run the same battery.
    """
    pairs = _pairs(parent, child)
    return {
        axis: [verdict(_score(before, axis, parent.axes), _score(after, axis, parent.axes)) for before, after in pairs]
        for axis in (*parent.axes, OVERALL)
    }


def verdict(before: float, after: float) -> int:
    """+1 if `after` is better, -1 if it is worse, 0 if the two are the same."""
    if abs(after - before) < SAME - ROUNDING:
        return 0
    return 1 if after > before else -1


def retention(parent: Evaluation, child: Evaluation) -> dict[str, Interval | None]:
    """For each attribute the share of checks that the parent passed and the child still passes.

    Returns:
        `Interval.n` is the number of checks that the parent passed; None where it passed none.

    Raises:
        ReelignError: the two did not run the same battery, or an attribute was checked on one of them only.
    """
    pairs = _pairs(parent, child)
    kept: dict[str, Interval | None] = {}
    for name in dict.fromkeys(name for before, _ in pairs for name in before.attributes):
        checks = [(before.prompt, after.attributes[name]) for before, after in pairs if before.attributes.get(name)]
        passed = [float(ok) for _, ok in checks]
        kept[name] = bootstrap_mean(passed, [prompt for prompt, _ in checks]) if checks else None
    return kept


def _pairs(parent: Evaluation, child: Evaluation) -> list[tuple[Item, Item]]:
    """Items of equal task, seed and prompt, in the parent's order."""
    before, after = ({item.key: item for item in found.items} for found in (parent, child))
    if before.keys() != after.keys():
        alone = Counter(key[0] for key in before.keys() ^ after.keys())
        raise ReelignError(
            f"the two evaluations cannot be compared: of {len(before)} and {len(after)} clips only "
            f"{len(before.keys() & after.keys())} share id, prompt and seed (not, for example, {min(alone)!r}). "
            "Run the same battery on both."
        )
    if parent.axes != child.axes:
        raise ReelignError(
            f"the two evaluations cannot be compared: one has the axes {', '.join(parent.axes)}, the other "
            f"{', '.join(child.axes)}. Judge both with the same judge."
        )
    pairs = [(item, after[key]) for key, item in before.items()]
    for one, other in pairs:
        if one.attributes.keys() != other.attributes.keys():
            raise ReelignError(f"the clip {one.id!r} was checked for other attributes in the two evaluations.")
    return pairs


def _score(item: Item, axis: str, axes: tuple[str, ...]) -> float:
    return sum(item.scores[name] for name in axes) / len(axes) if axis == OVERALL else item.scores[axis]
