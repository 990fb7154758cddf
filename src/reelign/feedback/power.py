"""How many more pairs would show a difference: the power of a net GSB.

Let a vote be +1, 0 or -1 with net g and a share t of ties. Its variance is (1 - t) - g^2, and the mean of n votes has
the variance D ((1 - t) - g^2) / n, where the design effect D >= 1 is what votes of one prompt repeat of each other
(Kish 1965). A net of g is found at the level of 5 %, two-sided, with a probability of 80 % when

    n = D ((1 - t) - g^2) (1.960 + 0.842)^2 / g^2

Ties and D are those of the votes so far, D being the variance of the mean over prompts by that of independent votes.
The study is thought to go on as it began, with as many votes a pair and pairs a prompt. For one axis; Holm's correction
over several asks for more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from reelign.errors import ReelignError
from reelign.feedback.comparison import between
from reelign.feedback.vote import Axis, Vote

LEVEL = 0.05
POWER = 0.8
POINTS = 10.0


@dataclass(frozen=True)
class Power:
    """What it takes to see a difference.

    Attributes:
        points: the net GSB to be seen, in hundredths.
        pairs: there are so many with votes.
        more_pairs: so many more are needed; 0 when there are enough, None when the votes cannot say.
        ties: share of ties so far.
        design_effect: how many votes count as one independent vote; None when the votes cannot say.
    """

    points: float
    pairs: int
    more_pairs: int | None
    ties: float
    design_effect: float | None

    @property
    def words(self) -> str:
        """For people."""
        if self.more_pairs is None:
            return f"these votes cannot say how many pairs show {self.points:g} points"
        if not self.more_pairs:
            return f"enough pairs to see {self.points:g} points"
        return f"{self.more_pairs:,} more pairs to see {self.points:g} points"


def power(votes: Sequence[Vote], a: str, b: str, axis: Axis, points: float = POINTS) -> Power:
    """How many more pairs of models `a` and `b` show a net GSB of `points` on an axis.

    Raises:
        ReelignError: there is no such vote, or `points` is not in (0, 100).
    """
    rows = between(votes, a, b, axis)
    if not rows:
        raise ReelignError(f"no plain vote compares {a!r} with {b!r} on the axis {axis}.")
    worths = np.array([worth for _, worth in rows], float)
    pairs, ties = len({vote.pair for vote, _ in rows}), float((worths == 0).mean())
    effect = design_effect(worths, [vote.prompt for vote, _ in rows])
    needed = None if effect is None else votes_needed(points, ties, effect)
    more = None if needed is None else max(0, math.ceil(pairs * needed / len(rows)) - pairs)
    return Power(points, pairs, more, ties, effect)


def votes_needed(points: float, ties: float, effect: float = 1.0) -> float:
    """Votes that show a net GSB of `points`, with a share of ties and a design effect (the formula above).

    Raises:
        ReelignError: `points` is not in (0, 100): where 100 of 100 votes agree there is nothing to plan.
    """
    if not 0 < points < 100:
        raise ReelignError(f"a net GSB of {points:g} points cannot be planned for: it lies between 0 and 100.")
    g = points / 100
    variance = max(1 - ties, g) - g * g  # no net of g without a share g of votes that are not ties
    return effect * variance * float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) ** 2 / g**2


def design_effect(worths: np.ndarray, prompts: Sequence[str]) -> float | None:
    """Variance of the mean over prompts, by that of as many independent votes, and 1 at least.

    Returns:
        None with one prompt or without any variance.
    """
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    independent = float(((worths - worths.mean()) ** 2).mean()) / len(worths)
    if len(number) < 2 or not independent:
        return None
    sums = np.bincount([number[prompt] for prompt in prompts], weights=worths - worths.mean())
    clustered = float((sums**2).sum()) / len(worths) ** 2 * len(number) / (len(number) - 1)
    return max(1.0, clustered / independent)
