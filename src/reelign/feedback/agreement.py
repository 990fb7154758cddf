"""How far raters agree with each other: Krippendorff's alpha, and the same in plain shares.

    alpha = 1 - observed disagreement / disagreement of the same verdicts dealt at random    (Krippendorff 2018, ch. 12)

1 is agreement, 0 is chance, below 0 is worse than chance. Verdicts are ordered (bad, same, good): "good" against "bad"
is a worse disagreement than "good" against "same", so the distance is Krippendorff's ordinal one. A unit is a pair of
clips with plain votes of two raters or more. Which clip of a pair is called A means nothing and yet enters the
verdicts' frequencies, so verdicts are turned to the alphabetical order of the two models first.

Where one model nearly always wins, chance agrees too: alpha falls though raters agree. Read it beside the share of
equal verdicts. Intervals resample prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reelign.errors import ReelignError
from reelign.evaluate.statistics import Interval
from reelign.feedback.comparison import plain
from reelign.feedback.resample import RESAMPLES, bounded_mean, by_prompt, interval, resampled
from reelign.feedback.vote import WORTH, Axis, Verdict, Vote, turned


@dataclass(frozen=True)
class Agreement:
    """Of the raters among themselves on one axis.

    Attributes:
        alpha: Krippendorff's, ordinal; `n` is the number of units.
        equal: share of pairs of raters who gave a pair of clips the same verdict, each pair of clips counted once.
        opposite: share of those who gave it opposite ones.
    """

    alpha: Interval
    equal: Interval
    opposite: Interval


def rater_agreement(votes: Sequence[Vote], axis: Axis, *, seed: int = 0, resamples: int = RESAMPLES) -> Agreement:
    """Alpha and plain agreement on an axis, with intervals that resample prompts.

    Raises:
        ReelignError: fewer than two prompts have a pair with plain votes of two raters, or all verdicts are the same.
    """
    units = shared_units(votes, axis)
    if not units:
        raise ReelignError(f"agreement on the axis {axis} needs pairs that two raters judged; there is none.")
    prompts = [unit[0].prompt for unit in units]
    if len(set(prompts)) < 2:
        raise ReelignError(f"agreement on the axis {axis} needs pairs of two prompts at least; there is one prompt.")
    coincidences = np.stack([_coincidences(Counter(_facing(vote) for vote in unit)) for unit in units])
    shares = coincidences / coincidences.sum((1, 2), keepdims=True)
    equal, opposite = np.trace(shares, axis1=1, axis2=2), shares[:, 0, 2] + shares[:, 2, 0]
    return Agreement(
        _alpha_interval(coincidences, prompts, axis, seed, resamples),
        bounded_mean(equal.tolist(), prompts, 0, seed=seed, resamples=resamples),
        bounded_mean(opposite.tolist(), prompts, 0, seed=seed, resamples=resamples),
    )


def krippendorff_alpha(coincidences: np.ndarray) -> np.ndarray:
    """Ordinal alpha of matrices of coincidences (..., 3, 3); nan where only one verdict was ever given."""
    marginal = coincidences.sum(-1)
    total = marginal.sum(-1)
    middle = np.cumsum(marginal, -1) - marginal / 2
    distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    by_chance = marginal[..., :, None] * marginal[..., None, :] / (total - 1)[..., None, None]
    expected = (by_chance * distance).sum((-2, -1))
    observed = (coincidences * distance).sum((-2, -1))
    return 1 - observed / np.where(expected > 0, expected, np.nan)


def shared_units(votes: Sequence[Vote], axis: Axis) -> list[list[Vote]]:
    """The plain votes of each pair of clips that several raters judged; of one rater only the last vote on a pair."""
    units: dict[str, dict[str, Vote]] = defaultdict(dict)
    for vote in plain(votes, axis):
        units[vote.pair][vote.rater] = vote
    return [list(unit.values()) for unit in units.values() if len(unit) > 1]


def _facing(vote: Vote) -> Verdict:
    """The verdict seen from the model whose name, or else clip, comes first in the alphabet."""
    sides = ((vote.a.model, vote.a.clip), (vote.b.model, vote.b.clip))
    return vote.verdict if sides[0] <= sides[1] else turned(vote.verdict)


def _coincidences(count: Mapping[Verdict, int]) -> np.ndarray:
    """Pairs of verdicts inside a unit of m values, each unit weighing m: bad, same, good."""
    n = np.array([count.get(verdict, 0) for verdict in sorted(WORTH, key=lambda verdict: WORTH[verdict])], float)
    return (np.outer(n, n) - np.diag(n)) / (n.sum() - 1)


def _alpha_interval(
    coincidences: np.ndarray, prompts: Sequence[str], axis: Axis, seed: int, resamples: int
) -> Interval:
    value = float(krippendorff_alpha(coincidences.sum(0)))
    if np.isnan(value):
        raise ReelignError(f"all verdicts on the axis {axis} are the same: there is nothing to agree about.")
    of_prompt = by_prompt(coincidences, prompts)
    drawn = krippendorff_alpha(resampled(of_prompt, seed, resamples))
    return interval(value, drawn, len(of_prompt), len(coincidences))
