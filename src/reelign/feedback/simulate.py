"""A simulated rater, so that a study can be tried before people are asked, and its statistics tested.

It knows the scores of both clips and votes as a noisy, tie-aware Bradley-Terry rater (Rao and Kupper, Journal of the
American Statistical Association 62, 1967; the model behind the reward of arXiv 2501.13918, with k = 5 there):

    D = (score A - score B) / temperature + the pull to the left
    P(A better) = sigmoid(D - log k)        P(B better) = sigmoid(-D - log k)        P(same) = the rest

Its votes bear `source = "simulated"` and the names "simulated-1", "simulated-2", ...: nobody may take them for people.
A vote is a function of the seed, the pair, the kind and the rater, whatever else is asked and in whatever order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import ReelignError
from reelign.feedback.judges import Scores
from reelign.feedback.vote import AXES, VERDICTS, Axis, Kind, Shown, Side, Verdict, Vote

CLIENT = "simulation"


class RaterConfig(BaseModel):
    """How a simulated rater votes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=0.1, gt=0, description="difference of scores that multiplies the odds by e")
    k: float = Field(
        default=2.0, ge=1, description="how wide ties are: between equal clips their share is (k - 1) / (k + 1)"
    )
    left_bias: float = Field(default=0.0, description="logits by which the clip on the left is preferred")
    lapse: float = Field(
        default=0.0, ge=0, le=1, description="share of votes that are one of the three verdicts at random"
    )
    seconds: float = Field(
        default=6.0, gt=0, description="median time of a vote; times are log-normal, a factor of 1.5 wide"
    )


@dataclass(frozen=True)
class ScoredPair:
    """Two clips of a prompt whose scores are known.

    Attributes:
        id: of the pair.
        prompt: what both should show.
        a, b: the clips.
        scores_a, scores_b: by axis; "overall" is the mean of the others where it is not given.
    """

    id: str
    prompt: str
    a: Shown
    b: Shown
    scores_a: Mapping[str, float]
    scores_b: Mapping[str, float]

    @property
    def gaps(self) -> dict[Axis, float]:
        """Score of A less that of B, on each axis.

        Raises:
            ReelignError: the two have not the same axes, one is none of a vote's, or a score is not finite.
        """
        one, other = (_with_overall(self.id, scores) for scores in (self.scores_a, self.scores_b))
        if one.keys() != other.keys():
            raise ReelignError(f"the clips of the pair {self.id!r} were not scored on the same axes.")
        return {axis: one[axis] - other[axis] for axis in AXES if axis in one}


@dataclass(frozen=True)
class NoiseCeiling:
    """What a judge that knows the gold scores reaches on such votes: no judge can be expected to pass it."""

    without_ties: float
    with_ties: float


@dataclass(frozen=True)
class SimulatedRater:
    """One rater.

    Attributes:
        name: starts with "simulated".
        config: how it votes.
        seed: of the whole simulation.
    """

    name: str
    config: RaterConfig
    seed: int

    def __post_init__(self) -> None:
        if not self.name.startswith("simulated"):
            raise ReelignError(f"the rater {self.name!r} is simulated, and its name must start so.")

    def votes(
        self, pair: ScoredPair, kind: Kind = "plain", expected: Verdict | None = None, left: Side | None = None
    ) -> list[Vote]:
        """One vote on each scored axis; the left side is drawn unless it is given."""
        generator = np.random.default_rng(_key(self.seed, pair.id, kind, self.name))
        shown: Side = left or get_args(Side)[generator.integers(2)]
        seconds = self.config.seconds * 1.5 ** generator.standard_normal()
        return [
            Vote(
                pair.id, pair.prompt, pair.a, pair.b, axis, VERDICTS[_drawn(generator, gap, shown, self.config)],
                self.name, round(float(seconds), 3), shown, kind, "simulated", client=CLIENT, expected=expected,
            )
            for axis, gap in pair.gaps.items()
        ]  # fmt: skip


def simulated_votes(pairs: Sequence[ScoredPair], raters: int, config: RaterConfig, seed: int = 0) -> list[Vote]:
    """Plain votes of several raters of one kind on all pairs and axes.

    Raises:
        ReelignError: fewer than one rater, or scores that cannot be used.
    """
    if raters < 1:
        raise ReelignError(f"a simulated study needs a rater at least, not {raters}.")
    people = [SimulatedRater(f"simulated-{number}", config, seed) for number in range(1, raters + 1)]
    return [vote for pair in pairs for person in people for vote in person.votes(pair)]


def expected_accuracy(pairs: Iterable[ScoredPair], config: RaterConfig) -> dict[Axis, NoiseCeiling]:
    """For each axis the agreement with such raters of a judge that knows the gold scores, sides shown at random.

    Without ties it names the better clip; with ties it names the likeliest verdict. Expected shares of votes.
    """
    ceilings = {}
    for axis, found in _likely(pairs, config).items():
        p = np.stack([row for _, row in found])
        decided = p[:, 0] + p[:, 2]
        better = np.maximum(p[:, 0], p[:, 2]).sum() / decided.sum()
        ceilings[axis] = NoiseCeiling(float(better), float(p.max(1).mean()))
    return ceilings


def expected_agreement(pairs: Iterable[ScoredPair], scores: Scores, config: RaterConfig) -> dict[Axis, float]:
    """For each axis the share of such raters' decided votes whose sign is that of the difference of a judge's scores,
    as `feedback.judges` counts it, were there infinitely many raters: free of the luck of the draw of votes."""
    agreement = {}
    for axis, found in _likely(pairs, config).items():
        p = np.stack([row for _, row in found])
        gaps = np.array([scores[pair.a.clip][axis] - scores[pair.b.clip][axis] for pair, _ in found])
        right = np.where(gaps > 0, p[:, 0], 0.0) + np.where(gaps < 0, p[:, 2], 0.0)
        agreement[axis] = float(right.sum() / (p[:, 0] + p[:, 2]).sum())
    return agreement


def _likely(pairs: Iterable[ScoredPair], config: RaterConfig) -> dict[Axis, list[tuple[ScoredPair, np.ndarray]]]:
    """By axis, each pair with the probabilities of good, same and bad, sides shown at random."""
    likely: dict[Axis, list[tuple[ScoredPair, np.ndarray]]] = {}
    for pair in pairs:
        for axis, gap in pair.gaps.items():
            p = np.mean([_probabilities(gap, side, config) for side in get_args(Side)], 0)
            likely.setdefault(axis, []).append((pair, p))
    return likely


def _probabilities(gap: float, left: Side, config: RaterConfig) -> np.ndarray:
    """Of good, same and bad."""
    d = gap / config.temperature + (config.left_bias if left == "a" else -config.left_bias)
    width = math.log(config.k)
    good, bad = (0.5 * (1 + math.tanh((side * d - width) / 2)) for side in (1, -1))
    sure = np.array([good, max(0.0, 1 - good - bad), bad])
    return (1 - config.lapse) * sure + config.lapse / 3


def _drawn(generator: np.random.Generator, gap: float, left: Side, config: RaterConfig) -> int:
    return min(2, int(np.searchsorted(np.cumsum(_probabilities(gap, left, config)), generator.random(), side="right")))


def _with_overall(pair: str, scores: Mapping[str, float]) -> dict[str, float]:
    if not scores or any(axis not in AXES or not math.isfinite(value) for axis, value in scores.items()):
        raise ReelignError(f"the scores of the pair {pair!r} are {dict(scores)}: finite numbers for {', '.join(AXES)}.")
    return {"overall": math.fsum(scores.values()) / len(scores), **scores}


def _key(*parts: object) -> list[int]:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.frombuffer(digest, np.uint32).tolist()
