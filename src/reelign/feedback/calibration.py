"""Whether a model of votes means the probabilities that it names.

Of the votes to which it gives 70 %, 70 % should come true. Votes are sorted into bins by the probability of "A is
better"; the expected calibration error is the mean distance between what a bin was promised and what came, weighted by
votes (Guo et al. 2017, arXiv 1706.04599, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Votes of similar promise: the mean probability of "A is better", the share that came, and their number."""

    promised: float
    came: float
    votes: int


@dataclass(frozen=True)
class Calibration:
    """Of one axis.

    Attributes:
        error: expected calibration error, in [0, 1].
        nll: mean negative log-likelihood of the votes, ties included, in nats.
        chance: that of a model which names the shares of the three verdicts for every pair.
        bins: the reliability diagram; bins without votes are left out.
    """

    error: float
    nll: float
    chance: float
    bins: tuple[Bin, ...]


def calibration(probabilities: np.ndarray, worths: Sequence[int]) -> Calibration:
    """Compare what was promised with what came.

    Args:
        probabilities: (N, 3) of A better, the same, B better; each row sums to 1.
        worths: of the votes: +1, 0 or -1.

    Raises:
        ValueError: no votes, or shapes that do not fit.
    """
    said = np.asarray(worths)
    if not said.size or probabilities.shape != (len(said), 3):
        raise ValueError(f"calibration needs (N, 3) for N votes, got {probabilities.shape} for {len(said)}")
    column = 1 - said
    of_vote = probabilities[np.arange(len(said)), column]
    shares = np.bincount(column, minlength=3) / len(said)
    promised, came = probabilities[:, 0], said == 1
    place = np.minimum((promised * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(float(promised[inside].mean()), float(came[inside].mean()), int(inside.sum()))
        for number in range(BINS)
        if (inside := place == number).any()
    )
    return Calibration(
        error=float(sum(found.votes * abs(found.promised - found.came) for found in bins) / len(said)),
        nll=float(-np.log(np.maximum(of_vote, 1e-12)).mean()),
        chance=float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()),
        bins=bins,
    )
