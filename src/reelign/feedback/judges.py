"""How far an automatic judge, or a reward, agrees with people, and how far people agree with each other.

A judge scores clips; the difference of two scores is its verdict on a pair.

- Without ties: of the votes that are not "same", the share whose sign is that of the difference.
- With ties: of all votes, the share that equals the judge's verdict, "same" where the difference is at most a
  threshold. Scores have no natural one, so it is the one that agrees best with people (Deutsch et al. 2023, arXiv
  2305.14324). A threshold fitted to the votes that it is tested on flatters the judge: each fold of prompts is tested
  with the threshold of the others.

The ceiling is what a rater reaches: each vote against the majority of the other raters of that pair. With few raters
the majority is itself uncertain, and a good judge may pass it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reelign.errors import ReelignError
from reelign.evaluate.statistics import Interval
from reelign.feedback.agreement import shared_units
from reelign.feedback.comparison import plain
from reelign.feedback.resample import bounded_mean
from reelign.feedback.vote import Axis, Vote

FOLDS = 5

Scores = Mapping[str, Mapping[str, float]]
"""The scores of a judge: by file of a clip, then by axis."""


@dataclass(frozen=True)
class JudgeAgreement:
    """Of a judge, or of a rater, with the votes on one axis.

    Attributes:
        without_ties: share of right signs; None where every vote is a tie.
        with_ties: share of right verdicts; None where too few prompts are there to find a threshold on others.
        threshold: the largest difference of scores that is "same", from all votes; None for raters.
        votes: those that were compared.
        unscored: votes left out because the judge did not score one of the clips, or because no other rater voted.
    """

    without_ties: Interval | None
    with_ties: Interval | None
    threshold: float | None
    votes: int
    unscored: int


def judge_agreement(votes: Sequence[Vote], axis: Axis, scores: Scores) -> JudgeAgreement | None:
    """How far a judge agrees with the plain votes on an axis; None where it scored no pair on this axis.

    Raises:
        ReelignError: a score is not finite.
    """
    asked = plain(votes, axis)
    rows = [(vote, gap) for vote in asked if (gap := _gap(vote, axis, scores)) is not None]
    if not rows:
        return None
    gaps, worths = np.array([gap for _, gap in rows]), np.array([vote.worth for vote, _ in rows])
    prompts = [vote.prompt for vote, _ in rows]
    decided = worths != 0
    signs = _mean(
        (np.sign(gaps) == worths)[decided], [prompt for prompt, yes in zip(prompts, decided, strict=True) if yes]
    )
    right = _tested_on_others(gaps, worths, prompts)
    with_ties = None if right is None else _mean(right, prompts)
    return JudgeAgreement(signs, with_ties, best_threshold(gaps, worths), len(rows), len(asked) - len(rows))


def rater_ceiling(votes: Sequence[Vote], axis: Axis) -> JudgeAgreement | None:
    """How far a rater agrees with the majority of the others; None where no pair has votes of two raters."""
    rows = [
        (vote, _majority([other for other in unit if other is not vote], vote))
        for unit in shared_units(votes, axis)
        for vote in unit
    ]
    if not rows:
        return None
    decided = [(vote, said) for vote, said in rows if vote.worth and said]
    return JudgeAgreement(
        _mean(np.array([vote.worth == said for vote, said in decided]), [vote.prompt for vote, _ in decided]),
        _mean(np.array([vote.worth == said for vote, said in rows]), [vote.prompt for vote, _ in rows]),
        None,
        len(rows),
        len(plain(votes, axis)) - len(rows),
    )


def best_threshold(gaps: np.ndarray, worths: np.ndarray) -> float:
    """The threshold at which verdicts of differences `gaps` equal most of `worths`; the smallest one, where several do.

    Only the sizes of the differences, and 0, need to be tried: between two of them no verdict changes.
    """
    sizes = np.abs(gaps)
    order = np.argsort(sizes, kind="stable")
    tries = np.unique(np.append(0.0, sizes))
    upto = np.searchsorted(sizes[order], tries, side="right")
    ties = np.append(0, np.cumsum(worths[order] == 0))
    signs = np.append(0, np.cumsum((np.sign(gaps) == worths)[order] & (worths[order] != 0)))
    return float(tries[np.argmax(ties[upto] + signs[-1] - signs[upto])])


def _tested_on_others(gaps: np.ndarray, worths: np.ndarray, prompts: Sequence[str]) -> np.ndarray | None:
    """Whether each verdict is right, at the threshold of the other folds; None with fewer than two prompts."""
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    if len(number) < 2:
        return None
    fold = np.array([number[prompt] % FOLDS for prompt in prompts])
    right = np.zeros(len(gaps), bool)
    for left_out in np.unique(fold):
        inside = fold == left_out
        threshold = best_threshold(gaps[~inside], worths[~inside])
        right[inside] = _verdicts(gaps[inside], threshold) == worths[inside]
    return right


def _verdicts(gaps: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(np.abs(gaps) <= threshold, 0, np.sign(gaps))


def _gap(vote: Vote, axis: Axis, scores: Scores) -> float | None:
    """Score of A less that of B; None where one is missing."""
    found = [scores.get(side.clip, {}).get(axis) for side in (vote.a, vote.b)]
    for side, score in zip((vote.a, vote.b), found, strict=True):
        if score is not None and not math.isfinite(score):
            raise ReelignError(f"the score of {side.clip} on the axis {axis} is {score}: leave out clips that failed.")
    one, other = found
    return None if one is None or other is None else float(one) - float(other)


def _majority(others: Sequence[Vote], vote: Vote) -> int:
    """What most of the others said, in the order of `vote`; 0 where two verdicts have as many votes."""
    said = Counter(other.worth if other.a == vote.a else -other.worth for other in others).most_common()
    return 0 if len(said) > 1 and said[0][1] == said[1][1] else said[0][0]


def _mean(right: np.ndarray, prompts: Sequence[str]) -> Interval | None:
    return bounded_mean(right.tolist(), prompts, 0) if len(right) else None
