"""What votes say of two models: how often the one was better, the same or worse, and the net of it.

    net GSB = (G - B) / (G + S + B)        in [-1, 1], a hundredth is a point              (arXiv 2604.25427, section 4)

Only plain votes count: a gold pair was made to have an answer, and a hidden repeat was asked twice. The interval
resamples whole prompts (`resample.py`), so that several raters on one pair, and several pairs of one prompt, are not
taken for news.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from reelign.errors import ReelignError
from reelign.evaluate.statistics import Interval
from reelign.feedback.resample import bounded_mean
from reelign.feedback.vote import AXES, WORTH, Axis, Vote


@dataclass(frozen=True)
class Counts:
    """Votes for the second of two models (good), for neither (same) and for the first (bad)."""

    good: int
    same: int
    bad: int

    @property
    def votes(self) -> int:
        """All of them."""
        return self.good + self.same + self.bad


def net_gsb(votes: Sequence[Vote], a: str, b: str) -> dict[Axis, Interval]:
    """Net GSB of model `b` against model `a` for each axis that has plain votes on the two.

    Raises:
        ReelignError: there is no such vote.
    """
    found: dict[Axis, Interval] = {}
    for axis in axes_of(votes):
        if rows := between(votes, a, b, axis):
            found[axis] = bounded_mean([worth for _, worth in rows], [vote.prompt for vote, _ in rows], -1)
    if found:
        return found
    there = ", ".join(f"{one} and {other}" for one, other in compared_models(votes)) or "no two models"
    raise ReelignError(f"no plain vote compares {a!r} with {b!r}; the votes compare {there}.")


def counts(votes: Sequence[Vote], a: str, b: str, axis: Axis) -> Counts:
    """The plain votes on an axis, seen from model `b`."""
    found = Counter(worth for _, worth in between(votes, a, b, axis))
    return Counts(*(found[worth] for worth in WORTH.values()))


def between(votes: Sequence[Vote], a: str, b: str, axis: Axis) -> list[tuple[Vote, int]]:
    """The plain votes of an axis on models `a` and `b`, each with +1 where `b` is better and -1 where `a` is."""
    turn = {(a, b): -1, (b, a): 1}
    return [
        (vote, turn[sides] * vote.worth)
        for vote in plain(votes, axis)
        if (sides := (vote.a.model, vote.b.model)) in turn and a != b
    ]


def plain(votes: Sequence[Vote], axis: Axis) -> list[Vote]:
    """The votes of an axis that statistics of models may use."""
    return [vote for vote in votes if vote.axis == axis and vote.kind == "plain"]


def axes_of(votes: Sequence[Vote]) -> tuple[Axis, ...]:
    """The axes with plain votes, in the order of the literature."""
    there = {vote.axis for vote in votes if vote.kind == "plain"}
    return tuple(axis for axis in AXES if axis in there)


def compared_models(votes: Sequence[Vote]) -> list[tuple[str, str]]:
    """The pairs of different models with plain votes, models in the order in which votes name them."""
    met = {frozenset((vote.a.model, vote.b.model)) for vote in votes if vote.kind == "plain"}
    return [pair for pair in combinations(models_of(votes), 2) if frozenset(pair) in met]


def models_of(votes: Sequence[Vote]) -> list[str]:
    """The models in the order in which votes name them."""
    return list(dict.fromkeys(side.model for vote in votes for side in (vote.a, vote.b)))
