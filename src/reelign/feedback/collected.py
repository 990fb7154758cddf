"""The votes of a study, or of a file of any known layout."""

from __future__ import annotations

from pathlib import Path

from reelign.errors import ReelignError
from reelign.feedback.exchange import read_any
from reelign.feedback.vote import Vote


def collected(place: Path) -> list[Vote]:
    """All votes, at least one.

    Raises:
        ReelignError: there is nothing, or neither a study nor a file of votes, or it holds no vote.
    """
    if not place.exists():
        raise ReelignError(f"there is no study and no file of votes {place}.")
    if not place.is_dir():
        return read_any(place)
    from reelign.feedback.study import open_study  # files of votes are read without the extra `feedback`

    study = open_study(place)
    try:
        votes = study.votes()
    finally:
        study.store.database.close()
    if not votes:
        raise ReelignError(f"nobody has voted in {place} yet. Raters vote while this runs: reelign judge serve {place}")
    return votes
