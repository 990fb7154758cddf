"""Human feedback in the report of a run: who voted on what, and how far the reward that was fitted to it agrees.

Both are read from what the stages `votes` and `reward` left; nothing is judged again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelign.errors import ReelignError
from reelign.feedback.comparison import axes_of, models_of, plain
from reelign.feedback.vote import Vote, read_votes
from reelign.stages.reward_verdict import VERDICT
from reelign.stages.votes import PAGE, VOTES

SMALLEST, LARGEST = 0.4, 1.6
"""Diameter in rem of the dots of a bin without votes, and of one with all."""


def votes_of(folder: Path) -> dict[str, Any] | None:
    """What the stage `votes` collected; None where it has not.

    Raises:
        ReelignError: the file of votes is damaged.
    """
    path = folder / VOTES
    return _counted(read_votes(path), (folder / PAGE).exists()) if path.exists() else None


def reward_of(folder: Path) -> dict[str, Any] | None:
    """What held-out votes say of the fitted reward; None where none has been fitted.

    Raises:
        ReelignError: the file of the verdict is damaged.
    """
    path = folder / VERDICT
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            "training_votes": found["training_votes"],
            "test_votes": found["test_votes"],
            "sources": found["sources"],
            "axes": {axis: _axis(row) | {"usable": found["usable"][axis]} for axis, row in found["axes"].items()},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ReelignError(f"{path} is damaged or unreadable: {what}") from error


@dataclass(frozen=True)
class Dot:
    """A bin of a reliability diagram: place in percent from the left and the top, diameter in rem, and its words."""

    left: float
    top: float
    size: float
    words: str


def reliability(bins: Sequence[Mapping[str, float]]) -> list[Dot]:
    """The bins of an axis where the diagram shows them: promised to the right, what came upwards."""
    total = sum(found["votes"] for found in bins)
    return [
        Dot(
            round(100 * found["promised"], 2),
            round(100 - 100 * found["came"], 2),
            round(SMALLEST + (LARGEST - SMALLEST) * (found["votes"] / total) ** 0.5, 2),
            f"{found['promised']:.0%} promised, {found['came']:.0%} came, {found['votes']} votes",
        )
        for found in bins
    ]


def _counted(votes: Sequence[Vote], page: bool) -> dict[str, Any]:
    asked = [vote for vote in votes if vote.kind == "plain"]
    sources = Counter(vote.source for vote in votes)
    return {
        "votes": len(votes),
        "kinds": dict(Counter(vote.kind for vote in votes)),
        "sources": dict(sources),
        "simulated_share": sources["simulated"] / len(votes),
        "pairs": len({vote.pair for vote in asked}),
        "prompts": len({vote.prompt for vote in asked}),
        "raters": len({(vote.source, vote.rater) for vote in votes}),
        "models": models_of(asked),
        "axes": {
            axis: {"votes": len(own), "ties": sum(vote.verdict == "same" for vote in own) / len(own)}
            for axis in axes_of(votes)
            if (own := plain(votes, axis))
        },
        "page": page,
    }


def _axis(row: Mapping[str, Any]) -> dict[str, Any]:
    """One axis of `agreement.json`, as flat as a reader wants it."""
    calibration = row["calibration"]
    return _agreement(row["agreement"]) | {
        "parts": {name: _agreement(part) for name, part in row["parts"].items()},
        "calibration_error": calibration["error"],
        "nll": calibration["nll"],
        "chance": calibration["chance"],
        "bins": calibration["bins"],
    }


def _agreement(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"accuracy": found["without_ties"], "accuracy_with_ties": found["with_ties"], "votes": found["votes"]}
