"""Is one model better than another at all: the exact sign test on prompts, and Holm's correction over axes.

The sign test asks how likely so uneven a split of wins and losses is among equals; ties do not enter. It needs
independent signs, which the votes on one prompt are not: they collapse to one sign a prompt, that of their majority,
and a prompt whose votes balance is a tie. Holm (Scandinavian Journal of Statistics 6, 1979) keeps the chance of any
false alarm among several tests at the level of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from scipy.stats import binomtest

from reelign.feedback.comparison import axes_of, between
from reelign.feedback.vote import Axis, Vote

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class SignTest:
    """Wins and losses, and how surprising they would be among equals.

    Attributes:
        wins, losses, ties: prompts.
        p: two-sided, exact; 1 when nothing was decided.
        holm: p corrected for all axes that were tested together.
    """

    wins: int
    losses: int
    ties: int
    p: float
    holm: float


def sign_tests(votes: Sequence[Vote], a: str, b: str) -> dict[Axis, SignTest]:
    """For each axis, whether model `b` wins more prompts than model `a`, with Holm over the axes."""
    found: dict[Axis, SignTest] = {}
    for axis in axes_of(votes):
        if row := between(votes, a, b, axis):
            found[axis] = sign_test(leanings((vote.prompt, worth) for vote, worth in row).values())
    corrected = holm({axis: test.p for axis, test in found.items()})
    return {axis: replace(test, holm=corrected[axis]) for axis, test in found.items()}


def sign_test(signs: Iterable[int]) -> SignTest:
    """The exact two-sided binomial test of independent signs: +1, 0 or -1 each."""
    count = Counter(signs)
    decided = count[1] + count[-1]
    p = float(binomtest(count[1], decided).pvalue) if decided else 1.0
    return SignTest(count[1], count[-1], count[0], p, p)


def leanings(worths: Iterable[tuple[Name, int]]) -> dict[Name, int]:
    """The sign of the sum of all that bears one name: where its majority leans, 0 when it balances."""
    sums: dict[Name, int] = {}
    for name, worth in worths:
        sums[name] = sums.get(name, 0) + worth
    return {name: (total > 0) - (total < 0) for name, total in sums.items()}


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """Corrected p-values: the smallest times n, the next times n - 1, ..., never falling, at most 1."""
    corrected: dict[Name, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p}
