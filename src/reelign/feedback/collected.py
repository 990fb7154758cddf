"""The votes of a study, or of a file of any known layout."""

from __future__ import annotations

from pathlib import Path

from reelign.feedback.exchange import read_any
from reelign.feedback.study import open_study
from reelign.feedback.vote import Vote


def collected(place: Path) -> list[Vote]:
    """All votes.

    Raises:
        ReelignError: it is neither a study nor a file of votes, or holds none.
    """
    if not place.is_dir():
        return read_any(place)
    study = open_study(place)
    try:
        return study.votes()
    finally:
        study.store.database.close()
