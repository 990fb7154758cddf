"""What held-out votes say of a fitted reward: agreement with and without ties, calibration, and by whose votes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from reelign.errors import ReelignError
from reelign.evaluate.statistics import Interval
from reelign.feedback.calibration import Calibration, calibration
from reelign.feedback.judges import JudgeAgreement, Scores, judge_agreement
from reelign.feedback.vote import Axis, Vote
from reelign.files import write_atomically
from reelign.stages.reward_data import Ballot

VERDICT = "agreement.json"
CHANCE = 0.5


@dataclass(frozen=True)
class AxisVerdict:
    """Of one axis: agreement over all held-out votes, over the votes of each source and pair of models, and whether
    probabilities are meant."""

    agreement: JudgeAgreement
    parts: dict[str, JudgeAgreement]
    calibration: Calibration

    @property
    def usable(self) -> bool:
        """Whether the interval of the accuracy lies above chance."""
        found = self.agreement.without_ties
        return found is not None and found.low > CHANCE


@dataclass(frozen=True)
class Verdict:
    """Of all axes, with the numbers of votes that taught and tested, and their sources."""

    axes: dict[Axis, AxisVerdict]
    training_votes: int
    test_votes: int
    sources: dict[str, int]

    @property
    def usable(self) -> dict[Axis, bool]:
        """Which axes are."""
        return {axis: found.usable for axis, found in self.axes.items()}

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Agreement without ties by axis, as the card has it."""
        return {axis: _interval(found.agreement.without_ties) for axis, found in self.axes.items()}


def judged(
    votes: Sequence[Vote],
    axes: Sequence[Axis],
    scores: Scores,
    ballots: Sequence[Ballot],
    foreseen: Tensor,
    training_votes: int,
) -> Verdict:
    """Compare with the held-out votes what the reward says.

    Args:
        votes: the held-out ones.
        axes: what is judged.
        scores: of their clips.
        ballots: the same votes as the reward is fitted to them.
        foreseen: (B, axes, 3), what it said of each ballot: A better, the same, B better.
        training_votes: those that taught it.
    """
    found: dict[Axis, AxisVerdict] = {}
    for place, axis in enumerate(axes):
        rows = [vote for vote in votes if vote.axis == axis]
        whole = judge_agreement(rows, axis, scores)
        if whole is None:
            raise ReelignError(f"no held-out vote is on {axis!r}; hold out more prompts, or leave the axis out.")
        parts = {name: judge_agreement(chosen, axis, scores) for name, chosen in _parts(rows).items()}
        said = [(ballot.worths[place], row) for ballot, row in zip(ballots, foreseen[:, place], strict=True)]
        given = [(int(worth), row) for worth, row in said if not worth.isnan()]
        found[axis] = AxisVerdict(
            whole,
            {name: part for name, part in parts.items() if part is not None},
            calibration(torch.stack([row for _, row in given]).double().numpy(), [worth for worth, _ in given]),
        )
    return Verdict(found, training_votes, len(votes), dict(Counter(vote.source for vote in votes)))


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Write `agreement.json` for the report."""
    write_atomically(folder / VERDICT, json.dumps(asdict(verdict) | {"usable": verdict.usable}, indent=1))


def _parts(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    """The votes of each source, and on each two models; both are said only where there are several."""
    sources, models = defaultdict[str, list[Vote]](list), defaultdict[str, list[Vote]](list)
    for vote in votes:
        sources[f"votes: {vote.source}"].append(vote)
        models[" and ".join(sorted({vote.a.model, vote.b.model}))].append(vote)
    return {name: rows for kinds in (sources, models) if len(kinds) > 1 for name, rows in kinds.items()}


def _interval(found: Interval | None) -> dict[str, float]:
    return asdict(found) if found is not None else {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}
