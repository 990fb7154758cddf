"""Active pairing: of all pairs that could be shown next, those whose outcome a fitted reward is least sure of.

A pair is worth showing where the reward's opinions differ about it. The verdict that everybody expects teaches little,
and so does one that nobody could foresee.
"""

from __future__ import annotations

from pathlib import Path

from reelign.feedback.study import Study


def least_sure(study: Study, reward: Path) -> dict[str, float]:
    """How much a vote on each pair of a study would teach the reward: by id of the pair."""
    raise NotImplementedError
