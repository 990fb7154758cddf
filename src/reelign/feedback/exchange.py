"""Votes come in and go out: whatever file a person has is read by what it holds, not by its name.

| layout | read | written |
| --- | --- | --- |
| JSON lines of votes (`feedback/vote.py`), lossless | yes | `write_votes` |
| CSV of VideoAlign and VideoGen-RewardBench (`videoalign_csv.py`), preference data for reward training | yes | yes |
| label-studio JSON (`label_studio.py`) | yes | yes |
| GenAI-Bench `data.json` (arXiv 2406.04485) | yes | no |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from reelign.errors import ReelignError
from reelign.feedback.imported import UNKNOWN, Imported, LeftOut, found_at, named_from
from reelign.feedback.label_studio import is_label_studio, read_label_studio, write_label_studio
from reelign.feedback.videoalign_csv import is_videoalign, read_videoalign, write_videoalign
from reelign.feedback.vote import Shown, Verdict, Vote, read_votes, write_votes

EXPECTED = (
    "expected JSON lines of votes, a CSV with the columns path_A, path_B, prompt and VQ, MQ, TA or Overall "
    '(VideoAlign), tasks of label-studio ([{"data": ..., "annotations": ...}]), or data.json of GenAI-Bench '
    '([{"video_left": ..., "video_right": ..., "vote_type": ...}])'
)
GENAI_BENCH: dict[str, Verdict] = {
    "leftvote": "good",
    "rightvote": "bad",
    "tievote": "same",
    "bothbad_vote": "same",
}


def read_any(path: Path) -> list[Vote]:
    """The votes of a file of any layout.

    Raises:
        ReelignError: it is none of them, holds no vote, or has rows that are none; `import_votes` reads the others.
    """
    return import_votes(path).all_votes(path)


def import_votes(path: Path) -> Imported:
    """The votes of a file of any layout, with a reason for each row that is none.

    Raises:
        ReelignError: the file cannot be read or is of no known layout, or a line of JSON lines is no vote.
    """
    text = _text(path)
    if is_videoalign(text):
        return read_videoalign(path, text)
    first = text.lstrip()[:1]
    if first == "{" and _is_vote(text.lstrip().splitlines()[0]):
        return Imported("JSON lines of votes", read_votes(path), [], [])
    rows = _rows(path, text) if first == "[" else []
    if is_label_studio(rows):
        return read_label_studio(path, rows)
    if rows and "vote_type" in rows[0]:
        return _read_genai_bench(path, rows)
    raise ReelignError(f"{path} holds no votes that are known here: {EXPECTED}.")


def export_votes(path: Path, votes: Sequence[Vote], form: Literal["jsonl", "videoalign", "label-studio"]) -> list[str]:
    """Write votes; clips are named as seen from the file.

    Returns:
        What the layout cannot say of them, in sentences.
    """
    if form == "videoalign":
        absent = write_videoalign(path, votes)
        others = sum(vote.kind != "plain" for vote in votes)
        notes = [f"{others} gold and repeated votes are left out: this layout has no word for them."] if others else []
        return notes + [f"{clip} is not here: its frame rate and count are left empty." for clip in absent]
    if form == "label-studio":
        write_label_studio(path, votes)
        return []
    sides = [[Shown(side.model, named_from(path, side.clip)) for side in (vote.a, vote.b)] for vote in votes]
    write_votes(path, [replace(vote, a=a, b=b) for vote, (a, b) in zip(votes, sides, strict=True)])
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ReelignError(f"cannot read the votes {path}: {error}") from error


def _is_vote(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "verdict" in row


def _rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ReelignError(f"{path} is no valid JSON: {error}") from error
    return rows if all(isinstance(row, dict) for row in rows) else []


def _read_genai_bench(path: Path, rows: Sequence[Mapping[str, Any]]) -> Imported:
    """One overall vote a row; models are not named."""
    votes, left_out, bad = [], [], 0
    for number, row in enumerate(rows, 1):
        missing = [name for name in ("prompt", "video_left", "video_right", "vote_type") if not row.get(name)]
        if missing or row["vote_type"] not in GENAI_BENCH:
            why = f"no {', '.join(missing)}" if missing else f"vote_type is {row['vote_type']!r}"
            left_out.append(LeftOut(f"entry {number}", why))
            continue
        bad += row["vote_type"] == "bothbad_vote"
        left, right = (Shown(UNKNOWN, found_at(path, str(row[side]))) for side in ("video_left", "video_right"))
        votes.append(
            Vote(
                str(row.get("id", number)), str(row["prompt"]), left, right, "overall", GENAI_BENCH[row["vote_type"]],
                f"{UNKNOWN}-1", float("nan"), "a", "plain", "person",
            )
        )  # fmt: skip
    notes = [f'{bad} votes of "both bad" are read as "same": a vote has no such verdict.'] if bad else []
    return Imported("GenAI-Bench data.json", votes, left_out, notes)
