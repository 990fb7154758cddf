"""What reading votes of another layout gives: the votes, and a reason for each row that is none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from reelign.errors import ReelignError
from reelign.feedback.vote import Vote, missing_clips

UNKNOWN = "unknown"
"""Models and raters of files that do not name them."""
SAID = 5
"""Rows that an error spells out."""


@dataclass(frozen=True)
class LeftOut:
    """A row that gave no vote: where it stands, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """Votes of a file.

    Attributes:
        layout: what the file is.
        votes: those that could be read.
        left_out: rows, or parts of them, that could not.
        notes: what else a reader should know.
    """

    layout: str
    votes: list[Vote]
    left_out: list[LeftOut]
    notes: list[str]

    @property
    def absent(self) -> list[str]:
        """Clips that votes name and that are not on this disk."""
        return missing_clips(self.votes)

    def all_votes(self, path: Path) -> list[Vote]:
        """The votes.

        Raises:
            ReelignError: a row was left out, or there is no vote.
        """
        if self.left_out:
            said = "; ".join(f"{row.where}: {row.reason}" for row in self.left_out[:SAID])
            more = f"; and {len(self.left_out) - SAID} more" if len(self.left_out) > SAID else ""
            raise ReelignError(f"{path} ({self.layout}) has rows that are no votes: {said}{more}.")
        if not self.votes:
            raise ReelignError(f"{path} ({self.layout}) holds no vote.")
        return self.votes


def found_at(file: Path, clip: str) -> str:
    """A clip that a file names: relative to the file, as it is where it is an address or absolute."""
    return clip if "://" in clip else str(file.parent / clip)


def named_from(file: Path, clip: str) -> str:
    """The same the other way round: what the file should say."""
    if "://" in clip:
        return clip
    there, folder = Path(clip).absolute(), file.parent.absolute()
    if Path(clip).is_absolute() and not there.is_relative_to(folder):
        return clip
    return Path(os.path.relpath(there, folder)).as_posix()
