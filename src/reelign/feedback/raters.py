"""How each rater votes: haste, habit, constancy and known answers, and a word of warning where chance is no excuse.

What counts is a showing: one pair shown once, whose votes on several axes depend on each other and are one piece of
evidence. It leans to the side that most of its axes prefer.

- Left share: of the showings that lean, those that lean to the left. Sides are drawn at random, so it should be a half.
- Repeat consistency: of the hidden repeats, those that lean as the first showing did, in the pair's own order.
- Gold accuracy: of the gold showings, those where most axes have the known answer.

Warnings are exact binomial tests, and Holm's correction over all raters and kinds of warning keeps the chance that any
of many honest raters is warned of at 5 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from reelign.evaluate.statistics import Interval
from reelign.feedback.significance import holm, leanings
from reelign.feedback.vote import Kind, Vote

LEVEL = 0.05
"""Chance that anything is said of any of a study's raters, if all are honest."""
TOO_FAST = 1.0
"""Seconds in which nobody has seen two clips."""
HASTY = 0.1
"""A share of hasty showings that happens to careful raters: a slip of the finger, a clock that is off."""
CONSTANT = 0.5
"""Raters who vote with care repeat themselves at least so often, also on pairs that are nearly equal."""
KNOWN = 0.7
"""Raters who look find at least so many known answers."""

TESTS: dict[str, tuple[float, Literal["two-sided", "less", "greater"], str]] = {
    "left": (0.5, "two-sided", "chooses {side} in {percent} of {n} decided pairs, though sides are drawn"),
    "hasty": (HASTY, "greater", f"votes within {TOO_FAST:g} s on {{percent}} of {{n}} pairs"),
    "repeats": (CONSTANT, "less", "says the same again on only {percent} of {n} repeated pairs"),
    "gold": (KNOWN, "less", "finds the known answer of only {percent} of {n} gold pairs"),
}
"""What is usual of a share, on which side of it a rater is warned of, and the words."""


@dataclass(frozen=True)
class RaterReport:
    """One rater.

    Attributes:
        rater: its name.
        sources: who votes under it: a person, a simulation, a model.
        votes, showings: of all kinds.
        left: share of showings that lean to the left; None where none leans, or where the file never exchanged sides.
        ties: share of votes that are "same".
        seconds: median of a showing; None where times are not known.
        hasty: share of showings faster than `TOO_FAST`; None where times are not known.
        repeats, gold: shares with exact intervals, `n` counts showings; None where there are none.
        warnings: for people, each with its reason.
    """

    rater: str
    sources: tuple[str, ...]
    votes: int
    showings: int
    left: Interval | None
    ties: float
    seconds: float | None
    hasty: Interval | None
    repeats: Interval | None
    gold: Interval | None
    warnings: tuple[str, ...] = ()


def rater_reports(votes: Sequence[Vote]) -> list[RaterReport]:
    """A report of each rater, those with most votes first."""
    of_rater: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        of_rater[vote.rater].append(vote)
    reports = [_report(rater, rows) for rater, rows in of_rater.items()]
    warned = _warnings(reports)
    return sorted(
        (replace(report, warnings=tuple(warned[report.rater])) for report in reports), key=lambda report: -report.votes
    )


def share(hits: int, of: int) -> Interval | None:
    """A share with its exact interval (Clopper and Pearson 1934); None of nothing."""
    if not of:
        return None
    found = binomtest(hits, of).proportion_ci(method="exact")
    return Interval(hits / of, float(found.low), float(found.high), of)


def _report(rater: str, votes: Sequence[Vote]) -> RaterReport:
    showings: dict[tuple[str, Kind, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        showings[vote.pair, vote.kind, vote.left].append(vote)
    times = np.array([np.median([vote.seconds for vote in showing]) for showing in showings.values()])
    times = times[np.isfinite(times)]
    return RaterReport(
        rater,
        tuple(sorted({vote.source for vote in votes})),
        len(votes),
        len(showings),
        _left_share(votes),
        sum(vote.verdict == "same" for vote in votes) / len(votes),
        float(np.median(times)) if len(times) else None,
        share(int((times < TOO_FAST).sum()), len(times)),
        _repeat_share(votes),
        _gold_share(showings),
    )


def _left_share(votes: Sequence[Vote]) -> Interval | None:
    if len({vote.left for vote in votes}) < 2:
        return None  # who always sees A on the left and chooses it may simply prefer A
    towards = leanings(
        ((vote.pair, vote.kind, vote.left), vote.worth if vote.left == "a" else -vote.worth) for vote in votes
    )
    leaning = [sign for sign in towards.values() if sign]
    return share(leaning.count(1), len(leaning))


def _repeat_share(votes: Sequence[Vote]) -> Interval | None:
    """Only the axes that both showings of a pair have."""
    asked: dict[bool, dict[tuple[str, str], int]] = {False: {}, True: {}}
    for vote in votes:
        asked[vote.kind == "repeat"][vote.pair, vote.axis] = vote.worth
    both = asked[False].keys() & asked[True].keys()
    first, again = (leanings((pair, found[pair, axis]) for pair, axis in sorted(both)) for found in asked.values())
    return share(sum(first[pair] == again[pair] for pair in first), len(first))


def _gold_share(showings: Mapping[tuple[str, Kind, str], Sequence[Vote]]) -> Interval | None:
    known = [[vote for vote in showing if vote.kind == "gold" and vote.expected] for showing in showings.values()]
    answered = [showing for showing in known if showing]
    right = [2 * sum(vote.verdict == vote.expected for vote in showing) > len(showing) for showing in answered]
    return share(sum(right), len(right))


def _warnings(reports: Sequence[RaterReport]) -> dict[str, list[str]]:
    """Warnings by rater."""
    p = {
        (report.rater, name): float(binomtest(round(found.value * found.n), found.n, usual, side).pvalue)
        for report in reports
        for name, (usual, side, _) in TESTS.items()
        if (found := getattr(report, name)) is not None
    }
    warned: dict[str, list[str]] = {report.rater: [] for report in reports}
    corrected = holm(p)
    for report in reports:
        for name, (_, _, words) in TESTS.items():
            if (chance := corrected.get((report.rater, name), 1.0)) < LEVEL:
                found = getattr(report, name)
                right = name == "left" and found.value < 0.5
                percent, side = 100 * (1 - found.value if right else found.value), "right" if right else "left"
                said = words.format(percent=f"{percent:.0f} %", n=found.n, side=side)
                warned[report.rater].append(f"{said} (corrected p = {chance:.1g})")
    return warned
