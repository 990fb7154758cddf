"""Votes as a reward is fitted to them: one ballot for each rater and pair, and clips as the network sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reelign.data.clip import read_clip
from reelign.feedback.vote import Axis, Vote
from reelign.rewards.base import fit
from reelign.rewards.preference import PreferenceNetwork


@dataclass(frozen=True)
class Side:
    """A clip's file and the words that both clips of its pair should show."""

    clip: str
    prompt: str


@dataclass(frozen=True)
class Ballot:
    """What one rater said of one pair.

    Attributes:
        a, b: the clips.
        worths: (axes,) float: +1 where A was better, 0 for the same, -1 where B was, nan where nothing was said.
    """

    a: Side
    b: Side
    worths: Tensor

    @property
    def count(self) -> int:
        """Votes on it."""
        return int((~self.worths.isnan()).sum())


def ballots_of(votes: Sequence[Vote], axes: Sequence[Axis]) -> list[Ballot]:
    """One ballot for each rater, pair and hour of voting, in the votes' order."""
    found: dict[tuple[str, str, float], tuple[Vote, list[float]]] = {}
    for vote in votes:
        key = (vote.pair, vote.rater, vote.at)
        _, worths = found.setdefault(key, (vote, [float("nan")] * len(axes)))
        worths[axes.index(vote.axis)] = float(vote.worth)
    return [
        Ballot(Side(vote.a.clip, vote.prompt), Side(vote.b.clip, vote.prompt), torch.tensor(worths))
        for vote, worths in found.values()
    ]


class SeenClips:
    """Clips as a network sees them, read when they are asked for; as many are kept as fit into `room` bytes, beside
    those that were `read` before."""

    def __init__(self, network: PreferenceNetwork, room: int, read: Mapping[Side, dict[str, Tensor]]) -> None:
        self.network, self.room = network, room
        self.kept = dict(read)

    def __call__(self, sides: Sequence[Side]) -> list[dict[str, Tensor]]:
        """What the network's `read` says of each.

        Raises:
            ReelignError: a clip is missing or damaged.
        """
        return [self.kept.get(side) or self._read(side) for side in sides]

    def _read(self, side: Side) -> dict[str, Tensor]:
        clip = replace(read_clip(Path(side.clip), side.prompt), id=side.clip)
        [seen] = self.network.read([fit(clip, self.network.needs)])
        size = sum(value.numel() * value.element_size() for value in seen.values())
        if size <= self.room:
            self.room -= size
            self.kept[side] = seen
        return seen
