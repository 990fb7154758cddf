"""A vote: what one rater said of two clips of one prompt, on one axis, with all that is needed to believe it.

Votes travel as JSON lines, one vote a line, fields as they are named here; paths of clips are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from reelign.errors import ReelignError
from reelign.files import write_atomically

Axis = Literal["visual", "motion", "text", "overall"]
Verdict = Literal["good", "same", "bad"]
Side = Literal["a", "b"]
Kind = Literal["plain", "gold", "repeat"]
Source = Literal["person", "simulated", "model"]

AXES: tuple[Axis, ...] = get_args(Axis)
"""VQ, MQ and TA of the literature (arXiv 2501.13918), and the whole."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
WORTH: dict[Verdict, int] = {"good": 1, "same": 0, "bad": -1}
"""A verdict as a number: +1 where A is better."""


@dataclass(frozen=True)
class Shown:
    """One side of a pair.

    Attributes:
        model: who made the clip, as the study calls it.
        clip: its file.
    """

    model: str
    clip: str


@dataclass(frozen=True)
class Vote:
    """One verdict.

    Attributes:
        pair: id of the pair; raters who see the same two clips vote on the same pair, and so does a hidden repeat.
        prompt: what both clips should show.
        a, b: the two sides, in the pair's order and not in the order shown.
        axis: what was judged.
        verdict: "good" when A is better, "bad" when B is.
        rater: who voted; a name without meaning outside the study.
        seconds: from the moment the pair was seen to the vote; nan when it is not known.
        left: which side was shown on the left.
        kind: "gold" when the answer was known beforehand, "repeat" when the rater had voted on this pair before.
        source: a person, a simulation or a model. Nothing else tells them apart: it is never left out.
        at: seconds since 1970 (UTC); 0 when it is not known.
        client: what the rater used, for example the browser.
        expected: the known answer of a gold vote.
    """

    pair: str
    prompt: str
    a: Shown
    b: Shown
    axis: Axis
    verdict: Verdict
    rater: str
    seconds: float
    left: Side
    kind: Kind
    source: Source
    at: float = 0.0
    client: str = ""
    expected: Verdict | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("axis", AXES), ("verdict", VERDICTS), ("left", get_args(Side))):
            if getattr(self, name) not in allowed:
                raise ReelignError(f"the vote on {self.pair!r}: {name} is {getattr(self, name)!r}, not {allowed}.")
        for name, allowed in (("kind", get_args(Kind)), ("source", get_args(Source))):
            if getattr(self, name) not in allowed:
                raise ReelignError(f"the vote on {self.pair!r}: {name} is {getattr(self, name)!r}, not {allowed}.")

    @property
    def worth(self) -> int:
        """+1 where A is better, 0 for the same, -1 where B is better."""
        return WORTH[self.verdict]


def turned(verdict: Verdict) -> Verdict:
    """The verdict on the same two clips in the other order."""
    return {"good": "bad", "same": "same", "bad": "good"}[verdict]  # pyright: ignore[reportReturnType]


def write_votes(path: Path, votes: Iterable[Vote]) -> None:
    """Write JSON lines; a half-written file never bears the name. Clips are written as the votes name them: relative
    to the file, or absolute (`exchange.export_votes` makes them so)."""
    write_atomically(path, "".join(json.dumps(_row(vote), ensure_ascii=False) + "\n" for vote in votes))


def read_votes(path: Path) -> list[Vote]:
    """Read JSON lines of votes; the paths of clips become absolute or relative to the working directory.

    Raises:
        ReelignError: the file is missing or a line is no vote; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReelignError(f"cannot read the votes {path}: {error}") from error
    return [_vote(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def missing_clips(votes: Sequence[Vote]) -> list[str]:
    """Files of clips that votes name and that are not there."""
    named = dict.fromkeys(side.clip for vote in votes for side in (vote.a, vote.b))
    return [clip for clip in named if not Path(clip).is_file()]


def _row(vote: Vote) -> dict[str, Any]:
    row = asdict(vote)
    row["seconds"] = None if vote.seconds != vote.seconds else vote.seconds
    return row


def _vote(path: Path, number: int, line: str) -> Vote:
    try:
        row = json.loads(line)
        sides = {side: Shown(row[side]["model"], str(path.parent / row[side]["clip"])) for side in ("a", "b")}
        seconds = float("nan") if row["seconds"] is None else float(row["seconds"])
        return Vote(**{**row, **sides, "seconds": seconds})
    except (ValueError, KeyError, TypeError, ReelignError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ReelignError(f"{path}, line {number} is no vote: {what}") from error
