"""Pairwise comparison of two models at equal prompts and seeds: Good / Same / Bad, and what control was kept.

    GSB = (G - B) / (G + S + B)                                                     (arXiv 2604.25427, section 4)

A pair is "same" on an axis when its scores differ by less than `SAME`.
"""

from __future__ import annotations

from collections.abc import Iterator

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.evaluate.statistics import Interval, bootstrap_mean

SAME = 0.05
OVERALL = "overall"


def compare(parent: Evaluation, child: Evaluation) -> dict[str, Interval]:
    """GSB of the child against the parent for each axis and overall (the mean of the axes), bootstrapped over prompts.

    Raises:
        ReelignError: the two did not run the same battery.
    """
    pairs = list(_pairs(parent, child))
    prompts = [before.prompt for before, _ in pairs]
    found = {}
    for axis in (*parent.axes, OVERALL):
        verdicts = [verdict(_score(before, axis), _score(after, axis)) for before, after in pairs]
        found[axis] = bootstrap_mean(verdicts, prompts)
    return found


def verdict(before: float, after: float) -> int:
    """+1 if `after` is better, -1 if it is worse, 0 if the two are the same."""
    # A difference of exactly SAME counts as a difference; the tolerance keeps that true in binary fractions.
    if abs(after - before) < SAME - 1e-12:
        return 0
    return 1 if after > before else -1


def retention(parent: Evaluation, child: Evaluation) -> dict[str, Interval | None]:
    """For each attribute the share of checks that the parent passed and the child still passes; None without any."""
    pairs = list(_pairs(parent, child))
    names = dict.fromkeys(name for before, _ in pairs for name in before.attributes)
    kept: dict[str, Interval | None] = {}
    for name in names:
        checks = [(before.prompt, after.attributes[name]) for before, after in pairs if before.attributes.get(name)]
        kept[name] = bootstrap_mean([float(ok) for _, ok in checks], [prompt for prompt, _ in checks]) if checks else None
    return kept


def _pairs(parent: Evaluation, child: Evaluation) -> Iterator[tuple[Item, Item]]:
    before = {(item.id, item.seed): item for item in parent.items}
    after = {(item.id, item.seed): item for item in child.items}
    if before.keys() != after.keys() or parent.axes != child.axes:
        raise ReelignError(
            f"the two evaluations cannot be compared: {len(before)} and {len(after)} clips on axes {parent.axes} and "
            f"{child.axes}, of which {len(before.keys() & after.keys())} share prompt and seed. Run the same battery on both."
        )
    for key, item in before.items():
        yield item, after[key]


def _score(item: Item, axis: str) -> float:
    return sum(item.scores.values()) / len(item.scores) if axis == OVERALL else item.scores[axis]
